"""What losses of two embeddings share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.distributed import all_gather


def gather_pair(loss: object, z_i: Tensor, z_j: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embeddings of two views, of all ranks together and in fp32 at least.

    Raises
    ------
    ValueError
        The two do not have one shape (batch, dim), or there is one image only: others are what the loss looks at too.
    """
    check_pair(loss, z_i, z_j)
    z_i, z_j = (all_gather(z if z.dtype == torch.float64 else z.float()) for z in (z_i, z_j))
    if len(z_i) < 2:
        raise ValueError(f"{type(loss).__name__} needs at least 2 images in a batch.")
    return z_i, z_j


def check_pair(loss: object, z_i: Tensor, z_j: Tensor) -> None:
    """See that both have one shape (batch, dim)."""
    if z_i.ndim != 2 or z_i.shape != z_j.shape:
        raise ValueError(
            f"{type(loss).__name__} needs two embeddings of one shape (batch, dim), not {tuple(z_i.shape)} and "
            f"{tuple(z_j.shape)}."
        )


def off_diagonal(matrix: Tensor) -> Tensor:
    """Return what is not on the diagonal of a square matrix."""
    size = len(matrix)
    return matrix.flatten()[:-1].view(size - 1, size + 1)[:, 1:].flatten()
