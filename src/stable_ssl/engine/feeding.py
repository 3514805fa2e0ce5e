"""The batches of a run: read, moved to the device, and shown on the console."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..data import length_of
from ..exceptions import ConfigError, DataError, NanError
from ..runtime.device import count_images, to_device
from ..runtime.preemption import StopWaiting
from ..runtime.seeding import Stream, seed_generators
from .building import data_sets
from .session import Session

log = logging.getLogger("stable_ssl")


class Feed:
    """Reads the batches of the run's sets, and measures how long training waits for them.

    Parameters
    ----------
    run
        The session, with its device.
    hardware
        The run's `HardwareConfig`, with the seed in use.
    loaders
        The loaders that are bound to the run, by name.
    save
        Saves the state between two optimizer steps.
    """

    def __init__(self, run: Session, hardware: Any, loaders: Mapping[str, Any], save: Callable[[], None]):
        self._save = save
        self._run, self._seed, self._channels_last = run, hardware["seed"], hardware["channels_last"]
        self._must_move = run.device.type != "cpu" or hardware["channels_last"]
        self._data_wait, self._has_warned = 0.0, False
        self.loaders = loaders

    def training(self, data: Mapping[str, Any], num_batches: int, group: int) -> Iterator[tuple[int, Any, Any]]:
        """Yield (place in the epoch, sample indices, batch on the device) for each batch that the epoch has left.

        Parameters
        ----------
        data
            The trainer's `data`. The loader's `batches(epoch, start)` yields (sample indices, batch).
        num_batches
            Mini-batches per epoch.
        group
            Mini-batches per optimizer step. A signal interrupts the wait for the first of them. If its samples can't be
            read, the state is saved before the run fails.

        Raises
        ------
        ConfigError
            A hook has put another loader into `data`, of any set.
        DataError
            The epoch has no batch, or a sample can't be read.
        """
        run, clock = self._run, time.perf_counter
        self.check(data)
        run.loader = loader = data["train"]
        progress, stop, ranks, console = run.progress, run.stop, run.ranks, run.log.console
        begin, size = progress.batches, ranks.size
        console.begin_epoch(progress.epoch, num_batches, begin, is_whole=num_batches >= (length_of(loader) or 0))
        may_be_interrupted = ranks.can_drop_a_wait and not loader.is_stream
        batches = loader.batches(progress.epoch, begin)
        ends: Callable[[], bool] | None = None  # of a stream: whether it ended on any process, if that was asked
        for batch_idx in range(begin, num_batches):
            asked = clock()
            stop.is_idle = may_be_interrupted and batch_idx % group == 0
            try:
                found = next(batches, None)
            except DataError:
                self._save_before_failing()
                raise
            stop.is_idle = False
            if loader.is_stream:  # the epoch ends for all processes if it ends for one
                ends = ends or ranks.ask(found is None)
                found = None if ends() else found
                # Asked one mini-batch ahead, no process waits for the answer.
                ends = ranks.ask(not loader.has_more) if hasattr(loader, "has_more") else None
            if found is None:
                if batch_idx > 0:
                    self._warn_of_end(progress.epoch, batch_idx, num_batches)
                    return
                raise DataError(
                    f"data.train gave no batch in epoch {progress.epoch + 1}. A source that can be read only once, "
                    "such as a generator, makes no further epoch."
                )
            indices, batch = found
            now = clock()
            self._data_wait += now - asked
            if now >= console.due:
                console.show(batch_idx, count_images(indices, batch) * size)
            yield batch_idx, indices, self.on_device(batch)

    def _save_before_failing(self) -> None:
        """Save what was trained before a batch could not be read, as a signal would in its place."""
        if self._run.stop.is_idle and self._run.progress.global_step > 0:
            self._run.stop.is_idle = False
            with suppress(NanError):  # then the checkpoint before it is the last good one
                self._save()

    def _warn_of_end(self, epoch: int, found: int, expected: int) -> None:
        """Warn, once, that an epoch of a stream is shorter than the schedule takes it to be."""
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "data.train ended after %d of %d mini-batches in epoch %d. A schedule over all steps counts on %d per "
                "epoch, so it would not come to its end. If each epoch has fewer, set optim.max_steps to their number.",
                found,
                expected,
                epoch + 1,
                expected,
            )

    def evaluation(self, data: Mapping[str, Any], set_name: str) -> Iterator[tuple[Any, Any]]:
        """Yield (sample indices, batch on the device) for each batch of this process's share of a set.

        Other processes may have more batches, so this one waits for them at the end. Parameters are whole meanwhile, so
        that forward passes exchange nothing. A request to stop ends the run
        without a save, because the checkpoint from before the evaluation is enough.
        """
        run, stop = self._run, self._run.stop
        run.loader = data[set_name]
        self.check({set_name: run.loader})
        run.ranks.sharding.unshard()
        batches = run.loader.batches(0)
        while True:
            stop.is_idle = run.ranks.can_drop_a_wait
            try:
                found = next(batches, None)
            except StopWaiting:
                found = None
            stop.is_idle = False
            has_more, request = run.ranks.largest(found is not None, stop.request)
            run.end_when_asked(request, "in the evaluation")
            if found is not None:
                yield found[0], self.on_device(found[1])
            elif not has_more:
                return

    def seeded_evaluation(self, data: Mapping[str, Any], set_name: str) -> Iterator[tuple[int, Any, Any]]:
        """Yield (place in the set, sample indices, batch on the device) for each batch of an evaluation set.

        Before each batch, the default generators are seeded and the progress is shown if due.
        """
        console, ranks = self._run.log.console, self._run.ranks
        for batch_idx, (indices, batch) in enumerate(self.evaluation(data, set_name)):
            seed_generators(self._seed, Stream.EVAL, batch_idx, ranks.rank)
            if time.perf_counter() >= console.due:
                console.show(batch_idx, count_images(indices, batch) * ranks.size)
            yield batch_idx, indices, batch

    def check(self, data: Mapping[str, Any]) -> None:
        """Raise a ConfigError if a hook has put a loader into `data` that is not bound to the run by that name."""
        for name in data_sets(data):
            if data[name] is not self.loaders.get(name):
                place = "Configure it in data" if name == "train" else "Put it there in _instanciate()"
                raise ConfigError(
                    f"data.{name}: a hook put this {type(data[name]).__name__} there. Only the set-up can give it the "
                    "run's seed and its share of the samples, when _instanciate() is over. "
                    f"{place}, or change the transform of the data set."
                )

    def on_device(self, batch: Any) -> Any:
        """Return a batch on the run's device, in the configured memory format."""
        return to_device(batch, self._run.device, self._channels_last) if self._must_move else batch

    def take_data_wait(self) -> float:
        """Return the seconds that training waited for data since the last call."""
        waited, self._data_wait = self._data_wait, 0.0
        return waited
