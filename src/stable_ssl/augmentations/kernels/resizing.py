"""Resizing: weighted sums over neighbours, in vector registers.

This file, `blurring` and `vectors` are the only ones that name instructions of processors; plain loops would give the
same results. The neighbours of a resized line come from places that are not evenly spaced. A compiler makes that one
load per value; x86 processors since 2013 have an instruction for it, and one to multiply and round.
`benchmarks/augmentation.py --plain` shows the speed without such instructions, as on an ARM processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .compiling import Array, Number, kernel
from .vectors import BEST, NUM_WINDOWS, WIDTH, WINDOW, Vectors, check, vector

MAX_PRECISION = 22
Axis: TypeAlias = tuple[Array, Array, Number]  # what `_taps` returns
Windows: TypeAlias = tuple[Number, Array, Array, Array]  # what `_windows` returns


@intrinsic
def _weigh(
    typing_context: Any, lines: Any, y: Any, starts: Any, places: Any, weights: Any, half: Any, shift: Any, out: Any
) -> Any:
    """Write line `y` of `out`: (half + Σ weight · value of line `y`) >> shift, from 0 to 255.

    Parameters
    ----------
    lines, out
        (lines, length), uint8. Windows and blocks of WIDTH values may reach beyond the last value of a line: lines must
        be long enough for that.
    y
        int64: the number of the line.
    starts
        (blocks · NUM_WINDOWS,), int64: the place in the line at which each window begins.
    places
        (blocks, 4 · WIDTH), uint8: four bytes for each result. The first and the third are the places of its first two
        values in the window; the others may be anything.
    weights
        (pairs, blocks, WIDTH, 2), int16: of the values in pairs; the values of a pair lie two places after those of the
        pair before.
    half, shift
        int64: added to the sum; the bits that the sum is shifted by.
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
            v.store(
                v.as_bytes(builder.ashr(builder.load(total), shift)), target, builder.mul(blocks.index, number(WIDTH))
            )
        return context.get_dummy_value()

    return types.void(lines, y, starts, places, weights, half, shift, out), generate


@intrinsic
def _blend_neighbours(
    typing_context: Any, lines: Any, y: Any, starts: Any, places: Any, weights: Any, precision: Any, out: Any
) -> Any:
    """Write line `y` of `out`: each value is a blend of two neighbours in line `y`.

    The first has the weight / 2^`precision`, the second the rest of 1.

    Parameters
    ----------
    lines, y, starts, out
        As for `_weigh`, but blocks have 2 · WIDTH values.
    places
        (blocks, 4 · WIDTH), uint8: the places in the window of both neighbours of each result.
    weights
        (1, blocks, WIDTH, 2), int16: one per result.
    precision
        int64: 14 or 15 bits.
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
def _blend_lines(typing_context: Any, lines: Any, y: Any, weight: Any, precision: Any, out: Any, new_y: Any) -> Any:
    """Write line `new_y` of `out`: a blend of the lines `y` and `y` + 1, rounded.

    The first has the weight `weight` / 2^`precision`, the second the rest of 1.

    Parameters
    ----------
    lines, out
        (lines, length), uint8. Up to 2 · WIDTH - 1 values after line `new_y` are overwritten.
    y, weight, precision, new_y
        int64. The precision is 14 or 15 bits, the weight at least 0 and below 2^15.
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


blend_neighbours: Any = _blend_neighbours
blend_lines: Any = _blend_lines
weigh: Any = _weigh


@kernel
def _filter(distance: Number, is_cubic: Number) -> Number:
    """Return the weight of an input at a distance from the output.

    It is a triangle, or the cubic with a = -1/2 of Keys ("Cubic convolution interpolation for digital image
    processing", IEEE TASSP, 1981).
    """
    x = abs(distance)
    if not is_cubic:
        return max(1.0 - x, 0.0)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0


