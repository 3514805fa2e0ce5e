"""Joint embedding: views of the same image learn to have similar embeddings (SimCLR, VICReg, Barlow Twins, LeJEPA)."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from ..exceptions import ConfigError
from .self_supervised import SelfSupervisedTrainer


class JointEmbeddingTrainer(SelfSupervisedTrainer):
    """Trains `backbone` and `projector` so that `loss(z_1, z_2)` becomes small.

    z_1 and z_2 are the embeddings of two views of the same images, (batch, dim) each. The loss decides the method: with
    `NTXEntLoss` it is SimCLR. A batch is `[[view_1, view_2], labels]`, or the list of views alone. A loss that takes
    any number of embeddings may get more than two.

    See `SelfSupervisedTrainer` for the parameters and for probes, which are optional.

    Examples
    --------
    >>> import tempfile
    >>> from functools import partial
    >>> import torch
    >>> from stable_ssl import JointEmbeddingTrainer, NTXEntLoss
    >>> from stable_ssl.data import Loader
    >>> from stable_ssl.modules import MLP
    >>> images = torch.randn(32, 12, generator=torch.Generator().manual_seed(0))
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = JointEmbeddingTrainer(
    ...     data={"train": Loader([([image, image + 0.1], 0) for image in images], batch_size=8)},
    ...     module={"backbone": torch.nn.Linear(12, 8), "projector": MLP([8, 16, 4])},
    ...     hardware={"device": "cpu"},
    ...     optim={"optimizer": partial(torch.optim.SGD, lr=0.1), "epochs": 1},
    ...     logger={"dump_path": folder.name, "level": 40},
    ...     loss=NTXEntLoss(temperature=0.5),
    ... )
    >>> trainer()
    >>> trainer.latest_embeddings.shape  # (views × batch, dim)
    torch.Size([16, 4])
    """

    required_modules = {"backbone": nn.Module, "projector": nn.Module}
    usual_loss = "NTXEntLoss"
    min_batch_size = 2

    def view_counts(self) -> tuple[int, int | None]:
        """Return (2, None) if the loss takes any number of embeddings, or if there is none, else (2, 2)."""
        if self.loss is None:
            return 2, None
        takes = inspect.signature(getattr(self.loss, "forward", self.loss)).parameters.values()
        return 2, None if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in takes) else 2

    def check_setup(self) -> None:
        """Raise a ConfigError for a loss with `update`, because this trainer never calls it."""
        super().check_setup()
        if hasattr(self.loss, "update") and type(self).compute_loss is JointEmbeddingTrainer.compute_loss:
            raise ConfigError(
                f"loss: {type(self.loss).__name__} has an update() that needs the embeddings of a teacher: "
                "use a SelfDistillationTrainer."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return representations, (batch, dim)."""
        representations: Tensor = self.module["backbone"](images)
        return representations

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the loss between the embeddings of the views."""
        representations = self.forward_views(self.forward, self.views(), self.module["backbone"])  # (batch, dim) each
        embeddings = self.forward_views(self.module["projector"], representations)  # (batch, out_dim) per view
        self.watch(representations, embeddings)
        return self.with_probes({"loss_ssl": self.loss(*embeddings)})
