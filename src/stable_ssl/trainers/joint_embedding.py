"""Joint embedding: views of an image are to have similar embeddings (SimCLR, VICReg, Barlow Twins, LeJEPA)."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from ..exceptions import ConfigError
from ..modules.multi_crop import forward_views
from .self_supervised import SelfSupervisedTrainer


class JointEmbeddingTrainer(SelfSupervisedTrainer):
    """Trains `backbone` and `projector` so that `loss(z_1, z_2)` of two views' embeddings is small.

    A batch is `[[view_1, view_2], labels]`, or the views alone; there are as many as the loss takes. Which method it
    is, the loss says: `NTXEntLoss` makes it SimCLR. See `SelfSupervisedTrainer` for the probes, which are optional.
    """

    required_modules = {"backbone": nn.Module, "projector": nn.Module}
    usual_loss = "NTXEntLoss"
    min_batch_size = 2

    def view_counts(self) -> tuple[int, int | None]:
        """Return how many embeddings the loss takes: two, or, where it takes any number, two and more."""
        takes = inspect.signature(getattr(self.loss, "forward", self.loss)).parameters.values()
        return 2, None if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in takes) else 2

    def check_setup(self) -> None:
        """Refuse a loss that would not be shown what it needs."""
        super().check_setup()
        if hasattr(self.loss, "update") and type(self).compute_loss is JointEmbeddingTrainer.compute_loss:
            raise ConfigError(
                f"loss: {type(self.loss).__name__} has update(), for the embeddings of a teacher; use a "
                "SelfDistillationTrainer."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return representations, (batch, dim)."""
        representations: Tensor = self.module["backbone"](images)
        return representations

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the loss between the embeddings of the views."""
        representations = forward_views(self.forward, self.views(), self.module["backbone"])
        embeddings = forward_views(self.module["projector"], representations)
        self.watch(representations, embeddings)
        return {"loss_ssl": self.loss(*embeddings)}
