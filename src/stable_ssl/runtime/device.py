"""Choosing the device of a run, and moving modules and batches to it."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError

log = logging.getLogger("stable_ssl")


def resolve_device(name: str | torch.device, local_rank: int = 0, world_size: int = 1) -> torch.device:
    """Return the device for a configured name, or the nearest one if it is missing and `do_without` lets the run go on.

    Parameters
    ----------
    name
        "cpu", "mps", "cuda", "cuda:N" for the CUDA device with index N, or "auto": cuda if there is one, else mps, else
        cpu. A `torch.device`, which only a rehearsal gives, is taken as it is.
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
        There are fewer CUDA devices than processes, the name means one device for several processes, or the device is
        missing and `do_without` refuses to go on.
    """
    if isinstance(name, torch.device):
        return name
    if world_size > 1 and name not in ("auto", "cuda", "cpu"):
        raise ConfigError(
            f"hardware.device: '{name}' is one device, but each of {world_size} processes needs its own. "
            "Set it to cuda or cpu."
        )
    kind = _kind(name, world_size)
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
        count = torch.cuda.device_count()
        do_without(f"hardware.device is '{name}', but there are only {count}", "using cuda:0", world_size)
        index = 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _kind(name: str, world_size: int) -> str:
    """Return the kind of device that a name means here: "cuda", "mps" or "cpu"."""
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = name.split(":")[0]
    if kind == "auto":
        kind = next(kind for kind in has if has[kind] and not (kind == "mps" and world_size > 1))
        if kind != "cuda" and os.environ.get("SLURM_GPUS_ON_NODE", "0") != "0":
            log.warning("Slurm gave this job GPUs, but torch finds no CUDA device: using %s.", kind)
    if not has[kind]:
        device = "CUDA device" if kind == "cuda" else "such device"
        do_without(f"hardware.device is '{name}', but this machine has no {device}", "using the CPU", world_size)
        kind = "cpu"
    return kind


def do_without(lack: str, instead: str, world_size: int) -> None:
    """Warn that a run goes on without something that its configuration names.

    Parameters
    ----------
    lack
        What is missing.
    instead
        What the run does without it.
    world_size
        Number of processes that train together.

    Raises
    ------
    ConfigError
        This is a Slurm job, or one of several processes. A queue and other machines would then be used for days before
        somebody reads the warning.
    """
    place = "a Slurm job" if "SLURM_JOB_ID" in os.environ else f"a run of {world_size} processes"
    if "SLURM_JOB_ID" in os.environ or world_size > 1:
        raise ConfigError(
            f"{lack}, which is an error in {place}. Ask for a GPU (slurm.gpus=1, or sbatch --gpus=1), or set "
            "hardware.device and hardware.precision to what there is, such as cpu and fp32."
        )
    log.warning("%s: %s.", lack, instead)


def use_deterministic(device: torch.device) -> None:
    """Make torch use only operations whose results are the same bits each time, in this process from now on."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        log.info("hardware.deterministic: CUBLAS_WORKSPACE_CONFIG is %s.", os.environ["CUBLAS_WORKSPACE_CONFIG"])
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def place_module(module: nn.Module, device: torch.device, channels_last: bool) -> None:
    """Move a module to a device, in place.

    Parameters
    ----------
    channels_last
        Whether tensors of four dimensions get the memory order with the channels last. Those of volumes stay as they
        are: `Module.to` would refuse them.
    """
    module.to(device)
    for tensor in [*module.parameters(), *module.buffers()] if channels_last else ():
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def to_device(batch: Any, device: torch.device, channels_last: bool = False) -> Any:
    """Copy the tensors of a nested batch (lists, tuples, dicts) to a device. On CUDA this does not wait for the copy.

    The copy of a mask, a tensor of type bool, has the mask itself as its attribute `on_host`. So its values can be used
    without a wait for the device, as `modules.vit.places_of` does.

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
    in_background = device.type in ("cuda", "meta")  # a rehearsal has meta in place of CUDA
    if isinstance(batch, Tensor):
        if channels_last and batch.ndim == 4:
            return batch.to(device, non_blocking=in_background, memory_format=torch.channels_last)
        placed = batch.to(device, non_blocking=in_background)
        if batch.dtype == torch.bool and placed is not batch:
            placed.on_host = batch  # type: ignore[attr-defined]
        return placed
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


def describe_batch(batch: Any, with_ranges: bool = True) -> str:
    """Return a short description of a nested batch, for the messages of errors.

    Parameters
    ----------
    batch
        The batch.
    with_ranges
        Whether it has the smallest and the largest value of labels: whole numbers, one per sample, in host memory.

    Examples
    --------
    >>> describe_batch([torch.zeros(8, 3, 32, 32), torch.arange(8)])
    '[float32 (8, 3, 32, 32), int64 (8,) from 0 to 7]'
    """
    if isinstance(batch, Tensor):
        return (
            f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}{_range_of(batch) if with_ranges else ''}"
        )
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{key}: {describe_batch(value, with_ranges)}" for key, value in batch.items()) + "}"
    if isinstance(batch, list | tuple):
        shown = ", ".join(describe_batch(value, with_ranges) for value in batch[:4]) + (", …" if len(batch) > 4 else "")
        return f"[{shown}]" if isinstance(batch, list) else f"({shown})"
    return type(batch).__name__


def _range_of(tensor: Tensor) -> str:
    """Return the range of whole numbers in words. A device may not answer after an error, so only the host is asked."""
    is_whole = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool)
    if tensor.device.type != "cpu" or tensor.ndim != 1 or not is_whole or not len(tensor):
        return ""
    return f" from {tensor.min()} to {tensor.max()}"
