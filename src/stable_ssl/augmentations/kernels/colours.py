"""Loops that change values, one pixel at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .compiling import ONE, TO_UNIT, Array, Number, fma, kernel
from .vectors import Vectors, check, vector

# Arithmetic with Python's numbers would be in float64.
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
SIX, SIXTH, FROM_UNIT = np.float32(6), np.float32(1 / 6), np.float32(255.999)
TINY = np.float32(1e-3)  # a divisor below any level but 0
MOST_SUMMED = 1 << 24  # levels whose sum fits into 32 bits
BLACK, WHITE = np.int32(0), np.int32(255)
FLOATS = 16  # written together
BLOCK = 1024  # pixels that stay in the nearest cache from one loop to the next


@kernel
def color_jitter(images: Array, is_applied: Array, order: Array, factors: Array) -> None:
    """Change brightness (0), contrast (1), saturation (2) and hue (3) of images in place.

    Parameters
    ----------
    images
        (batch, 1 or 3, height, width).
    is_applied
        (batch,), bool.
    order
        (batch, 4): the numbers of the changes in their order; -1 for none.
    factors
        (batch, 4): the factor of each change by its number; for the hue the difference, in turns.
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
                    _mix(image[channel], grey, factor)
            elif num_channels == 3 and change == 2:
                _saturate(image[0], image[1], image[2], factor)
            elif num_channels == 3 and change == 3:
                _turn_hue(image[0], image[1], image[2], np.float32(factor))


@kernel
def _level(value: Number) -> Number:
    """Return a value as a level, without its fraction; below 0 it is 0, above 255 it is 255.

    Registers have an instruction that limits whole numbers while it packs them, so the number is made whole first.
    """
    return np.uint8(min(max(np.int32(value), BLACK), WHITE))


@kernel
def _brighten(plane: Array, factor: Number) -> None:
    for x in range(plane.size):
        plane[x] = _level(np.float32(plane[x]) * factor)


@kernel
def _mix(plane: Array, other: Number, factor: Number) -> None:
    kept, added = np.float32(factor), np.float32(1.0 - factor)
    for x in range(plane.size):
        plane[x] = _level(fma(other, added, np.float32(plane[x]) * kept))


@kernel
def _luma(red: Number, green: Number, blue: Number) -> Number:
    return fma(np.float32(blue), BLUE, fma(np.float32(green), GREEN, np.float32(red) * RED))


@kernel
def _grey(red: Number, green: Number, blue: Number) -> Number:
    return np.uint8(_luma(red, green, blue))


