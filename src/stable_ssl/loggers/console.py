"""The output of a run on the screen: messages, and a progress bar or plain lines of progress."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger("stable_ssl")

SECONDS_BETWEEN_REDRAWS = 0.1
SECONDS_BETWEEN_LINES = 10.0
SECONDS_TO_THE_FIRST_RATE = 0.5
MOST_VALUES = 20  # on one line
SECONDS_OF_A_RATE = 10.0  # after this time, the measurement of the speed begins again


class Console:
    """Shows the messages of the logger "stable_ssl" and the progress of the run.

    On a terminal, a bar below the messages shows the progress. Otherwise plain lines show it: the first one after a
    second, then one every ten seconds. Messages and plain lines are also written to a file.

    Parameters
    ----------
    folder
        The folder of the file. Rank 0 writes `console.log`, rank 1 `console_rank1.log`, and so on.
    level
        The least severe level of messages to show, as in `logging`.
    num_epochs
        Number of epochs of the whole run, for the time left.
    rank
        Number of this process. Ranks above 0 show errors only and no bar, because rank 0 shows the rest.

    Attributes
    ----------
    due : float
        When to call `show` again, in seconds of `time.perf_counter`.
    images_per_second : float
        The speed of all ranks together, 0 until it is known.
    """

    def __init__(self, folder: Path, level: int, num_epochs: int, rank: int = 0):
        self._rich = RichConsole()
        self._num_epochs = num_epochs
        self._level = log.level
        self._propagate = log.propagate
        to_file = _File(folder / (f"console_rank{rank}.log" if rank else "console.log"))
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        to_screen = RichHandler(
            console=self._rich, show_path=False, show_time=False, markup=False, highlighter=None, keywords=[]
        )
        if not self._rich.is_terminal:
            to_screen = logging.StreamHandler()  # type: ignore[assignment]
        if rank:
            to_screen.setLevel(max(level, logging.ERROR))
        self._to_file, self._handlers = to_file, [to_file, to_screen]
        log.setLevel(level)
        for handler in self._handlers:
            log.addHandler(handler)
        log.propagate = False
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[shown]}", markup=False),
            console=self._rich,
            auto_refresh=False,
            transient=True,
        )
        self._task: Any = None
        self._is_live = (
            self._rich.is_terminal and not self._rich.is_dumb_terminal and level <= logging.INFO and not rank
        )
        self._newest: dict[str, Any] = {}
        self._activity, self._is_training = "", False
        self._total, self._done, self._epoch, self._batch_size = 0, 0, 0, 0
        self._is_whole, self._before, self._of_all = True, 0, 0  # batches of earlier epochs, and of all, if not whole
        self._trained = 0  # batches that were trained on, counted as the progress counts them
        self._measured_from = (time.perf_counter(), 0)  # time and number of batches
        self._batches_per_second = self.images_per_second = 0.0
        self.due = 0.0
        self._line_due = time.perf_counter() + 1.0

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def begin_epoch(self, epoch: int, num_batches: int, done: int = 0, is_whole: bool = True) -> None:
        """Show the progress of an epoch's training from now on.

        If `optim.max_steps` makes epochs shorter than the data, the steps of the whole run are shown, and no epochs.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0.
        num_batches
            Batches of the epoch.
        done
            Batches of the epoch that an earlier process trained on.
        is_whole
            Whether these are all batches that the data has.
        """
        self._epoch, self._is_training, self._is_whole = epoch, True, is_whole
        if is_whole:
            self._begin(f"epoch {epoch + 1}/{self._num_epochs}", num_batches, done)
        else:
            self._begin("training", num_batches, done, epoch * num_batches, self._num_epochs * num_batches)

    def end_epoch(self, done: int) -> None:
        """End the epoch's training after `done` batches. Plain output gets a line if one is due."""
        self.show(done, ends=True)
        self._trained = self._before + done
        self._hide()

    def begin_evaluation(self, set_name: str, num_batches: int | None) -> None:
        """Show the progress of an evaluation on one set from now on. `num_batches` is None if it is not known."""
        self._is_training = False
        self._begin(f"evaluating {set_name}", num_batches or 0, 0)

    def end_evaluation(self, results: dict[str, float], epoch: int, step: int) -> None:
        """End the evaluation of an epoch, a number from 0, after a global step; show its results by name."""
        self._hide()
        if results:
            place = f"epoch {epoch + 1}" if step and self._is_whole else f"step {self._trained or step}"
            log.info("%s  %s", place, _compact(results))

    def show(self, done: int, batch_size: int = 0, ends: bool = False) -> None:
        """Show how many batches are done, and the speed. Call this when the clock has reached `due`.

        Parameters
        ----------
        done
            Batches done of the epoch or of the evaluation set.
        batch_size
            Images per batch over all ranks. 0: as many as at the last call.
        ends
            Whether this is the last call of the epoch. A short epoch gets a speed only then.
        """
        now = time.perf_counter()
        self.due = now + SECONDS_BETWEEN_REDRAWS
        self._done, self._batch_size = done, batch_size or self._batch_size
        self._measure(now, ends)
        if self._task is not None:
            self._bar.update(self._task, completed=self._before + done, count=self._count(), shown=self._summary())
            self._bar.refresh()
        elif not self._is_live and now >= self._line_due:
            self._line_due = now + SECONDS_BETWEEN_LINES
            log.info("%s  step %s  %s", self._activity, self._count(), self._summary())

    def metrics(self, record: dict[str, Any]) -> None:
        """Remember the newest logged values, so that `show` can show them."""
        self._newest.update(record)

    def write_to_file(self, message: str) -> None:
        """Write an error to the file only, whatever the level: it reaches the screen in another way."""
        self._to_file.handle(log.makeRecord(log.name, logging.ERROR, "", 0, message, (), None))

    def close(self) -> None:
        """Restore the terminal and the logger to their state before this console."""
        self._hide()
        for handler in self._handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(self._level)
        log.propagate = self._propagate

    def _begin(self, activity: str, total: int, done: int, before: int = 0, of_all: int = 0) -> None:
        self._activity, self._total, self._done = activity, total, done
        self._before, self._of_all = before, of_all or total
        self._measured_from = (time.perf_counter(), done)
        if self._is_live:
            self._bar.start()
            length, completed = self._of_all or None, before + done  # None: the bar does not know how long it gets
            self._task = self._bar.add_task(activity, total=length, completed=completed, count=self._count(), shown="")

    def _measure(self, now: float, ends: bool) -> None:
        """Measure the speed over the batches since `_measured_from`, once they took long enough or are the last."""
        begun, batches = self._measured_from
        seconds, is_last = now - begun, ends and self._done > batches
        if seconds > SECONDS_TO_THE_FIRST_RATE or is_last:
            self._batches_per_second = (self._done - batches) / seconds
            self.images_per_second = self._batches_per_second * self._batch_size
            if seconds > SECONDS_OF_A_RATE:
                self._measured_from = (now, self._done)

    def _hide(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._bar.stop()
            self._task = None

    def _count(self) -> str:
        return f"{self._before + self._done}/{self._of_all}" if self._of_all else str(self._done)

    def _summary(self) -> str:
        values = {"loss": self._newest["train/loss"]} if "train/loss" in self._newest else {}
        probes = [name for name in self._newest if name.startswith("train/") and "accuracy" in name]
        if probes:
            values["probe"] = self._newest[probes[-1]]
        parts = [_compact(values)]
        if self.images_per_second:
            parts.append(f"{self.images_per_second:.0f} img/s")
        if self._is_training and self._batches_per_second:
            left = self._total * (self._num_epochs - self._epoch) - self._done
            parts.append(f"{_clock(left / self._batches_per_second)} left")
        return "  ".join(part for part in parts if part)


class _File(logging.FileHandler):
    """A file of messages, which appears with the first one. A full disk costs messages, but ends nothing."""

    _has_complained = False

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_complained:
            self._has_complained = True
            print(f"'{self.baseFilename}' can't be written: {error}", file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def _compact(values: dict[str, float]) -> str:
    """Return names and values on one line, such as `loss 0.51  probe 0.9`; of very many the first ones.

    Examples
    --------
    >>> _compact({f"head_{number}": number for number in range(120)})[-38:]
    'head_18 18  head_19 19  and 100 others'
    """
    shown = [f"{name} {value:.4g}" for name, value in values.items()]
    if len(shown) > MOST_VALUES:
        shown[MOST_VALUES:] = [f"and {len(shown) - MOST_VALUES} others"]
    return "  ".join(shown)


def _clock(seconds: float) -> str:
    """Return a time as `hours:minutes:seconds`."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
