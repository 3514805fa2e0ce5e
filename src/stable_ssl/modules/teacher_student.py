"""A student network, and a teacher whose weights are a moving average of the student's."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError
from ..runtime.distributed import local

log = logging.getLogger("stable_ssl")


class Momentum(float):
    """A momentum of a teacher. It also has the methods of a tensor (), as `item()`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(torch.tensor(float(self)), name)


class TeacherStudentModule(nn.Module):
    """A student network that is trained, and a teacher whose weights are a moving average of the student's.

    The trainer calls `update_teacher` once per optimizer step. The momentum m goes from the base coefficient to the
    final one along half a cosine (Grill et al., "Bootstrap your own latent", NeurIPS 2020, section 3.2):

    $$ ξ ← m ξ + (1 - m) θ, \\qquad m = m_{final} - (m_{final} - m_{base}) (\\cos(π k / K) + 1) / 2 $$

    ξ are the teacher's weights, θ the student's, k is the number of steps before this one, K the number of all steps.
    With a linear schedule, it is $m = m_{base} + (m_{final} - m_{base}) k / K$.

    Buffers, such as the running statistics of batch normalisation, begin as the student's, and are then the teacher's
    own: its forward passes in training mode change them, as in the code of BYOL, MoCo and DINO. If the teacher is in
    evaluation mode, as after `teacher.eval()` in `before_fit_epoch`, they follow the student's like the parameters.

    Calling the module runs the teacher. A trainer's `evaluate_with` decides which of the two is evaluated.

    Parameters
    ----------
    student
        The network to train. The teacher is a copy of it without gradients.
    warm_init
        Whether the teacher begins with the student's weights. If not, each of its layers that has `reset_parameters`
        begins with new weights.
    base_ema_coefficient, final_ema_coefficient
        The momentum at the start and at the end of training, between 0 and 1.
    ema_schedule
        How the momentum goes from one to the other: "cosine" or "linear".

    Raises
    ------
    ValueError
        A coefficient is not between 0 and 1, or there is no such schedule.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import TeacherStudentModule
    >>> pair = TeacherStudentModule(torch.nn.Linear(4, 2), base_ema_coefficient=0.9)
    >>> _ = torch.nn.init.constant_(pair.teacher.bias, 0.0), torch.nn.init.constant_(pair.student.bias, 1.0)
    >>> pair.update_teacher(progress=0.0)  # the first of all steps: 10 % of the way to the student
    >>> pair.teacher.bias
    Parameter containing:
    tensor([0.1000, 0.1000])
    >>> pair(torch.zeros(3, 4)).requires_grad, pair.forward_student(torch.zeros(3, 4)).requires_grad
    (False, True)
    """

    sharded_parts = ("student", "teacher")  # what strategies fsdp and hsdp shard: the networks that are called
    epochs_of_run: int | None = None  # set by a run
    _of_run: Tensor
    _progress = 0.0
    # The momentum that was assigned, now and at the beginning of the epoch, or NaN; and the number of that epoch.
    _assigned = _at_beginning = math.nan
    _epoch = -1
    _is_in_run = _has_told = False

    def __init__(
        self,
        student: nn.Module,
        warm_init: bool = True,
        base_ema_coefficient: float = 0.996,
        final_ema_coefficient: float = 1.0,
        ema_schedule: str = "cosine",
    ):
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.base_ema_coefficient = Momentum(base_ema_coefficient)
        self.final_ema_coefficient = Momentum(final_ema_coefficient)
        self.ema_schedule = ema_schedule
        check_ema(self)
        # For a run's checkpoints. It holds the bits of float64, which not all devices have.
        self.register_buffer("_of_run", torch.zeros(3, dtype=torch.int64), persistent=False)
        self._keep()
        if not warm_init:
            log.info("warm_init is false: the teacher begins with weights of its own. In early 2025 they were a copy.")
            for layer in self.teacher.modules():
                if callable(reset := getattr(layer, "reset_parameters", None)):
                    reset()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the teacher's output."""
        return self.forward_teacher(*args, **kwargs)

    def forward_student(self, *args: Any, **kwargs: Any) -> Any:
        """Return the student's output."""
        return self.student(*args, **kwargs)

    @torch.no_grad()
    def forward_teacher(self, *args: Any, **kwargs: Any) -> Any:
        """Return the teacher's output, without gradients."""
        return self.teacher(*args, **kwargs)

    def begin_epoch(self, epoch: int) -> None:
        """Note that a run updates the teacher from here on, and set the momentum if a subclass has its own schedule.

        If a run goes on within the epoch, the schedule finds the momentum that it found before.
        """
        self._is_in_run = True
        now, at_beginning, of_epoch = self._of_run.cpu().view(torch.float64).tolist()
        self._at_beginning, self._epoch = (at_beginning if epoch == of_epoch else now), epoch
        self._assigned = self._at_beginning
        is_own = type(self).update_ema_coefficient is not TeacherStudentModule.update_ema_coefficient
        if is_own and self.epochs_of_run is not None:
            self.update_ema_coefficient(epoch, self.epochs_of_run)
        if epoch == of_epoch:
            self._assigned = now
        self._keep()

    def update_teacher(self, progress: float | None = None) -> None:
        """Move the teacher's weights towards the student's.

        Parameters
        ----------
        progress
            The number of optimizer steps before this one, divided by the number of all steps: from 0 to below 1. None:
            as `update_ema_coefficient` says. In a run, which has updated the teacher already, nothing is done.
        """
        if progress is not None:
            self._progress = progress
        if progress is not None or not self._is_in_run:
            follow(self.teacher, self.student, self.ema_coefficient)
        elif not self._has_told:
            self._has_told = True
            log.info("update_teacher() does nothing in a hook: a run updates teachers after each optimizer step.")

    def update_ema_coefficient(self, epoch: int, total_epochs: int) -> None:
        """Set the place in the schedule of the momentum, for `update_teacher` in a loop of one's own."""
        self._progress = epoch / total_epochs

    @property
    def ema_coefficient(self) -> float:
        """The momentum of the newest update in a run, or that `update_ema_coefficient` has set.

        An assigned value holds from then on, instead of the schedule. A run that is resumed has it again. At the
        beginning of each epoch, a run calls the `update_ema_coefficient` of a subclass, which may assign one.
        """
        is_scheduled = math.isnan(self._assigned)
        return Momentum(ema_coefficient(self, self._progress) if is_scheduled else self._assigned)

    @ema_coefficient.setter
    def ema_coefficient(self, value: float | Tensor) -> None:
        self._assigned = float(value)
        self._keep()

    @torch.no_grad()
    def _keep(self) -> None:
        """Write the assigned momentum to the buffer that checkpoints have."""
        values = [self._assigned, self._at_beginning, self._epoch]
        self._of_run.copy_(torch.tensor(values, dtype=torch.float64, device="cpu").view(torch.int64))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile student and teacher in place, with the arguments of `torch.compile`."""
        self.student.compile(*args, **kwargs)
        self.teacher.compile(*args, **kwargs)


def check_evaluate_with(name: str) -> None:
    """Raise a ConfigError unless the option `evaluate_with` of a trainer is "teacher" or "student"."""
    if name not in ("teacher", "student"):
        raise ConfigError(f"evaluate_with: {name!r} is neither 'teacher' nor 'student'.")


def check_ema(owner: Any) -> None:
    """Raise a ValueError for what `ema_coefficient` can't use of its `owner`."""
    for name in ("base_ema_coefficient", "final_ema_coefficient"):
        if not 0 <= getattr(owner, name) <= 1:
            raise ValueError(f"{name}: {getattr(owner, name)} is not between 0 and 1.")
    if owner.ema_schedule not in ("cosine", "linear"):
        raise ValueError(f"ema_schedule: {owner.ema_schedule!r} is neither 'cosine' nor 'linear'.")


