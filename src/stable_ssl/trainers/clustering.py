"""Clustering: the network learns to predict each view's cluster from the other views (SwAV)."""

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
        The epoch, counted from 0, from which on the queue is used when it is full, if the loss has one.
    queue_fill_epoch
        The epoch in which the queue begins to fill. None: `queue_start_epoch`, as in the authors' main_swav.py. In
        solo-learn it is 0, so that the queue is full when it starts.

    See `JointEmbeddingTrainer` for the other parameters.

    Examples
    --------
    >>> import tempfile
    >>> from functools import partial
    >>> import torch
    >>> from stable_ssl.data import Loader
    >>> from stable_ssl.losses import SwAVLoss
    >>> from stable_ssl.modules import MLP
    >>> from stable_ssl.trainers import ClusteringTrainer
    >>> images = torch.randn(32, 12, generator=torch.Generator().manual_seed(0))
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = ClusteringTrainer(
    ...     data={"train": Loader([([image, image + 0.1], 0) for image in images], batch_size=8)},
    ...     module={"backbone": torch.nn.Linear(12, 8), "projector": MLP([8, 16, 4])},
    ...     hardware={"device": "cpu"},
    ...     optim={"optimizer": partial(torch.optim.SGD, lr=0.1), "epochs": 1},
    ...     logger={"dump_path": folder.name, "level": 40},
    ...     loss=SwAVLoss(dim=4, num_prototypes=6),
    ... )
    >>> trainer()
    >>> trainer.global_step
    4
    """

    freeze_prototypes_epochs: int = 1
    queue_start_epoch: int = 15
    queue_fill_epoch: int | None = None

    def check_setup(self) -> None:
        """Raise a ConfigError if the loss is not a `SwAVLoss`."""
        if "train" in self.data and not isinstance(self.loss, SwAVLoss):
            raise ConfigError(f"loss: {type(self).__name__} needs a SwAVLoss, not a {type(self.loss).__name__}.")
        super().check_setup()

    def begin_epoch(self, epoch: int) -> None:
        """Fill and use the queue, and train the prototypes, if their epochs have come."""
        self.loss.uses_queue = epoch >= self.queue_start_epoch
        self.loss.fills_queue = self.queue_fill_epoch is not None and epoch >= self.queue_fill_epoch
        self.loss.prototypes.weight.requires_grad_(epoch >= self.freeze_prototypes_epochs)
