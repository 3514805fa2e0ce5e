"""RankMe, the effective rank of embeddings."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..runtime.distributed import gather_rows, world_size
from .monitor import Monitor
from .recent import Recent

if TYPE_CHECKING:
    from ..base import BaseTrainer

PAPER = 25_600, 2_048  # embeddings and dimensions
MOST_BATCHES = 64

log = logging.getLogger("stable_ssl")


class RankMe(Monitor):
    """Effective rank of the newest embeddings (Garrido et al., "RankMe: assessing the downstream performance of
    pretrained self-supervised representations by their rank", ICML 2023, equations 1 and 2).

    σ are the singular values of the matrix of embeddings, (samples, dim). With p_k = σ_k / Σσ + ε,
    RankMe = exp(-Σ p_k log p_k).

    Too few embeddings have too small a rank. Standard normals score 99 % of their dimensions with 12.5 samples per
    dimension, 97 % with 4, and 81 % with 1.

    Parameters
    ----------
    limit
        Number of embeddings: the newest ones of all ranks together. None: 12.5 per dimension, as the 25,600 that the
        paper takes for 2,048 dimensions; of more dimensions, as many as need the same memory, 210 MB in fp32. A limit
        of 64 or less means what it meant in early 2025: so many batches of representations, each of one view.
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

    def __init__(self, limit: int | None = None, epsilon: float = 1e-7):
        if limit is not None and limit < 1:
            raise ValueError(f"RankMe: limit must be at least 1, or null, not {limit}.")
        self.limit, self.epsilon = limit, epsilon
        self._recent = Recent()

    def check(self, trainer: BaseTrainer, path: str) -> None:
        """Log that a small limit counts batches."""
        if self._counts_batches:
            log.warning(
                f"{path}: limit: {self.limit} is read as {self.limit} batches of representations, as in early 2025. A "
                f"limit above {MOST_BATCHES} counts embeddings; without a limit there are 12.5 per dimension."
            )

    def on_step(self, trainer: BaseTrainer) -> None:
        """Keep the newest embeddings, or the newest batches of representations."""
        found = [trainer.latest_embeddings, trainer.latest_representations]
        newest = next((one for one in (found[::-1] if self._counts_batches else found) if one is not None), None)
        if newest is None:
            raise ValueError(
                f"RankMe needs latest_embeddings or latest_representations, and {type(trainer).__name__} sets neither."
            )
        if self._counts_batches:
            views = newest if isinstance(newest, list | tuple) else newest.chunk(getattr(trainer, "num_views", 1))
            for view in views:
                self._recent.add_batch(view.flatten(1), self._share(view))  # (batch, dim)
        else:
            rows = (torch.cat(list(newest)) if isinstance(newest, list | tuple) else newest).flatten(1)
            self._recent.add(rows, self._share(rows))  # (samples, dim)

    def compute(self, trainer: BaseTrainer) -> float | None:
        """Return the effective rank of what is kept, or None before the first step."""
        newest = self._recent.newest()  # (samples, dim)
        if newest is None:
            return None
        rows = newest if self._counts_batches else newest[-self._share(newest) :]
        return self.rankme(gather_rows(rows), self.epsilon)

    @staticmethod
    @torch.no_grad()
    def rankme(x: Tensor, epsilon: float = 1e-7) -> float:
        """Return the effective rank of embeddings, (samples, dim), or NaN if one of them is not finite.

        Singular values are the roots of the eigenvalues of a product in fp64, which takes less time than they do. Zeros
        come out below ε.
        """
        x = x.flatten(1)
        if not x.isfinite().all():
            return float("nan")
        x = (x.cpu() if x.device.type == "mps" else x).double()
        eigenvalues = torch.linalg.eigvalsh(x.T @ x if len(x) > x.shape[1] else x @ x.T)  # (min(samples, dim),)
        singular = eigenvalues.clamp(min=0).sqrt()
        p = singular / singular.sum().clamp(min=torch.finfo(torch.float64).tiny) + epsilon
        return float(torch.exp(-(p * p.log()).sum()))

    @property
    def _counts_batches(self) -> bool:
        return self.limit is not None and self.limit <= MOST_BATCHES

    def _share(self, rows: Tensor) -> int:
        """Return the number of embeddings, or of batches, that each rank keeps of such rows, (rows, dim)."""
        samples, dims = PAPER
        dim = rows.shape[1]
        limit = self.limit or min(math.ceil(samples / dims * dim), max(samples * dims // dim, 1))
        return -(-limit // world_size())

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept, for a checkpoint."""
        return self._recent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what was kept from a checkpoint."""
        self._recent.load_state_dict(state)
