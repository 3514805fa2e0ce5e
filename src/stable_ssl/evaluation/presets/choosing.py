"""Choosing a setting on a part of the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..protocol import Figure, Labelled, Sets
from .splits import take

Setting = dict[str, Any]
# Gets the images to fit on, settings, and the images to judge by; returns an accuracy per setting.
Score = Callable[[Labelled, Sequence[Setting], Labelled], Sequence[float]]


def choose_and_refit(
    name: str, train: Sets, test: Sets, apart: Tensor, settings: Sequence[Setting], score: Score
) -> Figure:
    """Return the accuracy of the best setting after a fit on all training images. The test images are looked at once.

    Parameters
    ----------
    name
        Name of the figure.
    apart
        Whether each training image is one of those that choose, (images,). The settings are fitted on the others.
    settings
        What there is to choose from; of equally good ones the first is chosen. Several features are a choice, too.
    score
        What fits and judges.
    """
    rest, judges = take(train, ~apart), take(train, apart)
    scores = {features: score(rest[features], settings, judges[features]) for features in train}
    features, number = max(
        ((features, number) for features in train for number in range(len(settings))),
        key=lambda choice: scores[choice[0]][choice[1]],
    )
    (accuracy,) = score(train[features], [settings[number]], test[features])
    chosen = {**({"features": features} if len(train) > 1 else {}), **settings[number]}
    return Figure(name, accuracy, features, chosen, details(scores, settings))


def figure_name(name: str, features: str, sets: Sets) -> str:
    """Return the name of a figure of some features; the features are a part of it if there are several."""
    return name if len(sets) == 1 else f"{name} ({features})"


def details(scores: dict[str, Sequence[float]], settings: Sequence[Setting]) -> dict[str, Any]:
    """Return the accuracy of each setting on the images that choose, by features."""
    return {
        "choices": [
            {"features": features, **setting, "accuracy": accuracy}
            for features, found in scores.items()
            for setting, accuracy in zip(settings, found, strict=True)
        ]
    }
