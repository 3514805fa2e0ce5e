"""Batches that torch's DataLoader reads, and the beginning and the end of its worker processes."""

from __future__ import annotations

import atexit
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Sampler

from ..exceptions import DataError
from ..runtime.preemption import StopWaiting
from .reading import Reader


class WorkerBatches:
    """Reads batches by torch's DataLoader: in worker processes, or in this process if there are none.

    Parameters
    ----------
    reader
        Returns the sample of (epoch, index).
    collate
        Makes a batch of a list of samples.
    options
        Other arguments of the DataLoader.
    finish
        What this process still has to do with a batch: a function of (batch, epoch, sample indices), or None.
    """

    def __init__(
        self,
        reader: Reader,
        collate: Callable[[list[Any]], Any],
        options: dict[str, Any],
        finish: Callable[[Any, int, list[int]], Any] | None = None,
    ):
        self._name, self._finish, self._is_persistent = reader.name, finish, options["persistent_workers"]
        self._entries = _Entries()
        self._loader = DataLoader(reader, batch_sampler=self._entries, collate_fn=collate, **options)
        self._iterator: Any = None

    def batches(self, epoch: int, wanted: list[list[int]]) -> Iterator[tuple[list[int], Any]]:
        """Yield (sample indices, batch) for each list of sample indices.

        Raises
        ------
        DataError
            A worker died, or did not answer in time.
        """
        # The epoch travels with each index, because persistent workers have no other way to know it.
        self._entries.batches = [[(epoch, index) for index in indices] for indices in wanted]
        self._iterator = iterator = iter(self._loader)
        keep_open(iterator)
        finish = self._finish
        try:
            for indices in wanted:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if "DataLoader worker" not in str(error) and "DataLoader timed out" not in str(error):
                        raise
                    raise DataError(
                        f"data.{self._name}: a worker process died or hung while batches from the one of samples "
                        f"{_some(indices)} on were read: {error}"
                    ) from error
                yield indices, finish(batch, epoch, indices) if finish else batch
        finally:
            # Ending a worker waits for it. If the run was asked to stop, it saves first, because the worker may hang.
            if not self._is_persistent and not isinstance(sys.exception(), StopWaiting):
                end_workers(iterator)

    def close(self) -> None:
        """End the worker processes; the next `batches` would start new ones."""
        end_workers(self._iterator)


class _Entries(Sampler):
    """A batch sampler whose batches, lists of (epoch, index), are set anew for each epoch."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _some(indices: list[int]) -> str:
    return str(indices) if len(indices) <= 8 else f"[{', '.join(map(str, indices[:8]))}, …]"


class WorkerInit:
    """Runs first in a worker: has it ignore signals, so that the main process decides when it ends.

    Parameters
    ----------
    then
        The user's own function of the worker's number, called next.
    """

    def __init__(self, then: Callable[[int], None] | None):
        self.then = then

    def __call__(self, worker_id: int) -> None:  # noqa: D102
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        if self.then is not None:
            self.then(worker_id)


# If a worker does not answer, torch and Python end it by SIGTERM, which ours ignore, and then wait for ever. So this
# package ends all workers itself while their queues still work: before Python collects their iterator, which this set
# prevents, and before Python's own function at its exit, which runs later because it was registered earlier.
_open_iterators: set[Any] = set()


def keep_open(iterator: Any) -> None:
    """Keep an iterator of torch's loader alive until `end_workers`, at the latest at the exit of this process."""
    _open_iterators.add(iterator)


def end_workers(iterator: Any) -> None:
    """End the worker processes of an iterator of torch's loader, if it has any."""
    _open_iterators.discard(iterator)
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
        while iterator._workers:  # emptied, because a second call may come when Python has taken its modules apart
            iterator._workers.pop().kill()


@atexit.register
def _end_all_workers() -> None:
    for iterator in list(_open_iterators):
        end_workers(iterator)
