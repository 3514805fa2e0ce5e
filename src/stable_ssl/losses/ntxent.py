"""NT-Xent, the loss of SimCLR."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .embeddings import gather_pair

if TYPE_CHECKING:
    from jaxtyping import Float


class NTXEntLoss(nn.Module):
    r"""Normalised temperature-scaled cross entropy (Chen et al., "A simple framework for contrastive learning of
    visual representations", ICML 2020, equation 1).

    With unit vectors $u_1 … u_{2N}$, of which each $u_i$ has one positive $u_{p(i)}$, the other view of its image:

    $$ L = -\frac{1}{2N} \sum_i \log \frac{\exp(u_i · u_{p(i)} / τ)}{\sum_{k ≠ i} \exp(u_i · u_k / τ)} $$

    The batch is that of all ranks together.

    Parameters
    ----------
    temperature
        τ.
    chunk_size
        How many embeddings are compared with all others at a time. With more than that, similarities are computed
        again for the backward pass instead of being kept: memory grows with the batch, and not with its square.
    """

    def __init__(self, temperature: float = 0.5, chunk_size: int = 2048):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature: {temperature} is not above 0.")
        if chunk_size < 1:
            raise ValueError(f"chunk_size: {chunk_size} is not at least 1.")
        self.temperature, self.chunk_size = temperature, chunk_size

    def forward(self, z_i: Float[Tensor, "batch dim"], z_j: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss of the embeddings of two views, computed in fp32 at least; errors as in `gather_pair`."""
        with torch.autocast(z_i.device.type, enabled=False):
            z_i, z_j = gather_pair(self, z_i, z_j)
            units = nn.functional.normalize(torch.cat([z_i, z_j]))
            if len(units) <= self.chunk_size:
                return self._sum(units, 0) / len(units)
            starts = range(0, len(units), self.chunk_size)
            sums = [
                checkpoint(self._sum, units, start, use_reentrant=False, preserve_rng_state=False) for start in starts
            ]
            return torch.stack(sums).sum() / len(units)

    def _sum(self, units: Tensor, start: int) -> Tensor:
        """Return the sum of the losses of a chunk of embeddings."""
        places = torch.arange(start, min(start + self.chunk_size, len(units)), device=units.device)
        similarities = units[start : start + self.chunk_size] @ units.T / self.temperature
        similarities[places - start, places] = float("-inf")
        positives = (places + len(units) // 2) % len(units)
        return nn.functional.cross_entropy(similarities, positives, reduction="sum")
