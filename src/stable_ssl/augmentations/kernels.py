"""The loops behind the operations, compiled by numba: uint8 in, uint8 out, and rounding where torchvision rounds.

All take images as planes, (batch, channels, height, width), but `crop_and_resize`, which makes planes. Importing this
module imports numba, which takes seconds: only `cpu` does, and that when the first view is made. No kernel starts
threads, so that workers may fork; all release the GIL, so that callers may.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from .vectors import NUM_WINDOWS, SUMS, WIDTH, WINDOW, blend, sum_pairs, weigh

# Division by zero gives inf as in NumPy: a check would keep loops from being vectorised.
kernel = numba.njit(cache=True, error_model="numpy", nogil=True)

# Arithmetic with plain constants would be in float64.
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
ZERO, ONE, TWO, THREE, FOUR, FIVE, SIX = (np.float32(number) for number in range(7))
SIXTH, WHITE = np.float32(1 / 6), np.float32(255)
TO_UNIT, FROM_UNIT = np.float32(1 / 255), np.float32(255.999)
MAX_PRECISION = 22
# Some images are read-only: without a signature, each kind would be compiled for.
CROP = types.void(types.Array(types.uint8, 4, "C", readonly=True), types.int64[:, ::1], types.uint8[:, :, :, ::1])


@intrinsic
def _fma(typing_context, a, b, c):
    """Return a · b + c, rounded once, as torch's vectorised `add(…, alpha=…)` does."""
    return types.float32(types.float32, types.float32, types.float32), lambda _, builder, __, args: builder.fma(*args)


fma: Any = _fma


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
    for y in range(len(lines) if len(pairs) else 0):
        weigh(lines, y, starts, places, pairs, half, precision, out)
    if len(pairs) == 0:
        for y in range(len(lines)):
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
            blend(lines, first[y], np.int64(weights[y, 0]), precision, out, y)
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
        for channel in range(num_channels if num_channels != 3 else 0):
            for x in range(width):
                planes[channel, y, x] = row[num_channels * x + channel]
        for x in range(width if num_channels == 3 else 0):  # a number that is known makes it six times as fast
            planes[0, y, x], planes[1, y, x], planes[2, y, x] = row[3 * x], row[3 * x + 1], row[3 * x + 2]


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
    num_images, old_height, old_width, num_channels = images.shape
    new_height, new_width = out.shape[2:]
    rows = images.reshape(num_images, old_height, -1)
    # Longer than needed, since taps without weight and the last window reach beyond the end.
    planes = np.zeros((num_channels * old_height, 3 * old_width + 64), np.uint8)
    lines = np.empty(((num_channels + 2) * old_height + 4, new_width + WIDTH), np.uint8)
    axis = _taps(1, 1)
    known_x, known_y = [(axis, _windows(axis[0], axis[1]))] * (old_width + 1), [axis] * (old_height + 1)
    is_known_x, is_known_y = np.zeros(old_width + 1, np.bool_), np.zeros(old_height + 1, np.bool_)
    for i in range(num_images):
        top, left, height, width = boxes[i]
        if not is_known_x[width]:
            axis = _taps(width, new_width)
            known_x[width], is_known_x[width] = (axis, _windows(axis[0], axis[1])), True
        if not is_known_y[height]:
            known_y[height], is_known_y[height] = _taps(height, new_height), True
        target = lines if width == new_width else planes
        _split(rows[i], top, left, target[: num_channels * height].reshape(num_channels, height, -1)[:, :, :width])
        if width != new_width:
            axis, windows = known_x[width]
            _resize_lines(planes[: num_channels * height], axis, windows, lines)
        for channel in range(num_channels):
            start = channel * height
            if height == new_height:
                out[i, channel] = lines[start : start + height, :new_width]
            else:
                _resize_columns(lines[start:], known_y[height], out[i, channel])


