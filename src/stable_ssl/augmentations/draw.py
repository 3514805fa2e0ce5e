"""What is drawn for a view: a pure function of (seed, epoch, sample index, view number), for many samples at once.

Each number comes from its own counter, so that it depends on no other draw: SplitMix64 (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014) at the place (view, operation, draw) of a stream whose start is
`derive_seed(seed, Stream.VIEWS, epoch, index)`. Only additions, multiplications, divisions and square roots of float64
follow, which IEEE 754 fixes to the last bit: so every machine draws the same.

The distributions are those of torchvision's transforms of the same names. What the loops take instead of angles and
sigmas, `inverse_matrices` and `blur_weights`, is computed with NumPy's own functions.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..runtime.seeding import Stream, derive_seed
from .operations import (
    Affine,
    CenterCrop,
    ColorJitter,
    Erasing,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Normalize,
    Operation,
    RandomResizedCrop,
    Resize,
    Solarize,
    VerticalFlip,
)

Drawn = dict[str, np.ndarray]

# The operations whose results have another size than the images.
RESIZING = (RandomResizedCrop, Resize, CenterCrop)

_GOLDEN = 0x9E3779B97F4A7C15
_ORDERS = np.array(list(itertools.permutations(range(4))))
_NUM_TRIES = 10


def draw(
    operations: Sequence[Operation], view: int, seed: int, epoch: int, indices: Sequence[int], sizes: np.ndarray
) -> list[Drawn]:
    """Return, for each operation, its parameters: arrays of (batch,), by name.

    Parameters
    ----------
    operations
        Of the view.
    view
        Its number.
    seed, epoch, indices
        Of the run; of the samples.
    sizes
        (batch, 2): height and width of each image.

    Raises
    ------
    ValueError
        An image is too small for what is to be done to it.
    """
    counts = [_DRAWERS[type(operation)][0] for operation in operations]
    counters = [(view << 32) + (number << 16) + i for number, count in enumerate(counts) for i in range(count)]
    uniforms = _uniform(_starts(seed, epoch, indices), counters)
    drawn = []
    for operation, count, end in zip(operations, counts, itertools.accumulate(counts), strict=True):
        _check_sizes(operation, sizes, indices)
        drawn.append(_DRAWERS[type(operation)][1](operation, uniforms[end - count : end], sizes))
        if isinstance(operation, RESIZING):
            sizes = np.stack(output_size(operation, sizes[:, 0], sizes[:, 1]), axis=1)
    return drawn


def uniform(number: int, seed: int, epoch: int, indices: Sequence[int], count: int) -> np.ndarray:
    """Return numbers in [0, 1) of each sample, (count, batch), for what has the number of no view."""
    return _uniform(_starts(seed, epoch, indices), range(number << 32, (number << 32) + count))


def output_size(operation: Operation, height: Any, width: Any) -> tuple[Any, Any]:
    """Return height and width after an operation."""
    if not isinstance(operation, RESIZING):
        return height, width
    if isinstance(operation.size, int):
        shorter = np.minimum(height, width)
        return operation.size * height // shorter, operation.size * width // shorter
    return operation.size[0] + 0 * height, operation.size[1] + 0 * width


def _check_sizes(operation: Operation, sizes: np.ndarray, indices: Sequence[int]) -> None:
    if isinstance(operation, CenterCrop):
        needed = operation.size
    elif isinstance(operation, GaussianBlur):
        needed = (operation.kernel_size // 2 + 1,) * 2
    else:
        return
    too_small = np.flatnonzero((sizes < needed).any(axis=1))
    if len(too_small):
        height, width = sizes[too_small[0]]
        raise ValueError(
            f"sample {indices[too_small[0]]} has only {height} × {width} pixels where {operation} needs at least "
            f"{needed[0]} × {needed[1]}."  # type: ignore[index]
        )


def _starts(seed: int, epoch: int, indices: Sequence[int]) -> np.ndarray:
    """Return `derive_seed(seed, Stream.VIEWS, epoch, index)` of each index."""
    start = np.uint64(derive_seed(seed, Stream.VIEWS, epoch))
    return _mix((start ^ np.asarray(indices).astype(np.uint64)) + np.uint64(_GOLDEN))


def _uniform(starts: np.ndarray, counters: Sequence[int]) -> np.ndarray:
    """Return numbers in [0, 1), multiples of 2^-53, of (counters, batch)."""
    steps = np.array(counters, dtype=np.uint64) * np.uint64(_GOLDEN)
    return (_mix(starts + steps[:, None]) >> np.uint64(11)) * 2.0**-53


def _mix(states: np.ndarray) -> np.ndarray:
    """Return SplitMix64's finaliser of each state."""
    states = (states ^ (states >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    states = (states ^ (states >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return states ^ (states >> np.uint64(31))


def _within(limits: Any, uniform: np.ndarray) -> np.ndarray:
    return limits[0] + (limits[1] - limits[0]) * uniform


def _below(limits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Return integers from 0 to limit - 1."""
    return (limits * uniform).astype(np.int64)


def _exp(x: Any) -> Any:
    """Return e^x by sums and products only; the exp of libraries differs by an ulp between CPUs, and could turn the
    size of a box."""
    x = x / 64
    total = term = 1.0 + 0.0 * x
    for n in range(1, 12):
        term = term * x / n
        total = total + term
    for _ in range(6):
        total = total * total
    return total


@functools.cache
def _log(x: float) -> float:
    """Return log x in the same spirit, by Halley's method."""
    y = 0.0
    for _ in range(12):
        power = _exp(y)
        y += 2 * (x - power) / (x + power)
    return y


def _fit_boxes(operation: Any, numbers: np.ndarray, limits: np.ndarray, area: np.ndarray, smallest: int) -> Any:
    """Return the sides of the first box of each sample that fits, (2, batch), and where there is one.

    `limits`, (2, batch), are the largest sides: that which the ratio makes longer first.
    """
    logs = [_log(limit) for limit in operation.ratio]
    boxes, missing = np.zeros_like(limits), np.arange(limits.shape[1])
    for attempt in range(_NUM_TRIES):
        areas = area[missing] * _within(operation.scale, numbers[2 * attempt, missing])
        ratios = _exp(_within(logs, numbers[2 * attempt + 1, missing]))
        sides = np.rint(np.sqrt(np.stack([areas * ratios, areas / ratios]))).astype(np.int64)
        fits = ((sides >= smallest) & (sides <= limits[:, missing])).all(axis=0)
        boxes[:, missing[fits]] = sides[:, fits]
        missing = missing[~fits]
        if not len(missing):
            break
    is_found = np.ones(limits.shape[1], bool)
    is_found[missing] = False
    return boxes, is_found


def _place(numbers: np.ndarray, sizes: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> tuple[Any, Any]:
    """Return the top and left of boxes."""
    return _below(sizes[:, 0] - heights + 1, numbers[0]), _below(sizes[:, 1] - widths + 1, numbers[1])


def _draw_crop(operation: RandomResizedCrop, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
    (widths, heights), is_found = _fit_boxes(operation, numbers, sizes.T[::-1], sizes.prod(axis=1), smallest=1)
    tops, lefts = _place(numbers[2 * _NUM_TRIES :], sizes, heights, widths)
    for i in np.flatnonzero(~is_found):
        height, width = sizes[i].tolist()
        narrowest, widest = operation.ratio
        heights[i] = min(height, round(width / narrowest))
        widths[i] = min(width, round(height * widest))
        tops[i], lefts[i] = (height - heights[i]) // 2, (width - widths[i]) // 2
    return {"top": tops, "left": lefts, "height": heights, "width": widths}


def _draw_center_crop(operation: CenterCrop, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
    height, width = operation.size  # type: ignore[misc]
    tops, lefts = (np.rint((sizes - (height, width)) / 2).astype(np.int64)).T
    return {"top": tops, "left": lefts, "height": np.full_like(tops, height), "width": np.full_like(lefts, width)}


def _draw_resize(operation: Resize, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
    nothing = np.zeros(len(sizes), np.int64)
    return {"top": nothing, "left": nothing, "height": sizes[:, 0], "width": sizes[:, 1]}


def _draw_whether(operation: Any, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
    return {"is_applied": numbers[0] < operation.p}


def _draw_affine(operation: Affine, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
    shift_y, shift_x = (sizes * operation.translate[::-1]).T
    shear: Any = operation.shear
    return {
        "is_applied": numbers[0] < operation.p,
        "angle": _within(operation.degrees, numbers[1]),
        "translate_x": np.rint(_within((-shift_x, shift_x), numbers[2])),
        "translate_y": np.rint(_within((-shift_y, shift_y), numbers[3])),
        "scale": _within(operation.scale, numbers[4]),
        "shear_x": _within(shear[:2], numbers[5]),
        "shear_y": _within(shear[2:], numbers[6]),
    }


def _draw_jitter(operation: ColorJitter, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
    """`order` has the numbers of the changes, -1 for one that is switched off: (batch, 4)."""
    limits = (operation.brightness, operation.contrast, operation.saturation, operation.hue)
    neutral = ((1, 1), (1, 1), (1, 1), (0, 0))
    changes = np.array([number if limits[number] != neutral[number] else -1 for number in range(4)])
    order = changes[_ORDERS[_below(np.array(len(_ORDERS)), numbers[1])]]
    factors = [_within(limit, number) for limit, number in zip(limits, numbers[2:], strict=True)]
    names = ("brightness", "contrast", "saturation", "hue")
    return {"is_applied": numbers[0] < operation.p, "order": order, **dict(zip(names, factors, strict=True))}


def _draw_blur(operation: GaussianBlur, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
    return {"is_applied": numbers[0] < operation.p, "sigma": _within(operation.sigma, numbers[1])}


def _draw_erasing(operation: Erasing, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
    (heights, widths), is_found = _fit_boxes(operation, numbers[1:], sizes.T - 1, sizes.prod(axis=1), smallest=0)
    tops, lefts = _place(numbers[1 + 2 * _NUM_TRIES :], sizes, heights, widths)
    is_applied = (numbers[0] < operation.p) & is_found
    return {"is_applied": is_applied, "top": tops, "left": lefts, "height": heights, "width": widths}


def inverse_matrices(drawn: Drawn) -> np.ndarray:
    """Return the maps of an `Affine`, (batch, 6) as in `kernels.affine`."""
    names = ("angle", "translate_x", "translate_y", "scale", "shear_x", "shear_y")
    rows = zip(*(drawn[name].tolist() for name in names), strict=True)
    return np.array([_inverse_matrix(*row) for row in rows], np.float32)


def _inverse_matrix(angle: float, shift_x: float, shift_y: float, scale: float, shear_x: float, shear_y: float) -> Any:
    """Return the map, from output to input, that undoes: shear, scale, rotate, shift."""
    angle, shear_x, shear_y = map(math.radians, (angle, shear_x, shear_y))
    a = math.cos(angle - shear_y) / math.cos(shear_y)
    c = math.sin(angle - shear_y) / math.cos(shear_y)
    b = -a * math.tan(shear_x) - math.sin(angle)
    d = -c * math.tan(shear_x) + math.cos(angle)
    # The matrix (a b, c d) has determinant 1.
    a, b, c, d = d / scale, -b / scale, -c / scale, a / scale
    return a, b, -a * shift_x - b * shift_y, c, d, -c * shift_x - d * shift_y


def blur_weights(operation: GaussianBlur, drawn: Drawn) -> np.ndarray:
    """Return the weights of the centre and at each distance from it, float32 (batch, largest radius + 1)."""
    distances = np.arange(operation.kernel_size // 2 + 1)
    weights = np.exp(-0.5 * (distances / drawn["sigma"][:, None]) ** 2)
    weights /= weights[:, :1] + 2 * weights[:, 1:].sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


# How many numbers an operation takes, and what makes its parameters of them.
_DRAWERS: dict[type, tuple[int, Callable[[Any, np.ndarray, np.ndarray], Drawn]]] = {
    RandomResizedCrop: (2 * _NUM_TRIES + 2, _draw_crop),
    Resize: (0, _draw_resize),
    CenterCrop: (0, _draw_center_crop),
    HorizontalFlip: (1, _draw_whether),
    VerticalFlip: (1, _draw_whether),
    Affine: (7, _draw_affine),
    ColorJitter: (6, _draw_jitter),
    Grayscale: (1, _draw_whether),
    GaussianBlur: (2, _draw_blur),
    Solarize: (1, _draw_whether),
    Erasing: (1 + 2 * _NUM_TRIES + 2, _draw_erasing),
    Normalize: (0, lambda operation, numbers, sizes: {}),
}
