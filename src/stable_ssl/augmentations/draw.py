"""What is drawn for a view: a pure function of (seed, epoch, sample index, view number), for many samples at once.

Each number comes from its own counter, so it depends on no other draw. The generator is SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). Its stream starts at
`derive_seed(seed, Stream.VIEWS, epoch, index)`, and its place is (view, operation, draw). What follows are additions,
multiplications, divisions and square roots of float64 only. IEEE 754 fixes them to the last bit, so every machine draws
the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..runtime.seeding import Stream, derive_seed

if TYPE_CHECKING:
    from .operations.base import Operation

Drawn = dict[str, np.ndarray]

_GOLDEN = 0x9E3779B97F4A7C15


def draw(
    operations: Sequence[Operation], view: int, seed: int, epoch: int, indices: Sequence[int], sizes: np.ndarray
) -> list[Drawn]:
    """Return the parameters of each operation of a view: arrays (batch, …) by name.

    Parameters
    ----------
    operations
        The operations of the view.
    view
        The number of the view.
    seed, epoch, indices
        The run's seed, the epoch, and the samples' places in their data set.
    sizes
        (batch, 2): height and width of each image.

    Raises
    ------
    ValueError
        An image is too small for an operation.
    """
    counts = [operation.num_draws for operation in operations]
    counters = [(view << 32) + (number << 16) + i for number, count in enumerate(counts) for i in range(count)]
    uniforms = _uniform(_starts(seed, epoch, indices), counters)
    drawn = []
    for operation, count, end in zip(operations, counts, itertools.accumulate(counts), strict=True):
        _check_sizes(operation, sizes, indices)
        drawn.append(operation.draw(uniforms[end - count : end], sizes))
        if operation.resizes:
            sizes = np.stack(operation.output_size(sizes[:, 0], sizes[:, 1]), axis=1)
    return drawn


def uniform(number: int, seed: int, epoch: int, indices: Sequence[int], count: int) -> np.ndarray:
    """Return `count` numbers in [0, 1) for each sample, (count, batch).

    `number` stands where views have theirs; no view may have the same.
    """
    return _uniform(_starts(seed, epoch, indices), range(number << 32, (number << 32) + count))


def any_key() -> tuple[int, int, list[int]]:
    """Return seed, epoch and index of one sample, from the default torch generator."""
    return int(torch.randint(1 << 62, ()).item()), 0, [0]


def within(limits: Any, uniform: np.ndarray) -> Any:
    """Spread numbers in [0, 1) over a range (low, high)."""
    return limits[0] + (limits[1] - limits[0]) * uniform


def below(limits: np.ndarray, uniform: np.ndarray) -> Any:
    """Turn numbers in [0, 1) into whole numbers from 0 to limit - 1."""
    return (limits * uniform).astype(np.int64)


def _check_sizes(operation: Operation, sizes: np.ndarray, indices: Sequence[int]) -> None:
    needed = operation.least_size
    if needed == (1, 1):
        return
    too_small = np.flatnonzero((sizes < needed).any(axis=1))
    if len(too_small):
        height, width = sizes[too_small[0]]
        raise ValueError(
            f"sample {indices[too_small[0]]} has only {height} × {width} pixels; {operation} needs at least "
            f"{needed[0]} × {needed[1]}."
        )


def _starts(seed: int, epoch: int, indices: Sequence[int]) -> np.ndarray:
    """Return `derive_seed(seed, Stream.VIEWS, epoch, index)` of each index."""
    start = np.uint64(derive_seed(seed, Stream.VIEWS, epoch))
    return _mix((start ^ np.asarray(indices).astype(np.uint64)) + np.uint64(_GOLDEN))


def _uniform(starts: np.ndarray, counters: Sequence[int]) -> np.ndarray:
    """Return numbers in [0, 1), multiples of 2^-53, of (counters, batch)."""
    steps = np.array(counters, dtype=np.uint64) * np.uint64(_GOLDEN)
    numbers: np.ndarray = (_mix(starts + steps[:, None]) >> np.uint64(11)) * 2.0**-53
    return numbers


def _mix(states: np.ndarray) -> np.ndarray:
    """Return SplitMix64's finaliser of each state."""
    states = (states ^ (states >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    states = (states ^ (states >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = states ^ (states >> np.uint64(31))
    return mixed
