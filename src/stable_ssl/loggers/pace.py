"""How fast a run goes, and how often it says so."""

from __future__ import annotations

import math

TIME_CONSTANT = 20.0  # seconds; a rate is a mean in which older times count for less, by this constant
SECONDS_BETWEEN_LINES = 10.0


class Rate:
    """Images and mini-batches a second, of late.

    Attributes
    ----------
    images, batches : float
        Per second; 0 until the first measurement.
    """

    def __init__(self) -> None:
        self.images = self.batches = 0.0
        self._sums: tuple[float, float, float] | None = None  # seconds, images, batches, all discounted
        self._mark = (0.0, 0, 0)

    def begin(self, now: float, batches: int) -> None:
        """Start the clock, with `batches` mini-batches behind: the time since the last measurement does not count."""
        self._mark = (now, 0, batches)

    def measure(self, now: float, images: int, batches: int) -> None:
        """Take the counts at time `now`, in seconds."""
        time_then, images_then, batches_then = self._mark
        seconds = now - time_then
        if batches == batches_then or seconds <= 0:
            return
        self._mark = (now, images, batches)
        latest = (seconds, float(images - images_then), float(batches - batches_then))
        if self._sums is None:
            # The first mini-batches pay for compilation, workers and caches, and say little about the rest.
            self._sums, sums = (0.0, 0.0, 0.0), latest
        else:
            kept = math.exp(-seconds / TIME_CONSTANT)
            old = self._sums
            sums = self._sums = (kept * old[0] + latest[0], kept * old[1] + latest[1], kept * old[2] + latest[2])
        self.images, self.batches = sums[1] / sums[0], sums[2] / sums[0]


class Pace:
    """Says when a line is due: at once, then ever more rarely, down to one in ten seconds."""

    def __init__(self) -> None:
        self._interval = 0.0
        self._next = -math.inf

    def is_due(self, now: float) -> bool:
        """Return whether to write a line at time `now`, in seconds; counts it as written."""
        if now < self._next:
            return False
        self._interval = min(max(1.0, 2 * self._interval), SECONDS_BETWEEN_LINES)
        self._next = now + self._interval
        return True

    def hold(self, now: float) -> None:
        """Put the next line off until an interval from `now`."""
        self._next = max(self._next, now + self._interval)


def clock_time(seconds: float) -> str:
    """Write a duration as `h:mm:ss`."""
    total = round(seconds)
    return f"{total // 3600}:{total // 60 % 60:02}:{total % 60:02}"
