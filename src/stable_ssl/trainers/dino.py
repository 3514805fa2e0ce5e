"""DINO: self-distillation between scores for prototypes."""

from __future__ import annotations

from torch import Tensor, nn

from ..exceptions import ConfigError
from ..losses import DINOLoss
from ..modules.heads import DINOHead
from ..modules.teacher_student import TeacherStudentModule
from .self_distillation import SelfDistillationTrainer


class DINOTrainer(SelfDistillationTrainer):
    """DINO (Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021): see `DINOLoss`.

    `backbone` and `projector` are a `TeacherStudentModule` each, of a ViT and a `DINOHead`, say. The first two views
    are global and seen by the teacher too, any others by the student alone.

    Parameters
    ----------
    warmup_temperature_teacher, temperature_teacher, warmup_epochs_temperature_teacher
        The teacher's temperature rises from the first to the second, a step each epoch.
    temperature_student, center_momentum
        Of the loss.
    freeze_prototypes_epochs
        For how many epochs the last layer of a `DINOHead` stays as it is.

    See `SelfDistillationTrainer` for the others; there is no `loss` to give.
    """

    required_modules = {"backbone": TeacherStudentModule, "projector": TeacherStudentModule}
    warmup_temperature_teacher: float = 0.04
    temperature_teacher: float = 0.07
    warmup_epochs_temperature_teacher: int = 30
    temperature_student: float = 0.1
    center_momentum: float = 0.9
    freeze_prototypes_epochs: int = 1

    def _build_modules(self) -> nn.ModuleDict:
        modules = super()._build_modules()
        if self.loss is not None:
            raise ConfigError(
                "loss: DINOTrainer makes its own, of temperature_student and center_momentum; leave it out."
            )
        widths = [part.out_features for part in modules["projector"].modules() if isinstance(part, nn.Linear)]
        if not widths:
            raise ConfigError("module.projector: has no linear layer that would tell how many scores it gives.")
        self.loss = DINOLoss(widths[-1], self.temperature_student, self.temperature_teacher, self.center_momentum)
        return modules

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the mean loss over the pairs of a student's view and another one of the teacher's."""
        warm, last = self.warmup_temperature_teacher, self.temperature_teacher
        epoch, number = self.epoch, self.warmup_epochs_temperature_teacher
        self.loss.temperature_teacher = last if epoch >= number else warm + (last - warm) * epoch / max(number - 1, 1)
        if isinstance(head := self.module["projector"].student, DINOHead):
            head.prototypes.weight.requires_grad_(self.epoch >= self.freeze_prototypes_epochs)
        return super().compute_loss()
