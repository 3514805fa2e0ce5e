"""Memory that ran out: the error says what to lower, with figures."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..data.faults import is_out_of_memory
from ..data.workers import explain_death

_GIB = 2**30


@contextmanager
def memory_explained(run: Any, hardware: Any, optim: Any) -> Iterator[None]:
    """Raise an error that says what to lower, if memory runs out in the `with` block.

    Parameters
    ----------
    run
        The session, which has the device, the progress, and the `loader` that is being read.
    hardware, optim
        The run's configuration.

    Raises
    ------
    torch.OutOfMemoryError, MemoryError
        Memory ran out: that of the device, or that of Python or the machine.
    DataError
        A worker process died while the block did anything else than to read.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if death := explain_death(error, getattr(run.loader, "name", "train")):
            raise death from error
        if not is_out_of_memory(error):
            raise
        kind = MemoryError if isinstance(error, MemoryError | OSError) else torch.OutOfMemoryError
        where, device = str(run.progress.global_step), torch.device("cpu") if kind is MemoryError else run.device
        # The text of a worker's error begins with a traceback.
        if sample := re.search(r"memory ran out as (sample .+ of data\.\S+ was read)", str(error)):
            where += f", as {sample[1]}"
        remedies = _remedies(run.loader, hardware, optim, is_sample=sample is not None)
        raise kind(f"Memory ran out at step {where}: {_in_use(device)}. Lower {remedies}.") from error


def _remedies(loader: Any, hardware: Any, optim: Any, is_sample: bool) -> str:
    """Return what to lower, in words."""
    if loader is None:
        return "the size of the modules, or of what the hooks make: no batch has been read yet"
    batch_size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "source", None), "batch_size", None)
    given = f"data.{loader.name}.batch_size ({batch_size} per process)"
    remedies = [given if batch_size else f"the size of the batches that data.{loader.name} gives"]
    if is_sample:
        num_workers = getattr(loader, "num_workers", 0)
        workers = [f"data.{loader.name}.num_workers ({num_workers})"] if num_workers else []
        return ", or ".join([*workers, *remedies, "remove the sample if its file is damaged and claims to be huge"])
    if loader.name == "train":
        remedies[0] += f" and raise optim.accumulation_steps ({optim['accumulation_steps']}) as much"
    if hardware["precision"] == "fp32":
        remedies.append("set hardware.precision (fp32) to bf16")
    return ", or ".join(remedies)


def _in_use(device: torch.device) -> str:
    """Return the size of the device's memory, and how much of it is taken, in words."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own, owner = torch.cuda.max_memory_reserved(device), f"{device} has"
        used = f", of which {(total - free) / _GIB:.1f} are in use"
    else:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        total, owner, used = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine has", ""
    return f"{owner} {total / _GIB:.1f} GiB{used}, and this process has taken up to {own / _GIB:.1f}"