@kernel
def flip_horizontally(images, is_applied):
    """Mirror the images in place."""
    width = images.shape[3]
    copied = np.empty(width, np.uint8)
    for i in range(len(images)):
        if not is_applied[i]:
            continue
        for channel in range(images.shape[1]):
            for y in range(images.shape[2]):
                for x in range(width):
                    copied[x] = images[i, channel, y, x]
                for x in range(width):
                    # Without a sign, an index can't count from the end: checking for that costs five times as much.
                    images[i, channel, y, x] = copied[np.uint64(width - 1 - x)]


@kernel
def color_jitter(images, is_applied, order, factors):
    """Change brightness (0), contrast (1), saturation (2) and hue (3) of images in place.

    Parameters
    ----------
    images
        (batch, 1 or 3, height, width).
    is_applied
        (batch,), bool.
    order
        (batch, 4): which change comes when.
    factors
        (batch, 4): of each change; of the hue the difference, in turns.
    """
    num_channels = images.shape[1]
    for i in range(len(images)):
        if not is_applied[i]:
            continue
        image = images[i].reshape(num_channels, -1)
        for change in order[i]:
            factor = factors[i, change]
            if change == 0:
                for channel in range(num_channels):
                    _brighten(image[channel], np.float32(factor))
            elif change == 1:
                grey = _mean_grey(image)
                for channel in range(num_channels):
                    _blend(image[channel], grey, factor)
            elif num_channels == 3 and change == 2:
                _saturate(image[0], image[1], image[2], factor)
            elif num_channels == 3 and change == 3:
                _turn_hue(image[0], image[1], image[2], np.float32(factor))


@kernel
def _brighten(plane, factor):
    for x in range(plane.size):
        plane[x] = np.uint8(min(np.float32(plane[x]) * factor, WHITE))


@kernel
def _blend(plane, other, factor):
    kept, added = np.float32(factor), np.float32(1.0 - factor)
    for x in range(plane.size):
        value = fma(other, added, np.float32(plane[x]) * kept)
        plane[x] = np.uint8(min(max(value, ZERO), WHITE))


@kernel
def _grey(red, green, blue):
    return np.uint8(fma(np.float32(blue), BLUE, fma(np.float32(green), GREEN, np.float32(red) * RED)))


