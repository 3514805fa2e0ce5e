"""The values that are logged: collected on the device, and written together at logging steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..loggers.collector import Collector
from .feeding import Feed
from .session import Session


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
        Whether logged values are kept now: true at logging steps and during an evaluation.
    results
        The values of the newest evaluation of each set, by "<set>/<name>".
    """

    def __init__(self, run: Session, feed: Feed, every: int):
        self.is_logging = False
        self.results: dict[str, float] = {}
        self._run, self._feed, self._every = run, feed, every
        self._set_name, self._collected = "train", Collector()

    def begin_step(self) -> None:
        """Decide whether the optimizer step that begins now is logged."""
        self.is_logging = (self._run.progress.global_step + 1) % self._every == 0

    def log(self, name: str, value: Tensor | float) -> None:
        """Keep one number, as `<set>/<name>`, if this step is logged."""
        if self.is_logging:
            self._collected.add(f"{self._set_name}/{name}", value)

    def log_values(self, name: str, values: Any) -> None:
        """Keep a number, or each number of a dict as `<name>_<key>`. None is left out."""
        if isinstance(values, Mapping):
            for key, value in values.items():
                self.log(f"{name}_{key}", value)
        elif values is not None:
            self.log(name, values)

    def drop(self) -> None:
        """Forget the values of a step that was broken off."""
        self._collected.flush()
        self.is_logging = False

    def write_step(self) -> None:
        """Write the training record of the step that has just ended."""
        run = self._run
        record: dict[str, Any] = {
            "global_step": run.progress.global_step,
            "epoch": run.progress.epoch,
            **run.ranks.means(self._collected),
            "perf/time": round(time.time(), 3),
            "perf/images_per_s": round(run.log.console.images_per_second, 1),
            "perf/data_wait_s": round(self._feed.take_data_wait(), 6),
        }
        if run.device.type == "cuda":
            record["perf/memory_gib"] = round(torch.cuda.max_memory_allocated(run.device) / 2**30, 3)
        run.log.write(record)
        self.is_logging = False

    @contextmanager
    def evaluation(self, set_name: str, epoch: int, num_batches: int | None) -> Iterator[None]:
        """Keep what is logged in the block as `<set_name>/<name>`, and write it as one record at its end."""
        console = self._run.log.console
        console.begin_evaluation(set_name, num_batches)
        self.is_logging, self._set_name = True, set_name
        try:
            yield
            results = self._run.ranks.means(self._collected)
        finally:
            self.is_logging, self._set_name = False, "train"
        console.end_evaluation(results)
        self.results.update(results)
        if results:
            self._run.log.write({"global_step": self._run.progress.global_step, "epoch": epoch, **results})
