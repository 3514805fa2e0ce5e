"""DINO: self-distillation between scores for prototypes."""

from __future__ import annotations

from torch import nn

from ..exceptions import ConfigError
from ..losses import DINOLoss
from ..modules.heads import DINOHead
from ..modules.teacher_student import TeacherStudentModule
from .self_distillation import SelfDistillationTrainer


class DINOTrainer(SelfDistillationTrainer):
    """DINO (Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021): see `DINOLoss`.

    `backbone` and `projector` are a `TeacherStudentModule` each, for example of a ViT and a `DINOHead`. The first two
    views
    are global: the teacher sees only them. The student sees all views.

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
    """

    required_modules = {"backbone": TeacherStudentModule, "projector": TeacherStudentModule}
    warmup_temperature_teacher: float = 0.04
    temperature_teacher: float = 0.07
    warmup_epochs_temperature_teacher: int = 30
    temperature_student: float = 0.1
    center_momentum: float = 0.9
    freeze_prototypes_epochs: int = 1

    def prepare_modules(self, modules: dict[str, nn.Module]) -> None:
        """Make the loss; its centre is as wide as the projector's last linear layer."""
        super().prepare_modules(modules)
        if self.loss is not None:
            raise ConfigError(
                "loss: DINOTrainer makes its own, from temperature_student and center_momentum; leave it out."
            )
        widths = [part.out_features for part in modules["projector"].modules() if isinstance(part, nn.Linear)]
        if not widths:
            raise ConfigError("module.projector: has no linear layer that would tell how many scores it gives.")
        self.loss = DINOLoss(widths[-1], self.temperature_student, self.temperature_teacher, self.center_momentum)

    def begin_epoch(self, epoch: int) -> None:
        """Set the teacher's temperature, and train the head's last layer when its epoch has come."""
        warm, last, number = (
            self.warmup_temperature_teacher,
            self.temperature_teacher,
            self.warmup_epochs_temperature_teacher,
        )
        self.loss.temperature_teacher = last if epoch >= number else warm + (last - warm) * epoch / max(number - 1, 1)
        if isinstance(head := self.module["projector"].student, DINOHead):
            head.prototypes.weight.requires_grad_(epoch >= self.freeze_prototypes_epochs)
