"""Functions that several losses share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..runtime.distributed import all_gather

if TYPE_CHECKING:
    from jaxtyping import Float


def gather_pair(
    loss: object, z_i: Float[Tensor, "batch dim"], z_j: Float[Tensor, "batch dim"]
) -> tuple[Float[Tensor, "world_batch dim"], Float[Tensor, "world_batch dim"]]:
    """Return the embeddings of two views, each with the rows of all ranks and in fp32 (fp64 stays fp64).

    Parameters
    ----------
    loss
        The loss that needs them, for its name in error messages.
    z_i, z_j
        This rank's embeddings of the two views, (batch, dim) each.

    Raises
    ------
    ValueError
        The shapes differ or are not (batch, dim), or the batch has one image: the loss compares images with each other.
    """
    check_pair(loss, z_i, z_j)
    z_i, z_j = (all_gather(at_least_fp32(z)) for z in (z_i, z_j))  # (world size × batch, dim) each
    if len(z_i) < 2:
        raise ValueError(f"{type(loss).__name__} needs at least 2 images in a batch.")
    return z_i, z_j


def check_pair(loss: object, z_i: Tensor, z_j: Tensor) -> None:
    """Raise a ValueError unless both embeddings have the same shape (batch, dim)."""
    if z_i.ndim != 2 or z_i.shape != z_j.shape:
        raise ValueError(
            f"{type(loss).__name__} needs two embeddings of the same shape (batch, dim), but got {tuple(z_i.shape)} "
            f"and {tuple(z_j.shape)}."
        )


def check_width(loss: object, name: str, width: int, z: Float[Tensor, "... dim"]) -> None:
    """Raise a ValueError unless embeddings have the width that the loss was built for.

    Parameters
    ----------
    loss, name
        The loss, and its argument that sets the width: the message says to change it.
    width
        The width that the loss was built for.
    z
        The embeddings.
    """
    if z.shape[-1] != width:
        raise ValueError(
            f"{type(loss).__name__} was built for embeddings of width {width}, but got width {z.shape[-1]}: "
            f"set loss.{name} to {z.shape[-1]}, or the projector's output to {width}."
        )


def at_least_fp32(z: Tensor) -> Tensor:
    """Return a tensor in fp32, or unchanged if it is fp64."""
    return z if z.dtype == torch.float64 else z.float()


def if_finite(value: Tensor, before: Tensor) -> Tensor:
    """Return a buffer's new value if all of it is finite, else its old value, so that a bad batch changes nothing."""
    return torch.where(value.isfinite().all(), value.to(before.dtype), before)


def off_diagonal(matrix: Float[Tensor, "size size"]) -> Float[Tensor, " rest"]:
    """Return the size × (size - 1) entries beside the diagonal of a square matrix, row by row.

    Examples
    --------
    >>> off_diagonal(torch.arange(9).view(3, 3))
    tensor([1, 2, 3, 5, 6, 7])
    """
    size = len(matrix)
    # Without the first entry, each row of size + 1 entries ends with one of the diagonal.
    return matrix.flatten()[:-1].view(size - 1, size + 1)[:, 1:].flatten()
