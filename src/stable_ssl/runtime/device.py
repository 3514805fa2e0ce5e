"""Which device a run uses, and how a batch gets there."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError

log = logging.getLogger("stable_ssl")


def resolve_device(name: str, local_rank: int = 0, world_size: int = 1) -> torch.device:
    """Turn a configured device name into one that this machine has.

    Parameters
    ----------
    name
        "auto" (cuda, else mps, else cpu), "cpu", "mps", "cuda", or "cuda:N".
    local_rank
        Index of this process on its machine; a process on a CUDA machine takes the device of that index.
    world_size
        How many processes train together. Several need a device each, which "cuda:N" and "mps" can't give.

    Returns
    -------
    torch.device
        With an index where it is a CUDA device. The CPU, after a warning, where the one asked for is missing.

    Raises
    ------
    ConfigError
        Several processes have less than a device each.
    """
    kind = name.split(":")[0]
    if world_size > 1 and name not in ("auto", "cuda", "cpu"):
        raise ConfigError(f"hardware.device: '{name}' is one device, and {world_size} processes need one each.")
    if kind == "auto" and world_size > 1:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        log.warning("hardware.device is '%s', but this machine has no CUDA device: using the CPU.", name)
        kind = "cpu"
    if kind == "mps" and not torch.backends.mps.is_available():
        log.warning("hardware.device is 'mps', but this machine has none: using the CPU.")
        kind = "cpu"
    if kind != "cuda":
        return torch.device(kind)
    index = int(name.split(":")[1]) if ":" in name and local_rank == 0 else local_rank
    if torch.cuda.device_count() == 1 and ":" not in name:  # Slurm may show each process its own device only
        index = 0
    if index >= torch.cuda.device_count() and world_size > 1:
        raise ConfigError(
            f"hardware.world_size: process {local_rank} of this machine would need device {index} of the "
            f"{torch.cuda.device_count()} there are. Start one process a device, or set hardware.device=cpu."
        )
    if index >= torch.cuda.device_count():
        log.warning("hardware.device is '%s', but there are only %d: using cuda:0.", name, torch.cuda.device_count())
        index = 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def use_deterministic(device: torch.device) -> None:
    """Make torch choose kernels that give the same bits each time, for this process."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        log.info("hardware.deterministic: CUBLAS_WORKSPACE_CONFIG is %s.", os.environ["CUBLAS_WORKSPACE_CONFIG"])
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def place_module(module: nn.Module, device: torch.device, channels_last: bool) -> None:
    """Move a module to a device, in place; with `channels_last`, lay out its convolutions' weights that way."""
    if channels_last:
        module.to(device).to(memory_format=torch.channels_last)
    else:
        module.to(device)


def to_device(batch: Any, device: torch.device, channels_last: bool = False) -> Any:
    """Copy the tensors of a nested batch (lists, tuples, dicts) to a device, without waiting for it.

    Parameters
    ----------
    channels_last
        Lay out 4-dimensional tensors, (batch, channels, height, width), with the channels last in memory.
    """
    # CUDA's copies of pageable memory are done when they return; elsewhere it may be used again too early.
    in_background = device.type == "cuda"
    if isinstance(batch, Tensor):
        if channels_last and batch.ndim == 4:
            return batch.to(device, non_blocking=in_background, memory_format=torch.channels_last)
        return batch.to(device, non_blocking=in_background)
    if isinstance(batch, dict):
        return {key: to_device(value, device, channels_last) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device, channels_last) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device, channels_last) for value in batch)
    return batch


def _first_tensor(batch: Any) -> Tensor | None:
    """Return the first tensor of a nested batch, None where there is none."""
    if isinstance(batch, Tensor):
        return batch
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return next((found for value in values if (found := _first_tensor(value)) is not None), None)


def count_images(indices: Any, batch: Any) -> int:
    """Return how many samples a mini-batch has, from its first tensor where their indices are not known."""
    if indices is not None:
        return len(indices)
    tensor = _first_tensor(batch)
    return tensor.shape[0] if tensor is not None and tensor.ndim else 1


def describe_batch(batch: Any) -> str:
    """Say what a nested batch is made of, for messages: `[float32 (8, 3, 32, 32), int64 (8,)]`."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{key}: {describe_batch(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, list | tuple):
        shown = ", ".join(describe_batch(value) for value in batch[:4]) + (", …" if len(batch) > 4 else "")
        return f"[{shown}]" if isinstance(batch, list) else f"({shown})"
    return type(batch).__name__
