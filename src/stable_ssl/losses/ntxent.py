"""NT-Xent, the loss of SimCLR."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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
    """

    def __init__(self, temperature: float = 0.5):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature: {temperature} is not above 0.")
        self.temperature = temperature

    def forward(self, z_i: Float[Tensor, "batch dim"], z_j: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss of the embeddings of two views, computed in fp32 at least; errors as in `gather_pair`."""
        with torch.autocast(z_i.device.type, enabled=False):
            z_i, z_j = gather_pair(self, z_i, z_j)
            num_images = len(z_i)
            units = nn.functional.normalize(torch.cat([z_i, z_j]))
            similarities = units @ units.T / self.temperature
            similarities.fill_diagonal_(float("-inf"))
            positives = torch.arange(2 * num_images, device=units.device).roll(num_images)
            return nn.functional.cross_entropy(similarities, positives)
