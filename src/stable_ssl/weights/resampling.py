"""Fitting a tensor to a network of another shape: position embeddings, and the first convolution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


def resample_positions(
    table: Float[Tensor, "1 patches dim"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "1 new_patches dim"]:
    """Resample the position embeddings of a grid of patches to another grid, by bicubic interpolation.

    This is what timm does: with antialiasing, in float32. Grids are (rows, columns), and the table has a row per patch.

    Examples
    --------
    >>> import torch
    >>> resample_positions(torch.zeros(1, 16, 8), (4, 4), (2, 6)).shape
    torch.Size([1, 12, 8])
    """
    if old == new:
        return table
    maps = table.float().reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, dim, rows, columns)
    maps = nn.functional.interpolate(maps, size=new, mode="bicubic", antialias=True)
    return maps.flatten(2).transpose(1, 2).to(table.dtype)


def adapt_channels(
    weight: Float[Tensor, "out channels height width"], channels: int
) -> Float[Tensor, "out new_channels height width"]:
    """Return the weight of a first convolution for images of another number of channels, as timm makes it.

    For one channel it is the sum over the channels: a grey image then gives what it gives as a colour image of equal
    channels. For more, the channels are repeated in turn, and scaled so that the size of the outputs stays.

    Examples
    --------
    >>> import torch
    >>> adapt_channels(torch.ones(1, 3, 1, 1), 6).flatten()
    tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000])
    """
    old = weight.shape[1]
    if channels == old:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, math.ceil(channels / old), 1, 1)[:, :channels]
    return repeated * (old / channels)


def grid_of(num_patches: int, like: tuple[int, int]) -> tuple[int, int] | None:
    """Return the grid of a number of patches: a square, else one with the proportions of another grid, else None."""
    side = math.isqrt(num_patches)
    if side * side == num_patches:
        return side, side
    rows = round(math.sqrt(num_patches * like[0] / like[1]))
    columns = num_patches // max(rows, 1)
    is_alike = rows * columns == num_patches and rows * like[1] == columns * like[0]
    return (rows, columns) if is_alike else None
