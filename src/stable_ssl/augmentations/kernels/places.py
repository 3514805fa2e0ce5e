"""Loops that move pixels: flips and affine maps."""

from __future__ import annotations

import numpy as np

from .compiling import ONE, ZERO, Array, Number, fma, kernel


@kernel
def flip_horizontally(images: Array, is_applied: Array) -> None:
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
def _interpolate(plane: Array, y: Number, x: Number) -> Number:
    """Return the value between four pixels; those outside are 0."""
    height, width = plane.shape
    left, top = int(np.floor(x)), int(np.floor(y))
    part_x, part_y = x - np.float32(left), y - np.float32(top)
    total = ZERO
    for step_y in range(2):
        for step_x in range(2):
            at_y, at_x = top + step_y, left + step_x
            if 0 <= at_x < width and 0 <= at_y < height:
                weight_y = part_y if step_y else ONE - part_y
                weight_x = part_x if step_x else ONE - part_x
                total += weight_x * weight_y * np.float32(plane[at_y, at_x])
    return np.uint8(np.rint(total))


@kernel
def affine(images: Array, is_applied: Array, matrices: Array, is_bilinear: Number, out: Array) -> None:
    """Map the images and write them to `out`; what comes from outside is 0.

    Parameters
    ----------
    images, out
        (batch, channels, height, width).
    is_applied
        (batch,), bool.
    matrices
        (batch, 6), float32: from an output's position to its input's, both relative to the centre, in pixels.
    is_bilinear
        Interpolate between four pixels; or else take the nearest.
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
                for channel in range(num_channels):
                    out[i, channel, y, x] = _interpolate(images[i, channel], source_y, source_x)
