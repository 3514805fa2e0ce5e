"""The loss of Barlow Twins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .embeddings import gather_pair, off_diagonal

if TYPE_CHECKING:
    from jaxtyping import Float


class BarlowTwinsLoss(nn.Module):
    r"""Redundancy reduction (Zbontar et al., "Barlow Twins: self-supervised learning via redundancy reduction",
    ICML 2021, equations 1 and 2).

    Each dimension of each view's embeddings is standardised over the batch. C is the cross-correlation matrix of the
    two views, (dim, dim):

    $$ L = s \left( \sum_d (1 - C_{dd})^2 + λ \sum_{d ≠ e} C_{de}^2 \right) $$

    The batch consists of the images of all ranks.

    Parameters
    ----------
    lambd
        The weight λ of the second sum.
    scale
        The factor s. The paper has 1. The authors' code has 0.024 and other implementations have 0.1, to suit their
        learning rates.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import BarlowTwinsLoss
    >>> z_i, z_j = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))  # (batch, dim) each
    >>> loss = BarlowTwinsLoss()
    >>> loss(z_i, z_i) < loss(z_i, z_j)  # views that agree have the smaller loss
    tensor(True)
    """

    def __init__(self, lambd: float = 5e-3, scale: float = 1.0):
        super().__init__()
        self.lambd, self.scale = lambd, scale

    def forward(self, z_i: Float[Tensor, "batch dim"], z_j: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss of two views' embeddings, computed in fp32 (fp64 for fp64 embeddings).

        Raises
        ------
        ValueError
            The shapes differ or are not (batch, dim), or the batch has one image only.
        """
        with torch.autocast(z_i.device.type, enabled=False):
            # The authors standardise by batch normalisation, so eps = 1e-5 is added to the variances here too.
            units = [  # (batch, dim) each
                nn.functional.batch_norm(z, None, None, training=True, eps=1e-5) for z in gather_pair(self, z_i, z_j)
            ]
            correlation = units[0].T @ units[1] / len(units[0])  # (dim, dim)
            invariance = (1 - correlation.diagonal()).square().sum()
            return self.scale * (invariance + self.lambd * off_diagonal(correlation).square().sum())
