"""Clustering: each view's cluster is to be predicted from the other views (SwAV)."""

from __future__ import annotations

from ..exceptions import ConfigError
from ..losses import SwAVLoss
from .joint_embedding import JointEmbeddingTrainer


class ClusteringTrainer(JointEmbeddingTrainer):
    """Joint embedding with a `SwAVLoss` (Caron et al., "Unsupervised learning of visual features by contrasting cluster
    assignments", NeurIPS 2020, appendix A).

    The first two views of an image are assigned to clusters. Each view's embedding predicts the clusters of the others.

    Parameters
    ----------
    freeze_prototypes_epochs
        The number of epochs in which the prototypes are not trained.
    queue_start_epoch
        The epoch, counted from 0, in which the queue begins to fill, if the loss has one.

    See `JointEmbeddingTrainer` for the other parameters.
    """

    freeze_prototypes_epochs: int = 1
    queue_start_epoch: int = 15

    def check_setup(self) -> None:
        """Require a `SwAVLoss`."""
        if "train" in self.data and not isinstance(self.loss, SwAVLoss):
            raise ConfigError(f"loss: {type(self).__name__} needs a SwAVLoss, not a {type(self.loss).__name__}.")
        super().check_setup()

    def begin_epoch(self, epoch: int) -> None:
        """Let the queue and the prototypes come in when their epoch has come."""
        self.loss.uses_queue = epoch >= self.queue_start_epoch
        self.loss.prototypes.weight.requires_grad_(epoch >= self.freeze_prototypes_epochs)
