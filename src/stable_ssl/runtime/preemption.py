"""Requests to stop a run: from a signal, or from its time limit."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from enum import IntEnum
from types import FrameType
from typing import Any

from ..exceptions import Preempted

TIME_LIMIT_STATUS = 75  # EX_TEMPFAIL in sysexits.h: start the job again


class Request(IntEnum):
    """A reason to stop, ordered by urgency: if the processes of a run have several, the largest wins.

    The order matters for submitit: it requeues a job on SIGUSR2 or SIGUSR1, so a SIGTERM that another process got
    must not hide these.
    """

    NONE = 0
    TIME_LIMIT = 1
    SIGHUP = 2
    SIGTERM = 3
    SIGUSR2 = 4
    SIGUSR1 = 5
    SIGINT = 6

    @property
    def reason(self) -> str:
        """The reason in words, for messages."""
        return "the time limit" if self is Request.TIME_LIMIT else self.name

    @property
    def status(self) -> int:
        """The exit status of a run that stops for this reason: 75 for the time limit, else 128 + the signal number."""
        return TIME_LIMIT_STATUS if self is Request.TIME_LIMIT else 128 + signal.Signals[self.name]


_SIGNALS: dict[int, Request] = {
    signal.Signals[request.name]: request for request in Request if request > Request.TIME_LIMIT
}

_listening: list[StopRequest] = []  # those that get each signal as a byte


@functools.cache
def _watch_forks() -> None:
    """Have `_stop_listening` called in each child that is forked from now on."""
    os.register_at_fork(after_in_child=_stop_listening)


def _stop_listening() -> None:
    """Write no signal of a forked child into what its parent reads."""
    if _listening:
        signal.set_wakeup_fd(-1)


class StopWaiting(BaseException):
    """The run was asked to stop while it waited for data."""


class StopRequest:
    """Notes requests to stop. The training loop looks at `request` after each step, and saves before it stops.

    Inside `with StopRequest() as stop:`, signals are noted instead of being handled, so that no signal interrupts a
    step. There are two exceptions. If `is_idle` is true, a signal raises StopWaiting at once. A second Ctrl-C always
    raises KeyboardInterrupt at once.

    Parameters
    ----------
    time_limit
        Minutes from now until the run must stop. None: no limit.
    listens
        Whether another thread asks for `unanswered`.

    Attributes
    ----------
    is_idle : bool
        Set by the loop: the run only waits for data, and nothing is lost if it stops waiting.
    has_ended_run : bool
        Whether `end_run` was called.
    """

    def __init__(self, time_limit: float | None = None, listens: bool = False):
        self.is_idle = self.has_ended_run = self._is_interrupted = False
        self._noted = Request.NONE
        self._deadline = None if time_limit is None else time.monotonic() + 60 * time_limit
        self._kept: dict[int, Any] = {}
        self._pid = os.getpid()
        self._listens = listens
        self._sockets: tuple[socket.socket, socket.socket] | None = None  # Python writes each signal into the second
        self._times: Counter[Request] = Counter()  # each signal came
        self._since: dict[Request, float] = {}  # when signals were found that Python has not heard yet
        self._lock = threading.RLock()  # a signal may interrupt the handler of another one

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            for signum in _SIGNALS:
                if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                    continue  # nohup: the run outlives its terminal
                self._kept[signum] = signal.signal(signum, self._note)
            if self._listens:
                self._listen()
        return self

    def _listen(self) -> None:
        _watch_forks()
        self._sockets = socket.socketpair()
        for end in self._sockets:
            end.setblocking(False)
        self._kept_fd = signal.set_wakeup_fd(self._sockets[1].fileno(), warn_on_full_buffer=False)
        _listening.append(self)

    def __exit__(self, *exc_info: object) -> None:
        if self._sockets:
            _listening.remove(self)
            signal.set_wakeup_fd(self._kept_fd)
            with self._lock:
                ends, self._sockets = self._sockets, None
                for end in ends:
                    end.close()
        for signum, handler in self._kept.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # A forked child inherits this handler, but the request is for the parent.
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._hear()
            self._since.pop(_SIGNALS[signum], None)
        if signum == signal.SIGINT and self._is_interrupted:
            raise KeyboardInterrupt
        self._is_interrupted |= signum == signal.SIGINT
        self._noted = max(self._noted, _SIGNALS[signum])
        if self.is_idle:
            self.is_idle = False
            raise StopWaiting

    def _hear(self) -> None:
        """Count the signals that came since the last call. The system tells of them at once, Python only later."""
        with suppress(BlockingIOError):
            while self._sockets:
                for signum in self._sockets[0].recv(4096):
                    request = _SIGNALS.get(signum)
                    if request and signal.getsignal(signum) == self._note:
                        self._times[request] += 1
                        self._since.setdefault(request, time.monotonic())

    def unanswered(self) -> dict[Request, tuple[int, float]]:
        """Return the signals that have come since their handler ran, for another thread than the main one.

        Python runs handlers in its main thread, and only between two of its instructions. If the main thread is in a
        long function in C++, such as an exchange with other processes, its handlers wait.

        Returns
        -------
        dict
            How often each signal came since the run began, and the seconds since it was first found here.
        """
        with self._lock:
            self._hear()
            now = time.monotonic()
            return {request: (self._times[request], now - since) for request, since in self._since.items()}

    @property
    def request(self) -> Request:
        """Why this process must stop after the current step; `Request.NONE`, which is false, if it need not stop."""
        if self._noted or self._deadline is None or time.monotonic() < self._deadline:
            return self._noted
        return Request.TIME_LIMIT

    @staticmethod
    def reason(request: int) -> str:
        """Return a request's reason in words."""
        return Request(request).reason

    def end_run(self, request: int) -> None:
        """End the run because of a request of this process or another one. Save the state before calling this.

        If the signal had a handler before this object replaced it, that handler is called first: submitit's handler
        requeues the job, and Python's own handler of Ctrl-C raises KeyboardInterrupt.

        Raises
        ------
        Preempted
            With `Request.status` as its exit status, or with the one that submitit's handler exits with.
        """
        self.has_ended_run = True
        why = Request(request)
        if why is Request.TIME_LIMIT:
            raise Preempted(why.status)
        signum = signal.Signals[why.name]
        submitits = signal.Signals["SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")]
        if signum in (signal.SIGTERM, submitits) and (job := _submitit_job()):
            if " JobState=RUNNING " not in job:  # Slurm has requeued the job already, or the job was cancelled
                raise Preempted(128 + signum)
            if " PreemptTime=" in job and " PreemptTime=None " not in job:
                signum = submitits
        handler = self._kept.get(signum)
        if callable(handler):
            try:
                handler(signum, None)
            except SystemExit as end:  # submitit exits this way after it has requeued the job
                raise Preempted(end.code) from None
            except subprocess.CalledProcessError:  # Slurm may have requeued the job since it was asked
                job = _submitit_job()
                if not job or " JobState=RUNNING " in job:
                    raise
        raise Preempted(128 + signum)


def _submitit_job() -> str:
    """Return Slurm's description of the job, or "" unless submitit started it and this is its first process.

    Why ask: Slurm requeues a job that it ends itself, but a job that exits by itself after a SIGTERM counts as failed.
    submitit requeues a job only if it gets its own signal, and many clusters send SIGTERM only. A job that Slurm has
    requeued must not be requeued a second time.
    """
    number, rank = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_PROCID", "0")
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm" or rank != "0":
        return ""
    try:
        command = ["scontrol", "--oneliner", "show", "job", number]
        jobs = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    # The last job of an array has the array's own number, for which scontrol lists every job of the array.
    return next((line for line in jobs if line.startswith(f"JobId={number} ")), "")