@kernel
def _mean_grey(image):
    total = np.uint32(0)  # of 16 million pixels at most
    red, green, blue = image[0], image[len(image) // 2], image[-1]
    if len(image) == 1:
        for x in range(red.size):
            total = np.uint32(total + red[x])
    else:
        for x in range(red.size):
            total = np.uint32(total + _grey(red[x], green[x], blue[x]))
    return np.float32(total) / np.float32(image.shape[1])


@kernel
def _saturate(red, green, blue, factor):
    kept, added = np.float32(factor), np.float32(1.0 - factor)
    for x in range(red.size):
        grey = np.float32(_grey(red[x], green[x], blue[x]))
        red[x] = np.uint8(min(max(fma(grey, added, np.float32(red[x]) * kept), ZERO), WHITE))
        green[x] = np.uint8(min(max(fma(grey, added, np.float32(green[x]) * kept), ZERO), WHITE))
        blue[x] = np.uint8(min(max(fma(grey, added, np.float32(blue[x]) * kept), ZERO), WHITE))


@kernel
def _turn_hue(red, green, blue, turn):
    """Through HSV and back, with the divisions and roundings of torchvision, in float32."""
    for x in range(red.size):
        r, g, b = np.float32(red[x]) * TO_UNIT, np.float32(green[x]) * TO_UNIT, np.float32(blue[x]) * TO_UNIT
        low, high = min(r, g), max(r, g)
        value, least, middle = max(high, b), min(low, b), max(low, min(high, b))
        spread = value - least
        is_coloured, is_red, is_green = spread > ZERO, value == r, value == g
        saturation = spread / (value if is_coloured else ONE)
        # Of the two quotients (value - other) / spread, that of the least is exactly 1.
        quotient = (value - middle) / (spread if is_coloured else ONE)
        added = b if is_red else r if is_green else g
        start = ZERO if is_red else TWO if is_green else FOUR
        hue = (start + ONE) - quotient if added == least else (start + quotient) - ONE
        hue = hue * SIXTH + ONE
        hue = (hue - ONE if hue >= ONE else hue) + turn
        hue = hue + ONE if hue < ZERO else hue
        hue = (hue - ONE if hue >= ONE else hue) * SIX

        part, pale = (hue - np.floor(hue)) * saturation, ONE - saturation
        p, q, t = pale * value, (ONE - part) * value, (part + pale) * value  # torch clamps what is within [0, 1] anyway
        r = value if hue < ONE else q if hue < TWO else p if hue < FOUR else t if hue < FIVE else value
        g = t if hue < ONE else value if hue < THREE else q if hue < FOUR else p
        b = p if hue < TWO else t if hue < THREE else value if hue < FIVE else q
        red[x], green[x], blue[x] = np.uint8(r * FROM_UNIT), np.uint8(g * FROM_UNIT), np.uint8(b * FROM_UNIT)


@kernel
def grayscale(images, is_applied):
    """Give all three channels the grey of the image, in place."""
    for i in range(len(images)):
        if is_applied[i]:
            image = images[i].reshape(3, -1)
            red, green, blue = image[0], image[1], image[2]
            for x in range(red.size):
                red[x] = green[x] = blue[x] = _grey(red[x], green[x], blue[x])


@kernel
def solarize(images, is_applied, threshold):
    """Invert the values from `threshold` on, in place."""
    for i in range(len(images)):
        if is_applied[i]:
            values = images[i].reshape(-1)
            for x in range(values.size):
                values[x] = np.uint8(255) - values[x] if values[x] >= threshold else values[x]


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


@kernel
def affine(images, is_applied, matrices, is_bilinear, out):
    """Write to `out` the images under affine maps; what comes from outside is 0.

    Parameters
    ----------
    images, out
        (batch, channels, height, width).
    is_applied
        (batch,), bool.
    matrices
        (batch, 6), float32: from an output's position to its input's, both relative to the centre, in pixels.
    is_bilinear
        Interpolate; or else take the nearest pixel.
    """
    num_channels, height, width = images.shape[1:]
    for i in range(len(images)):
        if not is_applied[i]:
            out[i] = images[i]
            continue
        a, b, c, d, e, f = matrices[i]
        for y in range(height):
            from_middle = np.float32(y - (height - 1) / 2)
            for x in range(width):
                right = np.float32(x - (width - 1) / 2)
                source_x = fma(from_middle, b, right * a) + c + np.float32((width - 1) / 2)
                source_y = fma(from_middle, e, right * d) + f + np.float32((height - 1) / 2)
                if not is_bilinear:
                    nearest_x, nearest_y = int(np.rint(source_x)), int(np.rint(source_y))
                    is_inside = 0 <= nearest_x < width and 0 <= nearest_y < height
                    for channel in range(num_channels):
                        out[i, channel, y, x] = images[i, channel, nearest_y, nearest_x] if is_inside else 0
                    continue
                left, top = int(np.floor(source_x)), int(np.floor(source_y))
                part_x, part_y = source_x - np.float32(left), source_y - np.float32(top)
                for channel in range(num_channels):
                    total = ZERO
                    for step_y in range(2):
                        for step_x in range(2):
                            at_y, at_x = top + step_y, left + step_x
                            if 0 <= at_x < width and 0 <= at_y < height:
                                weight_y = part_y if step_y else ONE - part_y
                                weight_x = part_x if step_x else ONE - part_x
                                total += weight_x * weight_y * np.float32(images[i, channel, at_y, at_x])
                    out[i, channel, y, x] = np.uint8(np.rint(total))


@kernel
def normalize(images, mean, std, out):
    """Write (value / 255 - mean) / std to `out`, float32; `mean` and `std` have one value a channel."""
    for i in range(len(images)):
        for channel in range(images.shape[1]):
            plane, target = images[i, channel].reshape(-1), out[i, channel].reshape(-1)
            for x in range(plane.size):
                target[x] = (np.float32(plane[x]) * TO_UNIT - mean[channel]) / std[channel]
