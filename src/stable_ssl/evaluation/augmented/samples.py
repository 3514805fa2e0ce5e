"""Which labelled images are trained on, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from ...exceptions import ConfigError
from ...runtime.seeding import Stream, derive_seed
from ..sets import LabelledSet
from ..splits import places_in_class


def share_of(own: LabelledSet, share: float, seed: int) -> LabelledSet:
    """Return a share of a set with the same share of each class, rounded, drawn by a seed.

    Raises
    ------
    ConfigError
        A class would have no image in it.
    """
    if share == 1:
        return own
    counts = own.labels.bincount()
    numbers = (share * counts).round().long()
    if (numbers[counts > 0] < 1).any():
        raise ConfigError(
            f"{share:.0%} of the {len(own)} labelled images can't have some of each class: the smallest one has "
            f"{int(counts[counts > 0].min())}. Take a larger share, or more images."
        )
    return own.take(places_in_class(own.labels, seed) < numbers[own.labels])


def without_last_tenth(own: LabelledSet, seed: int) -> tuple[LabelledSet, LabelledSet]:
    """Return two parts of a set: the beginning of a permutation under a seed, and the tenth at its end.

    Raises
    ------
    ConfigError
        It has fewer than ten images.
    """
    if len(own) < 10:
        raise ConfigError(
            f"A tenth of the {len(own)} labelled training images chooses, but that is none; it takes ten."
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(own)))
    size = round(0.9 * len(order))
    return own.take(order[:size]), own.take(order[size:])


class EndlessOrder(Sampler):
    """An endless order of samples, cut into epochs of one length. All samples come once before any comes again.

    Parameters
    ----------
    num_samples
        Size of the data set.
    length
        Samples per epoch.
    seed
        The order is a function of it.
    """

    def __init__(self, num_samples: int, length: int, seed: int):
        self.num_samples, self.length, self.seed, self.epoch = num_samples, length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that is read next, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.length
        passes = range(first // self.num_samples, (first + self.length - 1) // self.num_samples + 1)
        order = torch.cat([self._pass(number) for number in passes])
        start = first - passes[0] * self.num_samples
        yield from order[start : start + self.length].tolist()

    def _pass(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, Stream.ORDER, number))
        return torch.randperm(self.num_samples, generator=generator)
