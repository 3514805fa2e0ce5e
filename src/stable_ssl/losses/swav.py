"""The loss of SwAV, with its prototypes and its queue of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..runtime.distributed import all_gather, own_rows
from .embeddings import at_least_fp32, check_width, if_finite

if TYPE_CHECKING:
    from jaxtyping import Float


class SwAVLoss(nn.Module):
    r"""Swapped prediction of cluster assignments (Caron et al., "Unsupervised learning of visual features by
    contrasting cluster assignments", NeurIPS 2020, equations 1 to 3).

    z are the embeddings of V views, at unit length, and the columns of C are the prototypes, one per cluster. Each of
    the first two views gives every image a soft assignment q to the prototypes. Every other view has to predict it:

    $$ L = -\frac{1}{2 (V - 1)} \sum_{v ≤ 2} \sum_{w ≠ v} \frac{1}{N} \sum_i
           q_{v, i} · \log \mathrm{softmax}(z_{w, i} C / τ) $$

    Assignments are computed for the images of all ranks together, so that all prototypes get equally many: see
    `sinkhorn`.

    Parameters
    ----------
    dim
        Width of the embeddings.
    num_prototypes
        Number of clusters.
    temperature
        The temperature τ.
    epsilon
        Smoothness of the assignments: a larger value makes them softer.
    num_iterations
        Iterations of Sinkhorn's algorithm.
    queue_size
        Number of embeddings of earlier steps, for each of the first two views, that are assigned together with the
        batch. 0: no queue.

    Attributes
    ----------
    uses_queue : bool
        Whether the queue is filled, and used when it is full. It may change from epoch to epoch.
    fills_queue : bool
        Whether the queue is filled while `uses_queue` is false.

    Raises
    ------
    ValueError
        `temperature` or `epsilon` is not above 0.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import SwAVLoss
    >>> views = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))  # (batch, dim) each
    >>> loss = SwAVLoss(dim=16, num_prototypes=6)
    >>> loss(*views).shape
    torch.Size([])
    """

    queue: Tensor
    uses_queue = True
    fills_queue = False
    joins_views = True  # as in the authors' src/resnet50.py

    def __init__(
        self,
        dim: int = 128,
        num_prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        num_iterations: int = 3,
        queue_size: int = 0,
    ):
        super().__init__()
        if temperature <= 0 or epsilon <= 0:
            raise ValueError(f"temperature {temperature} and epsilon {epsilon} must be above 0.")
        self.temperature, self.epsilon, self.num_iterations = temperature, epsilon, num_iterations
        self.prototypes = nn.Linear(dim, num_prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(2, queue_size, dim))
        self._num_queued = 0

    def forward(self, *embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss of two or more views' embeddings, computed in fp32 (fp64 for fp64 embeddings).

        The prototypes are scaled to unit length first. In training mode, the embeddings enter the queue if
        `uses_queue` or `fills_queue` is true.

        Raises
        ------
        ValueError
            The width of the embeddings is not `dim`.
        """
        check_width(self, "dim", self.prototypes.in_features, embeddings[0])
        with torch.autocast(embeddings[0].device.type, enabled=False):
            with torch.no_grad():
                self.prototypes.weight.copy_(nn.functional.normalize(self.prototypes.weight))
            units = [nn.functional.normalize(at_least_fp32(z)) for z in embeddings]  # (batch, dim) each
            weight = self.prototypes.weight.to(units[0].dtype)  # (prototypes, dim)
            scores = [unit @ weight.T / self.temperature for unit in units]  # (batch, prototypes) each
            terms = []
            for v, assignment in enumerate(self._assign(units[:2], weight.detach())):
                terms += [nn.functional.cross_entropy(score, assignment) for w, score in enumerate(scores) if w != v]
            return torch.stack(terms).mean()

    @torch.no_grad()
    def _assign(
        self, units: list[Float[Tensor, "batch dim"]], weight: Float[Tensor, "prototypes dim"]
    ) -> list[Float[Tensor, "batch prototypes"]]:
        """Return the assignments of the first two views, and put their embeddings into the queue."""
        size = self.queue.shape[1]
        batches = [all_gather(unit) for unit in units]  # (world size × batch, dim) each
        extended = [torch.cat([batch, queued]) for batch, queued in zip(batches, self.queue, strict=True)]
        is_full = 0 < size <= self._num_queued
        rows = extended if self.uses_queue and is_full else batches  # (world size × batch [+ queue size], dim) each
        found = [sinkhorn(row @ weight.T, self.epsilon, self.num_iterations)[: len(batches[0])] for row in rows]
        if self.training and (self.uses_queue or self.fills_queue):
            self.queue = if_finite(torch.stack([row[:size] for row in extended]), self.queue)  # (2, queue size, dim)
            self._num_queued = min(size, self._num_queued + len(batches[0]))
        return [own_rows(assignment) for assignment in found]

    def get_extra_state(self) -> dict[str, int]:
        """Return how many embeddings the queue holds, for `state_dict`."""
        return {"num_queued": self._num_queued}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore how many embeddings the queue holds, for `load_state_dict`."""
        self._num_queued = state["num_queued"]


def sinkhorn(
    scores: Float[Tensor, "batch prototypes"], epsilon: float, num_iterations: int
) -> Float[Tensor, "batch prototypes"]:
    """Return soft assignments: each row adds up to 1, and all columns add up to nearly the same number.

    This is the algorithm of Sinkhorn and Knopp (Cuturi, "Sinkhorn distances", NeurIPS 2013), applied to
    exp(scores / epsilon). It works with logarithms, which do not overflow. Each iteration scales the columns, then the
    rows.

    Examples
    --------
    >>> scores = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    >>> assignments = sinkhorn(scores, epsilon=0.5, num_iterations=20)
    >>> torch.allclose(assignments.sum(1), torch.ones(8)), torch.allclose(assignments.sum(0), torch.full((4,), 2.0))
    (True, True)
    """
    assignment = scores / epsilon  # (batch, prototypes), logarithms until the end
    for _ in range(num_iterations):
        assignment = assignment - assignment.logsumexp(0)
        assignment = assignment - assignment.logsumexp(1, keepdim=True)
    return assignment.exp()
