"""Which labelled images are trained on, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler, Subset

from ...exceptions import ConfigError
from ...runtime.seeding import Stream, derive_seed
from ..sets import labels_of


def targets_of(dataset: Any) -> list[int]:
    """Return the labels of a data set of (image, label); all images are read if it does not list them."""
    if isinstance(dataset, Subset):
        whole = targets_of(dataset.dataset)
        return [whole[index] for index in dataset.indices]
    listed = labels_of(dataset)
    return [int(dataset[i][1] if listed is None else listed[i]) for i in range(len(dataset))]


def labelled(dataset: Any) -> Any:
    """Return a data set without the images whose label is below 0."""
    targets = targets_of(dataset)
    known = [index for index, label in enumerate(targets) if label >= 0]
    return dataset if len(known) == len(targets) else Subset(dataset, known)


def share_of(dataset: Any, share: float, seed: int) -> Any:
    """Return a share of a labelled data set with the same share of each class, drawn by a seed.

    Raises
    ------
    ConfigError
        Not each class can have an image in it.
    """
    from sklearn.model_selection import train_test_split

    if share == 1:
        return dataset
    try:
        chosen, _ = train_test_split(
            range(len(dataset)), train_size=share, stratify=targets_of(dataset), random_state=seed
        )
    except ValueError as error:
        raise ConfigError(
            f"{share:.0%} of the {len(dataset)} labelled images can't have some of each class. Take a larger share, or "
            f"more images. {error}"
        ) from error
    return Subset(dataset, sorted(chosen))


def without_last_tenth(dataset: Any, seed: int) -> tuple[Subset, Subset]:
    """Return two parts of a data set: the beginning of a permutation under a seed, and the tenth at its end.

    Raises
    ------
    ConfigError
        It has fewer than ten images.
    """
    if len(dataset) < 10:
        raise ConfigError(
            f"A tenth of the {len(dataset)} labelled training images chooses, but that is none; it takes ten."
        )
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    size = round(0.9 * len(order))
    return Subset(dataset, order[:size]), Subset(dataset, order[size:])


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
