"""Boxes of a drawn area and shape, as `RandomResizedCrop` and `Erasing` need them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..draw import below, within

NUM_TRIES = 10
NUM_DRAWS = 2 * NUM_TRIES + 2  # area and ratio of each try, then the place


def draw_boxes(
    scale: Sequence[float],
    ratio: Sequence[float],
    numbers: np.ndarray,
    limits: np.ndarray,
    area: np.ndarray,
    smallest: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ten boxes per sample, and take the first that fits.

    Parameters
    ----------
    scale, ratio
        Ranges of the area, as a fraction of the image's, and of the ratio of the sides, whose logarithm is drawn
        uniformly.
    numbers
        (NUM_DRAWS, batch), uniform.
    limits
        (2, batch): the longest sides allowed. The first is the side that a larger ratio makes longer.
    area
        (batch,): of the images.
    smallest
        The shortest side allowed.

    Returns
    -------
    The sides, (2, batch), and whether a box fits, (batch,). Sides are 0 if none does.
    """
    logs = [log(limit) for limit in ratio]
    boxes, missing = np.zeros_like(limits), np.arange(limits.shape[1])
    for attempt in range(NUM_TRIES):
        areas = area[missing] * within(scale, numbers[2 * attempt, missing])
        ratios = exp(within(logs, numbers[2 * attempt + 1, missing]))
        sides = np.rint(np.sqrt(np.stack([areas * ratios, areas / ratios]))).astype(np.int64)
        fits = ((sides >= smallest) & (sides <= limits[:, missing])).all(axis=0)
        boxes[:, missing[fits]] = sides[:, fits]
        missing = missing[~fits]
        if not len(missing):
            break
    is_found = np.ones(limits.shape[1], bool)
    is_found[missing] = False
    return boxes, is_found


def draw_places(numbers: np.ndarray, sizes: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> tuple[Any, Any]:
    """Return the top and left of boxes; takes the numbers that `draw_boxes` was given."""
    vertical, horizontal = numbers[2 * NUM_TRIES :]
    return below(sizes[:, 0] - heights + 1, vertical), below(sizes[:, 1] - widths + 1, horizontal)


def exp(x: Any) -> Any:
    """Return e^x by sums and products only.

    The exp of libraries differs in the last bit between processors, which could change the size of a box.
    """
    x = x / 64
    total = term = 1.0 + 0.0 * x
    for n in range(1, 12):
        term = term * x / n
        total = total + term
    for _ in range(6):
        total = total * total
    return total


@functools.cache
def log(x: float) -> float:
    """Return the natural logarithm by sums, products and divisions only: Halley's method."""
    y = 0.0
    for _ in range(12):
        power = exp(y)
        y += 2 * (x - power) / (x + power)
    return y
