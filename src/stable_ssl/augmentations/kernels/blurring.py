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

SUMS = 32  # values of a row that are summed together


@intrinsic
def _sum_pairs(
    typing_context: Any, source: Any, offsets: Any, weights: Any, num_taps: Any, length: Any, out: Any
) -> Any:
    """Write `length` values of `out`: Σ over taps of weight · (source at one offset + source at the other), in float32.

    Parameters
    ----------
    source, out
        uint8 or float32, at least `length` values, and as many more as blocks of SUMS need. Sums are rounded if `out`
        is uint8.
    offsets
        (taps, 2), int64: the two places in the source for the first value; those of the next values follow one by one.
    weights
        (taps,), float32.
    num_taps, length
        int64.
    """
    check((source, "uint8 float32"), (offsets, "int64"), (weights, "float32"), (out, "uint8 float32"))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(context, builder, signature, args)
        num_taps, length = args[3:5]
        number, reals = length.type, ir.VectorType(ir.FloatType(), SUMS)
        zeros = ir.Constant(reals, [0.0] * SUMS)

        def load(place: Any) -> Any:
            if source.dtype == types.float32:
                return v.load(v.data[0], place, reals)
            return builder.zext(v.load(v.data[0], place, vector(8, SUMS)), vector(16, SUMS))

        def add(a: Any, b: Any) -> Any:
            return builder.fadd(a, b) if source.dtype == types.float32 else builder.uitofp(builder.add(a, b), reals)

        with cgutils.for_range_slice(builder, number(0), length, number(SUMS), number) as (x, _):
            total = cgutils.alloca_once(builder, reals)
            builder.store(zeros, total)
            with cgutils.for_range(builder, num_taps) as taps:
                pair = [builder.add(builder.mul(taps.index, number(2)), number(i)) for i in range(2)]
                values = [load(builder.add(x, v.load(v.data[1], at, number))) for at in pair]
                weight = v.spread(v.load(v.data[2], taps.index, reals.element), SUMS)
                more = v.call("llvm.fma.v32f32", reals, weight, add(*values), builder.load(total))
                builder.store(more, total)
            result = builder.load(total)
            if out.dtype == types.uint8:
                rounded = v.call("llvm.rint.v32f32", reals, result)
                result = builder.trunc(builder.fptosi(rounded, vector(32, SUMS)), vector(8, SUMS))
            v.store(result, v.data[5], x)
        return context.get_dummy_value()

    return types.void(source, offsets, weights, num_taps, length, out), generate


sum_pairs: Any = _sum_pairs


@kernel
def _reflect(plane: Array, radius: Number, padded: Array) -> None:
    """Write each row of a plane to `padded`, with `radius` values beside it on either side: its reflections."""
    height, width = plane.shape
    for y in range(height):
        # An index computed in the loop might be negative, and keep it from being vectorised: so slices.
        line, source = padded[y, radius:], plane[y]
        for x in range(width):
            line[x] = source[x]
        for distance in range(1, radius + 1):
            padded[y, radius - distance] = source[distance]
            line[width - 1 + distance] = source[width - 1 - distance]


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
    height, width = images.shape[2:]
    # Rows have whole vectors, and the first begins a cache line: a vector across two lines takes twice as long to read.
    stride = (width + SUMS - 1) // SUMS * SUMS
    blurred = np.empty(height * stride + 16, np.float32)
    blurred = blurred[(-blurred.ctypes.data // 4) % 16 :]
    # All rows of a plane are prepared before they are read: reading a row that was just written means waiting.
    largest = weights.shape[1] - 1
    padded = np.empty((height, stride + 2 * largest), np.uint8)
    row = np.empty(stride, np.uint8)
    beside, above = np.empty((largest + 1, 2), np.int64), np.empty((largest + 1, 2), np.int64)
    for i in range(len(images)):
        if not is_applied[i]:
            continue
        radius = radii[i]
        halved = weights[i].copy()
        halved[0] *= np.float32(0.5)  # the centre is paired with itself
        for distance in range(radius + 1):
            beside[distance] = radius - distance, radius + distance
        for channel in range(images.shape[1]):
            _reflect(images[i, channel], radius, padded)
            for y in range(height):
                sum_pairs(padded[y], beside, halved, radius + 1, width, blurred[y * stride :])
            for y in range(height):
                for distance in range(radius + 1):
                    above[distance, 0] = abs(y - distance) * stride
                    above[distance, 1] = (height - 1 - abs(height - 1 - y - distance)) * stride
                sum_pairs(blurred, above, halved, radius + 1, width, row)
                for x in range(width):
                    images[i, channel, y, x] = row[x]
