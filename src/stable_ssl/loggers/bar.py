"""The progress bar in the last line of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

MIN_BAR, MAX_BAR = 10, 40
NUM_METRICS_BEFORE_BAR = 2


@dataclass
class State:
    """What the bar shows: where the run is, and words for the rest, the most important first."""

    label: str = ""
    done: int = 0
    total: int | None = None
    metrics: Sequence[str] = field(default_factory=list)
    rate: str = ""
    left: str = ""

    def layout(self, width: int) -> tuple[str, int, str]:
        """Return the text before the bar, the bar's width and the text after it; in all, at most `width` characters.

        What does not fit is left out: first the metrics after the second, then the bar, the rate, the other metrics.
        """
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        room = width - len(self.label) - len(count) - 1
        shown: dict[str, str] = {}
        wanted = [*self.metrics[:NUM_METRICS_BEFORE_BAR], *self.metrics[NUM_METRICS_BEFORE_BAR:]]
        for rank, text in enumerate([self.left, *wanted[:NUM_METRICS_BEFORE_BAR], self.rate]):
            if text and len(text) + 2 <= room:
                shown[text] = text
                room -= len(text) + 2
        return "", 0, ""
