"""Images as patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def patchify(
    images: Float[Tensor, "batch channels height width"], patch_size: int
) -> Float[Tensor, "batch patches values"]:
    """Return the pixels of each patch, (batch, patches, patch_size² × channels).

    Patches come row by row. So do the pixels inside a patch, each with its channels side by side.

    Examples
    --------
    >>> import torch
    >>> patchify(torch.zeros(2, 3, 32, 32), patch_size=8).shape
    torch.Size([2, 16, 192])
    """
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_size * patch_size * channels)
