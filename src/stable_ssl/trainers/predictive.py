"""Joint embedding that predicts: from the context's representation to the target's (I-JEPA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError, DataError
from ..modules.teacher_student import check_ema_coefficients, ema_coefficient, follow
from ..modules.vit import PatchPredictor, ViT, take
from ..runtime.batches import labels_of
from ..runtime.device import describe_batch
from .masked import check_grid
from .self_supervised import SelfSupervisedTrainer


class JointEmbeddingPredictiveTrainer(SelfSupervisedTrainer):
    """Trains `context_encoder` and `predictor` so that the loss between what is predicted of a target and what
    `target_encoder` makes of it is small.

    A batch is `[((context, context_params), (target, target_params)), labels]`, or without labels. The prediction is
    `predictor(context_encoder(context), context_params, target_params)`: parameters say how context and target came
    from the image. The target encoder begins with the context encoder's weights, and follows it once an optimizer step
    as the teacher of a `TeacherStudentModule` does; probes and evaluation look at it.

    Parameters
    ----------
    base_ema_coefficient, final_ema_coefficient
        The momentum at the start and at the end, in [0, 1].

    See `SelfSupervisedTrainer` for the others.
    """

    required_modules = {"context_encoder": nn.Module, "target_encoder": nn.Module, "predictor": nn.Module}
    usual_loss = "IJEPALoss"
    base_ema_coefficient: float = 0.996
    final_ema_coefficient: float = 1.0

    def prepare_modules(self, modules: dict[str, nn.Module]) -> None:
        """Require that the target encoder can follow the context encoder, and keep the optimizer away from it."""
        super().prepare_modules(modules)
        context, target = (
            {key: value.shape for key, value in modules[name].state_dict().items()}
            for name in ("context_encoder", "target_encoder")
        )
        if context != target:
            raise ConfigError("module.target_encoder: its weights differ in name or shape from context_encoder's.")
        check_ema_coefficients(self)
        modules["target_encoder"].requires_grad_(False)
        check_grid(modules, "context_encoder", "predictor")

    def initialize_modules(self) -> None:
        """Let the target encoder begin with the context encoder's weights."""
        super().initialize_modules()
        if "train" in self.data:
            follow(self.module["target_encoder"], self.module["context_encoder"], 0.0)

    def update_teacher(self, progress: float) -> None:
        """Have the target encoder follow; `progress` is the fraction of optimizer steps that came before this one."""
        follow(self.module["target_encoder"], self.module["context_encoder"], ema_coefficient(self, progress))

    def forward(self, images: Tensor) -> Tensor:
        """Return the target encoder's representations, (batch, dim)."""
        representations: Tensor = self.module["target_encoder"](images)
        return representations

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the loss between prediction and target."""
        pair = self.batch[0] if labels_of(self.batch) is not None else self.batch
        try:
            (context, context_params), (target, target_params) = pair
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{type(self).__name__} needs batches ((context, params), (target, params)), with labels or without, "
                f"but this one is {describe_batch(self.batch)}."
            ) from error
        with torch.no_grad():
            targets = self.module["target_encoder"](target)
        self.watch([targets])
        encoded = self.module["context_encoder"](context)
        return {"loss_ssl": self.loss(self.module["predictor"](encoded, context_params, target_params), targets)}


class IJEPATrainer(JointEmbeddingPredictiveTrainer):
    """I-JEPA (Assran et al., "Self-supervised learning from images with a joint-embedding predictive architecture",
    CVPR 2023): from the patches of a context block, the outputs at those of target blocks are predicted.

    The encoders are a `ViT` each, the predictor a `PatchPredictor`, and the loss an `IJEPALoss`. A batch is
    `[[view, is_context, is_target], labels]`, or without labels, as `IJEPAViews` makes it.

    See `JointEmbeddingPredictiveTrainer` for the other parameters.
    """

    required_modules = {"context_encoder": ViT, "target_encoder": ViT, "predictor": PatchPredictor}
    num_masks = 2

    def view_counts(self) -> tuple[int, int | None]:
        """Return that it takes one view, and its masks."""
        return 1, 1

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the loss of the target blocks, each predicted by itself."""
        (images,), (is_context, is_target) = self.views_and_masks()
        num_targets = is_target.shape[1]
        encoder = self.module["context_encoder"]
        places, is_real = encoder.places_of(is_context, images)
        wanted, is_wanted = encoder.places_of(is_target.flatten(0, 1), images)  # (batch × targets, most)
        with torch.no_grad():
            outputs = self.module["target_encoder"].forward_patches(images)
        self.watch([outputs.mean(1)])
        tokens = encoder.forward_patches(images, places, is_real)
        tokens, places, is_real = (values.repeat_interleave(num_targets, 0) for values in (tokens, places, is_real))
        predicted = self.module["predictor"](tokens, places, is_real, wanted, is_wanted)
        targets = take(outputs, wanted.reshape(len(images), -1)).view(*wanted.shape, -1)
        return {"loss_ssl": self.loss(predicted, targets, is_wanted)}