@kernel
def _taps(old: Number, new: Number, is_cubic: Number) -> Axis:
    """Return what each output along one axis is made of.

    Returns
    -------
    The first input of each output (outputs,); the weights of that input and of those after it (outputs, taps), int16;
    and the bits of the weights' fractions. The number of taps is even. The last ones may lie beyond the end: then they
    have no weight.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    support = 2.0 * stretch if is_cubic else stretch
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
            exact[x, tap] = _filter((first[x] + tap - centre + 0.5) * (1.0 / stretch), is_cubic)
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
            weight = exact[x, tap] * (1 << precision)
            weights[x, tap] = int(weight - 0.5 if weight < 0 else weight + 0.5)
    return first, weights, precision


@kernel
def _windows(axis: Axis) -> Windows:
    """Return what `blend_neighbours` or `weigh` needs for one axis.

    Returns
    -------
    Whether each output is a blend of two neighbours: then the rest is for `blend_neighbours`, or else for `weigh`. Then
    starts, places and weights. There are no weights if the inputs of a block lie too far apart for its windows.
    """
    first, weights, precision = axis
    new, num_taps = weights.shape
    is_blend = num_taps == 2 and weights.min() >= 0 and (weights.sum(axis=1) == 1 << precision).all()
    size = 2 if is_blend else 4  # bytes of places per output; nothing of this is used without vectors
    num_blocks = (new * size + 4 * WIDTH - 1) // max(4 * WIDTH, 1)
    starts = np.zeros(num_blocks * NUM_WINDOWS, np.int64)
    places = np.zeros((num_blocks, 4 * WIDTH), np.uint8)
    factors = np.zeros((num_taps // 2, num_blocks, WIDTH, 2), np.int16)
    flat_places, flat_factors = places.reshape(-1), factors.reshape(num_taps // 2, -1)
    for x in range(new):
        if WINDOW and x * size % WINDOW == 0:
            starts[x * size // WINDOW] = first[x]
        place = first[x] - starts[x * size // WINDOW] if WINDOW else 0
        if place + 1 >= WINDOW:
            return is_blend, starts, places, factors[:0]
        flat_places[x * size], flat_places[x * size + size // 2] = place, place + 1
        if is_blend:
            flat_factors[0, x] = weights[x, 0]
            continue
        for tap in range(num_taps):
            flat_factors[tap // 2, 2 * x + tap % 2] = weights[x, tap]
    return is_blend, starts, places, factors


@kernel
def _resize_lines(lines: Array, axis: Axis, windows: Windows, out: Array) -> None:
    """Resize each line along x. Up to 2 · WIDTH - 1 values after a line of `out` are overwritten."""
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
            out[y, x] = np.uint8(min(max(total >> precision, 0), 255))


@kernel
def _resize_columns(lines: Array, axis: Axis, out: Array) -> None:
    """Resize along y: write a line of `out` for each row of weights."""
    first, weights, precision = axis
    num_taps, length = weights.shape[1], out.shape[1]
    half = np.int32((1 << precision) >> 1)
    sums = np.empty(length, np.int32)
    for y in range(len(weights)):
        # Vectors may reach into lines that are written later, but not beyond the last one.
        has_space = (len(weights) - y - 1) * length >= 2 * WIDTH
        a, b = np.int64(weights[y, 0]), np.int64(weights[y, 1])
        if WIDTH and has_space and num_taps == 2 and min(a, b) >= 0 and a + b == 1 << precision:
            blend_lines(lines, first[y], a, precision, out, y)
            continue
        sums[:] = half
        for tap in range(0, num_taps, 2):
            weight_a, weight_b = np.int32(weights[y, tap]), np.int32(weights[y, tap + 1])
            line_a, line_b = lines[first[y] + tap], lines[first[y] + tap + 1]
            for x in range(length):
                sums[x] += weight_a * np.int32(line_a[x]) + weight_b * np.int32(line_b[x])
        for x in range(length):
            out[y, x] = np.uint8(min(max(sums[x] >> precision, 0), 255))


@kernel
def _split(image: Array, top: Number, left: Number, planes: Array) -> None:
    """Write a box of an image (height, width · channels) to planes (channels, box height, box width)."""
    num_channels, height, width = planes.shape
    for y in range(height):
        row = image[top + y][left * num_channels : (left + width) * num_channels]
        if num_channels == 3:  # six times as fast if the compiler knows the number
            for x in range(width):
                planes[0, y, x], planes[1, y, x], planes[2, y, x] = row[3 * x], row[3 * x + 1], row[3 * x + 2]
            continue
        for channel in range(num_channels):
            for x in range(width):
                planes[channel, y, x] = row[num_channels * x + channel]


@intrinsic
def _memory_at(typing_context: Any, address: Any) -> Any:
    """Return the pointer to bytes at an address."""
    pointer = types.CPointer(types.uint8)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(address), generate


memory_at: Any = _memory_at


def crop_and_resize(
    images: Sequence[np.ndarray] | np.ndarray, boxes: np.ndarray, is_cubic: bool, out: np.ndarray
) -> None:
    """Resize a box of each image to the size of `out`: bilinear or bicubic, antialiased.

    The arithmetic is torch's, with whole numbers. It goes along x first, then along y, and rounds to uint8 after each.
    An axis that keeps its size is copied.

    Parameters
    ----------
    images
        uint8 (height, width, channels) each. They may differ in size.
    boxes
        int64 (batch, 4): top, left, height, width.
    is_cubic
        Bicubic; or else bilinear.
    out
        uint8 (batch, channels, new height, new width): the results.
    """
    # A loop over arrays would be compiled for each kind of array, and could not take images of different sizes.
    if isinstance(images, np.ndarray):
        images = np.ascontiguousarray(images)
        assert (images.dtype, images.shape[3]) == (np.uint8, out.shape[1])
        places = np.empty((len(images), 3), np.int64)
        places[:, 0] = images.ctypes.data + images.strides[0] * np.arange(len(images))
        places[:, 1:] = images.shape[1:3]
    else:
        images = [np.ascontiguousarray(image) for image in images]
        assert all(image.dtype == np.uint8 and image.shape[2] == out.shape[1] for image in images)
        places = np.array([(image.ctypes.data, *image.shape[:2]) for image in images], np.int64)
    _crop_and_resize(places, boxes, is_cubic, out)


@kernel
def _crop_and_resize(images: Array, boxes: Array, is_cubic: Number, out: Array) -> None:
    """Crop and resize images that are given by their address, height and width, (batch, 3)."""
    num_channels = out.shape[1]
    new_height, new_width = out.shape[2:]
    # Taps without weight reach beyond the end of a line by at most its length, and the last window further.
    largest_height, largest_width = boxes[:, 2].max(), boxes[:, 3].max()
    planes = np.empty((num_channels * largest_height, 2 * largest_width + 64), np.uint8)
    lines = np.empty(((num_channels + 1) * largest_height, new_width + 2 * WIDTH), np.uint8)
    axis = _taps(1, 1, is_cubic)
    known_x, known_y = [(axis, _windows(axis))], [axis]
    place_x, place_y = np.zeros(largest_width + 1, np.int64), np.zeros(largest_height + 1, np.int64)
    for i in range(len(images)):
        address, old_height, old_width = images[i]
        rows = numba.carray(memory_at(address), (old_height, old_width * num_channels), np.uint8)
        top, left, height, width = boxes[i]
        if not place_x[width]:
            axis = _taps(width, new_width, is_cubic)
            place_x[width] = len(known_x)
            known_x.append((axis, _windows(axis)))
        if not place_y[height]:
            place_y[height] = len(known_y)
            known_y.append(_taps(height, new_height, is_cubic))
        target = lines if width == new_width else planes
        _split(rows, top, left, target[: num_channels * height].reshape(num_channels, height, -1)[:, :, :width])
        if width != new_width:
            axis, windows = known_x[place_x[width]]
            _resize_lines(planes[: num_channels * height], axis, windows, lines)
        for channel in range(num_channels):
            start = channel * height
            if height == new_height:
                out[i, channel] = lines[start : start + height, :new_width]
            else:
                _resize_columns(lines[start:], known_y[place_y[height]], out[i, channel])
