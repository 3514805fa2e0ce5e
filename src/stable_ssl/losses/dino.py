"""The loss of DINO, with the centre of the teacher's scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..runtime.distributed import all_gather
from .embeddings import at_least_fp32, check_pair, check_width, if_finite

if TYPE_CHECKING:
    from jaxtyping import Float


class DINOLoss(nn.Module):
    r"""Cross entropy between a teacher's scores, centred and sharpened, and a student's scores (Caron et al., "Emerging
    properties in self-supervised vision transformers", ICCV 2021, equations 1 to 4).

    t are the teacher's scores of one view of an image, s the student's scores of another view:

    $$ L = -\frac{1}{N} \sum_i P_t(x_i) · \log P_s(x'_i), \qquad P_s = \mathrm{softmax}(s / τ_s),
       \quad P_t = \mathrm{softmax}((t - c) / τ_t) $$

    `update` moves the centre c towards the mean $\bar t$ of the teacher's scores on all ranks:
    $c ← m c + (1 - m) \bar t$.

    Parameters
    ----------
    out_dim
        Width of the scores.
    temperature_student, temperature_teacher
        The temperatures τ_s and τ_t. `DINOTrainer` changes the second one from epoch to epoch.
    center_momentum
        The momentum m of the centre, between 0 and 1.

    Raises
    ------
    ValueError
        A temperature is not above 0, or the momentum is not between 0 and 1.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import DINOLoss
    >>> student, teacher = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))  # (batch, out_dim) each
    >>> loss = DINOLoss(out_dim=16)
    >>> loss(teacher, teacher) < loss(student, teacher)  # a student that agrees has the smaller loss
    tensor(True)
    >>> loss.update(teacher)  # once per mini-batch, after the loss
    >>> torch.allclose(loss.center, 0.1 * teacher.mean(0))
    True
    """

    center: Tensor
    joins_views = True  # as in the authors' utils.py

    def __init__(
        self,
        out_dim: int = 65536,
        temperature_student: float = 0.1,
        temperature_teacher: float = 0.04,
        center_momentum: float = 0.9,
    ):
        super().__init__()
        if temperature_student <= 0 or temperature_teacher <= 0 or not 0 <= center_momentum <= 1:
            raise ValueError(
                f"temperature_student {temperature_student} and temperature_teacher {temperature_teacher} must be "
                f"above 0, and center_momentum {center_momentum} between 0 and 1."
            )
        self.temperature_student, self.temperature_teacher = temperature_student, temperature_teacher
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(out_dim))

    def forward(self, student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss of a student's and a teacher's scores, computed in fp32 (fp64 for fp64 scores).

        No gradient reaches the teacher's scores.

        Raises
        ------
        ValueError
            The shapes differ or are not (batch, dim), or the width is not `out_dim`.
        """
        check_pair(self, student, teacher)
        check_width(self, "out_dim", len(self.center), student)
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = at_least_fp32(student), at_least_fp32(teacher.detach())
            target = ((teacher - self.center) / self.temperature_teacher).softmax(1)  # (batch, dim): P_t
            return nn.functional.cross_entropy(student / self.temperature_student, target)

    @torch.no_grad()
    def update(self, teacher: Float[Tensor, "targets dim"]) -> None:
        """Move the centre towards the mean of the teacher's scores on all ranks."""
        mean = all_gather(at_least_fp32(teacher).mean(0, keepdim=True)).mean(0)  # (world size, dim), then (dim,)
        self.center = if_finite(self.center.lerp(mean.to(self.center.dtype), 1 - self.center_momentum), self.center)
