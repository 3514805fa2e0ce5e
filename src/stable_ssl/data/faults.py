"""Errors that are not the fault of the sample that was read: memory ran out, or the machine or a worker failed."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import torch

# Libraries raise a plain RuntimeError: the CPU's allocator, CUDA's own ("CUDA error: out of memory"), cuBLAS and cuDNN.
# The last one is a worker's, for shared memory: "unable to resize file </torch_…> …: No space left on device".
_MEMORY = re.compile(
    "out of memory|allocate memory|not enough memory|ALLOC_FAILED|file </torch_.*No space", re.IGNORECASE
)
# What torch raises if a worker process died: for the next batch, or by a signal handler, anywhere in the main thread.
_WORKER = re.compile(r"DataLoader worker \(pid|DataLoader timed out|Pin memory thread exited")
_REPORT = re.compile("in (DataLoader worker process|pin memory thread)")  # which lives on after the error
_OF_MACHINE = {
    errno.EMFILE, errno.ENFILE,  # too many open files
    errno.ENOSPC, errno.EDQUOT,  # no room on a disk
    errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN,  # a disk or file system is gone
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
}  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: that of Python, of the device, or of the machine."""
    return any(
        isinstance(one, MemoryError | torch.OutOfMemoryError)
        or (isinstance(one, OSError) and one.errno == errno.ENOMEM)
        or (isinstance(one, OSError | RuntimeError) and bool(_MEMORY.search(str(one))))
        for one in _causes(error)
    )


def is_of_machine(error: BaseException) -> bool:
    """Return whether a disk, a file system, the network or the limit of open files failed: the sample may be good."""
    return any(
        isinstance(one, OSError) and (one.errno in _OF_MACHINE or isinstance(one, ConnectionError | TimeoutError))
        for one in _causes(error)
    )


def is_of_worker(error: BaseException) -> bool:
    """Return whether torch says that a worker process died or hung."""
    return isinstance(error, RuntimeError) and bool(_WORKER.search(str(error))) and not is_report(error)


def is_report(error: BaseException) -> bool:
    """Return whether a worker process tells of an error, and lives on."""
    return bool(_REPORT.search(str(error)))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
