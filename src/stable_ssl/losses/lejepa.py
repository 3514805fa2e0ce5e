"""The loss of LeJEPA, and SIGReg, its regulariser."""

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
    self-supervised learning without the heuristics", arXiv:2511.08544, section 4): the distance of embeddings from a
    standard normal distribution.

    The N embeddings z are projected onto random unit vectors a. For each a, the Epps-Pulley statistic compares the
    projections $a · z_1 … a · z_N$ with a standard normal distribution:

    $$ T = N \int_{-t_{max}}^{t_{max}} \left| \frac{1}{N} \sum_i e^{\mathrm{i} t a · z_i} - e^{-t^2/2} \right|^2
           e^{-t^2/2}\,dt $$

    The result is the mean of T over all a. The integral is computed by the trapezoidal rule, as in the authors' code.
    Each call draws new directions. All ranks use the directions of rank 0, and the batch consists of the images of all
    ranks.

    Parameters
    ----------
    num_slices
        Number of random directions.
    num_points
        Number of points of the trapezoidal rule, from 0 to `t_max`. The other half follows by symmetry.
    t_max
        Upper end of the integral.

    Raises
    ------
    ValueError
        There are no directions or fewer than 2 points, or `t_max` is not above 0.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import SIGReg
    >>> _ = torch.manual_seed(0)  # the loss draws directions too
    >>> z = torch.randn(256, 16)  # (batch, dim)
    >>> SIGReg()(z) < SIGReg()(0.1 * z)  # a collapsing batch is far from a standard normal distribution
    tensor(True)
    """

    points: Tensor
    weights: Tensor

    def __init__(self, num_slices: int = 1024, num_points: int = 17, t_max: float = 3.0):
        super().__init__()
        if num_slices < 1 or num_points < 2 or t_max <= 0:
            raise ValueError(
                f"num_slices {num_slices} must be at least 1, num_points {num_points} at least 2, and t_max {t_max} "
                "above 0."
            )
        self.num_slices = num_slices
        points = torch.linspace(0, t_max, num_points)
        weights = torch.full_like(points, 2 * t_max / (num_points - 1))  # 2: for the negative half
        weights[[0, -1]] /= 2
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("weights", weights * (-points.square() / 2).exp(), persistent=False)

    def forward(self, z: Float[Tensor, "*views batch dim"]) -> Float[Tensor, ""]:
        """Return the statistic of a batch of embeddings. If there are several views, return the mean over them."""
        directions = torch.randn(z.shape[-1], self.num_slices, dtype=z.dtype, device=z.device)  # (dim, slices)
        projections = z @ nn.functional.normalize(from_main(directions), dim=0)  # (*views, batch, slices)
        points, weights = self.points.to(z.dtype), self.weights.to(z.dtype)  # (points,) each
        angles = projections[..., None] * points  # (*views, batch, slices, points)
        # Ranks exchange their means instead of their rows: the memory does not grow with the number of ranks.
        real, imaginary = all_gather(torch.stack([angles.cos().mean(-3), angles.sin().mean(-3)])[None]).mean(0)
        errors = (real - (-points.square() / 2).exp()).square() + imaginary.square()  # (*views, slices, points)
        statistic: Tensor = (errors @ weights).mean() * z.shape[-2] * world_size()
        return statistic


class LeJEPALoss(nn.Module):
    r"""LeJEPA (Balestriero and LeCun, "LeJEPA: provable and scalable self-supervised learning without the heuristics",
    arXiv:2511.08544, section 5). The embeddings of all views must be near the mean of the global views, and
    distributed as a standard normal distribution.

    $$ L = \frac{1 - λ}{V} \sum_v \frac{1}{N D} \sum_i ‖ \frac{1}{V_g} \sum_{g ≤ V_g} z_{g, i} - z_{v, i} ‖^2
           + \frac{λ}{V} \sum_v \mathrm{SIGReg}(z_v) $$

    V is the number of views, N the number of images, D the width of the embeddings. The defaults are those of the
    authors' minimal example.

    Parameters
    ----------
    num_global
        The number $V_g$ of global views. They come first; all others are local views.
    lambd
        The weight λ of SIGReg, between 0 and 1.
    num_slices, num_points, t_max
        Arguments of `SIGReg`.
    scale
        A factor of the whole loss. It sets how fast parameters learn whose rate LARS does not adapt.

    Raises
    ------
    ValueError
        `num_global` is below 1, `lambd` is not between 0 and 1, or `SIGReg` refuses its arguments.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import LeJEPALoss
    >>> views = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0))  # (batch, dim) each
    >>> loss = LeJEPALoss(num_global=2)  # the third view is local
    >>> loss(*views).shape
    torch.Size([])
    """

    joins_views = True  # as in the authors' MINIMAL.md

    def __init__(
        self,
        num_global: int = 2,
        lambd: float = 0.02,
        num_slices: int = 1024,
        num_points: int = 17,
        t_max: float = 3.0,
        scale: float = 1.0,
    ):
        super().__init__()
        if num_global < 1 or not 0 < lambd < 1:
            raise ValueError(f"num_global {num_global} must be at least 1, and lambd {lambd} between 0 and 1.")
        self.num_global, self.lambd, self.scale = num_global, lambd, scale
        self.sigreg = SIGReg(num_slices, num_points, t_max)

    def forward(self, *embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss of two or more views' embeddings, computed in fp32 (fp64 for fp64 embeddings).

        Raises
        ------
        ValueError
            The shapes differ, there are fewer views than 2 or than `num_global`, or the batch has one image only.
        """
        if len({z.shape for z in embeddings}) > 1 or len(embeddings) < max(2, self.num_global):
            shapes = [tuple(z.shape) for z in embeddings]
            raise ValueError(
                f"LeJEPALoss needs {max(2, self.num_global)} or more embeddings of the same shape, but got {shapes}."
            )
        with torch.autocast(embeddings[0].device.type, enabled=False):
            z = torch.stack([at_least_fp32(z) for z in embeddings])  # (views, batch, dim)
            if z.shape[1] * world_size() < 2:
                raise ValueError("LeJEPALoss needs at least 2 images in a batch.")
            invariance = (z[: self.num_global].mean(0) - z).square().mean()
            loss: Tensor = self.scale * ((1 - self.lambd) * invariance + self.lambd * self.sigreg(z))
            return loss
