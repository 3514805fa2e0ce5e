"""The Gaussian blur: sums over neighbours, in vector registers.

The number of taps is not known beforehand. Plain loops would pass sums through memory, tap by tap; here registers hold
them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .compiling import Array, Number, kernel
from .vectors import Vectors, check, vector

SUMS = 32  # values that are summed together
ROWS = 8  # rows that are prepared before they are read: reading a row that was just written means waiting


@intrinsic
def _sum_pairs(
    typing_context: Any, source: Any, apart: Any, weights: Any, radius: Any, length: Any, out: Any, step: Any
) -> Any:
    """Write Σ over distances of weight · (value so far before + value so far after), in float32, SUMS at a time.

    Parameters
    ----------
    source
        float32: `radius` neighbours of the first value, the values, and the neighbours of the last one. Blocks of SUMS
        values may reach beyond.
    apart
        int64: from one neighbour to the next, in values of the source.
    weights
        (radius + 1,), float32: by distance; half of the centre's, which is paired with itself.
    radius, length
        int64: the largest distance; the number of values.
    out
        uint8 or float32. Sums are rounded if it is uint8.
    step
        int64: from the start of a block in `out` to that of the next.
    """
    check((source, "float32"), (weights, "float32"), (out, "uint8 float32"))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(context, builder, signature, args)
        apart, radius, length, step = args[1], args[3], args[4], args[6]
        number, reals = length.type, ir.VectorType(ir.FloatType(), SUMS)
        zeros = ir.Constant(reals, [0.0] * SUMS)
        centre = builder.mul(radius, apart)
        with cgutils.for_range_slice(builder, number(0), length, number(SUMS), number) as (x, count):
            total = cgutils.alloca_once(builder, reals)
            builder.store(zeros, total)
            middle = builder.add(x, centre)
            with cgutils.for_range(builder, builder.add(radius, number(1))) as taps:
                distance = builder.mul(taps.index, apart)
                both = [v.load(v.data[0], side(middle, distance), reals) for side in (builder.sub, builder.add)]
                weight = v.spread(v.load(v.data[2], taps.index, reals.element), SUMS)
                more = v.call(f"llvm.fma.v{SUMS}f32", reals, weight, builder.fadd(*both), builder.load(total))
                builder.store(more, total)
            result = builder.load(total)
            if out.dtype == types.uint8:
                rounded = v.call(f"llvm.rint.v{SUMS}f32", reals, result)
                result = v.as_bytes(builder.fptosi(rounded, vector(32, SUMS)))
            v.store(result, v.data[5], builder.mul(count, step))
        return context.get_dummy_value()

    return types.void(source, apart, weights, radius, length, out, step), generate


sum_pairs: Any = _sum_pairs


@kernel
def _reflect(source: Array, radius: Number, padded: Array) -> None:
    """Write a row to `padded`, with `radius` values beside it on either side: its reflections."""
    # An index computed in the loop might be negative, and keep it from being vectorised: so a slice.
    width, line = len(source), padded[radius:]
    for x in range(width):
        line[x] = np.float32(source[x])
    for distance in range(1, radius + 1):
        padded[radius - distance] = line[distance]
        line[width - 1 + distance] = line[width - 1 - distance]


@kernel
def gaussian_blur(images: Array, is_applied: Array, weights: Array, radii: Array) -> None:
    """Blur in place: along x, then along y, in float32, rounded once at the end. Borders reflect.

    Parameters
    ----------
    images
        (batch, channels, height, width).
    is_applied
        (batch,), bool.
    weights
        (batch, largest radius + 1), float32: the weight of the centre, and at each distance from it.
    radii
        (batch,): the distance of the last tap, at most the largest radius, and below height and width.
    """
    num_images, num_channels, height, width = images.shape
    num_blocks = (width + SUMS - 1) // SUMS
    largest = weights.shape[1] - 1
    padded = np.empty((ROWS, num_blocks * SUMS + 2 * largest), np.float32)
    # A plane that is blurred along x lies in columns of SUMS values, so that one stays in the nearest cache. The first
    # begins a cache line: a vector across two lines takes twice as long to read.
    length = (height + 2 * largest) * SUMS
    columns = np.empty(num_blocks * length + 16, np.float32)
    columns = columns[(-columns.ctypes.data // 4) % 16 :]
    last = np.empty((height, SUMS), np.uint8)
    for i in range(num_images):
        if not is_applied[i]:
            continue
        radius = radii[i]
        halved = weights[i].copy()
        halved[0] *= np.float32(0.5)  # the centre is paired with itself
        for channel in range(num_channels):
            plane = images[i, channel]
            for start in range(0, height, ROWS):
                end = min(start + ROWS, height)
                for y in range(start, end):
                    _reflect(plane[y], radius, padded[y - start])
                for y in range(start, end):
                    row = columns[(radius + y) * SUMS :]
                    sum_pairs(padded[y - start], 1, halved, radius, width, row, length)
            for block in range(num_blocks):
                column = columns[block * length : (block + 1) * length]
                rows = column.reshape(-1, SUMS)
                for distance in range(1, radius + 1):
                    rows[radius - distance] = rows[radius + distance]
                    rows[radius + height - 1 + distance] = rows[radius + height - 1 - distance]
                x = block * SUMS
                if x + SUMS <= width:
                    sum_pairs(column, SUMS, halved, radius, height * SUMS, plane.reshape(-1)[x:], width)
                else:
                    sum_pairs(column, SUMS, halved, radius, height * SUMS, last.reshape(-1), SUMS)
                    plane[:, x:] = last[:, : width - x]
