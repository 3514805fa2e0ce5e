"""The loss of SimSiam."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .embeddings import at_least_fp32, check_pair

if TYPE_CHECKING:
    from jaxtyping import Float


class NegativeCosineSimilarity(nn.Module):
    r"""Negative cosine similarity (Chen and He, "Exploring simple Siamese representation learning", CVPR 2021,
    equation 1).

    p is the prediction from one view, z the embedding of the other view:

    $$ L = -\frac{1}{N} \sum_i \frac{p_i}{‖p_i‖} · \frac{z_i}{‖z_i‖} $$

    `BYOLLoss` is 2 + 2 L.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import NegativeCosineSimilarity
    >>> z = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))  # (batch, dim)
    >>> loss = NegativeCosineSimilarity()
    >>> round(float(loss(z, 3 * z)), 4), round(float(loss(z, -z)), 4)  # lengths do not matter, directions do
    (-1.0, 1.0)
    """

    def forward(self, z_i: Float[Tensor, "batch dim"], z_j: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss, computed in fp32 (fp64 for fp64 embeddings).

        Raises
        ------
        ValueError
            The shapes differ or are not (batch, dim).
        """
        check_pair(self, z_i, z_j)
        with torch.autocast(z_i.device.type, enabled=False):
            similarities = nn.functional.cosine_similarity(at_least_fp32(z_i), at_least_fp32(z_j))  # (batch,)
            return -similarities.mean()
