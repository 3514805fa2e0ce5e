"""Seeds for everything random. Each is a function of what is computed, such as the step, and not of earlier draws."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch

_MASK = (1 << 64) - 1
FIRST_STATE = 0x243F6A8885A308D3  # what `derive_seed` mixes its first key into


class Stream(IntEnum):
    """The use of a derived seed, so that different uses draw different numbers."""

    BUILD = 1  # initial weights
    ORDER = 2  # order of the samples of an epoch
    SAMPLE = 3  # transforms of one sample
    STEP = 4  # dropout, masks, noise of one micro-batch of training
    EVAL = 5  # the same, of one evaluation batch
    EPOCH = 6  # the hooks around an epoch
    VIEWS = 7  # parameters of the views of one sample
    SUBSET = 8  # which samples of a set an evaluation takes


def derive_seed(*keys: int) -> int:
    """Mix integers into one 64-bit seed.

    A chain of SplitMix64 finalisers (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014), one per key. Keys that differ in one bit give unrelated seeds.
    """
    state = FIRST_STATE
    for key in keys:
        state = ((state ^ key) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def seed_generators(*keys: int) -> None:
    """Seed the default generators of Python, NumPy and torch from integers, and those of CUDA or MPS if in use."""
    _seed_all(derive_seed(*keys))


def seed_generators_in_turn(base: int, number: int) -> None:
    """Seed the same generators as `seed_generators`, but with the `number`-th seed of a sequence.

    It is a Weyl sequence, whose members also differ in the low 32 bits. It costs a quarter of `derive_seed`.

    Parameters
    ----------
    base
        A seed from `derive_seed`, which begins the sequence.
    number
        The place in the sequence, from 0.
    """
    _seed_all((base + number * 0x9E3779B97F4A7C15) & _MASK)


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # `torch.manual_seed` takes a hundred times as long.
    torch.default_generator.manual_seed(seed)
    if _HAS_ACCELERATOR:
        _seed_accelerator(seed)


# Decided once, because each question takes as long as seeding a generator.
_HAS_ACCELERATOR = torch.backends.cuda.is_built() or torch.backends.mps.is_built()


def _seed_accelerator(seed: int) -> None:
    if torch.cuda.is_initialized():
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
    elif torch.backends.mps.is_built() and torch.mps.is_available():
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the default CPU generators of Python, NumPy and torch after the `with` block."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
