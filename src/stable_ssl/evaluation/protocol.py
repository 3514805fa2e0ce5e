"""What a protocol is, and what it returns. The protocols themselves are in `presets`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labelled:
    """Features of the images of a set that have a label.

    Attributes
    ----------
    features
        (samples, dim), float32, on the CPU; the memory may be that of a file.
    labels
        From 0, (samples,), int64.
    num_classes
        Number of classes of the training set.
    """

    features: Tensor
    labels: Tensor
    num_classes: int


@dataclass(frozen=True)
class Figure:
    """A figure that a protocol gives under one seed.

    Attributes
    ----------
    name
        Which part of the protocol, such as "knn" or "linear".
    accuracy
        Share of the test images whose class is found, from 0 to 1.
    features
        Name of the features.
    chosen
        The setting that was chosen, such as {"k": 20}.
    details
        Whatever else is worth keeping, such as the accuracy of each setting on the split that chose.
    """

    name: str
    accuracy: float
    features: str
    chosen: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


Sets = Mapping[str, Labelled]  # by the features' name


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A named way to measure what features are worth.

    Attributes
    ----------
    name
        Its name on the command line.
    summary
        What it does, in one sentence.
    reproduces
        Whose figures it reproduces.
    features
        Names of the features that it compares, as `networks` names them.
    view
        "own": images as the source's own evaluation sees them. "224": the shorter side becomes `resize` pixels,
        bicubic, and the middle 224 × 224 are cut out.
    resize
        Pixels of the shorter side.
    chosen_on
        What chose the setting, in words, such as "10 % of train" or "the reported split".
    seeds
        How many seeds it is repeated with: 1 if nothing in it is random.
    """

    name: str
    summary: str
    reproduces: str
    features: Sequence[str] = ("representation",)
    view: str = "own"
    resize: int = 256
    chosen_on: str = "nothing"
    seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class OnFeatures(Protocol):
    """A protocol on features that are computed once, without augmentation.

    Attributes
    ----------
    measure
        Gets the training set and the test set by features, the seed, and the device to compute on; returns figures.
    """

    measure: Callable[[Sets, Sets, int, torch.device], list[Figure]]
