"""The small functions of early 2025. Those that exchange tensors return their argument if there is one process."""

from __future__ import annotations

import functools
import getpass
import logging
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..losses.embeddings import off_diagonal
from ..runtime.device import to_device as move
from ..runtime.distributed import all_gather, world_size

__all__ = [
    "GatherLayer",
    "all_gather",
    "all_reduce",
    "broadcast",
    "collapse_nested_dict",
    "compute_global_mean",
    "count_SLURM_jobs",
    "find_local_rank",
    "find_module",
    "gather",
    "get_gpu_info",
    "get_open_port",
    "log_and_raise",
    "off_diagonal",
    "reduce",
    "replace_module",
    "rgetattr",
    "rsetattr",
    "seed_everything",
    "str_to_dtype",
    "to_device",
    "warn_once",
]

log = logging.getLogger("stable_ssl")


class GatherLayer:
    """Gathers a tensor of all ranks, with gradients."""

    @staticmethod
    def apply(x: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of all ranks, in the order of the ranks."""
        return all_gather(x).chunk(world_size())


def all_reduce(x: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks, with the gradients that all ranks have for it.

    In early 2025, each rank had its own only. The gradient of a loss that is computed from the mean was then too small,
    by the number of processes.
    """
    return x if world_size() == 1 else all_gather(x[None]).mean(0)


def gather(x: Tensor, rank: int = 0) -> Tensor:
    """Return the rows of all ranks on one rank, and `x` on the others. No gradients flow."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())] if dist.get_rank() == rank else None
    dist.gather(x.contiguous(), parts, dst=rank)
    return x if parts is None else torch.cat(parts)


def reduce(x: Tensor, rank: int = 0, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduce a tensor to one rank, in place. No gradients flow."""
    if world_size() > 1:
        dist.reduce(x, dst=rank, op=op)
    return x


def broadcast(x: Tensor, src_rank: int = 0) -> Tensor:
    """Return the tensor of one rank on all ranks. The others need one with as many dimensions."""
    if world_size() == 1:
        return x
    shape = torch.tensor(x.shape, device=x.device)
    dist.broadcast(shape, src_rank)
    x = x if dist.get_rank() == src_rank else x.new_zeros(shape.tolist())
    dist.broadcast(x, src_rank)
    return x


@torch.no_grad()
def compute_global_mean(x: Tensor, dim: Any, keepdim: bool = True, sync: bool = True) -> Tensor:
    """Return the mean of a tensor over dimensions, and over all ranks if `sync` is true. No gradients flow."""
    mean = x.mean(dim, keepdim=keepdim)
    if sync and world_size() > 1:
        dist.all_reduce(mean)
        mean /= world_size()
    return mean


def to_device(obj: Any, device: str | torch.device, non_blocking: bool = True) -> Any:
    """Copy the tensors of a nested batch to a device."""
    return move(obj, torch.device(device))


def seed_everything(seed: int | None, fast: bool = True) -> None:
    """Seed the generators of Python, NumPy and torch. A run seeds them itself, before each step.

    Parameters
    ----------
    seed
        The seed. None: the time of day.
    fast
        Whether cuDNN may choose the fastest kernels. If not, it uses only those that give the same bits each time.
    """
    seed = int(time.time()) if seed is None else seed
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = not fast, fast


def str_to_dtype(name: str) -> torch.dtype:
    """Return a torch dtype by its name, "float32" or "torch.float32"."""
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"'{name}' is not the name of a torch dtype.")
    return dtype


def find_module(model: nn.Module, module: type[nn.Module]) -> tuple[list[str], list[nn.Module]]:
    """Return the names and the objects of all parts of a model that are of a class."""
    found = {name: part for name, part in model.named_modules() if isinstance(part, module)}
    return list(found), list(found.values())


def replace_module(model: nn.Module, replacement_mapping: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """Put in place of each part of a model what a function of its name and of the part returns."""
    for name, part in list(model.named_modules()):
        if name:
            model.set_submodule(name, replacement_mapping(name, part))
    return model


def collapse_nested_dict(cfg: Any, level_separator: str = ".") -> dict[str, Any]:
    """Return the values of nested dicts and lists by their whole keys, such as "trainer.optim.epochs"."""
    if not isinstance(cfg, Mapping | list | tuple):
        return {"": cfg}
    pairs = cfg.items() if isinstance(cfg, Mapping) else enumerate(cfg)
    return {
        f"{key}{level_separator}{rest}" if rest else str(key): found
        for key, value in pairs
        for rest, found in collapse_nested_dict(value, level_separator).items()
    }


def get_open_port() -> int:
    """Return a port that no process uses."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def count_SLURM_jobs(pending: bool = True, running: bool = True) -> int:
    """Return the number of this user's Slurm jobs that are pending, running, or both."""
    states = ",".join(name for name, is_asked in (("pending", pending), ("running", running)) if is_asked)
    command = ["squeue", "--user", getpass.getuser(), "--noheader", "--array", "--states", states or "running"]
    return len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


def find_local_rank() -> int:
    """Return the number of this process on its machine, as torchrun or Slurm says; 0 if neither started it."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))


def get_gpu_info() -> None:
    """Log the CUDA devices and their memory."""
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name, free_gib, total_gib = torch.cuda.get_device_name(index), free / 2**30, total / 2**30
        log.info("cuda:%d: %s, %.1f of %.1f GiB free.", index, name, free_gib, total_gib)


def log_and_raise(exception_class: type[Exception], message: str) -> NoReturn:
    """Log an error, and raise an exception with the same message."""
    log.error(message)
    raise exception_class(message)


@functools.cache
def warn_once(warning: str) -> None:
    """Log a warning, unless it was logged before."""
    log.warning(warning)


def rgetattr(obj: Any, attr: str) -> Any:
    """Return an attribute of an attribute by a path such as "optim.epochs". Dicts are entered by their keys."""
    return functools.reduce(
        lambda parent, name: parent[name] if isinstance(parent, dict) else getattr(parent, name), attr.split("."), obj
    )


def rsetattr(obj: Any, attr: str, val: Any) -> None:
    """Set what `rgetattr` returns."""
    path, _, name = attr.rpartition(".")
    parent = rgetattr(obj, path) if path else obj
    if isinstance(parent, dict):
        parent[name] = val
    else:
        setattr(parent, name, val)
