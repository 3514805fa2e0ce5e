"""Which labelled images are trained on, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from ...exceptions import ConfigError
from ...runtime.seeding import Stream, derive_seed
from ..sets import LabelledSet
from ..splits import sample


def sampled(own: LabelledSet, amount: float | int, seed: int) -> LabelledSet:
    """Return a sample of a set, as `splits.sample` draws it.

    Raises
    ------
    ConfigError
        A class has too few images for it.
    """
    images = sample(own.labels, amount, seed)
    if images is None:
        what = f"{amount:.3%}".replace(".000", "") if isinstance(amount, float) else str(amount)
        counts = own.labels.bincount()
        raise ConfigError(
            f"{what} of each class can't be taken of the {len(own)} labelled images: the smallest class has "
            f"{int(counts[counts > 0].min())}."
        )
    return own.take(images)


def without_last_tenth(own: LabelledSet, seed: int) -> tuple[LabelledSet, LabelledSet]:
    """Return two parts of a set: the beginning of a permutation under a seed, and the tenth at its end.

    Raises
    ------
    ConfigError
        It has fewer than ten images.
    """
    if len(own) < 10:
        raise ConfigError(
            "A tenth of the labelled training images is kept to choose the setting, which takes at least 10; there are "
            f"{len(own)}."
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
