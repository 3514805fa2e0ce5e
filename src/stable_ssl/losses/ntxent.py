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

    The embeddings of both views of N images, at unit length, are $u_1 … u_{2N}$. Each $u_i$ has one positive
    $u_{p(i)}$: the other view of the same image.

    $$ L = -\frac{1}{2N} \sum_i \log \frac{\exp(u_i · u_{p(i)} / τ)}{\sum_{k ≠ i} \exp(u_i · u_k / τ)} $$

    The batch consists of the images of all ranks.

    Parameters
    ----------
    temperature
        The temperature τ.
    chunk_size
        How many embeddings are compared with all others at a time. If the batch has more embeddings, the backward pass
        computes the similarities a second time instead of keeping them: memory grows with the batch, and not with its
        square.
    scale
        A factor of the loss. The paper has 1, the authors' code 2 (tf2/objective.py adds both directions up). It sets
        how fast parameters learn whose rate LARS does not adapt.

    Raises
    ------
    ValueError
        The temperature is not above 0, or the chunk size is below 1.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import NTXEntLoss
    >>> z_i, z_j = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))  # (batch, dim) each
    >>> loss = NTXEntLoss(temperature=0.5)
    >>> loss(z_i, z_i) < loss(z_i, z_j)  # views that agree have the smaller loss
    tensor(True)
    """

    joins_views = True  # as in the authors' tf2/model.py

    def __init__(self, temperature: float = 0.5, chunk_size: int = 2048, scale: float = 1.0):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature: {temperature} is not above 0.")
        if chunk_size < 1:
            raise ValueError(f"chunk_size: {chunk_size} is not at least 1.")
        self.temperature, self.chunk_size, self.scale = temperature, chunk_size, scale

    def forward(self, z_i: Float[Tensor, "batch dim"], z_j: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss of two views' embeddings, computed in fp32 (fp64 for fp64 embeddings).

        Raises
        ------
        ValueError
            The shapes differ or are not (batch, dim), or the batch has one image only.
        """
        with torch.autocast(z_i.device.type, enabled=False):
            z_i, z_j = gather_pair(self, z_i, z_j)  # (N, dim) each
            units = nn.functional.normalize(torch.cat([z_i, z_j]))  # (2 N, dim)
            if len(units) <= self.chunk_size:
                return self.scale * self._sum(units, 0) / len(units)
            starts = range(0, len(units), self.chunk_size)
            sums = [
                checkpoint(self._sum, units, start, use_reentrant=False, preserve_rng_state=False) for start in starts
            ]
            return self.scale * torch.stack(sums).sum() / len(units)

    def _sum(self, units: Float[Tensor, "all dim"], start: int) -> Float[Tensor, ""]:
        """Return the sum of the losses of one chunk, the embeddings from `start` on."""
        places = torch.arange(start, min(start + self.chunk_size, len(units)), device=units.device)  # (chunk,)
        similarities = units[start : start + self.chunk_size] @ units.T / self.temperature  # (chunk, 2 N)
        similarities[places - start, places] = float("-inf")  # no embedding is compared with itself
        positives = (places + len(units) // 2) % len(units)  # (chunk,)
        return nn.functional.cross_entropy(similarities, positives, reduction="sum")
