"""The loss of VICReg."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from .embeddings import gather_pair, off_diagonal

if TYPE_CHECKING:
    from jaxtyping import Float


class VICRegLoss(nn.Module):
    r"""Variance, invariance and covariance (Bardes et al., "VICReg: variance-invariance-covariance regularization for
    self-supervised learning", ICLR 2022, equations 1 to 6).

    For embeddings Z, Z' of N images in D dimensions:

    $$ L = λ \frac{1}{ND} \sum ‖z_i - z'_i‖^2 + \frac{μ}{2} [v(Z) + v(Z')] + ν [c(Z) + c(Z')] $$
    $$ v(Z) = \frac{1}{D} \sum_d \max(0, 1 - \sqrt{\mathrm{Var}(z_d) + ε}) \qquad
       c(Z) = \frac{1}{D} \sum_{d ≠ e} \mathrm{Cov}(Z)_{de}^2 $$

    The mean over D in the first term and the half in the second are those of the authors' code, to which the published
    coefficients belong. The batch is that of all ranks together.

    Parameters
    ----------
    sim_coeff, std_coeff, cov_coeff
        λ, μ and ν.
    epsilon
        ε.
    """

    def __init__(self, sim_coeff: float = 25.0, std_coeff: float = 25.0, cov_coeff: float = 1.0, epsilon: float = 1e-4):
        super().__init__()
        self.sim_coeff, self.std_coeff, self.cov_coeff, self.epsilon = sim_coeff, std_coeff, cov_coeff, epsilon

    def forward(self, z_i: Float[torch.Tensor, "batch dim"], z_j: Float[torch.Tensor, "batch dim"]) -> torch.Tensor:
        """Return the loss of the embeddings of two views, computed in fp32 at least; errors as in `gather_pair`."""
        with torch.autocast(z_i.device.type, enabled=False):
            z_i, z_j = gather_pair(self, z_i, z_j)
            loss = self.sim_coeff * nn.functional.mse_loss(z_i, z_j)
            for z in (z_i, z_j):
                covariance = z.T.cov()
                deviation = (covariance.diagonal() + self.epsilon).sqrt()
                loss = loss + self.std_coeff / 2 * (1 - deviation).relu().mean()
                loss = loss + self.cov_coeff * off_diagonal(covariance).square().sum() / len(covariance)
            return loss
