"""The file `status.json` of a run: its state, how far it is, and whether its process is still there."""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..exceptions import BreakEpoch, BreakStep, PeerError, Preempted
from .files import whole_file

log = logging.getLogger("stable_ssl")

FORMAT = 1
COMPLETE = ("finished", "stopped")  # nothing is left to do
SECONDS_BETWEEN_BEATS = 30.0
SECONDS_UNTIL_STALE = 180.0
_LONGEST_ERROR = 2000  # letters
_SPARE_BYTES = 1 << 15


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of a run's `status.json`. Empty if there is no such file, or none that can be read.

    If the file says "running" but has no heartbeat of the last three minutes, the `status` returned is "stale": the
    process has died, or its machine hangs.
    """
    try:
        content = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    content.setdefault("heartbeat", content.get("time", 0.0))  # the first versions had no heartbeat
    if content.get("status") == "running" and time.time() - content["heartbeat"] > SECONDS_UNTIL_STALE:
        content["status"] = "stale"
    return content


def outcome(error: BaseException) -> tuple[str, str | None]:
    """Return the status of a run that an error ended, and the error in words; None if the run was asked to stop."""
    if isinstance(error, Preempted | KeyboardInterrupt):
        return "preempted", None
    if isinstance(error, BreakStep | BreakEpoch):
        return "failed", (
            f"{type(error).__name__} was raised in a hook that can't use it: BreakStep is for the hooks of steps, "
            "BreakEpoch for those of training steps and before_fit_epoch."
        )
    if isinstance(error, RuntimeError) and "gloo" in str(error):  # whose own words tell a user nothing
        return "failed", "Another process of the run is gone, or does something else. Its own messages may say why."
    if isinstance(error, PeerError):
        return "failed", str(error)
    return "failed", f"{type(error).__name__}: {error}"


class StatusFile:
    """The file `status.json` of a run of this process.

    Between `begin` and `end`, a thread writes it every 30 seconds, so that readers see that the process lives. It waits
    for nothing but the disk. A forked process does not inherit the thread.

    `begin` keeps a little space of the disk, so that a full disk has room for the final status.

    Parameters
    ----------
    folder
        The run's folder.
    is_writer
        Whether this process writes the file: of several, rank 0 does. The methods do nothing in the others.
    """

    def __init__(self, folder: Path, is_writer: bool = True):
        self._path, self._spare = folder / "status.json", folder / ".status.json.spare"
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._has_ended, self._has_complained = not is_writer, False
        self._pid = os.getpid()
        self._origin: dict[str, Any] = {}
        self._facts: Callable[[], dict[str, Any]] = dict

    def begin(self, facts: Callable[[], dict[str, Any]]) -> None:
        """Write the status "running", now and from now on.

        Parameters
        ----------
        facts
            Returns what else the file says. The thread calls it too.
        """
        if self._has_ended:
            return
        self._facts, self._origin = facts, _origin()
        with suppress(OSError):  # the disk is full already
            self._spare.write_bytes(bytes(_SPARE_BYTES))
        self._write_running()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def beat(self) -> None:
        """Have the thread write the file soon, because the facts have changed."""
        self._wake.set()

    def end(self, status: str, facts: dict[str, Any], error: str | None = None) -> None:
        """Write the last status. Later calls do nothing, nor does one in a forked process.

        Parameters
        ----------
        status
            "preempted", "failed", "stopped" or "finished".
        facts
            What else the file says.
        error
            The error that ended the run, in a sentence.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
            text = self._text(status, {**facts, "error": error[:_LONGEST_ERROR]} if error else facts)
            try:
                self._write(text)
            except OSError as full:
                self._write_to_spare(text, full)
            with suppress(OSError):
                self._spare.unlink(missing_ok=True)
        self._wake.set()

    def _beat(self) -> None:
        while not self._has_ended:
            self._wake.wait(SECONDS_BETWEEN_BEATS)
            self._wake.clear()
            self._write_running()

    def _write_running(self) -> None:
        with self._lock:
            if self._has_ended:
                return
            try:
                self._write(self._text("running", self._facts()))
                self._has_complained = False
            except OSError as error:  # such as a full disk, which need not end the run
                if not self._has_complained:
                    log.error("status.json could not be written: %s", error)
                self._has_complained = True

    def _text(self, status: str, facts: dict[str, Any]) -> str:
        record = {"format": FORMAT, "status": status, **(self._origin or _origin()), "heartbeat": round(time.time(), 3)}
        return json.dumps({**record, **facts}, indent=1) + "\n"

    def _write(self, text: str) -> None:
        with whole_file(self._path) as part:
            part.write_text(text)

    def _write_to_spare(self, text: str, full: OSError) -> None:
        """Write the file into the space that `begin` kept."""
        try:
            with open(self._spare, "r+b") as file:  # keeps the file's blocks
                file.write(text.encode())
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._spare, self._path)
        except OSError:
            log.error("status.json could not be written: %s", full)


def _origin() -> dict[str, Any]:
    """Return where this process runs, and from what."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": shlex.join(sys.orig_argv),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Return the commit of the working folder's repository; None if it is in none."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
