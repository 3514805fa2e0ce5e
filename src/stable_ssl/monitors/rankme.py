"""RankMe, the effective rank of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..runtime.distributed import all_gather
from .monitor import Monitor
from .recent import Recent

if TYPE_CHECKING:
    from ..base import BaseTrainer


class RankMe(Monitor):
    """Effective rank of the newest embeddings (Garrido et al., "RankMe: assessing the downstream performance of
    pretrained self-supervised representations by their rank", ICML 2023, equations 1 and 2).

    σ are the singular values of the matrix of embeddings, (samples, dim). With p_k = σ_k / Σσ + ε,
    RankMe = exp(-Σ p_k log p_k).

    Parameters
    ----------
    limit
        Number of embeddings: the newest ones of each rank. The paper finds that 25,600 are enough.
    epsilon
        The constant ε of the formula.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.monitors import RankMe
    >>> round(RankMe.rankme(torch.eye(8)), 2), round(RankMe.rankme(torch.ones(8, 4)), 2)  # 8 directions, 1 direction
    (8.0, 1.0)
    """

    name = "rankme"

    def __init__(self, limit: int = 2048, epsilon: float = 1e-7):
        self.limit, self.epsilon = limit, epsilon
        self._recent = Recent()

    def on_step(self, trainer: BaseTrainer) -> None:
        """Keep the newest embeddings."""
        newest = trainer.latest_embeddings
        if newest is None:
            raise ValueError(f"RankMe needs latest_embeddings, which {type(trainer).__name__} does not set.")
        newest = torch.cat(list(newest)) if isinstance(newest, list | tuple) else newest
        self._recent.add(newest, self.limit)  # (samples, dim)

    def compute(self, trainer: BaseTrainer) -> float | None:
        """Return the effective rank of the newest embeddings, or None before the first step."""
        newest = self._recent.newest(self.limit)  # (samples, dim)
        return None if newest is None else self.rankme(all_gather(newest), self.epsilon)

    @staticmethod
    @torch.no_grad()
    def rankme(x: Tensor, epsilon: float = 1e-7) -> float:
        """Return the effective rank of embeddings, (samples, dim), or NaN if one of them is not finite."""
        if not x.isfinite().all():
            return float("nan")
        singular = torch.linalg.svdvals(x.float())  # (min(samples, dim),)
        p = singular / singular.sum().clamp(min=torch.finfo(torch.float32).tiny) + epsilon
        return float(torch.exp(-(p * p.log()).sum()))

    def state_dict(self) -> dict[str, Any]:
        """Return the newest embeddings, for a checkpoint."""
        return self._recent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the newest embeddings from a checkpoint."""
        self._recent.load_state_dict(state)
