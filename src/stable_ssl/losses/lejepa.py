"""The loss of LeJEPA, and SIGReg, which it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..runtime.distributed import all_gather, from_main, world_size
from .embeddings import at_least_fp32

if TYPE_CHECKING:
    from jaxtyping import Float


class SIGReg(nn.Module):
    r"""Sketched isotropic Gaussian regularisation (Balestriero and LeCun, "LeJEPA: provable and scalable
    self-supervised learning without the heuristics", arXiv:2511.08544, section 4): how far embeddings are from a
    standard normal distribution.

    The mean over random unit directions a of the Epps-Pulley statistic of the projections $a · z_1 … a · z_N$:

    $$ T = N \int_{-t_{max}}^{t_{max}} \left| \frac{1}{N} \sum_i e^{\mathrm{i} t a · z_i} - e^{-t^2/2} \right|^2
           e^{-t^2/2}\,dt $$

    by the trapezoidal rule, as in the authors' code. Directions are drawn anew at each call; ranks share those of the
    first, and the batch is that of all of them.

    Parameters
    ----------
    num_slices
        Directions.
    num_points
        Of the trapezoidal rule, between 0 and `t_max`; the integrand is symmetric.
    t_max
        Where the integral ends.
    """

    points: Tensor
    weights: Tensor

    def __init__(self, num_slices: int = 1024, num_points: int = 17, t_max: float = 3.0):
        super().__init__()
        if num_slices < 1 or num_points < 2 or t_max <= 0:
            raise ValueError(
                f"num_slices {num_slices} must be 1, num_points {num_points} 2, and t_max {t_max} above 0."
            )
        self.num_slices = num_slices
        points = torch.linspace(0, t_max, num_points)
        weights = torch.full_like(points, 2 * t_max / (num_points - 1))
        weights[[0, -1]] /= 2
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("weights", weights * (-points.square() / 2).exp(), persistent=False)

    def forward(self, z: Float[Tensor, "*views batch dim"]) -> Float[Tensor, ""]:
        """Return the statistic of a batch of embeddings; of several views, the mean of each one's."""
        directions = torch.randn(z.shape[-1], self.num_slices, dtype=z.dtype, device=z.device)
        projections = z @ nn.functional.normalize(from_main(directions), dim=0)
        points, weights = self.points.to(z.dtype), self.weights.to(z.dtype)
        angles = projections[..., None] * points  # (*views, batch, slices, points)
        # Of all ranks by their means, which take no more memory the more ranks there are.
        real, imaginary = all_gather(torch.stack([angles.cos().mean(-3), angles.sin().mean(-3)])[None]).mean(0)
        errors = (real - (-points.square() / 2).exp()).square() + imaginary.square()
        return (errors @ weights).mean() * z.shape[-2] * world_size()


class LeJEPALoss(nn.Module):
    r"""LeJEPA (Balestriero and LeCun, "LeJEPA: provable and scalable self-supervised learning without the heuristics",
    arXiv:2511.08544, section 5): all views are to be near the mean of the global ones, and distributed as a standard
    normal.

    $$ L = \frac{1 - λ}{V} \sum_v \frac{1}{N D} \sum_i ‖ \frac{1}{V_g} \sum_{g ≤ V_g} z_{g, i} - z_{v, i} ‖^2
           + \frac{λ}{V} \sum_v \mathrm{SIGReg}(z_v) $$

    The defaults are those of the authors' minimal example.

    Parameters
    ----------
    num_global
        $V_g$: the first so many views are global, the others local.
    lambd
        λ.
    num_slices, num_points, t_max
        Of `SIGReg`.
    """

    def __init__(
        self,
        num_global: int = 2,
        lambd: float = 0.02,
        num_slices: int = 1024,
        num_points: int = 17,
        t_max: float = 3.0,
    ):
        super().__init__()
        if num_global < 1 or not 0 < lambd < 1:
            raise ValueError(f"num_global {num_global} must be at least 1, and lambd {lambd} between 0 and 1.")
        self.num_global, self.lambd = num_global, lambd
        self.sigreg = SIGReg(num_slices, num_points, t_max)

    def forward(self, *embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss of the embeddings of two or more views, computed in fp32 at least.

        Raises
        ------
        ValueError
            The embeddings are not of one shape, there are fewer views than global ones, or one image only.
        """
        if len({z.shape for z in embeddings}) > 1 or len(embeddings) < max(2, self.num_global):
            shapes = [tuple(z.shape) for z in embeddings]
            raise ValueError(
                f"LeJEPALoss needs {max(2, self.num_global)} or more embeddings of one shape, not {shapes}."
            )
        with torch.autocast(embeddings[0].device.type, enabled=False):
            z = torch.stack([at_least_fp32(z) for z in embeddings])
            if z.shape[1] * world_size() < 2:
                raise ValueError("LeJEPALoss needs at least 2 images in a batch.")
            invariance = (z[: self.num_global].mean(0) - z).square().mean()
            return (1 - self.lambd) * invariance + self.lambd * self.sigreg(z)
