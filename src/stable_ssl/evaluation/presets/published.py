"""Protocols of papers that work on features without augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...exceptions import ConfigError
from ..heads.linear import accuracies
from ..heads.logistic import fit_logistic
from ..heads.means import nearest_mean_accuracy
from ..heads.nearest import knn_accuracies
from ..protocol import Figure, Labelled, OnFeatures, Sets
from ..splits import labels_of
from .choosing import Setting, choose_and_refit

KS = (10, 20, 100, 200)
INVERSE_PENALTIES = [{"C": float(value)} for value in 10 ** np.linspace(-6, 5, 45)]


def measure_dino_knn(train: Sets, test: Sets, seed: int, device: torch.device) -> list[Figure]:
    """Return the accuracy of nearest neighbours for each k (Caron et al., "Emerging properties in self-supervised
    vision transformers", ICCV 2021, section 4.1, and the authors' code).

    Raises
    ------
    ConfigError
        Train has fewer images than the largest k.
    """
    if (size := len(labels_of(train))) < max(KS):
        raise ConfigError(
            f"{max(KS)} neighbours are more than the {size} labelled training images. The protocol knn takes those k "
            "that fit."
        )
    return [
        Figure(f"knn-{k}", accuracy, features)
        for features in train
        for k, accuracy in knn_accuracies(train[features], test[features], KS, device).items()
    ]


def measure_dinov2_logreg(train: Sets, test: Sets, seed: int, device: torch.device) -> list[Figure]:
    """Return the accuracy of a logistic regression (Oquab et al., "DINOv2", TMLR 2024, and the authors' code).

    The tenth of train that chooses C is the beginning of a permutation under seed 0, and not stratified.

    Raises
    ------
    ConfigError
        Train has fewer than ten images.
    """
    if (size := len(labels_of(train))) < 10:
        raise ConfigError(f"A tenth of the {size} labelled training images chooses, but that is none; it takes ten.")
    apart = torch.zeros(size, dtype=torch.bool)
    apart[torch.randperm(size, generator=torch.Generator().manual_seed(0))[: size // 10]] = True

    def score(fitted: Labelled, settings: Sequence[Setting], judges: Labelled) -> list[float]:
        return accuracies(*fit_logistic(fitted, [setting["C"] for setting in settings], device), judges)

    return [choose_and_refit("logistic", train, test, apart, INVERSE_PENALTIES, score)]


def measure_simpleshot(train: Sets, test: Sets, seed: int, device: torch.device) -> list[Figure]:
    """Return the accuracy of the nearest class mean (Wang et al., "SimpleShot", 2019)."""
    return [
        Figure("nearest-mean", nearest_mean_accuracy(train[features], test[features], device), features)
        for features in train
    ]


PROTOCOLS = [
    OnFeatures(
        name="dino-knn",
        summary="Nearest neighbours with k 10, 20, 100 and 200, a figure each.",
        reproduces="DINO and DINOv2, nearest neighbours",
        features=("class",),
        view="224",
        measure=measure_dino_knn,
    ),
    OnFeatures(
        name="dinov2-logreg",
        summary="Logistic regression, whose C 10 % of train choose of 45 values.",
        reproduces="DINOv2, logistic regression",
        features=("class",),
        view="224",
        resize=224,
        chosen_on="10 % of train",
        measure=measure_dinov2_logreg,
    ),
    OnFeatures(
        name="simpleshot",
        summary="The nearest class mean of centred features of unit length.",
        reproduces="SimpleShot's nearest mean, CL2N, with all labels",
        measure=measure_simpleshot,
    ),
]
