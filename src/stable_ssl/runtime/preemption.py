"""Being asked to stop: by a signal, or by the clock."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from types import FrameType
from typing import Any

from ..exceptions import Preempted

TIME_LIMIT_STATUS = 75  # EX_TEMPFAIL: the job is to be started again
# What may ask for a stop, by rising urgency: of several processes' requests the largest holds. submitit requeues on
# signals of its own, which must not go under in a SIGTERM to another process.
_REASONS: tuple[int, ...] = (0, TIME_LIMIT_STATUS, signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGINT)


class StopWaiting(BaseException):
    """The run was asked to stop while it waited for data."""


class StopRequest:
    """Notes that the run was asked to stop; the loop looks at it at step boundaries.

    While it is installed, a signal is only noted: saving happens at a boundary, never inside a step. Where
    `is_idle` is set it raises StopWaiting too. A second Ctrl-C raises KeyboardInterrupt at once.

    Parameters
    ----------
    time_limit
        Minutes from now after which `request` says so; None: no limit.

    Attributes
    ----------
    has_ended_run : bool
        Whether `end_run` was called.
    """

    def __init__(self, time_limit: float | None = None):
        self.signum: int | None = None
        self.is_idle = False  # the run waits, and whatever it waits for may be dropped
        self.has_ended_run = self._is_interrupted = False
        self.deadline = float("inf") if time_limit is None else time.monotonic() + 60 * time_limit
        self._kept: dict[int, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _REASONS[2:]:
                self._kept[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # A forked child inherits this handler; the request was not meant for it.
        if os.getpid() != self._pid:
            return
        if signum == signal.SIGINT and self._is_interrupted:
            raise KeyboardInterrupt
        self._is_interrupted |= signum == signal.SIGINT
        self.signum = max(self.signum or 0, signum, key=_REASONS.index)
        if self.is_idle:
            self.is_idle = False
            raise StopWaiting

    @property
    def request(self) -> int:
        """What asked this process to stop at the next boundary: a number for `end_run`; 0: nothing did."""
        if self.signum is not None:
            return _REASONS.index(self.signum)
        return int(time.monotonic() >= self.deadline)

    @staticmethod
    def reason(request: int) -> str:
        """Return the words for a request."""
        return "the time limit" if request == 1 else signal.Signals(_REASONS[request]).name

    def end_run(self, request: int) -> None:
        """End the run because of `request`, which may be another rank's, after its state was saved.

        A handler that somebody else had installed for this signal is called first: submitit's requeues the job,
        Python's own raises KeyboardInterrupt on Ctrl-C.

        Raises
        ------
        Preempted
            With status 128 + the signal's number, or 75 for the time limit.
        """
        self.has_ended_run = True
        if request == 1:
            raise Preempted(TIME_LIMIT_STATUS)
        code = _REASONS[request]
        submitits = signal.Signals["SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")]
        if code in (signal.SIGTERM, submitits) and (job := _submitit_job()):
            is_running = " JobState=RUNNING " in job  # else Slurm has requeued it already, or it was cancelled
            if is_running and " PreemptTime=" in job and " PreemptTime=None " not in job:
                code = submitits
            elif not is_running:
                raise Preempted(128 + code)
        kept = self._kept.get(code)
        if callable(kept):
            try:
                kept(code, None)
            except SystemExit as end:  # submitit's way to end a job that it has requeued
                raise Preempted(end.code) from None
        raise Preempted(128 + code)


def _submitit_job() -> str:
    """Return what Slurm knows of the job, if it is submitit's and this is its first process; else nothing.

    Slurm requeues what it ends; a job that ends by itself in the grace time has failed. submitit asks for a requeue
    when it gets a signal of its own, but many clusters send none but SIGTERM; and it must not ask a second time.
    """
    number, rank = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_PROCID", "0")
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm" or rank != "0":
        return ""
    try:
        command = ["scontrol", "--oneliner", "show", "job", number]
        jobs = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    # The number of the last job of an array stands for all of it.
    return next((line for line in jobs if line.startswith(f"JobId={number} ")), "")
