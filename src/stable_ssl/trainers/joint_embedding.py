"""Joint embedding: two views of an image are to have similar embeddings (SimCLR, VICReg, Barlow Twins)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError, DataError
from ..runtime.device import describe_batch
from .self_supervised import SelfSupervisedTrainer


class JointEmbeddingTrainer(SelfSupervisedTrainer):
    """Trains `backbone` and `projector` so that `loss(z_1, z_2)` of two views' embeddings is small.

    A batch is `[[view_1, view_2], labels]`, or the two views alone. Which method it is, the loss says:
    `NTXEntLoss` makes it SimCLR. See `SelfSupervisedTrainer` for the probes, which are optional here.
    """

    required_modules = {"backbone": nn.Module, "projector": nn.Module}

    def _build(self) -> None:
        super()._build()
        if "train" in self.data and not callable(self.loss):
            raise ConfigError(
                f"loss: {type(self).__name__} needs one that is called with two embeddings, as NTXEntLoss."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return representations, (batch, dim)."""
        return self.module["backbone"](images)

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the loss between the embeddings of the two views."""
        views = self._views()
        representations = [self.forward(view) for view in views]
        embeddings = [self.module["projector"](representation) for representation in representations]
        self.latest_representations = torch.cat(representations).detach()
        self.latest_embeddings = torch.cat(embeddings).detach()
        return {"loss_ssl": self.loss(*embeddings)}

    def _views(self) -> list[Tensor]:
        """Return the two views of the batch at hand.

        Raises
        ------
        DataError
            There are more or fewer.
        """
        views = self.batch[0] if self._labels is not None else self.batch
        if not isinstance(views, list | tuple) or len(views) != 2:
            raise DataError(
                f"{type(self).__name__} needs two views of each image, [[view_1, view_2], labels], but the batch is "
                f"{describe_batch(self.batch)}. Give the Loader two views, or the data set a MultiViewSampler."
            )
        return list(views)
