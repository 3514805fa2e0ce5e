"""The line of the user's code that a finding of a rehearsal belongs to."""

from __future__ import annotations

import functools
import sys
import sysconfig
from pathlib import Path
from types import FrameType, TracebackType

import torch

_ROOM, _PACKAGE = Path(__file__).parents[1], Path(__file__).parents[2]
_TORCH, _LIBRARY = Path(torch.__file__).parent, Path(sysconfig.get_paths()["stdlib"])
_LOOK_ON = ("accounting.py", "fake.py", "lines.py", "stand_ins.py", "waits.py")  # at operations
_INSTALLED = ("site-packages", "dist-packages")


def caller() -> str:
    """Return file and line of the code that has called torch.

    It is the innermost line of the user's own code. If the call went through a package, or if no code of the user's
    takes part, the innermost line outside of torch is named too.
    """
    frames = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _whose(frame.f_code.co_filename) != "ours":
        frames.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return _line(frames)


def is_called_by_user() -> bool:
    """Return whether the user's own code has called torch itself, and not through a package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and Path(frame.f_code.co_filename).is_relative_to(_ROOM):
        frame = frame.f_back
    return frame is not None and _whose(frame.f_code.co_filename) == "user's"


def line_of(error: BaseException) -> str:
    """Return file and line, as `caller` does, of the code in which an error was raised."""
    frames: list[tuple[str, int]] = []
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        frames = [] if _whose(file) == "ours" else [(file, traceback.tb_lineno), *frames]
        traceback = traceback.tb_next
    return _line(frames)


def _line(frames: list[tuple[str, int]]) -> str:
    """Return the line that code belongs to, of files and numbers from the innermost frame outwards."""
    inner = ""
    for file, number in frames:
        if _whose(file) == "user's":
            return f"{_short(file)}:{number}" + (f" (in {inner})" if inner else "")
        if _whose(file) == "package's" and not inner:
            inner = f"{_short(file)}:{number}"
    return inner or "A line that is not known"


@functools.cache
def _whose(file: str) -> str:
    """Say whose a file is: "user's", "package's" (this or another package), "torch's", or "ours", which calls it.

    Python's own library, and the files here that look at operations, count as torch's.
    """
    path = Path(file)
    if path.is_relative_to(_ROOM):
        return "torch's" if path.name in _LOOK_ON else "ours"
    if file.startswith("<") and not file.startswith(("<ipython", "<stdin")):
        return "torch's"
    if path.is_relative_to(_TORCH):
        return "torch's"
    if path.is_relative_to(_PACKAGE) or not set(_INSTALLED).isdisjoint(path.parts):
        return "package's"
    return "torch's" if path.is_relative_to(_LIBRARY) else "user's"


def _short(file: str) -> str:
    """Return a path without the folder that everybody knows: that of installed packages, or the current one."""
    path = Path(file)
    for place, part in reversed(list(enumerate(path.parts))):
        if part in _INSTALLED:
            return str(Path(*path.parts[place + 1 :]))
    if path.is_relative_to(_PACKAGE):
        return str(path.relative_to(_PACKAGE.parent))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
