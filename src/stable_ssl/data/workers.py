"""The beginning and the end of a torch loader's worker processes."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable
from typing import Any


class WorkerInit:
    """Leaves it to the main process to decide when a worker ends, then calls the user's own function."""

    def __init__(self, then: Callable[[int], None] | None):
        self.then = then

    def __call__(self, worker_id: int) -> None:  # noqa: D102
        for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        if self.then is not None:
            self.then(worker_id)


# Torch and Python end workers that do not answer by SIGTERM, which ours ignore, and wait for them. So ours are always
# told to end while their queues work: before their iterator is garbage, which this set prevents, and before Python's
# own function at its exit, which runs later since it was registered earlier.
_open_iterators: set[Any] = set()


def keep_open(iterator: Any) -> None:
    """Note an iterator of torch's loader, that it may be ended in time."""
    _open_iterators.add(iterator)


def end_workers(iterator: Any) -> None:
    """End the worker processes of an iterator of torch's loader."""
    _open_iterators.discard(iterator)
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()


@atexit.register
def _end_all_workers() -> None:
    for iterator in list(_open_iterators):
        end_workers(iterator)
