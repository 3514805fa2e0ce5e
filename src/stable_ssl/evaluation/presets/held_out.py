"""The default protocol, `held-out`, and its halves `knn` and `linear`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from ...exceptions import ConfigError
from ..heads.linear import cosine, fit_heads
from ..heads.nearest import knn_accuracies
from ..protocol import Figure, Labelled, OnFeatures, Sets
from ..splits import labels_of, tenth
from .choosing import Setting, choose_and_refit

KS = (10, 20, 100, 200)
GRID = [
    {"lr": lr, "weight_decay": decay}
    for lr, decay in product((1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0), (0.0, 1e-4))
]
BATCH, EPOCHS = 256, 100


def measure_knn(train: Sets, test: Sets, seed: int, device: torch.device) -> list[Figure]:
    """Return the accuracy of nearest neighbours. A tenth of train chooses k; the bank is then all of train.

    Raises
    ------
    ConfigError
        The other nine tenths have fewer images than the smallest k.
    """
    apart = tenth(labels_of(train), seed)
    size = int((~apart).sum())
    if size < min(KS):
        raise ConfigError(
            f"k: {min(KS)} neighbours are more than the {size} labelled images in nine tenths of train. "
            "The protocols linear, simpleshot and low-shot need fewer."
        )

    def score(bank: Labelled, settings: Sequence[Setting], queries: Labelled) -> list[float]:
        return list(knn_accuracies(bank, queries, [setting["k"] for setting in settings], device).values())

    return [choose_and_refit("knn", train, test, apart, [{"k": k} for k in KS if k <= size], score)]


def measure_linear(train: Sets, test: Sets, seed: int, device: torch.device) -> list[Figure]:
    """Return the accuracy of a linear head after batch norm. A tenth of train chooses its rate and weight decay.

    The head of the last epoch counts.
    """

    def score(fitted: Labelled, settings: Sequence[Setting], judges: Labelled) -> list[float]:
        rates, decays = ([setting[key] for setting in settings] for key in ("lr", "weight_decay"))
        schedule = cosine(EPOCHS * max(len(fitted.labels) // BATCH, 1))
        return fit_heads(fitted, rates, decays, schedule, seed, device, BATCH).accuracies(judges)

    return [choose_and_refit("linear", train, test, tenth(labels_of(train), seed), GRID, score)]


def measure_both(train: Sets, test: Sets, seed: int, device: torch.device) -> list[Figure]:
    """Return both accuracies; errors as `measure_knn`'s."""
    return measure_knn(train, test, seed, device) + measure_linear(train, test, seed, device)


PROTOCOLS = [
    OnFeatures(
        name=name,
        summary=summary,
        reproduces="no paper's: the test images choose nothing",
        chosen_on="10 % of train",
        seeds=3,
        measure=measure,
    )
    for name, summary, measure in (
        ("held-out", "Nearest neighbours and a linear head, whose settings 10 % of train choose.", measure_both),
        ("knn", "Nearest neighbours, whose number 10 % of train choose: one half of held-out.", measure_knn),
        ("linear", "A linear head, whose rate and decay 10 % of train choose: one half of held-out.", measure_linear),
    )
]