@kernel
def _mean_grey(image: Array) -> Number:
    total = np.uint64(0)
    for start in range(0, image.shape[1], MOST_SUMMED):
        part = image[:, start : start + MOST_SUMMED]
        red, green, blue = part[0], part[len(part) // 2], part[-1]
        partial = np.uint32(0)  # a register holds twice as many of 32 bits as of 64
        for x in range(red.size):
            partial = np.uint32(partial + (red[x] if len(part) == 1 else _grey(red[x], green[x], blue[x])))
        total += np.uint64(partial)
    return np.float32(total) / np.float32(image.shape[1])


@kernel
def _saturate(red: Array, green: Array, blue: Array, factor: Number) -> None:
    kept, added = np.float32(factor), np.float32(1.0 - factor)
    for x in range(red.size):
        # Converting the luma to a byte and back would take half as long again.
        grey = np.float32(np.int32(_luma(red[x], green[x], blue[x])))
        red[x] = _level(fma(grey, added, np.float32(red[x]) * kept))
        green[x] = _level(fma(grey, added, np.float32(green[x]) * kept))
        blue[x] = _level(fma(grey, added, np.float32(blue[x]) * kept))


@kernel
def _turn_hue(red: Array, green: Array, blue: Array, turn: Number) -> None:
    """Turn the hue through HSV and back, with the divisions and roundings of torchvision.

    A turn moves the highest and the lowest level of a pixel to other channels, but does not change them. So only the
    level between is computed, in float32. Loops over bytes stand apart, because registers hold four times as many.
    """
    highest, between, lowest, sixths = np.empty((4, BLOCK), np.uint8)
    for start in range(0, red.size, BLOCK):
        r, g, b = red[start : start + BLOCK], green[start : start + BLOCK], blue[start : start + BLOCK]
        _sort_levels(r, g, b, highest, between, lowest, sixths)
        _turn_between(highest[: r.size], between, lowest, sixths, turn)
        _place_levels(highest, between, lowest, sixths, r, g, b)


@kernel
def _sort_levels(
    red: Array, green: Array, blue: Array, highest: Array, between: Array, lowest: Array, sixths: Array
) -> None:
    """Write the three levels of each pixel in their order, and its sixth of the colour circle.

    0 is the sixth before red, 1 the one after it; 2 and 3 are those of green, 4 and 5 those of blue. In odd sixths the
    hue rises with the level between.
    """
    for x in range(red.size):
        r, g, b = red[x], green[x], blue[x]
        low, high = min(r, g), max(r, g)
        highest[x], between[x], lowest[x] = max(high, b), max(low, min(high, b)), min(low, b)
        is_red, is_green = highest[x] == r, highest[x] == g
        start, added = (0, b) if is_red else (2, r) if is_green else (4, g)
        sixths[x] = np.uint8(start + (added == lowest[x]))


@kernel
def _turn_between(highest: Array, between: Array, lowest: Array, sixths: Array, turn: Number) -> None:
    """Turn the hue: change the level between and the sixth of each pixel. Sixths are counted from red now; 6 is 0."""
    for x in range(highest.size):
        value, least = np.float32(highest[x]) * TO_UNIT, np.float32(lowest[x]) * TO_UNIT
        spread = value - least
        saturation = spread / max(value, TINY)
        # Of the two quotients (value - other) / spread, that of the least is exactly 1.
        quotient = (value - np.float32(between[x]) * TO_UNIT) / max(spread, TINY)
        start = np.float32(sixths[x])
        hue = start - quotient if sixths[x] & np.uint8(1) else (start + quotient) - ONE
        hue = hue * SIXTH + ONE
        hue = (hue - np.floor(hue)) + turn
        hue = (hue - np.floor(hue)) * SIX
        sixth = np.int32(hue)
        part, pale = (hue - np.float32(sixth)) * saturation, ONE - saturation
        unit = (ONE - part if sixth & np.int32(1) else part + pale) * value
        between[x], sixths[x] = np.uint8(unit * FROM_UNIT), np.uint8(sixth)


@kernel
def _place_levels(
    highest: Array, between: Array, lowest: Array, sixths: Array, red: Array, green: Array, blue: Array
) -> None:
    for x in range(red.size):
        high, middle, low, sixth = highest[x], between[x], lowest[x], sixths[x]
        red[x] = high if (sixth == 0) | (sixth >= 5) else low if (sixth == 2) | (sixth == 3) else middle
        green[x] = high if (sixth == 1) | (sixth == 2) else low if sixth >= 4 else middle
        blue[x] = high if (sixth == 3) | (sixth == 4) else low if sixth <= 1 else middle


@kernel
def grayscale(images: Array, is_applied: Array) -> None:
    """Give all three channels the luma, in place."""
    for i in range(len(images)):
        if is_applied[i]:
            image = images[i].reshape(3, -1)
            red, green, blue = image[0], image[1], image[2]
            for x in range(red.size):
                red[x] = green[x] = blue[x] = _grey(red[x], green[x], blue[x])


@kernel
def solarize(images: Array, is_applied: Array, threshold: Number) -> None:
    """Invert the values from `threshold` on, in place."""
    for i in range(len(images)):
        if is_applied[i]:
            values = images[i].reshape(-1)
            for x in range(values.size):
                values[x] = np.uint8(255) - values[x] if values[x] >= threshold else values[x]


@intrinsic
def _normalize_plane(typing_context: Any, plane: Any, mean: Any, std: Any, out: Any) -> Any:
    """Write (level / 255 - mean) / std of a plane to `out`, past the caches.

    A cache would read the memory before it is written, and be filled with values that nothing needs soon. Both arrays
    have whole vectors of FLOATS values, and `out` begins at a multiple of a vector's bytes.
    """
    check((plane, "uint8"), (out, "float32"))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = Vectors(context, builder, signature, args)
        (length,), reals = v.shapes[0], ir.VectorType(ir.FloatType(), FLOATS)
        mean, std = (v.spread(value, FLOATS) for value in args[1:3])
        unit, number = ir.Constant(reals, [float(TO_UNIT)] * FLOATS), length.type
        with cgutils.for_range_slice(builder, number(0), length, number(FLOATS), number) as (x, _):
            levels = builder.uitofp(v.load(v.data[0], x, vector(8, FLOATS)), reals)
            v.store_past_caches(builder.fdiv(builder.fsub(builder.fmul(levels, unit), mean), std), v.data[3], x)
        return context.get_dummy_value()

    return types.void(plane, mean, std, out), generate


normalize_plane: Any = _normalize_plane


@kernel
def normalize(images: Array, mean: Array, std: Array, is_large: Number, out: Array) -> None:
    """Write (level / 255 - mean) / std to `out`, float32, past the caches if the batch is large.

    `mean` and `std` have one value per channel.
    """
    is_aligned = out.ctypes.data % (4 * FLOATS) == 0 and out[0, 0].size % FLOATS == 0
    for i in range(len(images)):
        for channel in range(images.shape[1]):
            plane, target = images[i, channel].reshape(-1), out[i, channel].reshape(-1)
            if is_large and is_aligned:
                normalize_plane(plane, mean[channel], std[channel], target)
                continue
            for x in range(plane.size):
                target[x] = (np.float32(plane[x]) * TO_UNIT - mean[channel]) / std[channel]
