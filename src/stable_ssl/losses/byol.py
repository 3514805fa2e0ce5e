"""The loss of BYOL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .negative_cosine import NegativeCosineSimilarity

if TYPE_CHECKING:
    from jaxtyping import Float


class BYOLLoss(NegativeCosineSimilarity):
    r"""Squared distance of unit vectors (Grill et al., "Bootstrap your own latent", NeurIPS 2020, equation 2).

    p is the student's prediction from one view, z the teacher's embedding of the other view:

    $$ L = \frac{1}{N} \sum_i \left\| \frac{p_i}{‖p_i‖} - \frac{z_i}{‖z_i‖} \right\|^2
         = 2 - \frac{2}{N} \sum_i \frac{p_i}{‖p_i‖} · \frac{z_i}{‖z_i‖} $$

    `SelfDistillationTrainer` adds both directions up, as the paper does. So gradients are four times as large as with
    `NegativeCosineSimilarity`. This matters with SGD, and with LARS for biases and normalisations, which LARS does not
    rescale.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import BYOLLoss
    >>> z = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))  # (batch, dim)
    >>> loss = BYOLLoss()
    >>> round(float(loss(z, 3 * z)), 4), round(float(loss(z, -z)), 4)  # lengths do not matter, directions do
    (0.0, 4.0)
    """

    sums_pairs = True  # as in the authors' byol_experiment.py

    def forward(self, z_i: Float[Tensor, "batch dim"], z_j: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss, computed in fp32 (fp64 for fp64 embeddings).

        Raises
        ------
        ValueError
            The shapes differ or are not (batch, dim).
        """
        return 2 + 2 * super().forward(z_i, z_j)
