"""Being asked to stop: by a signal, or by the clock."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from ..exceptions import Preempted

TIME_LIMIT_STATUS = 75  # EX_TEMPFAIL: the job is to be started again
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


class StopRequest:
    """Notes that the run was asked to stop; the loop looks at it at step boundaries.

    While it is installed, a signal only sets `signum`: saving happens at a boundary, never inside a step. A second
    Ctrl-C raises KeyboardInterrupt at once.

    Parameters
    ----------
    time_limit
        Minutes from now after which `pending` becomes true; None: no limit.
    """

    def __init__(self, time_limit: float | None = None):
        self.signum: int | None = None
        self.deadline = float("inf") if time_limit is None else time.monotonic() + 60 * time_limit
        self._kept: dict[int, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name, None)
                if number is not None:
                    self._kept[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # A forked child inherits this handler; the request was not meant for it.
        if os.getpid() != self._pid:
            return
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum

    @property
    def pending(self) -> bool:
        """Whether to stop at the next boundary."""
        return self.signum is not None or time.monotonic() >= self.deadline

    @property
    def reason(self) -> str:
        """What asked for it, for messages."""
        return "the time limit" if self.signum is None else signal.Signals(self.signum).name

    def leave(self) -> None:
        """End the run, after its state was saved.

        A handler that somebody else had installed for this signal is called first: submitit's requeues the job,
        Python's own raises KeyboardInterrupt on Ctrl-C.

        Raises
        ------
        Preempted
            With status 128 + the signal's number, or 75 for the time limit.
        """
        if self.signum is None:
            raise Preempted(TIME_LIMIT_STATUS)
        kept = self._kept.get(self.signum)
        if callable(kept):
            kept(self.signum, None)
        raise Preempted(128 + self.signum)
