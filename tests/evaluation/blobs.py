"""Features around the means of their classes."""

from __future__ import annotations

import torch

from stable_ssl.evaluation.protocol import Labelled

CPU = torch.device("cpu")


def labelled(num_images, seed, num_classes=5, dim=6, noise=2.0):
    """Images around the means of their classes; the means are the same for every seed."""
    means = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    return Labelled(means[labels] + noise * torch.randn(num_images, dim, generator=generator), labels, num_classes)
