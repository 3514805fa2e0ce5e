"""RankMe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..runtime.distributed import all_gather
from .monitor import Monitor

if TYPE_CHECKING:
    from ..base import BaseTrainer


class RankMe(Monitor):
    """Effective rank of the newest embeddings (Garrido et al., "RankMe: assessing the downstream performance of
    pretrained self-supervised representations by their rank", ICML 2023, equations 1 and 2).

    With singular values σ and p_k = σ_k / Σσ + ε, RankMe = exp(-Σ p_k log p_k).

    Parameters
    ----------
    limit
        How many of each rank's newest embeddings it looks at; the paper finds that 25,600 are enough.
    epsilon
        ε.
    """

    name = "rankme"

    def __init__(self, limit: int = 2048, epsilon: float = 1e-7):
        self.limit, self.epsilon = limit, epsilon
        self._held: list[Tensor] = []

    def on_step(self, trainer: BaseTrainer) -> None:
        """Keep the embeddings of the step."""
        newest = trainer.latest_embeddings
        if newest is None:
            raise ValueError(f"RankMe needs latest_embeddings, which {type(trainer).__name__} does not set.")
        newest = torch.cat(list(newest)) if isinstance(newest, list | tuple) else newest
        self._held.append(newest.detach()[-self.limit :])
        while sum(len(held) for held in self._held[1:]) >= self.limit:
            del self._held[0]

    def compute(self, trainer: BaseTrainer) -> float | None:
        """Return the effective rank of the embeddings held; None where there are none yet."""
        if not self._held:
            return None
        device = self._held[-1].device  # those of before a restart are in host memory
        held = torch.cat([held.to(device) for held in self._held])[-self.limit :]
        return self.rankme(all_gather(held), self.epsilon)

    @staticmethod
    @torch.no_grad()
    def rankme(x: Tensor, epsilon: float = 1e-7) -> float:
        """Return the effective rank of embeddings (samples, dim); NaN where one of them is not finite."""
        if not x.isfinite().all():
            return float("nan")
        singular = torch.linalg.svdvals(x.float())
        p = singular / singular.sum().clamp(min=torch.finfo(torch.float32).tiny) + epsilon
        return float(torch.exp(-(p * p.log()).sum()))

    def state_dict(self) -> dict[str, Any]:
        """Return the embeddings held."""
        return {"held": list(self._held)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up embeddings held before."""
        self._held = list(state["held"])
