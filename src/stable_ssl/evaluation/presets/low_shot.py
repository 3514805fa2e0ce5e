"""The protocol `low-shot`: what features are worth with few labels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..heads.linear import accuracies
from ..heads.logistic import fit_logistic
from ..heads.means import nearest_mean_accuracy
from ..protocol import Figure, Labelled, OnFeatures, Sets
from ..splits import labels_of, sample, take

# Shares of the images of each class, and numbers of images of each class.
AMOUNTS: dict[str, float | int] = {"1%": 0.01, "10%": 0.1, **{f"{number}-shot": number for number in (1, 2, 4, 8, 16)}}


def measure_low_shot(train: Sets, test: Sets, seed: int, device: torch.device) -> list[Figure]:
    """Return the accuracies of two heads on each sample of the labels: the nearest mean, and logistic regression."""
    taken, figures = samples(labels_of(train), seed), []
    left_out = ", ".join(name for name in AMOUNTS if name not in taken)
    departures = [f"{left_out}: left out, since a class has too few images"] if left_out else []
    for amount, images in taken.items():
        details = {"images": int(images.sum()), "departures": departures}
        for features, own in train.items():
            for head, accuracy in HEADS.items():
                found = accuracy(take(own, images), test[features], device)
                figures.append(Figure(f"{amount} {head}", found, features, details=details))
    return figures


def samples(labels: Tensor, seed: int) -> dict[str, Tensor]:
    """Return whether each image is in a sample, (images,), by the name of the sample.

    "1%" and "10%" have that share of each class, rounded; "1-shot" to "16-shot" have as many images of each class. A
    sample is left out if a class has too few images for it. All samples of a seed take the first images of the same
    random order of each class, so a smaller one is a part of a larger one.
    """
    found = {name: sample(labels, amount, seed) for name, amount in AMOUNTS.items()}
    return {name: images for name, images in found.items() if images is not None}


def logistic_accuracy(train: Labelled, test: Labelled, device: torch.device) -> float:
    """Return the accuracy of a logistic regression with C = 1 on features standardised by those of train."""
    mean, deviation = train.features.mean(0), train.features.std(0, correction=0)
    deviation[deviation == 0] = 1

    def standardised(own: Labelled) -> Labelled:
        return Labelled((own.features - mean) / deviation, own.labels, own.num_classes)

    weights, biases = fit_logistic(standardised(train), [1.0], device)
    return accuracies(weights, biases, standardised(test))[0]


HEADS = {"nearest-mean": nearest_mean_accuracy, "logistic": logistic_accuracy}

PROTOCOLS = [
    OnFeatures(
        name="low-shot",
        summary="1 % and 10 % of the labels, and 1 to 16 per class: nearest mean, and logistic regression with C = 1.",
        reproduces="no paper's: samples are drawn anew",
        seeds=5,
        measure=measure_low_shot,
    )
]
