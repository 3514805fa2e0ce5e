"""Joint embedding with a prediction: from a context's representation, the network predicts a target's (I-JEPA)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError, DataError, as_config_error
from ..modules.foreign_vit import as_vit
from ..modules.teacher_student import check_ema, check_evaluate_with, copy_values, ema_coefficient, follow
from ..modules.vit import PatchPredictor, mask_of, take
from ..runtime.batches import has_labels
from ..runtime.device import describe_batch
from .calls import PredictiveCalls
from .masked import check_grid, check_views
from .self_supervised import SelfSupervisedTrainer


class JointEmbeddingPredictiveTrainer(SelfSupervisedTrainer):
    """Trains `context_encoder` and `predictor` so that `loss(prediction, target_encoder(target))` becomes small.

    A batch is `[((context, context_params), (target, target_params)), labels]`, or the pair alone. The prediction is
    `predictor(context_encoder(context), context_params, target_params)`. The params describe how context and target
    were made from the image.

    The target encoder begins with the context encoder's weights and buffers. After each optimizer step its weights move
    towards the context encoder's, like those of the teacher in a `TeacherStudentModule`.

    Parameters
    ----------
    base_ema_coefficient, final_ema_coefficient
        The momentum of the target encoder at the start and at the end of training, between 0 and 1.
    ema_schedule
        How the momentum goes from one to the other: "cosine" or "linear". In `IJEPATrainer` the default is linear, as
        in the authors' src/train.py.
    evaluate_with
        Whose features probes, monitors and evaluation get: "teacher" (the target encoder) or "student" (the context
        encoder, which in training sees the context only).

    See `SelfSupervisedTrainer` for the other parameters.

    Examples
    --------
    >>> import tempfile
    >>> from functools import partial
    >>> import torch
    >>> from stable_ssl import JointEmbeddingPredictiveTrainer
    >>> from stable_ssl.data import Loader
    >>> class Predictor(torch.nn.Linear):
    ...     def forward(self, encoded, context_params, target_params):
    ...         return super().forward(torch.cat([encoded, target_params - context_params], dim=1))
    >>> images = torch.randn(32, 12, generator=torch.Generator().manual_seed(0))
    >>> pairs = [((image, torch.zeros(1)), (image + 0.5, torch.full((1,), 0.5))) for image in images]  # shifted by 0.5
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = JointEmbeddingPredictiveTrainer(
    ...     data={"train": Loader(pairs, batch_size=8)},
    ...     module={
    ...         "context_encoder": torch.nn.Linear(12, 8),
    ...         "target_encoder": torch.nn.Linear(12, 8),
    ...         "predictor": Predictor(9, 8),
    ...     },
    ...     hardware={"device": "cpu"},
    ...     optim={"optimizer": partial(torch.optim.SGD, lr=0.1), "epochs": 1},
    ...     logger={"dump_path": folder.name, "level": 40},
    ...     loss=torch.nn.functional.mse_loss,
    ... )
    >>> trainer()
    >>> trainer.global_step
    4
    """

    required_modules = {"context_encoder": nn.Module, "target_encoder": nn.Module, "predictor": nn.Module}
    usual_loss = "IJEPALoss"
    base_ema_coefficient: float = 0.996
    final_ema_coefficient: float = 1.0
    ema_schedule: str = "cosine"
    evaluate_with: str = "teacher"

    def prepare_modules(self, modules: dict[str, nn.Module]) -> None:
        """Turn off the target encoder's gradients.

        Raises
        ------
        ConfigError
            A weight of the two encoders differs in name or shape, a coefficient is not between 0 and 1, or
            `ema_schedule` or `evaluate_with` is unknown.
        """
        super().prepare_modules(modules)
        context, target = (
            {key: value.shape for key, value in modules[name].state_dict().items()}
            for name in ("context_encoder", "target_encoder")
        )
        if context != target:
            raise ConfigError("module.target_encoder: its weights differ in name or shape from context_encoder's.")
        with as_config_error():
            check_ema(self)
        check_evaluate_with(self.evaluate_with)
        modules["target_encoder"].requires_grad_(False)

    def check_setup(self) -> None:
        """Raise a ConfigError if the predictor has another grid of patches than encoder and masks."""
        super().check_setup()
        check_grid(self, "context_encoder", "predictor")

    def initialize_modules(self) -> None:
        """Copy the context encoder's weights and buffers to the target encoder."""
        super().initialize_modules()
        if "train" in self.data:
            copy_values(self.module["context_encoder"], self.module["target_encoder"])

    def update_teacher(self, progress: float) -> None:
        """Move the target encoder's weights towards the context encoder's.

        Parameters
        ----------
        progress
            The number of optimizer steps before this one, divided by the number of all steps.
        """
        follow(self.module["target_encoder"], self.module["context_encoder"], ema_coefficient(self, progress))

    def forward(self, images: Tensor, *params: Any) -> Tensor:
        """Return the representations, (batch, dim), of the encoder that `evaluate_with` names.

        With parameters, as in early 2025, the representations are the context encoder's, and have gradients.
        """
        encoder = "context_encoder" if params or self.evaluate_with == "student" else "target_encoder"
        representations: Tensor = self.module[encoder](images, *params)
        return representations

    @functools.cached_property
    def _calls(self) -> PredictiveCalls:
        """How the networks are called, which is decided at the first step."""
        return PredictiveCalls(self, JointEmbeddingPredictiveTrainer)

    def format_context_target(self) -> Any:
        """Return ((context, context_params), (target, target_params)) of the current batch.

        Raises
        ------
        DataError
            The batch has another form.
        """
        try:
            pair = self.batch[0] if isinstance(self.batch[0][0], list | tuple) else self.batch
            (context, context_params), (target, target_params) = pair
        except (TypeError, ValueError, LookupError) as error:
            raise DataError(
                f"{type(self).__name__} needs batches ((context, params), (target, params)), with labels or without, "
                f"but this one is {describe_batch(self.batch)}."
            ) from error
        return (context, context_params), (target, target_params)

    def _has_labels(self) -> bool:
        if self.num_masks:
            return super()._has_labels()
        if isinstance(self.batch, Mapping):  # of a form of the user's own, in which "target" may be an image
            return has_labels({key: part for key, part in self.batch.items() if key != "target"})
        return isinstance(self.batch[0][0], list | tuple)

    def forward_target(self, *args: Any) -> Any:
        """Return the output of the target encoder."""
        return self.module["target_encoder"](*args)

    def forward_predictor(self, *args: Any) -> Any:
        """Return the output of the predictor."""
        return self.module["predictor"](*args)

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the loss between prediction and target."""
        (context, context_params), (target, target_params) = self.format_context_target()
        with torch.no_grad():
            targets = self._calls.target(target, target_params)  # (batch, dim)
        encoded = self._calls.context(context, context_params)  # (batch, dim)
        self.watch([encoded if self.evaluate_with == "student" else targets])
        predicted = self._calls.predict(encoded, targets, context_params, target_params)  # (batch, dim)
        return self.with_probes({"loss_ssl": self.loss(predicted, targets)})


class IJEPATrainer(JointEmbeddingPredictiveTrainer):
    """I-JEPA (Assran et al., "Self-supervised learning from images with a joint-embedding predictive architecture",
    CVPR 2023).

    From the patches of a context block, the network learns to predict the target encoder's outputs at the patches of
    several target blocks. The encoders are a `ViT` each, or a vision transformer of timm or torchvision, the predictor
    is a `PatchPredictor`, and the loss an `IJEPALoss`. A batch is `[[view, is_context, is_target], labels]`, or the
    inner list alone, as `IJEPAViews` makes it. is_context is (batch, patches), is_target is (batch, targets, patches).

    See `JointEmbeddingPredictiveTrainer` for the parameters.

    Examples
    --------
    >>> import tempfile
    >>> from functools import partial
    >>> import torch
    >>> from stable_ssl.augmentations import IJEPAViews
    >>> from stable_ssl.data import Loader
    >>> from stable_ssl.losses import IJEPALoss
    >>> from stable_ssl.modules import PatchPredictor, ViT
    >>> from stable_ssl.trainers import IJEPATrainer
    >>> images = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    >>> encoder = partial(ViT, 32, 4, dim=12, depth=1)
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = IJEPATrainer(
    ...     data={"train": Loader(images, batch_size=8, views=IJEPAViews(size=32, patch_size=4))},
    ...     module={
    ...         "context_encoder": encoder(),
    ...         "target_encoder": encoder(),
    ...         "predictor": PatchPredictor((8, 8), 12, out_dim=12, hidden_dim=12),
    ...     },
    ...     hardware={"device": "cpu"},
    ...     optim={"optimizer": partial(torch.optim.AdamW, lr=1e-3), "epochs": 1},
    ...     logger={"dump_path": folder.name, "level": 40},
    ...     loss=IJEPALoss(),
    ... )
    >>> trainer()
    >>> trainer.global_step
    2
    """

    required_modules = {"context_encoder": nn.Module, "target_encoder": nn.Module, "predictor": PatchPredictor}
    num_masks = 2
    ema_schedule = "linear"

    def prepare_modules(self, modules: dict[str, nn.Module]) -> None:
        """Raise a ConfigError if an encoder can't hide patches. The base class raises others."""
        for name in ("context_encoder", "target_encoder"):
            as_vit(modules[name], f"module.{name}")
        super().prepare_modules(modules)

    def view_counts(self) -> tuple[int, int | None]:
        """Return (1, 1): the method takes one view. Two masks follow it."""
        return 1, 1

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the loss of the target blocks. Each block is predicted separately."""
        (images,), (is_context, is_target) = self.views_and_masks()  # masks (batch, patches), (batch, targets, patches)
        num_targets = is_target.shape[1]
        encoder, predictor = as_vit(self.module["context_encoder"]), self.module["predictor"]
        check_views(images, encoder, predictor, "predictor")
        # kept, most: the number of patches of the largest context and of the largest target block
        places, is_real = encoder.places_of(is_context, images)  # (batch, kept) each
        wanted, is_wanted = encoder.places_of(mask_of(is_target, _one_per_row), images)  # (batch × targets, most) each
        with torch.no_grad():
            outputs = as_vit(self.module["target_encoder"]).forward_tokens(images)  # (batch, [1 +] patches, dim)
        tokens = encoder.forward_tokens(images, places, is_real)  # (batch, [1 +] kept, dim)
        is_students = self.evaluate_with == "student"
        self.watch([encoder.pool(tokens, is_real) if is_students else encoder.pool(outputs)])  # (batch, dim)
        # Each context stands once per target block: (batch × targets, [1 +] kept, dim), (batch × targets, kept) twice.
        tokens, places, is_real = (values.repeat_interleave(num_targets, 0) for values in (tokens, places, is_real))
        predicted = predictor(tokens, places, is_real, wanted, is_wanted)  # (batch × targets, most, dim)
        targets = take(encoder.patches_of(outputs), wanted.reshape(len(images), -1)).view(*wanted.shape, -1)
        return self.with_probes({"loss_ssl": self.loss(predicted, targets, is_wanted)})


def _one_per_row(masks: Tensor) -> Tensor:
    """Return masks (batch, number, patches) as (batch × number, patches)."""
    return masks.flatten(0, 1)
