"""The loops behind the operations, compiled by numba: uint8 in, uint8 out, and rounding where torchvision rounds.

All take images as planes, (batch, channels, height, width). Importing this module imports numba, which takes seconds:
only `cpu` does, and that when the first view is made. No kernel starts threads, so that workers may fork; all release
the GIL, so that callers may.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

# Division by zero gives inf as in NumPy: a check would keep loops from being vectorised.
kernel = numba.njit(cache=True, error_model="numpy", nogil=True)

# Arithmetic with plain constants would be in float64.
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
ZERO, ONE, TWO, THREE, FOUR, FIVE, SIX = (np.float32(number) for number in range(7))
SIXTH, WHITE = np.float32(1 / 6), np.float32(255)
TO_UNIT, FROM_UNIT = np.float32(1 / 255), np.float32(255.999)
MAX_PRECISION = 22
# Images come in any layout, and some are read-only: without a signature, each kind would be compiled for.
CROP = types.void(types.Array(types.uint8, 4, "A", readonly=True), types.int64[:, ::1], types.uint8[:, :, :, ::1])
TILE = 64


@intrinsic
def _fma(typing_context, a, b, c):
    """Return a · b + c, rounded once, as torch's vectorised `add(…, alpha=…)` does."""
    return types.float32(types.float32, types.float32, types.float32), lambda _, builder, __, args: builder.fma(*args)


fma: Any = _fma


