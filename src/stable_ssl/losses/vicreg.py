"""The loss of VICReg."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .embeddings import gather_pair, off_diagonal

if TYPE_CHECKING:
    from jaxtyping import Float


class VICRegLoss(nn.Module):
    r"""Variance, invariance and covariance (Bardes et al., "VICReg: variance-invariance-covariance regularization for
    self-supervised learning", ICLR 2022, equations 1 to 6).

    Z and Z' are the two views' embeddings of N images in D dimensions:

    $$ L = λ \frac{1}{ND} \sum ‖z_i - z'_i‖^2 + \frac{μ}{2} [v(Z) + v(Z')] + ν [c(Z) + c(Z')] $$
    $$ v(Z) = \frac{1}{D} \sum_d \max(0, 1 - \sqrt{\mathrm{Var}(z_d) + ε}) \qquad
       c(Z) = \frac{1}{D} \sum_{d ≠ e} \mathrm{Cov}(Z)_{de}^2 $$

    The mean over D in the first term and the factor 1/2 in the second are not in the paper. They are in the authors'
    code, for which the published coefficients were chosen. solo-learn has no factor 1/2: `std_coeff=50` is what it
    trains with. The batch consists of the images of all ranks.

    Parameters
    ----------
    sim_coeff, std_coeff, cov_coeff
        The weights λ, μ and ν of the invariance, variance and covariance terms.
    epsilon
        The constant ε under the square root.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import VICRegLoss
    >>> z_i, z_j = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))  # (batch, dim) each
    >>> loss = VICRegLoss()
    >>> loss(z_i, z_i) < loss(z_i, z_j)  # views that agree have the smaller loss
    tensor(True)
    """

    def __init__(self, sim_coeff: float = 25.0, std_coeff: float = 25.0, cov_coeff: float = 1.0, epsilon: float = 1e-4):
        super().__init__()
        self.sim_coeff, self.std_coeff, self.cov_coeff, self.epsilon = sim_coeff, std_coeff, cov_coeff, epsilon

    def forward(self, z_i: Float[Tensor, "batch dim"], z_j: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss of two views' embeddings, computed in fp32 (fp64 for fp64 embeddings).

        Raises
        ------
        ValueError
            The shapes differ or are not (batch, dim), or the batch has one image only.
        """
        with torch.autocast(z_i.device.type, enabled=False):
            z_i, z_j = gather_pair(self, z_i, z_j)  # (N, dim) each
            loss = self.sim_coeff * nn.functional.mse_loss(z_i, z_j)
            for z in (z_i, z_j):
                # What `Tensor.cov` computes, to the bit; on a GPU that waits for the device.
                centred = z.T - z.T.sum(1, keepdim=True) / len(z)  # (dim, N)
                covariance = centred @ centred.T / (len(z) - 1)  # (dim, dim)
                deviation = (covariance.diagonal() + self.epsilon).sqrt()  # (dim,)
                loss = loss + self.std_coeff / 2 * (1 - deviation).relu().mean()
                loss = loss + self.cov_coeff * off_diagonal(covariance).square().sum() / len(covariance)
            return loss
