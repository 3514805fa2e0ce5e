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


def grid_of(images: Tensor, patch_size: int) -> tuple[int, int]:
    """Return the rows and columns of patches of images (batch, channels, height, width).

    Raises
    ------
    ValueError
        `patch_size` does not divide their height and width.
    """
    height, width = images.shape[2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"patch_size: {patch_size} does not divide the size of views of {height} × {width} pixels.")
    return height // patch_size, width // patch_size


def check_masks(masks: Tensor, images: Tensor, patch_size: int) -> None:
    """Raise a ValueError if masks (batch, patches) have another number of patches than images."""
    rows, columns = (size // patch_size for size in images.shape[2:])
    if masks.shape[1] != rows * columns:
        raise ValueError(
            f"patch_size: the masks have {masks.shape[1]} patches, and the views {rows} × {columns}: the masks and the "
            f"network need the same patch_size, which is {patch_size} in the network."
        )
