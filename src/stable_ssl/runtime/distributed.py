"""This process among the others, and collectives that gradients flow through."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor


def world_size() -> int:
    """Return how many processes there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_gather(x: Tensor) -> Tensor:
    """Return the rows of all ranks, in the order of the ranks: (batch, dim) → (world × batch, dim).

    Gradients flow back to every rank's rows, summed over ranks. Averaging the ranks' gradients, as data parallelism
    does, then gives the gradient of the loss of the whole batch, where each rank computes that loss.
    """
    return x if world_size() == 1 else torch.cat(dist_nn.all_gather(x))
