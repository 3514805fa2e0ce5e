"""Resizing and blurring: sums over neighbours, in vector registers.

This is the one place with instructions of processors; plain loops would do without, and with the same results.
Neighbours in a resized line come from places that are not evenly spaced, which compilers make one load a value: x86
processors since 2013 have an instruction for it, and one to multiply and round. Sums of a number of taps that is not
known beforehand go through memory, tap by tap, where registers would hold them. `benchmarks/augmentation.py --plain`
tells what a processor without such instructions, an ARM one, say, has to do without.

All of it is one file, because numba compiles a function anew when its own file has changed, and no other.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from .kernels import kernel

MAX_PRECISION = 22
# Some images are read-only: without a signature, each kind would be compiled for.
CROP = types.void(types.Array(types.uint8, 4, "C", readonly=True), types.int64[:, ::1], types.uint8[:, :, :, ::1])


class Instructions(NamedTuple):
    """Those of a processor: to fill a register from `num_windows` windows of `window` bytes, to sum products of pairs,
    and to multiply fractions of 15 bits, rounding."""

    feature: str
    num_windows: int
    window: int
    shuffle: str
    multiply: str
    scale: str


_KNOWN = (
    Instructions(
        "+avx512vbmi", 1, 64,
        "llvm.x86.avx512.permvar.qi.512", "llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx512.pmul.hr.sw.512",
    ),
    Instructions("+avx2", 2, 16, "llvm.x86.avx2.pshuf.b", "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx2.pmul.hr.sw"),
)  # fmt: skip
_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
BEST = next((kind for kind in _KNOWN if kind.feature in _FEATURES), None)
# Values that a window, and that a register gives at a time: each is made of pairs of bytes, four bytes wide.
WINDOW, NUM_WINDOWS = (BEST.window, BEST.num_windows) if BEST else (0, 1)
WIDTH = WINDOW * NUM_WINDOWS // 4
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
        (blocks, WIDTH, 4), uint8: the first value's place in its window, anything, the second one's, anything.
    weights
        (pairs, blocks, WIDTH, 2), int16; each pair's values lie two further on than those of the pair before.
    y, half, shift
        int64.
    """
    _check((lines, "uint8"), (starts, "int64"), (places, "uint8"), (weights, "int16"), (out, "uint8"))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if BEST is None:
            return context.get_dummy_value()
        v = _Vectors(context, builder, signature, args)
        y, half, shift = args[1], v.spread_32(args[5]), v.spread_32(args[6])
        (num_pairs, num_blocks), number = v.shapes[4][:2], y.type
        line, target = v.line(0, y), v.line(7, y)
        low_bytes = ir.Constant(_vector(16, 2 * WIDTH), [255] * (2 * WIDTH))
        with cgutils.for_range(builder, num_blocks) as blocks:
            at = builder.mul(blocks.index, number(NUM_WINDOWS))
            windows = [v.load(v.data[2], builder.add(at, number(i)), number) for i in range(NUM_WINDOWS)]
            places = v.load(v.data[3], builder.mul(blocks.index, number(4 * WIDTH)), _vector(8, 4 * WIDTH))
            total = cgutils.alloca_once(builder, half.type)
            builder.store(half, total)
            with cgutils.for_range(builder, num_pairs) as pairs:
                further = builder.mul(pairs.index, number(2))
                parts = [v.load(line, builder.add(start, further), _vector(8, WINDOW)) for start in windows]
                taken = v.call(BEST.shuffle, places.type, v.join(parts), places)
                values = builder.and_(builder.bitcast(taken, low_bytes.type), low_bytes)
                row = builder.add(builder.mul(pairs.index, num_blocks), blocks.index)
                factors = v.load(v.data[4], builder.mul(row, number(2 * WIDTH)), low_bytes.type)
                products = v.call(BEST.multiply, _vector(32, WIDTH), values, factors)
                builder.store(builder.add(builder.load(total), products), total)
            levels = builder.trunc(builder.ashr(builder.load(total), shift), _vector(8, WIDTH))
            v.store(levels, target, builder.mul(blocks.index, number(WIDTH)))
        return context.get_dummy_value()

    return types.void(lines, y, starts, places, weights, half, shift, out), generate


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
    _check((lines, "uint8"), (out, "uint8"))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if BEST is None:
            return context.get_dummy_value()
        v = _Vectors(context, builder, signature, args)
        y, weight, precision, _, new_y = args[1:]
        number, words = y.type, _vector(16, 2 * WIDTH)
        line, next_line, target = v.line(0, y), v.line(0, builder.add(y, number(1))), v.line(4, new_y)
        weight = v.spread(builder.trunc(weight, words.element), words.count)
        missing = v.spread(builder.trunc(builder.sub(number(15), precision), words.element), words.count)
        with cgutils.for_range_slice(builder, number(0), v.shapes[4][1], number(words.count), number) as (x, _):
            a, b = (builder.zext(v.load(data, x, _vector(8, words.count)), words) for data in (line, next_line))
            more = v.call(BEST.scale, words, builder.shl(builder.sub(a, b), missing), weight)
            v.store(builder.trunc(builder.add(b, more), _vector(8, words.count)), target, x)
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
    _check((source, "uint8 float32"), (offsets, "int64"), (weights, "float32"), (out, "uint8 float32"))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = _Vectors(context, builder, signature, args)
        num_taps, length = args[3:5]
        number, reals = length.type, ir.VectorType(ir.FloatType(), SUMS)
        zeros = ir.Constant(reals, [0.0] * SUMS)

        def load(place: Any) -> Any:
            if source.dtype == types.float32:
                return v.load(v.data[0], place, reals)
            return builder.zext(v.load(v.data[0], place, _vector(8, SUMS)), _vector(16, SUMS))

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
                result = builder.trunc(builder.fptosi(rounded, _vector(32, SUMS)), _vector(8, SUMS))
            v.store(result, v.data[5], x)
        return context.get_dummy_value()

    return types.void(source, offsets, weights, num_taps, length, out), generate


