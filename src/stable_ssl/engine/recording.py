"""The values that are logged: collected on the device, and written together at logging steps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..exceptions import BreakAllEpochs, BreakEpoch
from ..loggers import media
from ..loggers.collector import Collector, is_number, pooled
from ..loggers.snapshots import Snapshots
from ..runtime.distributed import whole
from .alone import is_idle
from .feeding import Feed
from .parts import Part
from .session import Session

log = logging.getLogger("stable_ssl")

_OF_THE_STEP = frozenset({"loss", "lr"})  # what each training record has of itself


class Recorder:
    """Collects values by name between two records of `metrics.jsonl`.

    Parameters
    ----------
    run
        The session. Its log gets the records.
    feed
        The batches of the run, which tell how long training waited for them.
    every
        Optimizer steps per training record.

    Attributes
    ----------
    is_logging
        Whether logged values are kept now: true at logging steps, and outside of training steps.
    is_in_step
        Whether an optimizer step has begun and is not over.
    results
        The values of the newest evaluation of each set, by "<set>/<name>".
    emit
        A function that gets each record instead of the log, and gives it to `write_record`. None: there is none.
    """

    emit: Callable[[dict[str, Any]], None] | None = None

    def __init__(self, run: Session, feed: Feed, every: int):
        self.is_logging = self.is_in_step = False
        self._write_so_far: Callable[[], None] | None = None  # set while a hook runs between two steps
        self._thread, self._has_written = 0, False  # of that hook; whether the step has a record already
        self.results: dict[str, float] = {}
        self._run, self._feed, self._every = run, feed, every
        self._set_name, self._collected = "train", Collector()
        self._media: dict[str, Callable[[], media.Media]] = {}  # by name: makes what was logged ready on the host
        self._snapshots = Snapshots(run.folder.path / "snapshots" if run.ranks.is_main else None)
        self._refused: set[str] = set()
        self._renamed: set[str] = set()
        self._place: dict[str, Any] | None = None  # step and epoch of the record that is written late
        self._waiting: dict[str, Any] = {}  # whole names and values that go into the next record

    def begin_step(self) -> None:
        """Decide whether the optimizer step that begins now is logged."""
        self.is_in_step = True
        self.is_logging = (self._run.progress.global_step + 1) % self._every == 0

    def log(self, name: str, value: Tensor | float) -> None:
        """Keep one number, as `<set>/<name>`, if this step is logged. In a step, "loss" becomes "loss_loss"."""
        if self.is_logging:
            if self.is_in_step and name in _OF_THE_STEP:
                name = self._renaming(name)
            self._collected.add(f"{self._set_name}/{name}", value)

    def log_own(self, name: str, value: Tensor | float) -> None:
        """Keep the total loss or the learning rate of a step that is logged. Nothing else has their names."""
        self._collected.add(f"train/{name}", value)

    def _renaming(self, name: str) -> str:
        """Return another name for a value that is called as the total loss or the learning rate; say so once."""
        if name not in self._renamed:
            self._renamed.add(name)
            own = "the total loss" if name == "loss" else "the learning rate"
            log.warning("train/%s is %s. Another value of this name is logged as train/%s_%s.", name, own, name, name)
        return f"{name}_{name}"

    def log_values(self, name: str, values: Any) -> None:
        """Keep what a metric or monitor computed: a number as `log` does, any other array for `snapshots/`.

        Of a dict, each value is kept as `<name>_<key>`, and of a list of arrays each as `<name>_<place>`. None is left
        out. Anything else is left out too, with a warning, because it need not end a run.
        """
        if isinstance(values, list | tuple) and not all(map(is_number, values)):
            values = dict(enumerate(values))
        if isinstance(values, Mapping):
            for key, value in values.items():
                self.log_values(f"{name}_{key}", value)
        elif is_number(values):
            self.log(name, values)
        elif values is not None:
            with self._leaving_out(name):
                self._keep(name, media.array, values)

    @contextmanager
    def _leaving_out(self, name: str) -> Iterator[None]:
        """Leave out what the block can't log, with a warning for each name."""
        try:
            yield
        except TypeError as error:
            if name not in self._refused:
                log.warning("%s It is left out.", error)
            self._refused.add(name)

    def log_image(self, name: str, image: Any) -> None:
        """Keep an image for trackers and `snapshots/`, as `<set>/<name>`."""
        self._keep(name, media.image, image)

    def log_histogram(self, name: str, values: Any) -> None:
        """Keep a histogram of values for trackers and `snapshots/`, as `<set>/<name>`."""
        self._keep(name, media.histogram, values)

    def _keep(self, name: str, kind: Callable[[str, Any], Callable[[], media.Media]], value: Any) -> None:
        """Keep rank 0's value, but not of a training step that is not logged.

        In a hook outside of steps, it is written at the end of the hook; elsewhere at once.
        """
        run = self._run
        if not run.is_going_on or (self.is_in_step and not self.is_logging):
            return
        value = whole(value)  # of a parameter that is divided, each process has a part
        if run.ranks.is_main:
            name = f"{self._set_name}/{name}"
            self._media[name] = kind(name, value)
            if not self.is_logging:
                self._write_media()

    def write_record(self, values: Mapping[str, Any], at_once: bool = True) -> None:
        """Write values by their whole names as a record of its own, or add them to the next record.

        A value that is no number goes to `snapshots/`.
        """
        run = self._run
        for name, value in values.items() if run.is_going_on else ():
            if is_number(value):
                self._waiting[name] = float(value)
            elif run.ranks.is_main:
                with self._leaving_out(name):
                    self._media[name] = media.array(name, value)
        if self._waiting and at_once:
            place = self._place or {"global_step": run.progress.global_step, "epoch": run.shown_epoch}
            run.log.write({**place, **self._waiting, **place})
            self._waiting = {}
            self._write_media(place["global_step"])

    def _emit(self, record: dict[str, Any]) -> None:
        """Write a record, and the values that wait for one."""
        if self.emit is not None:
            self.emit(record)
        else:
            self._run.log.write({**record, **self._waiting} if self._waiting else record)
            self._waiting = {}

    def _write_media(self, step: int | None = None) -> None:
        """Give trackers what was kept, as of a step, and add it to the next snapshot. This waits for the device."""
        if self._media:
            ready = {name: make() for name, make in self._media.items()}
            self._media = {}
            self._run.log.show(ready, self._run.progress.global_step if step is None else step)
            for name, made in ready.items():
                self._snapshots.add(made.arrays(name))

    def write_snapshot(self) -> None:
        """Write the file of the evaluation that is over, or add to it what was logged since."""
        progress = self._run.progress
        self._snapshots.write(progress.trained_epochs, progress.global_step)

    def part(self) -> Part:
        """Return the part of a checkpoint that has what waits for the next snapshot."""
        return Part("snapshots", self._snapshots, is_shared=True, is_optional=True)

    def drop(self) -> None:
        """Forget the values of a step that was broken off."""
        self._collected.flush()
        self._media = {}
        self.is_logging = self.is_in_step = False

    def take_step(self, is_over: bool = True) -> tuple[Any, Callable[[list[Any]], None]]:
        """Take the values of the step that has just ended. If it is not over, a second record may follow.

        Returns
        -------
        values
            The means and counts of this process.
        write
            Gets those of all processes, and writes the training record.
        """
        run, counts, is_second = self._run, self._collected.counts, self._has_written
        own, kept, waiting = self._collected.flush(), self._media, self._waiting
        record: dict[str, Any] = {"global_step": run.progress.global_step, "epoch": run.shown_epoch}
        perf = {} if is_second else self._performance()
        if not is_second:
            record["epoch"] = run.progress.epoch
        self._media, self._waiting = {}, {}

        def write(found: list[Any]) -> None:
            results = pooled(found) if len(found) > 1 else own
            later, self._waiting, self._place = self._waiting, waiting, record
            if results or not is_second:
                self._emit({**record, **results, **perf})
            self._waiting, self._place = {**self._waiting, **later}, None
            self._media, media_later = kept, self._media
            self._write_media(record["global_step"])
            self._media = media_later

        self.is_logging, self._has_written = not is_over, not is_over
        return (own, counts), write

    def _performance(self) -> dict[str, Any]:
        """Return the values of a training record that can't be reproduced."""
        run = self._run
        found = {
            "perf/time": round(time.time(), 3),
            "perf/images_per_s": round(run.log.console.images_per_second, 1),
            "perf/data_wait_s": round(self._feed.take_data_wait(), 6),
        }
        if run.device.type == "cuda":
            found["perf/memory_gib"] = round(torch.cuda.max_memory_allocated(run.device) / 2**30, 3)
        return found

    @contextmanager
    def outside_steps(self, set_name: str = "train", is_new: bool = True) -> Iterator[None]:
        """Keep what hooks log in the block as `<set_name>/<name>`, and write it as one record at its end.

        Parameters
        ----------
        set_name
            The first part of the names.
        is_new
            Whether the hooks run for the first time. A resumed run calls some of them again; then their values are in
            the log already.
        """
        stop: Exception | None = None
        with self._keeping(set_name):
            try:
                yield
            except (BreakEpoch, BreakAllEpochs) as request:
                self._run.ranks.broke_off(request)  # before the exchange below
                stop = request
        if is_new:
            self._write_collected()
        else:
            self._run.ranks.means(self._collected)
        self._media = {}
        if stop:
            raise stop

    def hook(
        self,
        hook: Callable[[], None],
        set_name: str = "train",
        *,
        is_new: bool = True,
        runs_again: bool = False,
        own_seed: bool = True,
    ) -> None:
        """Run a hook outside of training steps; `outside_steps` says what becomes of its values.

        Parameters
        ----------
        hook, set_name, is_new
            The hook, and what `outside_steps` gets.
        runs_again
            Whether a run that goes on from a checkpoint made in the hook runs it again, and so logs its values.
        own_seed
            Whether the default generators are seeded for it.
        """
        if own_seed:
            self._run.seed_for(hook)
        if not is_idle(hook):
            write = (lambda: None) if runs_again else self._write_collected
            with self.outside_steps(set_name, is_new), self.between_steps(write):
                self._run.ranks.hook(hook)

    @contextmanager
    def between_steps(self, write_so_far: Callable[[], None]) -> Iterator[None]:
        """Run a hook between two optimizer steps in the block, so that the state may be saved within it.

        Parameters
        ----------
        write_so_far
            Writes what the hook has logged.
        """
        self._write_so_far, self._thread = write_so_far, threading.get_ident()
        try:
            yield
        finally:
            self._write_so_far = None

    def take_so_far(self) -> Callable[[], None] | None:
        """Return what writes the values that the hook has logged, if the state may be saved now; else None.

        It may be saved once in a hook between two steps, in the hook's thread and outside of evaluations, if the run
        has one process.
        """
        is_here = self._thread == threading.get_ident() and self._set_name == "train"
        if not (is_here and self._run.ranks.can_save_at_once):
            return None
        write, self._write_so_far = self._write_so_far, None
        return write

    @contextmanager
    def evaluation(self, set_name: str, num_batches: int | None) -> Iterator[None]:
        """Keep what is logged in the block as `<set_name>/<name>`, and write it as one record at its end."""
        console = self._run.log.console
        console.begin_evaluation(set_name, num_batches)
        with self._keeping(set_name):
            try:
                yield
            except BaseException:
                self._collected = Collector()  # a part of the set is no result
                raise
        results = self._run.ranks.means(self._collected)
        console.end_evaluation(results, self._run.shown_epoch, self._run.progress.global_step)
        self.results.update(results)
        self._write(results)

    @contextmanager
    def _keeping(self, set_name: str) -> Iterator[None]:
        """Keep what is logged in the block as `<set_name>/<name>`."""
        before = self.is_logging, self._set_name
        self.is_logging, self._set_name = True, set_name
        try:
            yield
        finally:
            self.is_logging, self._set_name = before

    def _write_collected(self) -> None:
        """Write a record of what was logged outside of training steps since the last record."""
        self._write(self._run.ranks.means(self._collected))

    def _write(self, results: Mapping[str, float]) -> None:
        """Write a record of what was logged outside of training steps, and the media beside it."""
        if results:
            run = self._run
            self._emit({"global_step": run.progress.global_step, "epoch": run.shown_epoch, **results})
        self._write_media()


class NoRecorder(Recorder):
    """Keeps nothing: what a trainer logs to before its set-up."""

    def __init__(self) -> None:
        self.is_logging = False

    def _keep(self, *args: Any) -> None: ...

    def write_record(self, *args: Any) -> None: ...  # noqa: D102
