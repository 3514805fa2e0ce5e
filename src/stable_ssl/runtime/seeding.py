"""Everything random is a pure function: seeds are derived from what is computed, never from what came before."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch

_MASK = (1 << 64) - 1


class Stream(IntEnum):
    """What a derived seed is for; keeps the draws of different uses apart."""

    BUILD = 1  # initial weights
    ORDER = 2  # order of the samples of an epoch
    SAMPLE = 3  # transforms of one sample
    STEP = 4  # dropout, masks, noise of one micro-batch of training
    EVAL = 5  # the same, of one evaluation batch
    EPOCH = 6  # the hooks around an epoch
    VIEWS = 7  # parameters of the views of one sample


def derive_seed(*keys: int) -> int:
    """Mix integers into one 64-bit seed.

    A chain of SplitMix64 finalisers (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014), one a key, so that keys which differ in one bit give unrelated seeds.
    """
    state = 0x243F6A8885A308D3
    for key in keys:
        state = ((state ^ key) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def seed_generators(*keys: int) -> None:
    """Seed the default generators of Python, NumPy and torch, and those of CUDA or MPS if in use, from `keys`."""
    _seed_all(derive_seed(*keys))


def seed_generators_in_turn(base: int, number: int) -> None:
    """Seed as `seed_generators` does, for the `number`-th of many turns; `base` is a derived seed.

    A Weyl sequence, whose members differ from each other in the low 32 bits too, costs a quarter of `derive_seed`.
    """
    _seed_all((base + number * 0x9E3779B97F4A7C15) & _MASK)


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # `torch.manual_seed` costs a hundred times as much as this.
    torch.default_generator.manual_seed(seed)
    if _HAS_ACCELERATOR:
        _seed_accelerator(seed)


# Asking each time would cost as much as seeding a generator.
_HAS_ACCELERATOR = torch.backends.cuda.is_built() or torch.backends.mps.is_built()


def _seed_accelerator(seed: int) -> None:
    if torch.cuda.is_initialized():
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
    elif torch.backends.mps.is_built() and torch.mps.is_available():
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def preserved_generators() -> Iterator[None]:
    """Put the default CPU generators back as they were."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