def ema_coefficient(owner: Any, progress: float) -> float:
    """Return the teacher's momentum at a point of the run, by the formula of `TeacherStudentModule`.

    Parameters
    ----------
    owner
        An object with `base_ema_coefficient`, `final_ema_coefficient` and `ema_schedule`.
    progress
        The part of all optimizer steps that is over, from 0 to 1.
    """
    base, final = float(owner.base_ema_coefficient), float(owner.final_ema_coefficient)
    if owner.ema_schedule == "linear":
        return base + (final - base) * progress
    return final - (final - base) * (math.cos(math.pi * progress) + 1) / 2


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, coefficient: float) -> None:
    """Move a teacher's parameters towards the student's; in evaluation mode, which keeps its buffers, those too.

    Parameters
    ----------
    coefficient
        The momentum: 1 leaves the teacher as it is, 0 makes its parameters equal to the student's.
    """
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    if not teacher.training:
        pairs += zip(teacher.buffers(), student.buffers(), strict=True)  # type: ignore[arg-type]
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    if floating:
        values, targets = map(list, zip(*floating, strict=True))
        torch._foreach_lerp_([local(value) for value in values], [local(target) for target in targets], 1 - coefficient)
    for value, target in pairs:
        if not value.is_floating_point():
            value.copy_(target)


@torch.no_grad()
def copy_values(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters and buffers of a module to another one of the same structure."""
    pairs = zip([*target.parameters(), *target.buffers()], [*source.parameters(), *source.buffers()], strict=True)
    for value, new in pairs:
        value.copy_(new)
