"""A loop that makes RGB of a plane of brightness and two of colour, which are half as high and half as wide."""

from __future__ import annotations

import numpy as np

from .compiling import Array, kernel

# JFIF's matrix (ITU-T T.871, section 7), in parts of 65,536. Sums stay within 32 bits.
RED_OF_CR, GREEN_OF_CB, GREEN_OF_CR, BLUE_OF_CB = (np.int32(number) for number in (91881, -22554, -46802, 116130))
HALF, SHIFT, MIDDLE, NONE, WHITE = (np.int32(number) for number in (32768, 16, 128, 0, 255))


@kernel
def rgb_of_planes(luma: Array, blue: Array, red: Array, out: Array) -> None:
    """Write the RGB pixels of planes; each value of colour holds for 2 × 2 pixels.

    Parameters
    ----------
    luma
        (height, width): Y.
    blue, red
        (height / 2, width / 2), rounded up: Cb and Cr.
    out
        (height, width × 3): the pixels, channel by channel.
    """
    height, width = luma.shape
    added = np.empty((3, width + 1), np.int32)  # to the brightness, for red, green and blue
    to_red, to_green, to_blue = added[0], added[1], added[2]
    for y in range(height):
        if y % 2 == 0:
            of_blue, of_red = blue[y >> 1], red[y >> 1]
            for x in range(len(of_blue)):
                cb, cr = np.int32(of_blue[x]) - MIDDLE, np.int32(of_red[x]) - MIDDLE
                to_red[2 * x] = to_red[2 * x + 1] = (RED_OF_CR * cr + HALF) >> SHIFT
                to_green[2 * x] = to_green[2 * x + 1] = (GREEN_OF_CB * cb + GREEN_OF_CR * cr + HALF) >> SHIFT
                to_blue[2 * x] = to_blue[2 * x + 1] = (BLUE_OF_CB * cb + HALF) >> SHIFT
        row, pixels = luma[y], out[y]
        for x in range(width):
            level = np.int32(row[x])
            pixels[3 * x] = np.uint8(min(max(level + to_red[x], NONE), WHITE))
            pixels[3 * x + 1] = np.uint8(min(max(level + to_green[x], NONE), WHITE))
            pixels[3 * x + 2] = np.uint8(min(max(level + to_blue[x], NONE), WHITE))
