"""Classification by the nearest class mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..protocol import Labelled

MOST = 2**24  # numbers that a chunk of images may have, per class


@torch.no_grad()
def nearest_mean_accuracy(train: Labelled, test: Labelled, device: torch.device) -> float:
    """Return the share of the test images that are nearest to the mean of their class.

    Features are centred by the mean of the training features, and have unit length then; the distance is Euclidean
    (Wang et al., "SimpleShot", 2019, section 3, CL2N). A class without a training image is never found.
    """
    centre = train.features.mean(0).to(device)

    def prepared(features: Tensor) -> Tensor:
        return functional.normalize(features.to(device) - centre, dim=1)

    size = max(1, MOST // train.num_classes)
    sums = torch.zeros(train.num_classes, len(centre), device=device)
    for features, labels in zip(train.features.split(size), train.labels.split(size), strict=True):
        members = functional.one_hot(labels.to(device), train.num_classes).float()  # (images, classes)
        sums += members.T @ prepared(features)
    counts = train.labels.bincount(minlength=train.num_classes).to(device)
    means = sums / counts.clamp(min=1)[:, None]  # (classes, dim)
    hits = 0
    for features, labels in zip(test.features.split(size), test.labels.split(size), strict=True):
        distances = torch.cdist(prepared(features), means)  # (images, classes)
        distances[:, counts == 0] = torch.inf
        hits += int((distances.argmin(1) == labels.to(device)).sum())
    return hits / len(test.labels)
