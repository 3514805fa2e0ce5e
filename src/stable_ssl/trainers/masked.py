"""Masked image modelling: what is hidden is to be told from what is not (MAE)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..exceptions import ConfigError
from ..modules.vit import PatchPredictor, ViT, patchify, take
from .self_supervised import SelfSupervisedTrainer


class MaskedTrainer(SelfSupervisedTrainer):
    """Trains `backbone`, a `ViT`, and `decoder`, a `PatchPredictor`, so that `loss(predicted, pixels, is_real)` of the
    hidden patches is small; `MAELoss` makes it MAE.

    A batch is `[[view, is_hidden], labels]`, or without labels, as `MAEViews` makes it. Probes see the mean of what the
    encoder makes of the patches that are left, evaluation that of all.

    See `SelfSupervisedTrainer` for the other parameters.
    """

    required_modules = {"backbone": ViT, "decoder": PatchPredictor}
    usual_loss = "MAELoss"
    num_masks = 1

    def prepare_modules(self, modules: dict[str, nn.Module]) -> None:
        """Require that encoder and decoder have the same patches."""
        super().prepare_modules(modules)
        check_grid(modules, "backbone", "decoder")

    def view_counts(self) -> tuple[int, int | None]:
        """Return that it takes one view, and its mask."""
        return 1, 1

    def forward(self, images: Tensor) -> Tensor:
        """Return representations, (batch, dim)."""
        representations: Tensor = self.module["backbone"](images)
        return representations

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the loss of the hidden patches."""
        backbone, decoder = self.module["backbone"], self.module["decoder"]
        (images,), (is_hidden,) = self.views_and_masks()
        places, is_real = backbone.places_of(~is_hidden, images)
        hidden, is_there = backbone.places_of(is_hidden, images)
        tokens = backbone.forward_patches(images, places, is_real)
        self.watch([(tokens * is_real[..., None]).sum(1) / is_real.sum(1, keepdim=True).clamp(min=1)])
        pixels = take(patchify(images, backbone.patch_size), hidden)
        return {"loss_ssl": self.loss(decoder(tokens, places, is_real, hidden, is_there), pixels, is_there)}


def check_grid(modules: Mapping[str, nn.Module], encoder: str, predictor: str) -> None:
    """See that a `ViT` and a `PatchPredictor` have the same patches."""
    grids = [getattr(modules[name], "grid", None) for name in (encoder, predictor)]
    if None not in grids and grids[0] != grids[1]:
        raise ConfigError(f"module.{predictor}.grid: {grids[1]} is not the {grids[0]} patches of module.{encoder}.")
