"""Parts of a set: a tenth that chooses a setting, and few images per class."""

from __future__ import annotations

import torch
from torch import Tensor

from ..exceptions import ConfigError
from ..runtime.seeding import Stream, derive_seed
from .protocol import Labelled, Sets


def labels_of(sets: Sets) -> Tensor:
    """Return the labels of a set, which are the same for all its features, (images,)."""
    return next(iter(sets.values())).labels


def take(own: Labelled, images: Tensor) -> Labelled:
    """Return the features of the images that a mask or a list of indices names."""
    return Labelled(own.features[images], own.labels[images], own.num_classes)


def places_in_class(labels: Tensor, seed: int) -> Tensor:
    """Return the place of each image in a random order of those of its class, from 0, (images,).

    The images whose place is below k are k of each class. Those of a smaller k are among them.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.SUBSET))
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]  # class by class
    counts = labels.bincount()
    firsts = counts.cumsum(0) - counts
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order)) - firsts[labels[order]]
    return places


def sample(labels: Tensor, amount: float | int, seed: int) -> Tensor | None:
    """Return whether each image is in a sample of few labels, (images,).

    Parameters
    ----------
    labels
        (images,), from 0.
    amount
        A share of each class, rounded, if it is a float; else so many images of each class.
    seed
        What draws them. A smaller sample is a part of a larger one.

    Returns
    -------
    Tensor or None
        None if a class has too few images.
    """
    counts = labels.bincount()
    numbers = (amount * counts).round().long() if isinstance(amount, float) else torch.full_like(counts, amount)
    if not ((numbers >= 1) & (numbers <= counts))[counts > 0].all():
        return None
    return places_in_class(labels, seed) < numbers[labels]


def tenth(labels: Tensor, seed: int) -> Tensor:
    """Return whether each image is of a stratified tenth, (images,).

    It has a tenth of each class, rounded, and at least one image of a class that has two. An image that is alone in its
    class stays out of it.

    Raises
    ------
    ConfigError
        No class has two images.
    """
    counts = labels.bincount()
    if counts.max() < 2:
        raise ConfigError("No class has two labelled training images, so none can be set apart to choose a setting.")
    numbers = (counts / 10).round().long().clamp(min=1).minimum(counts - 1)
    return places_in_class(labels, seed) < numbers[labels]
