"""Supervised training: what self-supervised methods are compared with."""

from __future__ import annotations

from torch import Tensor, nn

from ..base import BaseTrainer


class SupervisedTrainer(BaseTrainer):
    """Trains a classifier, `module["backbone"]`, on (images, labels).

    `loss` is called with (scores, labels); cross-entropy where there is none.
    """

    required_modules = {"backbone": nn.Module}

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores, (batch, classes)."""
        return self.module["backbone"](images)

    def predict(self) -> Tensor:
        """Return class scores for the batch at hand."""
        return self.forward(self.batch[0])

    def compute_loss(self) -> Tensor:
        """Return the loss of the scores for the labels."""
        loss = self.loss if self.loss is not None else nn.functional.cross_entropy
        return loss(self.predict(), self.batch[1])
