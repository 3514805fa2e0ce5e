"""Clustering: each view's cluster is to be predicted from the other views (SwAV)."""

from __future__ import annotations

from torch import Tensor

from ..exceptions import ConfigError
from ..losses import SwAVLoss
from .joint_embedding import JointEmbeddingTrainer


class ClusteringTrainer(JointEmbeddingTrainer):
    """Joint embedding with a `SwAVLoss`, whose prototypes and queue come in later (Caron et al., "Unsupervised learning
    of visual features by contrasting cluster assignments", NeurIPS 2020, appendix A).

    Parameters
    ----------
    freeze_prototypes_epochs
        For how many epochs the prototypes stay as they are.
    queue_start_epoch
        The queue, if there is one, begins to fill in this epoch, counted from 0.

    See `JointEmbeddingTrainer` for the others. The first two views are clustered, all are predicted from.
    """

    freeze_prototypes_epochs: int = 1
    queue_start_epoch: int = 15

    def _check_loss(self) -> None:
        if not isinstance(self.loss, SwAVLoss):
            raise ConfigError(f"loss: {type(self).__name__} needs a SwAVLoss, not a {type(self.loss).__name__}.")

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the loss of swapped predictions."""
        self.loss.uses_queue = self.epoch >= self.queue_start_epoch
        self.loss.prototypes.weight.requires_grad_(self.epoch >= self.freeze_prototypes_epochs)
        return super().compute_loss()
