"""DINO: self-distillation in which teacher and student give scores to prototypes."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor, nn

from ..exceptions import ConfigError, as_config_error
from ..losses import DINOLoss
from ..modules.heads import DINOHead
from ..modules.teacher_student import TeacherStudentModule
from .self_distillation import SelfDistillationTrainer

log = logging.getLogger("stable_ssl")


class DINOTrainer(SelfDistillationTrainer):
    """DINO (Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021): see `DINOLoss`.

    `backbone` and `projector` are a `TeacherStudentModule` each, for example of a ViT and a `DINOHead`. The first two
    views are global, and the teacher gets only these. The student gets all views.

    Parameters
    ----------
    warmup_temperature_teacher, temperature_teacher
        The teacher's temperature in the first epoch, and after the warm-up.
    warmup_epochs_temperature_teacher
        The number of epochs in which the temperature rises linearly from the first value to the second.
    temperature_student, center_momentum
        See `DINOLoss`.
    freeze_prototypes_epochs
        The number of epochs in which the last layer of a `DINOHead` is not trained.

    See `SelfDistillationTrainer` for the other parameters. The trainer makes its own `loss`.

    Examples
    --------
    >>> import tempfile
    >>> from functools import partial
    >>> import torch
    >>> from stable_ssl.data import Loader
    >>> from stable_ssl.modules import DINOHead, TeacherStudentModule
    >>> from stable_ssl.trainers import DINOTrainer
    >>> images = torch.randn(32, 12, generator=torch.Generator().manual_seed(0))
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = DINOTrainer(
    ...     data={"train": Loader([([image, image + 0.1], 0) for image in images], batch_size=8)},
    ...     module={
    ...         "backbone": TeacherStudentModule(torch.nn.Linear(12, 8)),
    ...         "projector": TeacherStudentModule(DINOHead(8, out_dim=16, hidden_dim=8, bottleneck_dim=4)),
    ...     },
    ...     hardware={"device": "cpu"},
    ...     optim={"optimizer": partial(torch.optim.AdamW, lr=1e-3), "epochs": 1},
    ...     logger={"dump_path": folder.name, "level": 40},
    ... )
    >>> trainer()
    >>> trainer.loss.center.shape  # (out_dim,)
    torch.Size([16])
    """

    required_modules = {"backbone": TeacherStudentModule, "projector": TeacherStudentModule}
    warmup_temperature_teacher: float = 0.04
    temperature_teacher: float = 0.07
    warmup_epochs_temperature_teacher: int = 30
    temperature_student: float = 0.1
    center_momentum: float = 0.9
    freeze_prototypes_epochs: int = 1

    def prepare_modules(self, modules: dict[str, nn.Module]) -> None:
        """Make the loss. Its centre has one value per score that the projector gives."""
        super().prepare_modules(modules)
        if self.loss is not None:
            log.warning("loss is unused: DINOTrainer makes its own, from temperature_student and center_momentum.")
        projector: Any = modules["projector"]
        num_scores = _count_scores(projector.student)
        with as_config_error():
            self.loss = DINOLoss(num_scores, self.temperature_student, self.temperature_teacher, self.center_momentum)

    @property
    def center(self) -> Tensor:
        """The centre of the teacher's scores, which early 2025 kept in the trainer."""
        center: Tensor = self.loss.center
        return center

    def begin_epoch(self, epoch: int) -> None:
        """Set the teacher's temperature for this epoch.

        The last layer of the head is frozen in the first `freeze_prototypes_epochs` epochs.
        """
        warm, last, number = (
            self.warmup_temperature_teacher,
            self.temperature_teacher,
            self.warmup_epochs_temperature_teacher,
        )
        self.loss.temperature_teacher = last if epoch >= number else warm + (last - warm) * epoch / max(number - 1, 1)
        if isinstance(head := self.module["projector"].student, DINOHead):
            head.prototypes.weight.requires_grad_(epoch >= self.freeze_prototypes_epochs)


def _count_scores(head: nn.Module) -> int:
    """Return the number of scores of a head: one per prototype, or the width of the last linear layer of another head.

    Raises
    ------
    ConfigError
        The head has no linear layer.
    """
    if isinstance(head, DINOHead):
        return head.prototypes.out_features
    widths = [layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear)]
    if not widths:
        raise ConfigError(
            "module.projector: has no linear layer, so the number of its scores is not known. Use a DINOHead."
        )
    return widths[-1]
