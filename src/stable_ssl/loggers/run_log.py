"""All outputs of one run, opened and closed together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.folder import written_at_start
from .console import Console
from .jsonl import MetricsFile, iterate_metrics
from .media import Media
from .metrics import watched
from .snapshots import cut_back
from .summary import Summary
from .tracking import Tracker, open_trackers

log = logging.getLogger("stable_ssl")


class RunLog:
    """The console, `metrics.jsonl` and the experiment trackers of one run.

    Parameters
    ----------
    folder
        The run's folder.
    options
        The run's `LoggerConfig`, with metrics and monitors built.
    num_epochs
        Number of epochs of the whole run.
    config
        The run's configuration, which trackers show.
    step
        The global step of the checkpoint that the run resumes from; 0 for a new run.
    position
        The length in bytes that `metrics.jsonl` had at this checkpoint: later records and snapshots are removed. None:
        keep all.
    rank
        Number of this process. Ranks above 0 have a console only.

    Attributes
    ----------
    summary
        The last and the best value of each metric, those of an earlier process of this run included.
    """

    def __init__(
        self,
        folder: Path,
        options: Any,
        num_epochs: int,
        config: dict[str, Any],
        step: int,
        position: int | None,
        rank: int = 0,
    ):
        self.console = Console(folder, options["level"], num_epochs, rank)
        self.summary = Summary(watched(options["metric"], options["monitor"]), options["best"])
        self._file = None
        self._trackers: list[Tracker] = []
        if rank > 0:
            return
        try:
            with written_at_start(folder / "metrics.jsonl"):
                self._file = MetricsFile(folder / "metrics.jsonl")
                if position is not None:
                    self._file.cut_back(position)
            if position is not None:
                cut_back(folder / "snapshots", step)
            for record in iterate_metrics(folder / "metrics.jsonl"):
                self.summary.add(record)
            self._trackers = open_trackers(
                folder, wandb=options["wandb"], tensorboard=options["tensorboard"], config=config, step=step
            )
        except BaseException:
            self.close("failed")
            raise

    def write(self, record: dict[str, Any]) -> None:
        """Write one record: values by name, which include `global_step` and `epoch`."""
        if self._file:
            self._file.log(record)
            self.summary.add(record)
        self.console.metrics(record)
        for tracker in self._trackers:
            tracker.log(record, record["global_step"])

    def show(self, media: Mapping[str, Media], step: int) -> None:
        """Give the trackers images and histograms of a global step, by name."""
        for tracker in self._trackers:
            tracker.show(media, step)

    def position(self) -> int:
        """Write all records to disk and to the trackers, and return the length of `metrics.jsonl` in bytes."""
        for tracker in self._trackers:
            tracker.flush()
        return self._file.position() if self._file else 0

    def close(self, status: str) -> None:
        """Close all outputs. `status` is "finished", "stopped", "preempted" or "failed"."""
        try:
            if self._file:
                self._file.close()
        except OSError as error:
            log.error("The last records of metrics.jsonl could not be written: %s", error)
        for tracker in self._trackers:
            tracker.close(status)
        self.console.close()
