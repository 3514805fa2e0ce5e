"""Making the next batch while the present one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def one_ahead(jobs: Iterable[Callable[[], Any]], device: torch.device) -> Iterator[Any]:
    """Yield the result of each job; each is begun before the result of the one before it is yielded.

    Parameters
    ----------
    jobs
        Functions without arguments.
    device
        Where the jobs compute: on CUDA they run on a side stream, else in a thread.
    """
    # The thread runs loops of this package, which release the GIL, and no code of the user's.
    with ThreadPoolExecutor(1, "views") if device.type != "cuda" else _SideStream(device) as executor:
        coming = None
        for job in jobs:
            ready, coming = coming, executor.submit(job)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


class _SideStream:
    """Runs jobs on a CUDA stream of its own; used like an executor."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)

    def __enter__(self) -> _SideStream:
        return self

    def __exit__(self, *args: Any) -> None:
        pass

    def submit(self, job: Callable[[], Any]) -> _OnStream:
        with torch.cuda.stream(self.stream):
            batch = job()
        return _OnStream(batch, self.stream.record_event())


class _OnStream:
    """A batch that a side stream may still be computing."""

    def __init__(self, batch: Any, event: torch.cuda.Event):
        self.batch, self.event = batch, event

    def result(self) -> Any:
        """Return the batch. The current stream waits for it, this process does not."""
        stream = torch.cuda.current_stream(self.event.device)
        stream.wait_event(self.event)
        for leaf in tree_leaves(self.batch):
            if isinstance(leaf, Tensor) and leaf.is_cuda:
                leaf.record_stream(stream)  # so that its memory is not reused while the current stream reads it
        return self.batch
