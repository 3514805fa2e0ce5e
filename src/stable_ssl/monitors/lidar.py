"""LiDAR, an effective rank that predicts the accuracy of a linear probe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..runtime.distributed import gather_rows, world_size
from .monitor import Monitor
from .recent import Recent

if TYPE_CHECKING:
    from ..base import BaseTrainer


class LiDAR(Monitor):
    """Number of dimensions in which embeddings of different images differ more than those of views of the same image
    (Thilak et al., "LiDAR: sensing linear probing performance in joint embedding SSL architectures", ICLR 2024).

    Each of the n images is a class, and the embeddings e_xi of its q views are the class's samples. μ_x is the mean of
    class x, and μ is the mean of all μ_x:

        Σ_b = Σ_x (μ_x - μ)(μ_x - μ)ᵀ / (n - 1)
        Σ_w = Σ_x Σ_i (e_xi - μ_x)(e_xi - μ_x)ᵀ / (n (q - 1)) + δ I

    λ are the eigenvalues of Σ_w^(-1/2) Σ_b Σ_w^(-1/2). With p_k = λ_k / Σλ + ε, LiDAR = exp(-Σ p_k log p_k).

    LiDAR is never larger than the number of images or of dimensions. The paper has 1,000 images with 50 views each. It
    is computed in fp64 on the CPU, at each logging step.

    Parameters
    ----------
    n
        Number of images: the newest ones of all ranks together.
    epsilon, delta
        The constants ε and δ of the formulas. The paper has δ = 1e-4; the default is that of early 2025.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.monitors import LiDAR
    >>> generator = torch.Generator().manual_seed(0)
    >>> images = 10 * torch.randn(64, 1, 8, generator=generator)
    >>> views = images + torch.randn(64, 4, 8, generator=generator)  # (images, views, dim)
    >>> 7 < LiDAR().lidar(views) <= 8  # images differ in all 8 dimensions
    True
    """

    name = "LiDAR"

    def __init__(self, n: int = 1000, epsilon: float = 1e-7, delta: float = 1e-3):
        self.n, self.epsilon, self.delta = n, epsilon, delta
        self._recent = Recent()

    def on_step(self, trainer: BaseTrainer) -> None:
        """Keep the embeddings of the newest images."""
        newest = trainer.latest_embeddings
        if newest is None:
            raise ValueError(f"LiDAR needs latest_embeddings, which {type(trainer).__name__} does not set.")
        views = newest if isinstance(newest, list | tuple) else newest.chunk(getattr(trainer, "num_views", 1))
        if len(views) < 2:
            raise ValueError(
                f"LiDAR needs at least 2 views of each image, but {type(trainer).__name__} has 1. Give the trainer 2 "
                "views or more, or remove LiDAR from logger.monitor."
            )
        share = self._share
        self._recent.add(torch.stack([view[-share:] for view in views], 1), share)  # (images, views, dim)

    def compute(self, trainer: BaseTrainer) -> float | None:
        """Return LiDAR of the newest images, or None before the first step."""
        newest = self._recent.newest(self._share)  # (images, views, dim)
        return None if newest is None else self.lidar(gather_rows(newest.float()))

    @torch.no_grad()
    def lidar(self, embeddings: Iterable[Tensor]) -> float:
        """Return LiDAR of embeddings: one tensor (views, dim) per image.

        It is NaN if an embedding is not finite, or if Σ_w is so large that adding δ does not make it positive definite.
        """
        classes = torch.stack(list(embeddings)).cpu().double()  # (images, views, dim)
        n, q, dim = classes.shape
        if q < 2:
            raise ValueError(f"LiDAR compares views of an image: give it 2 embeddings of each image or more, not {q}.")
        if not classes.isfinite().all():
            return float("nan")
        means = classes.mean(1)  # (images, dim)
        within = (classes - means[:, None]).flatten(0, 1)  # (images × views, dim)
        covariance = within.T @ within / (n * (q - 1))  # (dim, dim)
        covariance.diagonal().add_(self.delta)
        root, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            return float("nan")
        # With Σ_w = LLᵀ, the matrix L⁻¹ Σ_b L⁻ᵀ has the same eigenvalues. It is AAᵀ, up to the factor 1 / (n - 1),
        # which cancels in p. If AᵀA is smaller, it serves as well: except for zeros, it has the same eigenvalues.
        a = torch.linalg.solve_triangular(root, (means - means.mean(0)).T, upper=False)  # (dim, images)
        eigenvalues = torch.linalg.eigvalsh(a.T @ a if n < dim else a @ a.T).clamp(min=0)
        p = torch.full((dim,), self.epsilon, dtype=torch.float64)
        p[: len(eigenvalues)] += eigenvalues / eigenvalues.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return float(torch.exp(-(p * p.log()).sum()))

    @property
    def _share(self) -> int:
        """Number of images that each rank keeps."""
        return -(-self.n // world_size())

    def state_dict(self) -> dict[str, Any]:
        """Return the newest embeddings, for a checkpoint."""
        return self._recent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the newest embeddings from a checkpoint."""
        self._recent.load_state_dict(state)
