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

# Libraries raise a plain RuntimeError: the CPU's allocator, CUDA's own ("CUDA error: out of memory"), cuBLAS and cuDNN.
_WORDS = re.compile("out of memory|allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE)
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
        Memory ran out: that of the device, or that of Python.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kind = MemoryError if isinstance(error, MemoryError) else torch.OutOfMemoryError
        if not isinstance(error, kind) and not _WORDS.search(str(error)):
            raise
        name, batch_size = getattr(run.loader, "name", "train"), getattr(run.loader, "batch_size", None)
        remedies = [f"data.{name}.batch_size ({batch_size or 'not known'} per process)"]
        if name == "train":
            remedies[0] += f" and raise optim.accumulation_steps ({optim['accumulation_steps']}) as much"
        if hardware["precision"] == "fp32":
            remedies.append("set hardware.precision (fp32) to bf16")
        raise kind(
            f"Memory ran out at step {run.progress.global_step}: {_in_use(run.device)}. Lower {', or '.join(remedies)}."
        ) from error


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
