"""Resizing and blurring: sums over neighbours, in vector registers.

This, with `vectors`, is the one place with instructions of processors; plain loops would do without, with the same
results. Neighbours in a resized line come from places that are not evenly spaced, which compilers make one load a
value: x86 processors since 2013 have an instruction for it, and one to multiply and round. Sums of a number of taps
that is not known beforehand go through memory, tap by tap, where registers would hold them.
`benchmarks/augmentation.py --plain` tells what a processor without such instructions, an ARM one, say, has to do
without.

What kernels call is in the file of the kernel: numba compiles it anew when that has changed, and no other. `vectors` is
for what generates the instructions.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .kernels import kernel
from .vectors import BEST, NUM_WINDOWS, WIDTH, WINDOW, Vectors, check, vector

MAX_PRECISION = 22
# Some images are read-only: without a signature, each kind would be compiled for.
CROP = types.void(types.Array(types.uint8, 4, "C", readonly=True), types.int64[:, ::1], types.uint8[:, :, :, ::1])
SUMS = 32


@intrinsic
def _weigh(typing_context, lines, y, starts, places, weights, half, shift, out):
    """Write line `y` of `out`: (half + Σ weight · value of line `y`) >> shift.

    Parameters
    ----------
    lines, out
        (lines, length), uint8; as long as the windows, and blocks of WIDTH, that reach beyond the last value need.
    starts
        (blocks · NUM_WINDOWS,), int64: where each window begins.
    places
        (blocks, 4 · WIDTH), uint8: the first value's place in its window, anything, the second one's, anything.
    weights
        (pairs, blocks, WIDTH, 2), int16; each pair's values lie two further on than those of the pair before.
    y, half, shift
        int64.
    """
    check((lines, "uint8"), (starts, "int64"), (places, "uint8"), (weights, "int16"), (out, "uint8"))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if BEST is None:
            return context.get_dummy_value()
        v = Vectors(context, builder, signature, args)
        y, half, shift = args[1], v.spread_32(args[5]), v.spread_32(args[6])
        (num_pairs, num_blocks), number = v.shapes[4][:2], y.type
        line, target = v.line(0, y), v.line(7, y)
        low_bytes = ir.Constant(vector(16, 2 * WIDTH), [255] * (2 * WIDTH))
        with cgutils.for_range(builder, num_blocks) as blocks:
            total = cgutils.alloca_once(builder, half.type)
            builder.store(half, total)
            with cgutils.for_range(builder, num_pairs) as pairs:
                further = builder.gep(line, [builder.mul(pairs.index, number(2))])
                taken = v.take(further, blocks.index)
                values = builder.and_(builder.bitcast(taken, low_bytes.type), low_bytes)
                row = builder.add(builder.mul(pairs.index, num_blocks), blocks.index)
                factors = v.load(v.data[4], builder.mul(row, number(2 * WIDTH)), low_bytes.type)
                products = v.call(BEST.multiply, vector(32, WIDTH), values, factors)
                builder.store(builder.add(builder.load(total), products), total)
            levels = builder.trunc(builder.ashr(builder.load(total), shift), vector(8, WIDTH))
            v.store(levels, target, builder.mul(blocks.index, number(WIDTH)))
        return context.get_dummy_value()

    return types.void(lines, y, starts, places, weights, half, shift, out), generate


@intrinsic
def _blend_neighbours(typing_context, lines, y, starts, places, weights, precision, out):
    """Write line `y` of `out`: one value of line `y` times weight / 2^`precision`, and the one after it for the rest.

    Parameters
    ----------
    lines, starts, y, out
        As `_weigh`'s, but with blocks of 2 · WIDTH values.
    places
        (blocks, 4 · WIDTH), uint8: of each value, and of the one after it, in its window.
    weights
        (1, blocks, WIDTH, 2), int16: one a value.
    precision
        int64, 14 or 15 bits.
    """
    check((lines, "uint8"), (starts, "int64"), (places, "uint8"), (weights, "int16"), (out, "uint8"))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if BEST is None:
            return context.get_dummy_value()
        v = Vectors(context, builder, signature, args)
        y, number, words = args[1], args[1].type, vector(16, 2 * WIDTH)
        line, target = v.line(0, y), v.line(6, y)
        missing = v.missing_bits(args[5], words)
        low_byte, eight = (ir.Constant(words, [value] * words.count) for value in (255, 8))
        with cgutils.for_range(builder, v.shapes[4][1]) as blocks:
            at = builder.mul(blocks.index, number(words.count))
            both = builder.bitcast(v.take(line, blocks.index), words)
            a, b = builder.and_(both, low_byte), builder.lshr(both, eight)
            v.store(v.blend(a, b, v.load(v.data[4], at, words), missing), target, at)
        return context.get_dummy_value()

    return types.void(lines, y, starts, places, weights, precision, out), generate


@intrinsic
def _blend_lines(typing_context, lines, y, weight, precision, out, new_y):
    """Write line `new_y` of `out`: line `y` times `weight` / 2^`precision`, and line `y` + 1 for the rest, rounded.

    Parameters
    ----------
    lines, out
        (lines, length), uint8. As many as 2 · WIDTH - 1 values after line `new_y` are overwritten.
    y, weight, precision, new_y
        int64; the precision is 14 or 15 bits, the weight below 2^15.
    """
    check((lines, "uint8"), (out, "uint8"))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if BEST is None:
            return context.get_dummy_value()
        v = Vectors(context, builder, signature, args)
        y, weight, precision, _, new_y = args[1:]
        number, words = y.type, vector(16, 2 * WIDTH)
        line, next_line, target = v.line(0, y), v.line(0, builder.add(y, number(1))), v.line(4, new_y)
        weight = v.spread(builder.trunc(weight, words.element), words.count)
        missing = v.missing_bits(precision, words)
        with cgutils.for_range_slice(builder, number(0), v.shapes[4][1], number(words.count), number) as (x, _):
            a, b = (builder.zext(v.load(data, x, vector(8, words.count)), words) for data in (line, next_line))
            v.store(v.blend(a, b, weight, missing), target, x)
        return context.get_dummy_value()

    return types.void(lines, y, weight, precision, out, new_y), generate


@intrinsic
def _sum_pairs(typing_context, source, offsets, weights, num_taps, length, out):
    """Write `length` values of `out`: Σ_tap weight · (source at one offset + source at the other), in float32.

    Parameters
    ----------
    source, out
        (length,) and longer, so that blocks of SUMS fit; uint8 or float32. A sum that is to be uint8 is rounded.
    offsets
        (taps, 2), int64: of the first value's inputs.
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


