"""Exchange of tensors between the processes of a run (ranks), with gradients where they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of processes, which is 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_gather(x: Tensor) -> Tensor:
    """Return the rows of all ranks in the order of the ranks: (batch, dim) becomes (world size × batch, dim).

    The gradient of a rank's rows is the sum over all ranks. If each rank computes the loss of the whole batch, and data
    parallelism then averages the gradients over ranks, the result is the gradient of that loss.

    Examples
    --------
    >>> all_gather(torch.zeros(4, 8)).shape  # one process: the rows themselves
    torch.Size([4, 8])
    """
    return x if world_size() == 1 else _AllGather.apply(x)


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all ranks, of which each rank may have another number. No gradients flow.

    A rank without rows may give an empty tensor of any shape.
    """
    if world_size() == 1:
        return x
    shapes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shapes, tuple(x.shape))
    longest = max(shapes)
    if not longest[0]:  # no rank has rows
        return x
    padded = x.new_zeros(longest)  # (most rows of a rank, …)
    if len(x):
        padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: shape[0]] for part, shape in zip(parts, shapes, strict=True)])


def own_rows(x: Tensor) -> Tensor:
    """Return this rank's rows of a tensor that has the rows of all ranks, in the order of `all_gather`."""
    return x if world_size() == 1 else x.chunk(dist.get_world_size())[dist.get_rank()]


def local(x: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor (a DTensor), which shares its memory; any other tensor unchanged."""
    return x.to_local() if hasattr(x, "to_local") else x


def whole(x: Tensor) -> Tensor:
    """Return a sharded tensor with the values of all ranks, which must all call this; any other tensor unchanged."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def full_state_dict(module: nn.Module) -> dict[str, Any]:
    """Return a module's `state_dict()` with plain tensors, also if strategy fsdp or hsdp has sharded the module.

    All ranks must call this while the run lasts, for example in `after_fit`: each gets the whole values, on its device.

    Examples
    --------
    >>> from torch import nn
    >>> {key: tuple(value.shape) for key, value in full_state_dict(nn.Linear(4, 2)).items()}
    {'weight': (2, 4), 'bias': (2,)}
    """
    return {key: whole(value) if isinstance(value, Tensor) else value for key, value in module.state_dict().items()}


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each tensor, (tensors,). Those of sharded tensors are of their values on all ranks.

    Examples
    --------
    >>> norms([torch.ones(4), torch.ones(3, 3)])
    tensor([2., 3.])
    """
    found = torch.stack(torch._foreach_norm([local(x) for x in tensors]))
    if sharded := [number for number, x in enumerate(tensors) if hasattr(x, "to_local")]:
        squares = found[sharded].square()
        mesh = tensors[sharded[0]].device_mesh  # type: ignore[attr-defined]
        dist.all_reduce(squares, group=mesh.get_group(mesh.ndim - 1))  # the last dimension is the one that shards
        found[sharded] = squares.sqrt()
    return found


def from_main(x: Tensor) -> Tensor:
    """Return rank 0's tensor on all ranks. It overwrites `x`, which needs the same shape. No gradients flow."""
    if world_size() > 1:
        dist.broadcast(x, 0)
    return x


class _AllGather(torch.autograd.Function):
    """The forward and backward pass of `all_gather`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, x.contiguous())
        return torch.cat(rows)  # (world size × batch, …)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
