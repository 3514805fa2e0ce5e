"""Self-distillation: a student learns to predict a teacher's embedding of another view (BYOL, SimSiam, MoCo)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError
from ..modules.teacher_student import TeacherStudentModule, check_evaluate_with
from .self_supervised import SelfSupervisedTrainer


class SelfDistillationTrainer(SelfSupervisedTrainer):
    """Trains a student so that `loss(student_embedding, teacher_embedding)` of two views of an image becomes small.

    If `backbone` and `projector` are each a `TeacherStudentModule`, their teachers make the targets. If neither is, the
    student makes the targets itself, without gradients, as in SimSiam. An optional `predictor` is applied to the
    student's embeddings only.

    The teacher gets the first two views, the student all of them. The loss is the mean over all pairs of a student's
    view and a different view of the teacher, or their sum if the attribute `sums_pairs` of the loss is true, as of
    `BYOLLoss`. If the loss has a method `update`, as a queue or a centre needs, it is called once per mini-batch with
    all targets, (targets × batch, dim).

    Parameters
    ----------
    symmetric
        Whether both of the first two views are targets. If false, the student gets the first view and the teacher the
        second one, as in MoCo v2.
    evaluate_with
        Whose features probes, monitors and evaluation get: "teacher" or "student". If there is no teacher, it is always
        the student.

    See `SelfSupervisedTrainer` for the other parameters.

    Examples
    --------
    >>> import tempfile
    >>> from functools import partial
    >>> import torch
    >>> from stable_ssl import NegativeCosineSimilarity, SelfDistillationTrainer
    >>> from stable_ssl.data import Loader
    >>> from stable_ssl.modules import MLP, TeacherStudentModule
    >>> images = torch.randn(32, 12, generator=torch.Generator().manual_seed(0))
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = SelfDistillationTrainer(
    ...     data={"train": Loader([([image, image + 0.1], 0) for image in images], batch_size=8)},
    ...     module={
    ...         "backbone": TeacherStudentModule(torch.nn.Linear(12, 8)),
    ...         "projector": TeacherStudentModule(MLP([8, 16, 4])),
    ...         "predictor": MLP([4, 16, 4]),
    ...     },
    ...     hardware={"device": "cpu"},
    ...     optim={"optimizer": partial(torch.optim.SGD, lr=0.1), "epochs": 1},
    ...     logger={"dump_path": folder.name, "level": 40},
    ...     loss=NegativeCosineSimilarity(),
    ... )
    >>> trainer()
    >>> trainer.global_step
    4
    """

    required_modules = {"backbone": nn.Module, "projector": nn.Module}
    usual_loss = "NegativeCosineSimilarity"
    symmetric: bool = True
    evaluate_with: str = "teacher"

    def prepare_modules(self, modules: dict[str, nn.Module]) -> None:
        """Check the options.

        Raises
        ------
        ConfigError
            Only one network has a teacher, none has one and `symmetric` is false, or `evaluate_with` is neither of the
            two.
        """
        super().prepare_modules(modules)
        check_evaluate_with(self.evaluate_with)
        without = [n for n in ("backbone", "projector") if not isinstance(modules[n], TeacherStudentModule)]
        if len(without) == 1:
            raise ConfigError(
                f"module.{without[0]}: must be a TeacherStudentModule too. Make both backbone and projector one, or "
                "neither."
            )
        if not self.symmetric and without:
            raise ConfigError(
                "symmetric: false needs a teacher. Make module.backbone and module.projector a TeacherStudentModule "
                "each."
            )

    def view_counts(self) -> tuple[int, int | None]:
        """Return (2, None): two views or more. If not symmetric, return (2, 2)."""
        return 2, None if self.symmetric else 2

    def forward(self, images: Tensor) -> Tensor:
        """Return the representations, (batch, dim), of the teacher or the student, as `evaluate_with` says."""
        is_students = self._has_teacher and self.evaluate_with == "student"
        backbone = self.module["backbone"].student if is_students else self.module["backbone"]
        representations: Tensor = backbone(images)
        return representations

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the mean or the sum of the losses of a student's view and a different view of the teacher."""
        views = self.views()
        student_views, teacher_views = (views, views[:2]) if self.symmetric else (views[:1], views[1:])
        outputs, *students = self._student(student_views)  # representations and embeddings, (batch, dim) per view
        teachers = self._teacher(teacher_views) if self._has_teacher else students
        targets = [embedding.detach() for embedding in teachers[1][:2]]  # (batch, dim) per teacher's view
        self.watch(*(features[:2] for features in (students if self.evaluate_with == "student" else teachers)))
        first_target = 0 if self.symmetric else 1  # number of the teacher's first view
        losses = torch.stack(
            [
                self.loss(output, target)
                for i, output in enumerate(outputs)
                for j, target in enumerate(targets, first_target)
                if i != j
            ]
        )
        if hasattr(self.loss, "update"):
            self.loss.update(torch.cat(targets))  # (targets × batch, dim)
        loss = losses.sum() if getattr(self.loss, "sums_pairs", False) else losses.mean()
        return self.with_probes({"loss_ssl": loss})

    @property
    def _has_teacher(self) -> bool:
        """Whether the networks have teachers."""
        return isinstance(self.module["backbone"], TeacherStudentModule)

    def _student(self, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return per view the student's outputs (after the predictor), representations, and embeddings (before it)."""
        backbone, projector = self.module["backbone"], self.module["projector"]
        if self._has_teacher:
            backbone, projector = backbone.student, projector.student
        representations = self.forward_views(backbone, views)
        embeddings = self.forward_views(projector, representations)
        has_predictor = "predictor" in self.module
        outputs = self.forward_views(self.module["predictor"], embeddings) if has_predictor else embeddings
        return outputs, representations, embeddings

    def _teacher(self, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the teacher's representations and embeddings per view, without gradients."""
        with torch.no_grad():
            representations = self.forward_views(self.module["backbone"].teacher, views)
            return representations, self.forward_views(self.module["projector"].teacher, representations)