blend_neighbours: Any = _blend_neighbours
blend_lines: Any = _blend_lines
weigh: Any = _weigh
sum_pairs: Any = _sum_pairs


@kernel
def _taps(old, new):
    """Return, for one axis, the first input of each output, the int16 weights of it and those after it (outputs, taps),
    and of how many bits their fractions are.

    The number of taps is even: the last ones may lie beyond the end, and have no weight then.
    """
    scale = old / new
    support = max(scale, 1.0)
    first = np.empty(new, np.int64)
    exact = np.zeros((new, math.ceil(support) * 2 + 2))
    largest = 0.0
    num_taps = 2
    for x in range(new):
        centre = scale * (x + 0.5)
        first[x] = max(int(centre - support + 0.5), 0)
        count = min(int(centre + support + 0.5), old) - first[x]
        num_taps = max(num_taps, count)
        total = 0.0
        for tap in range(count):
            exact[x, tap] = max(1.0 - abs((first[x] + tap - centre + 0.5) / support), 0.0)
            total += exact[x, tap]
        for tap in range(count):
            exact[x, tap] /= total
            largest = max(largest, exact[x, tap])
    # Torch rounds to as many bits as the largest weight allows in an int16.
    precision = 0
    while precision < MAX_PRECISION and int(0.5 + largest * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    num_taps += num_taps % 2
    weights = np.empty((new, num_taps), np.int16)
    for x in range(new):
        for tap in range(num_taps):
            weights[x, tap] = int(0.5 + exact[x, tap] * (1 << precision))
    return first, weights, precision


@kernel
def _windows(axis):
    """Return whether each output is a blend of two neighbours, and starts, places and weights as `blend_neighbours`
    takes them then, or else `weigh`; no weights where windows are too short for it."""
    first, weights, precision = axis
    new, num_taps = weights.shape
    is_blend = num_taps == 2 and (weights.sum(axis=1) == 1 << precision).all()
    size = 2 if is_blend else 4  # bytes that an output is made of; without vectors, nothing of this is used
    num_blocks = (new * size + 4 * WIDTH - 1) // max(4 * WIDTH, 1)
    starts = np.zeros(num_blocks * NUM_WINDOWS, np.int64)
    places = np.zeros((num_blocks, 4 * WIDTH), np.uint8)
    factors = np.zeros((num_taps // 2, num_blocks, WIDTH, 2), np.int16)
    for x in range(new):
        if WINDOW and x * size % WINDOW == 0:
            starts[x * size // WINDOW] = first[x]
        place = first[x] - starts[x * size // WINDOW] if WINDOW else 0
        if place + 1 >= WINDOW:
            return is_blend, starts, places, factors[:0]
        taken = places.reshape(-1)[x * size : (x + 1) * size]
        taken[0], taken[size // 2] = place, place + 1
        if is_blend:
            factors.reshape(-1)[x] = weights[x, 0]
            continue
        for tap in range(num_taps):
            factors[tap // 2].reshape(-1)[2 * x + tap % 2] = weights[x, tap]
    return is_blend, starts, places, factors


@kernel
def _resize_lines(lines, axis, windows, out):
    """Write to each line of `out` a value for each weight, and up to 2 · WIDTH - 1 more."""
    first, weights, precision = axis
    is_blend, starts, places, factors = windows
    half = (1 << precision) >> 1
    for y in range(len(lines)):
        if len(factors):
            if is_blend:
                blend_neighbours(lines, y, starts, places, factors, precision, out)
            else:
                weigh(lines, y, starts, places, factors, half, precision, out)
            continue
        for x in range(len(weights)):
            total, inputs = np.int32(half), lines[y, first[x] :]
            for tap in range(weights.shape[1]):
                total += np.int32(weights[x, tap]) * np.int32(inputs[tap])
            out[y, x] = np.uint8(total >> precision)


@kernel
def _resize_columns(lines, axis, out):
    """Write to `out` a line for each weight."""
    first, weights, precision = axis
    num_taps, length = weights.shape[1], out.shape[1]
    half = np.int32((1 << precision) >> 1)
    sums = np.empty(length, np.int32)
    for y in range(len(weights)):
        # Vectors may reach into lines that are written later, but not beyond the last one.
        has_space = (len(weights) - y - 1) * length >= 2 * WIDTH
        if WIDTH and has_space and num_taps == 2 and weights[y, 0] + weights[y, 1] == 1 << precision:
            blend_lines(lines, first[y], np.int64(weights[y, 0]), precision, out, y)
            continue
        sums[:] = half
        for tap in range(0, num_taps, 2):
            a, b = np.int32(weights[y, tap]), np.int32(weights[y, tap + 1])
            line_a, line_b = lines[first[y] + tap], lines[first[y] + tap + 1]
            for x in range(length):
                sums[x] += a * np.int32(line_a[x]) + b * np.int32(line_b[x])
        for x in range(length):
            out[y, x] = np.uint8(sums[x] >> precision)


@kernel
def _split(image, top, left, planes):
    """Write a box of an image (height, width · channels) to planes (channels, box height, box width)."""
    num_channels, height, width = planes.shape
    for y in range(height):
        row = image[top + y][left * num_channels : (left + width) * num_channels]
        if num_channels == 3:  # a number that is known makes it six times as fast
            for x in range(width):
                planes[0, y, x], planes[1, y, x], planes[2, y, x] = row[3 * x], row[3 * x + 1], row[3 * x + 2]
            continue
        for channel in range(num_channels):
            for x in range(width):
                planes[channel, y, x] = row[num_channels * x + channel]


@numba.njit(CROP, cache=True, error_model="numpy", nogil=True)
def crop_and_resize(images, boxes, out):
    """Resize a box of each image to the size of `out`: bilinear, antialiased.

    Torch's fixed-point arithmetic: along x first, then along y, each rounded to uint8; an axis that keeps its size is
    copied.

    Parameters
    ----------
    images
        (batch, height, width, channels).
    boxes
        (batch, 4): top, left, height, width.
    out
        (batch, channels, new height, new width); written.
    """
    num_images, old_height, _, num_channels = images.shape
    new_height, new_width = out.shape[2:]
    rows = images.reshape(num_images, old_height, -1)
    # Taps without weight reach up to as far beyond the end as it is long, and the last window further.
    largest_height, largest_width = boxes[:, 2].max(), boxes[:, 3].max()
    planes = np.empty((num_channels * largest_height, 2 * largest_width + 64), np.uint8)
    lines = np.empty(((num_channels + 1) * largest_height, new_width + 2 * WIDTH), np.uint8)
    axis = _taps(1, 1)
    known_x, known_y = [(axis, _windows(axis))], [axis]
    place_x, place_y = np.zeros(largest_width + 1, np.int64), np.zeros(largest_height + 1, np.int64)
    for i in range(num_images):
        top, left, height, width = boxes[i]
        if not place_x[width]:
            axis = _taps(width, new_width)
            place_x[width] = len(known_x)
            known_x.append((axis, _windows(axis)))
        if not place_y[height]:
            place_y[height] = len(known_y)
            known_y.append(_taps(height, new_height))
        target = lines if width == new_width else planes
        _split(rows[i], top, left, target[: num_channels * height].reshape(num_channels, height, -1)[:, :, :width])
        if width != new_width:
            axis, windows = known_x[place_x[width]]
            _resize_lines(planes[: num_channels * height], axis, windows, lines)
        for channel in range(num_channels):
            start = channel * height
            if height == new_height:
                out[i, channel] = lines[start : start + height, :new_width]
            else:
                _resize_columns(lines[start:], known_y[place_y[height]], out[i, channel])


@kernel
def gaussian_blur(images, is_applied, weights, radii):
    """Blur in place, reflecting at the borders: along x, then along y, in float32; rounded once, to the nearest.

    Parameters
    ----------
    images
        (batch, channels, height, width).
    is_applied
        (batch,), bool.
    weights
        (batch, largest radius + 1), float32: of the centre, and at each distance from it.
    radii
        (batch,): at most the last index of the weights, and below height and width.
    """
    height, width = images.shape[2:]
    # Rows of vectors, the first of which begins a cache line: reading across lines takes twice as long.
    stride = (width + SUMS - 1) // SUMS * SUMS
    blurred = np.empty(height * stride + 16, np.float32)
    blurred = blurred[(-blurred.ctypes.data // 4) % 16 :]
    # All rows of a plane with their reflections; a row that was just written would have to be waited for.
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
            for y in range(height):
                # An index computed in the loop might be negative, and keep it from being vectorised: so slices.
                line, source = padded[y, radius:], images[i, channel, y]
                for x in range(width):
                    line[x] = source[x]
                for distance in range(1, radius + 1):
                    padded[y, radius - distance] = source[distance]
                    line[width - 1 + distance] = source[width - 1 - distance]
            for y in range(height):
                sum_pairs(padded[y], beside, halved, radius + 1, width, blurred[y * stride :])
            for y in range(height):
                for distance in range(radius + 1):
                    above[distance, 0] = abs(y - distance) * stride
                    above[distance, 1] = (height - 1 - abs(height - 1 - y - distance)) * stride
                sum_pairs(blurred, above, halved, radius + 1, width, row)
                for x in range(width):
                    images[i, channel, y, x] = row[x]