def _check(*arrays: tuple[Any, str]) -> None:
    """See that each is a contiguous array of one of these types, for vectors are loaded without a further look."""
    for array, dtypes in arrays:
        if not isinstance(array, types.Array) or array.layout != "C" or str(array.dtype) not in dtypes.split():
            raise TypingError(f"{array} must be a contiguous array of {dtypes}")


def _vector(bits: int, count: int) -> ir.VectorType:
    return ir.VectorType(ir.IntType(bits), count)


class _Vectors:
    """Loads, stores and rearranges vectors; `data`, `shapes` and `strides` are those of the arguments, by place."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any):
        self.builder = builder
        arrays = {
            i: make_array(kind)(context, builder, args[i])
            for i, kind in enumerate(signature.args)
            if isinstance(kind, types.Array)
        }
        self.data = {i: array.data for i, array in arrays.items()}
        self.shapes, self.strides = (
            {i: cgutils.unpack_tuple(builder, getattr(array, name)) for i, array in arrays.items()}
            for name in ("shape", "strides")
        )

    def line(self, i: int, y: Any) -> Any:
        """Return where line `y` of the argument begins."""
        return self.builder.gep(self.data[i], [self.builder.mul(y, self.strides[i][0])])

    def load(self, start: Any, at: Any, kind: Any) -> Any:
        return self.builder.load(self._place(start, at, kind), align=1)

    def store(self, value: Any, start: Any, at: Any) -> None:
        self.builder.store(value, self._place(start, at, value.type), align=1)

    def _place(self, start: Any, at: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(start, [at]), kind.as_pointer())

    def spread(self, value: Any, count: int) -> Any:
        """Return a vector of `count` times the value."""
        kind = ir.VectorType(value.type, count)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(one, one, ir.Constant(_vector(32, count), [0] * count))

    def spread_32(self, value: Any) -> Any:
        """Return WIDTH times the low half of the value."""
        return self.spread(self.builder.trunc(value, ir.IntType(32)), WIDTH)

    def join(self, parts: list[Any]) -> Any:
        """Return one vector of 1 or 2."""
        if len(parts) == 1:
            return parts[0]
        count = 2 * parts[0].type.count
        return self.builder.shuffle_vector(*parts, ir.Constant(_vector(32, count), [*range(count)]))

    def call(self, name: str, result: Any, *values: Any) -> Any:
        function = ir.FunctionType(result, [value.type for value in values])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function, name), values)


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
def _windows(first, weights):
    """Return the same as `weigh` takes it: starts, places and weights; no weights if a window is too short."""
    new, num_taps = weights.shape
    per_window, per_block = max(WINDOW // 4, 1), max(WIDTH, 1)
    num_blocks = (new + per_block - 1) // per_block
    starts = np.zeros(num_blocks * NUM_WINDOWS, np.int64)
    places = np.zeros((num_blocks, per_block, 4), np.uint8)
    pairs = np.zeros((num_taps // 2, num_blocks, per_block, 2), np.int16)
    for x in range(new):
        start = first[x // per_window * per_window]
        starts[x // per_window] = start
        if first[x] + 1 - start >= WINDOW:
            return starts, places, pairs[:0]
        block, i = x // per_block, x % per_block
        places[block, i, 0] = first[x] - start
        places[block, i, 2] = first[x] - start + 1
        for tap in range(num_taps):
            pairs[tap // 2, block, i, tap % 2] = weights[x, tap]
    return starts, places, pairs


@kernel
def _resize_lines(lines, axis, windows, out):
    """Write to each line of `out` a value for each weight, and up to WIDTH - 1 more."""
    first, weights, precision = axis
    starts, places, pairs = windows
    half = (1 << precision) >> 1
    for y in range(len(lines)):
        if len(pairs):
            weigh(lines, y, starts, places, pairs, half, precision, out)
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
    known_x, known_y = [(axis, _windows(axis[0], axis[1]))], [axis]
    place_x, place_y = np.zeros(largest_width + 1, np.int64), np.zeros(largest_height + 1, np.int64)
    for i in range(num_images):
        top, left, height, width = boxes[i]
        if not place_x[width]:
            axis = _taps(width, new_width)
            place_x[width] = len(known_x)
            known_x.append((axis, _windows(axis[0], axis[1])))
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
