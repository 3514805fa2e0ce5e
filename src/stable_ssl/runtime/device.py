"""Choosing the device of a run, and moving modules and batches to it."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError

log = logging.getLogger("stable_ssl")


def resolve_device(name: str, local_rank: int = 0, world_size: int = 1) -> torch.device:
    """Return the device for a configured name. If this machine lacks it, warn and return another one.

    Parameters
    ----------
    name
        "cpu", "mps", "cuda", "cuda:N" for the CUDA device with index N, or "auto": cuda if there is one, else mps, else
        cpu.
    local_rank
        Index of this process on its machine. With several processes, it is also the index of the CUDA device.
    world_size
        Number of processes that train together. If there are several, each needs its own device, so "cuda:N" and "mps"
        are refused.

    Returns
    -------
    torch.device
        A CUDA device has an index. The CPU if CUDA or mps was asked for and is missing.

    Raises
    ------
    ConfigError
        There are fewer CUDA devices than processes, or the name means one device for several processes.
    """
    kind = name.split(":")[0]
    if world_size > 1 and name not in ("auto", "cuda", "cpu"):
        raise ConfigError(
            f"hardware.device: '{name}' is one device, but each of {world_size} processes needs its own. "
            "Set it to cuda or cpu."
        )
    if kind == "auto" and world_size > 1:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        log.warning("hardware.device is '%s', but this machine has no CUDA device: using the CPU.", name)
        kind = "cpu"
    if kind == "mps" and not torch.backends.mps.is_available():
        log.warning("hardware.device is 'mps', but this machine has no such device: using the CPU.")
        kind = "cpu"
    if kind != "cuda":
        return torch.device(kind)
    index = int(name.split(":")[1]) if ":" in name and local_rank == 0 else local_rank
    if torch.cuda.device_count() == 1 and ":" not in name:  # Slurm may hide the devices of other processes
        index = 0
    if index >= torch.cuda.device_count() and world_size > 1:
        raise ConfigError(
            f"hardware.world_size: process {local_rank} of this machine needs CUDA device {index}, but there are only "
            f"{torch.cuda.device_count()}. Start one process per device, or set hardware.device=cpu."
        )
    if index >= torch.cuda.device_count():
        log.warning("hardware.device is '%s', but there are only %d: using cuda:0.", name, torch.cuda.device_count())
        index = 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def use_deterministic(device: torch.device) -> None:
    """Make torch use only operations whose results are the same bits each time, in this process from now on."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        log.info("hardware.deterministic: CUBLAS_WORKSPACE_CONFIG is %s.", os.environ["CUBLAS_WORKSPACE_CONFIG"])
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def place_module(module: nn.Module, device: torch.device, channels_last: bool) -> None:
    """Move a module to a device, in place. `channels_last`: the memory order of its convolutions' weights."""
    if channels_last:
        module.to(device).to(memory_format=torch.channels_last)
    else:
        module.to(device)


def to_device(batch: Any, device: torch.device, channels_last: bool = False) -> Any:
    """Copy the tensors of a nested batch (lists, tuples, dicts) to a device. On CUDA this does not wait for the copy.

    Parameters
    ----------
    batch
        The batch. Anything in it that is not a tensor stays as it is.
    device
        The device.
    channels_last
        Whether tensors (batch, channels, height, width) get the memory order with the channels last.
    """
    # On other devices, the host memory could be used again before a copy in the background has read it. CUDA reads
    # pageable memory before the call returns.
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
    """Return the first tensor of a nested batch, or None if it has none."""
    if isinstance(batch, Tensor):
        return batch
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return next((found for value in values if (found := _first_tensor(value)) is not None), None)


def count_images(indices: Any, batch: Any) -> int:
    """Return the number of samples of a mini-batch: that of its indices, else the length of its first tensor.

    Parameters
    ----------
    indices
        The indices of the samples in the data set, or None if they are not known.
    batch
        The batch.
    """
    if indices is not None:
        return len(indices)
    tensor = _first_tensor(batch)
    return tensor.shape[0] if tensor is not None and tensor.ndim else 1


def describe_batch(batch: Any) -> str:
    """Return a short description of a nested batch, for messages.

    Examples
    --------
    >>> describe_batch([torch.zeros(8, 3, 32, 32), torch.arange(8)])
    '[float32 (8, 3, 32, 32), int64 (8,)]'
    """
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{key}: {describe_batch(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, list | tuple):
        shown = ", ".join(describe_batch(value) for value in batch[:4]) + (", …" if len(batch) > 4 else "")
        return f"[{shown}]" if isinstance(batch, list) else f"({shown})"
    return type(batch).__name__
