"""Choosing a setting on a part of the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..protocol import Figure, Labelled, Sets
from ..splits import take

Setting = dict[str, Any]
# Gets the images to fit on, settings, and the images to judge by; returns an accuracy per setting.
Score = Callable[[Labelled, Sequence[Setting], Labelled], Sequence[float]]


def choose_and_refit(
    figure: str, train: Sets, test: Sets, apart: Tensor, settings: Sequence[Setting], score: Score
) -> Figure:
    """Return the accuracy of the best setting after a fit on all training images. The test images are looked at once.

    Parameters
    ----------
    figure
        Name of the figure.
    apart
        Whether each training image is one of those that choose, (images,). The settings are fitted on the others.
    settings
        What there is to choose from; of equally good ones the first is chosen. Several features are a choice, too.
    score
        What fits and judges.
    """
    choices = [
        {"features": name, **setting, "accuracy": accuracy}
        for name, own in train.items()
        for setting, accuracy in zip(settings, score(take(own, ~apart), settings, take(own, apart)), strict=True)
    ]
    best = max(choices, key=lambda choice: choice["accuracy"])
    setting, features = {key: best[key] for key in settings[0]}, best["features"]
    (accuracy,) = score(train[features], [setting], test[features])
    chosen = setting if len(train) == 1 else {"features": features, **setting}
    return Figure(figure, accuracy, features, chosen, {"choices": choices})
