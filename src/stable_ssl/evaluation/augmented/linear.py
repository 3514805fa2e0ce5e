"""Linear classifiers on a frozen network, trained on augmented images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...base import BaseTrainer
from ...runtime.batches import images_of, labels_in
from ..networks import Features
from .heads import Heads

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Frozen:
    """A network that gives features and never changes. It is no module of its trainer, so no checkpoint holds it.

    Parameters
    ----------
    features
        The network, in evaluation mode.
    precision
        What it computes in: "fp32", "bf16" or "fp16".
    """

    def __init__(self, features: Features, precision: str = "fp32"):
        self.features, self.dtype = features, DTYPES[precision]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features of images by name, float32 (batch, dim)."""
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            found = self.features(images)
        return {name: values.float() for name, values in found.items()}


class LinearProbeTrainer(BaseTrainer):
    """Trains `module["heads"]` on the features of a frozen network, which computes them once per batch for all heads.

    The loss is the sum of the heads' cross-entropies, so that each head learns as if it were alone.

    Parameters
    ----------
    frozen
        The network.
    about
        What else a run that goes on must have in common with its folder, such as the checksum of the network.

    See `BaseTrainer` for the other parameters.
    """

    required_modules = {"heads": Heads}
    frozen: Frozen
    about: Mapping[str, Any] = {}

    def check_setup(self) -> None:
        """Move the network to the run's device."""
        self.frozen.features.to(self.device)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of all heads, (batch, heads, classes)."""
        scores: Tensor = self.module["heads"](self.frozen(images))
        return scores

    def predict(self) -> Tensor:
        """Return the scores of all heads for the current batch, (batch, heads, classes)."""
        return self.forward(images_of(self.batch))

    def compute_loss(self) -> Tensor:
        """Return the sum of the heads' mean cross-entropies."""
        scores = self.predict()
        labels = labels_in(self.batch)[:, None].expand(scores.shape[:2])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
        return scores.shape[1] * loss
