"""Supervised training: what self-supervised methods are compared with."""

from __future__ import annotations

from torch import Tensor, nn

from ..base import BaseTrainer
from ..exceptions import DataError
from ..runtime.device import describe_batch


class SupervisedTrainer(BaseTrainer):
    """Trains a classifier, `module["backbone"]`, on (images, labels).

    `loss` is called with (scores, labels); cross-entropy where there is none.
    """

    required_modules = {"backbone": nn.Module}

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores, (batch, classes)."""
        scores: Tensor = self.module["backbone"](images)
        return scores

    def predict(self) -> Tensor:
        """Return class scores for the batch at hand."""
        return self.forward(self.batch[0])

    def compute_loss(self) -> Tensor:
        """Return the loss of the scores for the labels."""
        if not isinstance(self.batch, list | tuple) or len(self.batch) != 2:
            raise DataError(
                f"{type(self).__name__} needs batches (images, labels), but this one is {describe_batch(self.batch)}."
            )
        criterion = self.loss if self.loss is not None else nn.functional.cross_entropy
        loss: Tensor = criterion(self.predict(), self.batch[1])
        return loss
