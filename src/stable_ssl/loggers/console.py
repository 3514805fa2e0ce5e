"""What a user sees while a run goes on: messages, and a progress bar or plain lines."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger("stable_ssl")

SECONDS_BETWEEN_REDRAWS = 0.1
SECONDS_BETWEEN_LINES = 10.0


class Console:
    """Shows messages of the logger "stable_ssl", and how far the run is.

    On a terminal there is a bar below the messages. Elsewhere there are plain lines: the first soon, then one every ten
    seconds. All messages and plain lines go to a file too.

    Parameters
    ----------
    folder
        Where the file is: `console.log`, or `console_rank1.log` of rank 1.
    level
        Least severe messages that are shown.
    num_epochs
        How many epochs the run has in all, for the time left.
    rank
        Number of this process. Those above 0 show errors alone, and no bar: what rank 0 shows is enough.
    """

    def __init__(self, folder: Path, level: int, num_epochs: int, rank: int = 0):
        self._rich = RichConsole()
        self._num_epochs = num_epochs
        self._level = log.level
        self._propagate = log.propagate
        to_file = logging.FileHandler(folder / (f"console_rank{rank}.log" if rank else "console.log"))
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
        self._shown: dict[str, float] = {}
        self._what, self._total, self._done, self._epoch, self._batch_size = "", 0, 0, 0, 0
        self._rate_start = (time.perf_counter(), 0)
        self._batches_per_s = self.images_per_second = 0.0
        self.due = 0.0
        self._line_due = time.perf_counter() + 1.0

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def begin_epoch(self, epoch: int, num_batches: int, done: int = 0) -> None:
        """Begin epoch `epoch` (from 0), of which `done` batches are over already."""
        self._epoch = epoch
        self._begin(f"epoch {epoch + 1}/{self._num_epochs}", num_batches, done)

    def end_epoch(self, done: int) -> None:
        """End the epoch after `done` batches; plain output gets a line where the last is old enough."""
        self.show(done, ends=True)
        self._hide()

    def begin_evaluation(self, set_name: str, num_batches: int | None) -> None:
        """Begin to evaluate on a set."""
        self._begin(f"evaluating {set_name}", num_batches or 0, 0)

    def end_evaluation(self, results: dict[str, float]) -> None:
        """End the evaluation, and show what came out."""
        self._hide()
        if results:
            log.info("epoch %d  %s", min(self._epoch + 1, self._num_epochs), _compact(results))

    def show(self, done: int, batch_size: int = 0, ends: bool = False) -> None:
        """Show that `done` batches are over, and how fast. To be called when the clock has reached `due`.

        Parameters
        ----------
        done
            Batches of the epoch, or of the evaluation set.
        batch_size
            Images in a batch; 0: as many as at the last call.
        ends
            This was the last: short as it was, its speed is that of the epoch.
        """
        now = time.perf_counter()
        self.due = now + SECONDS_BETWEEN_REDRAWS
        self._done, self._batch_size = done, batch_size or self._batch_size
        begun, batches = self._rate_start
        if now - begun > 0.5 or (ends and done > batches):
            self._batches_per_s = (done - batches) / (now - begun)
            self.images_per_second = self._batches_per_s * self._batch_size
            if now - begun > 10:  # the rate of late
                self._rate_start = (now, done)
        if self._task is not None:
            self._bar.update(self._task, completed=done, count=self._count(), shown=self._summary())
            self._bar.refresh()
        elif not self._is_live and now >= self._line_due:
            self._line_due = now + SECONDS_BETWEEN_LINES
            log.info("%s  step %s  %s", self._what, self._count(), self._summary())

    def metrics(self, record: dict[str, Any]) -> None:
        """Take the newest logged values."""
        wanted = {"train/loss": "loss"}
        for name, value in record.items():
            if "accuracy" in name:
                self._shown["probe" if name.startswith("train/") else name] = value
            elif name in wanted:
                self._shown[wanted[name]] = value

    def close(self) -> None:
        """Leave the terminal and the logger as they were."""
        self._hide()
        for handler in self._handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(self._level)
        log.propagate = self._propagate

    def _begin(self, what: str, total: int, done: int) -> None:
        self._what, self._total, self._done = what, total, done
        self._rate_start = (time.perf_counter(), done)
        if self._is_live:
            self._bar.start()
            self._task = self._bar.add_task(what, total=total or None, completed=done, count=self._count(), shown="")

    def _hide(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._bar.stop()
            self._task = None

    def _count(self) -> str:
        return f"{self._done}/{self._total}" if self._total else str(self._done)

    def _summary(self) -> str:
        parts = [_compact({name: self._shown[name] for name in ("loss", "probe") if name in self._shown})]
        if self.images_per_second:
            parts.append(f"{self.images_per_second:.0f} img/s")
        if self._what.startswith("epoch") and self._batches_per_s:
            left = self._total * (self._num_epochs - self._epoch) - self._done
            parts.append(f"{_clock(left / self._batches_per_s)} left")
        return "  ".join(part for part in parts if part)


def _compact(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
