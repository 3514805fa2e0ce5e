"""What a tracker is: a place outside the run's folder format that metrics also go to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

Status = Literal["finished", "failed", "preempted", "stopped"]


class Tracker(ABC):
    """Shows the metrics of a run elsewhere. `metrics.jsonl` has all of them, whatever happens here."""

    @abstractmethod
    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Take the numbers of a record, those of global step `step`; anything else in it is left out."""

    def flush(self) -> None:
        """Make sure that what was logged outlives this process; called before each checkpoint."""
        return

    @abstractmethod
    def close(self, status: Status) -> None:
        """Write what is left, say how the run ended, and let go."""


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the items of a record that are numbers, but for `global_step`, which trackers are told apart."""
    return {
        name: value for name, value in record.items() if isinstance(value, int | float) and name != "global_step"
    }
