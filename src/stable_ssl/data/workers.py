"""Batches that torch's DataLoader reads, and the beginning and the end of its worker processes."""

from __future__ import annotations

import atexit
import itertools
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pickle import UnpicklingError
from traceback import walk_tb
from typing import Any

from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ..exceptions import DataError, some_of
from ..runtime.preemption import StopWaiting
from .faults import is_of_worker, is_report
from .picklable import pickling_explained
from .reading import Reader
from .views import WithViews

_END = object()


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
        dataset = reader.dataset
        parts = {"dataset": dataset, "collate_fn": collate}
        if isinstance(dataset, WithViews):
            parts = {"views": dataset.transform, "dataset": dataset.dataset, "collate_fn": collate}
        self._sent = {f"data.{reader.name}.{key}": part for key, part in parts.items()}

    def batches(self, epoch: int, wanted: Iterable[list[int]]) -> Iterator[tuple[list[int], Any]]:
        """Yield (sample indices, batch) for each list of sample indices. Workers have some more lists at a time.

        Raises
        ------
        DataError
            A worker died, or did not answer in time.
        """
        # The epoch travels with each index, because persistent workers have no other way to know it.
        ahead, wanted = itertools.tee(wanted)
        self._entries.batches = ([(epoch, index) for index in indices] for indices in ahead)
        with pickling_explained(self._sent), deaths_explained(self._name):  # persistent workers answer here
            self._iterator = iterator = iter(self._loader)
        keep_open(iterator, self._name)
        finish = self._finish
        try:
            for indices in wanted:
                with deaths_explained(self._name, f" from the one of samples [{some_of(indices)}] on"):
                    batch = next(iterator, _END)
                if batch is _END:
                    return
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
        self.batches: Iterable[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)


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


def torch_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a loader's arguments that are for torch's DataLoader."""
    names = ("num_workers", "pin_memory", "timeout", "persistent_workers", "multiprocessing_context", "prefetch_factor")
    return {**{name: given[name] for name in names}, "worker_init_fn": WorkerInit(given["worker_init_fn"])}


# If a worker does not answer, torch and Python end it by SIGTERM, which ours ignore, and then wait for ever. So this
# package ends all workers itself while their queues still work: before Python collects their iterator, which this set
# prevents, and before Python's own function at its exit, which runs later because it was registered earlier.
_open_iterators: set[Any] = set()
_sets: dict[str, str] = {}  # the name of a worker's data set, by the number of its process


def keep_open(iterator: Any, name: str) -> None:
    """Keep an iterator of torch's loader alive until `end_workers`, at the latest at the exit of this process."""
    _open_iterators.add(iterator)
    _sets.update({str(worker.pid): name for worker in getattr(iterator, "_workers", [])})


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


@contextmanager
def deaths_explained(name: str, where: str = "") -> Iterator[None]:
    """Raise an error that says how a worker process ended, if one dies or hangs while the `with` block waits for it.

    Parameters
    ----------
    name
        Of the data set.
    where
        Which batches the block reads, in words.

    Raises
    ------
    DataError
        A worker died, or did not answer in time.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DataError) or is_report(error):
            raise
        workers = _awaited(error)
        if workers and isinstance(error, OSError | EOFError | UnpicklingError):
            # A dying process closes its connections before it is gone.
            sentinels = {worker.sentinel: worker for worker in workers}
            with suppress(RuntimeError):  # torch's handler may interrupt the wait
                for sentinel in wait(sentinels, timeout=5):
                    sentinels[sentinel].join()
        ends = [_end_of(worker) for worker in workers if worker.exitcode is not None]
        if ends or is_of_worker(error):
            raise _death(name, where, ends, error) from error
        raise


def explain_death(error: Exception, name: str) -> DataError | None:
    """Return an error that says which worker died, for one that torch's signal handler raised; None for any other.

    Parameters
    ----------
    error
        Any error.
    name
        Of the data set to name if the worker is not known.
    """
    if not is_of_worker(error):
        return None
    names = [_sets[number] for number in re.findall(r"\d+", str(error)) if number in _sets]
    return _death(names[0] if names else name, "", [], error)


def _awaited(error: Exception) -> list[Any]:
    """Return the workers of the torch iterator that raised an error, without those that had given all that they have.

    The iterator may be inside any other one, so it is looked for in the error's traceback.
    """
    for frame, _ in walk_tb(error.__traceback__):
        iterator = frame.f_locals.get("self")
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            # If a worker could not even be started, neither list is there yet.
            lists = (getattr(iterator, name, []) for name in ("_workers", "_workers_status"))
            pairs = zip(*lists, strict=False)
            return [worker for worker, is_in_use in pairs if is_in_use or str(worker.pid) in str(error)]
    return []


def _end_of(worker: Any) -> str:
    names, code = {one.value: one.name for one in signal.Signals}, worker.exitcode
    how = f"ended with exit code {code}" if code >= 0 else f"was killed by {names.get(-code, -code)}"
    return f"process {worker.pid} {how}"


def _death(name: str, where: str, ends: list[str], error: Exception) -> DataError:
    how = ", ".join(ends) or str(error).rstrip(" .")
    return DataError(
        f"data.{name}: a worker process died or hung while batches{where} were read: {how}. If memory ran out, lower "
        "num_workers or batch_size, or ask for more memory. If code of the data set ended the process, or waits for "
        "ever, num_workers=0 shows where."
    )
