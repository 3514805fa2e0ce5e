"""Losses that compare predicted patches with their targets: MAE's and I-JEPA's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .embeddings import at_least_fp32

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class MAELoss(nn.Module):
    r"""Mean squared error of the pixels of hidden patches (He et al., "Masked autoencoders are scalable vision
    learners", CVPR 2022, section 3).

    $M_i$ are the hidden patches of image i, with D values each. Each target patch x is standardised by the mean μ and
    the standard deviation σ of its own values:

    $$ L = \frac{1}{N} \sum_i \frac{1}{|M_i|} \sum_{p ∈ M_i} \frac{1}{D} ‖ \hat x_{i, p} - \frac{x_{i, p} - μ}{σ} ‖^2 $$

    Parameters
    ----------
    normalize
        Whether target patches are standardised. If false, the loss compares the pixels as they are.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import MAELoss
    >>> pixels = torch.rand(2, 5, 12, generator=torch.Generator().manual_seed(0))  # (batch, patches, values)
    >>> standardised = (pixels - pixels.mean(-1, keepdim=True)) / pixels.std(-1, keepdim=True)
    >>> round(float(MAELoss()(standardised, pixels)), 3), round(float(MAELoss(normalize=False)(pixels, pixels)), 3)
    (0.0, 0.0)
    """

    def __init__(self, normalize: bool = True):
        super().__init__()
        self.normalize = normalize

    def forward(
        self,
        predicted: Float[Tensor, "batch patches values"],
        target: Float[Tensor, "batch patches values"],
        is_real: Bool[Tensor, "batch patches"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss, computed in fp32 (fp64 for fp64 tensors). No gradient reaches the target.

        Parameters
        ----------
        predicted, target
            The predicted and the true pixels of the hidden patches.
        is_real
            False at patches that are padding, which the loss leaves out. None: there is no padding.

        Raises
        ------
        ValueError
            The shapes of `predicted` and `target` differ.
        """
        _check(self, predicted, target)
        with torch.autocast(predicted.device.type, enabled=False):
            predicted, target = at_least_fp32(predicted), at_least_fp32(target.detach())
            if self.normalize:
                target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
            return _mean((predicted - target).square().mean(-1), is_real)


class IJEPALoss(nn.Module):
    r"""Smooth L1 distance between predictions and the target encoder's outputs (Assran et al., "Self-supervised
    learning from images with a joint-embedding predictive architecture", CVPR 2023, section 3).

    $M_i$ are the patches of target block i. Each target y is layer-normalised over its D dimensions:

    $$ L = \frac{1}{N} \sum_i \frac{1}{|M_i|} \sum_{p ∈ M_i} \frac{1}{D} \sum_d ℓ(\hat y_{i, p, d} - y_{i, p, d}) $$

    with $ℓ(x) = x^2 / 2$ if $|x| < 1$, and $ℓ(x) = |x| - 1/2$ otherwise.

    The paper has a squared distance. The authors' code has this one.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import IJEPALoss
    >>> target = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))  # (blocks, patches, dim)
    >>> loss = IJEPALoss()
    >>> normalised = torch.nn.functional.layer_norm(target, (16,))
    >>> float(loss(normalised, target)), round(float(loss(normalised + 1, target)), 3)
    (0.0, 0.5)
    """

    def forward(
        self,
        predicted: Float[Tensor, "batch patches dim"],
        target: Float[Tensor, "batch patches dim"],
        is_real: Bool[Tensor, "batch patches"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss, computed in fp32 (fp64 for fp64 tensors). No gradient reaches the target.

        Parameters
        ----------
        predicted, target
            The predicted and the true outputs; each row of the batch is one target block.
        is_real
            False at patches that are padding, which the loss leaves out. None: there is no padding.

        Raises
        ------
        ValueError
            The shapes of `predicted` and `target` differ.
        """
        _check(self, predicted, target)
        with torch.autocast(predicted.device.type, enabled=False):
            target = at_least_fp32(target.detach())
            target = nn.functional.layer_norm(target, target.shape[-1:])
            distances = nn.functional.smooth_l1_loss(at_least_fp32(predicted), target, reduction="none")
            return _mean(distances.mean(-1), is_real)


def _check(loss: object, predicted: Tensor, target: Tensor) -> None:
    if predicted.shape != target.shape:
        raise ValueError(
            f"{type(loss).__name__} needs predictions and targets of the same shape, but got {tuple(predicted.shape)} "
            f"and {tuple(target.shape)}: set the predictor's out_dim to {target.shape[-1]}."
        )


def _mean(values: Float[Tensor, "batch patches"], is_real: Bool[Tensor, "batch patches"] | None) -> Float[Tensor, ""]:
    """Return the mean over rows of each row's mean without its padding. A row of padding alone counts as 0."""
    if is_real is None:
        return values.mean()
    return (torch.where(is_real, values, 0.0).sum(1) / is_real.sum(1).clamp(min=1)).mean()
