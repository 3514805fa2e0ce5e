"""Masked image modelling: the network learns to predict hidden patches from the visible ones (MAE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..base import BaseTrainer
from ..exceptions import ConfigError
from ..modules.foreign_vit import as_vit
from ..modules.patches import patchify
from ..modules.vit import PatchPredictor, mask_of, take
from .self_supervised import SelfSupervisedTrainer


class MaskedTrainer(SelfSupervisedTrainer):
    """Trains `backbone` and `decoder` so that `loss(predicted, pixels, is_real)` of the hidden patches becomes small.

    `backbone` is a `ViT` or a vision transformer of timm or torchvision, `decoder` a `PatchPredictor`. With `MAELoss`
    the method is MAE. A batch is `[[view, is_hidden], labels]`, or `[view, is_hidden]`, as `MAEViews` makes it.
    is_hidden is (batch, patches). In training, probes get the representation of the visible patches. In evaluation,
    they get that of all patches.

    See `SelfSupervisedTrainer` for the parameters.

    Examples
    --------
    >>> import tempfile
    >>> from functools import partial
    >>> import torch
    >>> from stable_ssl.augmentations import MAEViews
    >>> from stable_ssl.data import Loader
    >>> from stable_ssl.losses import MAELoss
    >>> from stable_ssl.modules import PatchPredictor, ViT
    >>> from stable_ssl.trainers import MaskedTrainer
    >>> images = torch.randint(256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = MaskedTrainer(
    ...     data={"train": Loader(images, batch_size=8, views=MAEViews(size=16, patch_size=4))},
    ...     module={
    ...         "backbone": ViT(16, 4, dim=12, depth=1),
    ...         "decoder": PatchPredictor((4, 4), 12, out_dim=48, hidden_dim=12),
    ...     },
    ...     hardware={"device": "cpu"},
    ...     optim={"optimizer": partial(torch.optim.AdamW, lr=1e-3), "epochs": 1},
    ...     logger={"dump_path": folder.name, "level": 40},
    ...     loss=MAELoss(),
    ... )
    >>> trainer()
    >>> trainer.global_step
    2
    """

    required_modules = {"backbone": nn.Module, "decoder": PatchPredictor}
    usual_loss = "MAELoss"
    num_masks = 1

    def prepare_modules(self, modules: dict[str, nn.Module]) -> None:
        """Raise a ConfigError if the backbone can't hide patches."""
        super().prepare_modules(modules)
        as_vit(modules["backbone"])

    def check_setup(self) -> None:
        """Raise a ConfigError if the decoder has another grid of patches than backbone and masks."""
        super().check_setup()
        check_grid(self, "backbone", "decoder")

    def view_counts(self) -> tuple[int, int | None]:
        """Return (1, 1): the method takes one view. A mask follows it."""
        return 1, 1

    def forward(self, images: Tensor) -> Tensor:
        """Return representations, (batch, dim)."""
        representations: Tensor = self.module["backbone"](images)
        return representations

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the loss of the predicted pixels of the hidden patches."""
        backbone, decoder = as_vit(self.module["backbone"]), self.module["decoder"]
        (images,), (is_hidden,) = self.views_and_masks()  # the mask is (batch, patches)
        check_views(images, backbone, decoder, "decoder")
        places, is_real = backbone.places_of(mask_of(is_hidden, torch.logical_not), images)  # (batch, visible) each
        hidden, is_there = backbone.places_of(is_hidden, images)  # (batch, hidden) each
        tokens = backbone.forward_tokens(images, places, is_real)  # (batch, [1 +] visible, dim)
        self.watch([backbone.pool(tokens, is_real)])  # (batch, dim)
        predicted = decoder(tokens, places, is_real, hidden, is_there)  # (batch, hidden, values)
        pixels = take(patchify(images, backbone.patch_size), hidden)  # (batch, hidden, values)
        return self.with_probes({"loss_ssl": self.loss(predicted, pixels, is_there)})


def check_grid(trainer: BaseTrainer, encoder: str, predictor: str) -> None:
    """Raise a ConfigError if a predictor's grid of patches is neither the encoder's nor that of the declared masks.

    An encoder takes views of other sizes than it was made for, so masks may have another grid.

    Parameters
    ----------
    trainer
        The trainer, with its modules and data.
    encoder, predictor
        Names of the two modules.
    """
    here, there = (getattr(trainer.module[name], "grid", None) for name in (predictor, encoder))
    views = getattr(trainer.data["train"], "views", None) if "train" in trainer.data else None
    masks = [tuple(mask.grid) for mask in getattr(views, "masks", ()) if hasattr(mask, "grid")]
    if None not in (here, there) and here not in (there, *masks):
        raise ConfigError(
            f"module.{predictor}.grid: {here}, but module.{encoder} has {there} patches. Make them equal."
        )


def check_views(images: Tensor, encoder: Any, predictor: PatchPredictor, name: str) -> None:
    """Raise a ConfigError if views, cut into the encoder's patches, have another grid than the predictor `name`."""
    rows, columns = (size // encoder.patch_size for size in images.shape[2:])
    if predictor.grid != (rows, columns):
        raise ConfigError(
            f"module.{name}.grid: {predictor.grid}, but the views have {rows} × {columns} patches of "
            f"{encoder.patch_size} pixels. Make them equal."
        )
