"""Self-distillation: a student's embedding of a view is to predict a teacher's of another (BYOL, SimSiam, MoCo)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError
from ..modules.multi_crop import forward_views
from ..modules.teacher_student import TeacherStudentModule
from .self_supervised import SelfSupervisedTrainer


class SelfDistillationTrainer(SelfSupervisedTrainer):
    """Trains a student so that the loss between its embedding of a view and the teacher's of another one is small.

    `backbone` and `projector` are both a `TeacherStudentModule`; or neither, and the student is its own teacher,
    without a gradient there, as in SimSiam. A `predictor`, if there is one, is the student's last part. The teacher
    sees the first two views, the student all of them. The loss is averaged over the pairs of different views; one with
    `update`, as a queue or a centre needs, is then shown the targets, (targets × batch, dim), once.

    Parameters
    ----------
    symmetric
        Whether each of the first two views is a target. If not, the student sees the first, and the teacher the second,
        as in MoCo v2.

    See `SelfSupervisedTrainer` for the others. Probes and evaluation look at the teacher.
    """

    required_modules = {"backbone": nn.Module, "projector": nn.Module}
    usual_loss = "NegativeCosineSimilarity"
    symmetric: bool = True

    def prepare_modules(self, modules: dict[str, nn.Module]) -> None:
        """Require a teacher of both networks or of neither, and one if the loss is not symmetric."""
        super().prepare_modules(modules)
        without = [n for n in ("backbone", "projector") if not isinstance(modules[n], TeacherStudentModule)]
        if len(without) == 1:
            raise ConfigError(
                f"module.{without[0]}: must be a TeacherStudentModule too, or neither backbone nor projector is one."
            )
        if not self.symmetric and without:
            raise ConfigError(
                "symmetric: only with a teacher can it be false; make module.backbone and module.projector "
                "a TeacherStudentModule."
            )

    def view_counts(self) -> tuple[int, int | None]:
        """Return that it takes two views or more; two where it is not symmetric."""
        return 2, None if self.symmetric else 2

    def forward(self, images: Tensor) -> Tensor:
        """Return representations, (batch, dim): the teacher's, where there is one."""
        representations: Tensor = self.module["backbone"](images)
        return representations

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the mean loss over the pairs of a student's view and another one of the teacher's."""
        views = self.views()
        seen, shown = (views, views[:2]) if self.symmetric else (views[:1], views[1:])
        students, *own = self._student(seen)
        representations, targets = self._teacher(shown) if self._has_teacher else (part[:2] for part in own)
        targets = [target.detach() for target in targets]
        self.watch(representations, targets)
        first = 0 if self.symmetric else 1
        pairs = [
            self.loss(student, target)
            for (i, student), (j, target) in itertools.product(enumerate(students), enumerate(targets, first))
            if i != j
        ]
        if hasattr(self.loss, "update"):
            self.loss.update(torch.cat(targets))
        return {"loss_ssl": torch.stack(pairs).mean()}

    @property
    def _has_teacher(self) -> bool:
        return isinstance(self.module["backbone"], TeacherStudentModule)

    def _student(self, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the student's outputs, after the predictor; its representations, and its embeddings before it."""
        backbone, projector = self.module["backbone"], self.module["projector"]
        if self._has_teacher:
            backbone, projector = backbone.student, projector.student
        representations = forward_views(backbone, views)
        embeddings = forward_views(projector, representations)
        has_predictor = "predictor" in self.module
        outputs = forward_views(self.module["predictor"], embeddings) if has_predictor else embeddings
        return outputs, representations, embeddings

    def _teacher(self, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the teacher's representations and embeddings."""
        with torch.no_grad():
            representations = forward_views(self.module["backbone"].teacher, views)
            return representations, forward_views(self.module["projector"].teacher, representations)