@kernel
def _resize_lines(box, first, weights, tile, turned, out):
    """Write to `out`, in blocks of eight lines, eight values a word, the lines of `box` with a value for each weight.

    They are turned to columns first, tile by tile, and back afterwards: then all values of a column can be computed at
    once, since its inputs lie side by side, unlike those of a line. `tile` and `turned` are memory to do it in.
    """
    num_channels, height, width = box.shape
    for start in range(0, num_channels * height, TILE):
        num_lines = min(TILE, num_channels * height - start)
        for line in range(num_lines):
            channel, y = (start + line) // height, (start + line) % height
            for x in range(width):
                tile[x, line] = box[channel, y, x]
        _combine(tile, first, weights, num_lines, turned.view(np.uint8).reshape(-1, TILE))
        target = out[start // 8 :]
        for block in range((num_lines + 7) // 8):
            for word in range(len(turned)):
                _turn(turned, word, block, target)


@kernel
def _combine(lines, first, weights, length, out):
    """Write to each line of `out`, as far as there are weights, the weighted sum of lines from `first` on, rounded."""
    real = weights.dtype.type
    half = real(0.5)
    sums = np.empty(length, weights.dtype)
    for i in range(len(weights)):
        at, weight, next_weight = first[i], weights[i, 0], weights[i, 1]
        if weights.shape[1] == 2:
            for x in range(length):
                out[i, x] = np.uint8(half + weight * real(lines[at, x]) + next_weight * real(lines[at + 1, x]))
            continue
        for x in range(length):
            sums[x] = half + weight * real(lines[at, x]) + next_weight * real(lines[at + 1, x])
        for tap in range(2, weights.shape[1]):
            weight = weights[i, tap]
            for x in range(length):
                sums[x] += weight * real(lines[at + tap, x])
        for x in range(length):
            out[i, x] = np.uint8(sums[x])


@kernel
def _turn(source, i, j, target):
    """Transpose 8 × 8 bytes, given as words: halves of blocks change places, of 4 × 4 bytes, then 2 × 2, then 1."""
    a, b, c, d = source[i, 0, j], source[i, 1, j], source[i, 2, j], source[i, 3, j]
    e, f, g, h = source[i, 4, j], source[i, 5, j], source[i, 6, j], source[i, 7, j]
    a, e = _swap(a, e, 32, 0x00000000FFFFFFFF)
    b, f = _swap(b, f, 32, 0x00000000FFFFFFFF)
    c, g = _swap(c, g, 32, 0x00000000FFFFFFFF)
    d, h = _swap(d, h, 32, 0x00000000FFFFFFFF)
    a, c = _swap(a, c, 16, 0x0000FFFF0000FFFF)
    b, d = _swap(b, d, 16, 0x0000FFFF0000FFFF)
    e, g = _swap(e, g, 16, 0x0000FFFF0000FFFF)
    f, h = _swap(f, h, 16, 0x0000FFFF0000FFFF)
    a, b = _swap(a, b, 8, 0x00FF00FF00FF00FF)
    c, d = _swap(c, d, 8, 0x00FF00FF00FF00FF)
    e, f = _swap(e, f, 8, 0x00FF00FF00FF00FF)
    g, h = _swap(g, h, 8, 0x00FF00FF00FF00FF)
    target[j, 0, i], target[j, 1, i], target[j, 2, i], target[j, 3, i] = a, b, c, d
    target[j, 4, i], target[j, 5, i], target[j, 6, i], target[j, 7, i] = e, f, g, h


@kernel
def _swap(a, b, shift, mask):
    moved = ((a >> np.uint64(shift)) ^ b) & np.uint64(mask)
    return a ^ (moved << np.uint64(shift)), b ^ moved


@kernel
def _resize_weights(old, new):
    """Return, for one axis, the first input of each output, the weights (outputs, taps) of it and those after it, these
    in float32, and whether that is precise enough for sums; of two taps at least the last one may be beyond the end."""
    scale = old / new
    support = max(scale, 1.0)
    first = np.empty(new, np.int64)
    last = np.empty(new, np.int64)
    exact = np.zeros((new, math.ceil(support) * 2 + 1))
    largest = 0.0
    num_taps = 2
    for x in range(new):
        centre = scale * (x + 0.5)
        first[x] = max(int(centre - support + 0.5), 0)
        last[x] = min(int(centre + support + 0.5), old)
        num_taps = max(num_taps, last[x] - first[x])
        total = 0.0
        for tap in range(last[x] - first[x]):
            exact[x, tap] = max(1.0 - abs((first[x] + tap - centre + 0.5) / support), 0.0)
            total += exact[x, tap]
        for tap in range(last[x] - first[x]):
            exact[x, tap] /= total
            largest = max(largest, exact[x, tap])
    # Torch rounds to as many bits as the largest weight allows in an int16.
    precision = 0
    while precision < MAX_PRECISION and int(0.5 + largest * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    weights = np.zeros((new, num_taps))
    for x in range(new):
        # The last outputs start earlier, so that all have as many taps.
        shift = min(max(first[x] + num_taps - old, 0), first[x])
        first[x] -= shift
        for tap in range(shift, min(num_taps, last[x] - first[x])):
            weights[x, tap] = int(0.5 + exact[x, tap - shift] * (1 << precision)) / (1 << precision)
    return first, weights, weights.astype(np.float32), precision <= 16


@numba.njit(CROP, cache=True, error_model="numpy", nogil=True)
def crop_and_resize(images, boxes, out):
    """Resize a box of each image to the size of `out`: bilinear, antialiased.

    Torch's fixed-point arithmetic, done in floating point where it is exact: along x first, then along y, each rounded
    to uint8; an axis that keeps its size is copied.

    Parameters
    ----------
    images
        (batch, channels, height, width).
    boxes
        (batch, 4): top, left, height, width.
    out
        (batch, channels, new height, new width); written.
    """
    num_channels, new_height, new_width = out.shape[1:]
    num_words = (new_width + 7) // 8
    tile = np.empty((images.shape[3] + 1, TILE), np.uint8)
    turned = np.empty((num_words, 8, TILE // 8), np.uint64)
    narrowed = np.empty(((num_channels * images.shape[2] + TILE) // 8 + 1, 8, num_words), np.uint64)
    lines = narrowed.view(np.uint8).reshape(-1, num_words * 8)
    nothing = (np.empty(0, np.int64), np.empty((0, 0)), np.empty((0, 0), np.float32), False)
    known_x, known_y = [nothing] * (images.shape[3] + 1), [nothing] * (images.shape[2] + 1)
    for i in range(len(images)):
        top, left, height, width = boxes[i]
        for known, length, new_length in ((known_x, width, new_width), (known_y, height, new_height)):
            if len(known[length][0]) == 0:
                known[length] = _resize_weights(length, new_length)
        first_x, weights_x, short_x, is_short_x = known_x[width]
        first_y, weights_y, short_y, is_short_y = known_y[height]
        box = images[i, :, top : top + height, left : left + width]
        if width == new_width:
            for line in range(num_channels * height):
                lines[line, :width] = box[line // height, line % height]
        elif is_short_x:
            _resize_lines(box, first_x, short_x, tile, turned, narrowed)
        else:
            _resize_lines(box, first_x, weights_x, tile, turned, narrowed)
        for channel in range(num_channels):
            start = channel * height
            if height == new_height:
                out[i, channel] = lines[start : start + height, :new_width]
            elif is_short_y:
                _combine(lines[start:], first_y, short_y, new_width, out[i, channel])
            else:
                _combine(lines[start:], first_y, weights_y, new_width, out[i, channel])


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
        value = max(r, max(g, b))
        spread = value - min(r, min(g, b))
        is_coloured, is_red, is_green = spread > ZERO, value == r, value == g
        saturation = spread / (value if is_coloured else ONE)
        divisor = spread if is_coloured else ONE
        added = b if is_red else r if is_green else g
        subtracted = g if is_red else b if is_green else r
        start = ZERO if is_red else TWO if is_green else FOUR
        hue = (start + (value - added) / divisor) - (value - subtracted) / divisor
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
    line = np.empty(width + 2 * weights.shape[1], np.float32)
    blurred = np.empty((height, width), np.float32)
    sums = np.empty(width, np.float32)
    for i in range(len(images)):
        if not is_applied[i]:
            continue
        radius = radii[i]
        for channel in range(images.shape[1]):
            for y in range(height):
                for x in range(width):
                    line[radius + x] = np.float32(images[i, channel, y, x])
                for x in range(1, radius + 1):
                    line[radius - x] = line[radius + x]
                    line[radius + width - 1 + x] = line[radius + width - 1 - x]
                target, weight, centre = blurred[y], weights[i, 0], line[radius:]
                for x in range(width):
                    target[x] = weight * centre[x]
                for distance in range(1, radius + 1):
                    # An index computed in the loop might be negative, and keep it from being vectorised: so slices.
                    weight, before, after = weights[i, distance], line[radius - distance :], line[radius + distance :]
                    for x in range(width):
                        target[x] = fma(weight, before[x] + after[x], target[x])
            for y in range(height):
                weight = weights[i, 0]
                for x in range(width):
                    sums[x] = weight * blurred[y, x]
                for distance in range(1, radius + 1):
                    weight, above = weights[i, distance], abs(y - distance)
                    below = height - 1 - abs(height - 1 - y - distance)
                    for x in range(width):
                        sums[x] = fma(weight, blurred[above, x] + blurred[below, x], sums[x])
                for x in range(width):
                    images[i, channel, y, x] = np.uint8(np.rint(sums[x]))


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
