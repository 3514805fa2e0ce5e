"""Protocols of papers that work on features without augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch

from ...exceptions import ConfigError
from ..heads.linear import Recipe, accuracies, fit_heads
from ..heads.logistic import fit_logistic
from ..heads.means import nearest_mean_accuracy
from ..heads.nearest import knn_accuracies
from ..protocol import Figure, Labelled, OnFeatures, Sets
from .choosing import Setting, choose_and_refit, listed
from .splits import check_finite, labels_of, take

KS = (10, 20, 100, 200)
INVERSE_PENALTIES = [{"C": float(value)} for value in 10 ** np.linspace(-6, 5, 45)]
CAPI_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
CAPI_GRID = [{"lr": lr, "weight_decay": decay} for lr, decay in product(CAPI_RATES, (5e-4, 1e-3, 5e-2))]
CAPI_HEAD = Recipe(optimizer="adamw", batch_size=128, std=0.02)
CAPI_ITERATIONS, CAPI_WARMUP, CAPI_SEED = 12_500, 1_250, 42


def measure_dino_knn(train: Sets, test: Sets, seed: int, device: torch.device) -> list[Figure]:
    """Return the accuracy of nearest neighbours for each k (Caron et al., "Emerging properties in self-supervised
    vision transformers", ICCV 2021, section 4.1, and the authors' code).

    Raises
    ------
    DataError
        Features are NaN or infinite.
    ConfigError
        Train has fewer images than the largest k.
    """
    check_finite(train, test)
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
    DataError
        Features are NaN or infinite.
    ConfigError
        Train has fewer than ten images.
    """
    check_finite(train, test)
    size = len(labels_of(train))
    if size < 10:
        raise ConfigError(f"dinov2-logreg: a tenth of the {size} labelled training images is none; it needs ten.")
    apart = torch.zeros(size, dtype=torch.bool)
    apart[torch.randperm(size, generator=torch.Generator().manual_seed(0))[: size // 10]] = True

    def score(fitted: Labelled, settings: Sequence[Setting], judges: Labelled) -> list[float]:
        return accuracies(*fit_logistic(fitted, [setting["C"] for setting in settings], device), judges)

    return [choose_and_refit("logistic", train, test, apart, INVERSE_PENALTIES, score)]


def measure_simpleshot(train: Sets, test: Sets, seed: int, device: torch.device) -> list[Figure]:
    """Return the accuracy of the nearest class mean (Wang et al., "SimpleShot", 2019).

    Raises
    ------
    DataError
        Features are NaN or infinite.
    """
    check_finite(train, test)
    return [
        Figure("nearest-mean", nearest_mean_accuracy(train[features], test[features], device), features)
        for features in train
    ]


def measure_capi(train: Sets, test: Sets, seed: int, device: torch.device) -> list[Figure]:
    """Return the accuracy of the best linear head on each kind of features (Darcet et al., "CAPI", 2025, and the
    authors' code).

    A tenth of train, the end of a permutation under seed 42, chooses a head, which is not fitted again. Rates are
    multiplied by batch size / 256. The authors average the losses over all heads, which AdamW undoes.

    Raises
    ------
    DataError
        Features are NaN or infinite.
    """
    check_finite(train, test)
    order = torch.from_numpy(np.random.default_rng(CAPI_SEED).permutation(len(labels_of(train))))
    size = round(0.9 * len(order))
    rates = [setting["lr"] * CAPI_HEAD.batch_size / 256 for setting in CAPI_GRID]
    decays = [setting["weight_decay"] for setting in CAPI_GRID]
    figures = []
    for features, own in train.items():
        heads = fit_heads(take(own, order[:size]), rates, decays, CAPI_HEAD, capi_schedule(), CAPI_SEED, device)
        choices = listed(features, CAPI_GRID, heads.accuracies(take(own, order[size:])))
        best = max(range(len(choices)), key=lambda number: choices[number]["accuracy"])
        accuracy = heads.accuracies(test[features])[best]
        figures.append(Figure("linear", accuracy, features, CAPI_GRID[best], {"choices": choices}))
    return figures


def capi_schedule() -> list[float]:
    """Return CAPI's schedule: from 0 to 1 in 1,250 iterations, and to 0 along half a cosine in 11,250."""
    falling = (1 + np.cos(np.linspace(0, np.pi, CAPI_ITERATIONS - CAPI_WARMUP))) / 2
    return [*np.linspace(0, 1, CAPI_WARMUP).tolist(), *falling.tolist()]


PROTOCOLS = [
    OnFeatures(
        name="dino-knn",
        summary="Nearest neighbours with k 10, 20, 100 and 200, a figure each.",
        reproduces="DINO and DINOv2, nearest neighbours",
        features=("class",),
        view="224",
        chosen_on="nothing",
        seeds=1,
        measure=measure_dino_knn,
    ),
    OnFeatures(
        name="dinov2-logreg",
        summary="Logistic regression: 10 % of train choose C of 45 values. The authors cut no border off the images.",
        reproduces="DINOv2, logistic regression",
        features=("class",),
        view="224",
        chosen_on="10 % of train",
        seeds=1,
        measure=measure_dinov2_logreg,
    ),
    OnFeatures(
        name="simpleshot",
        summary="The nearest class mean of centred features of unit length.",
        reproduces="SimpleShot's nearest mean, CL2N, with all labels",
        features=("representation",),
        view="own",
        chosen_on="nothing",
        seeds=1,
        measure=measure_simpleshot,
    ),
    OnFeatures(
        name="capi",
        summary="Linear heads: 10 % of train choose rate and decay of 30 pairs. The authors also crop and flip the "
        "training images, and have heads that attend to patches.",
        reproduces="CAPI, linear, except for augmentation",
        features=("class", "patches", "class+patches"),
        view="224",
        chosen_on="10 % of train",
        seeds=1,
        measure=measure_capi,
    ),
]
