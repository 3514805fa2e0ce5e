"""The line of the user's code that a finding of a rehearsal belongs to."""

from __future__ import annotations

import functools
import itertools
import sys
from pathlib import Path
from types import FrameType

import torch

from ...lines import PYTHON, USER, lines_of, owner, shown

_ROOM, _TORCH = Path(__file__).parents[1], Path(torch.__file__).parent
_LOOK_ON = (
    "accounting.py",
    "answers.py",
    "fake.py",
    "lines.py",
    "stand_ins.py",
    "uncalled.py",
    "waits.py",
)  # at operations


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
    return _line(list(itertools.takewhile(lambda line: _whose(line[0]) != "ours", lines_of(error))))


def _line(frames: list[tuple[str, int]]) -> str:
    """Return the line that code belongs to, of files and numbers from the innermost frame outwards."""
    inner = ""
    for file, number in frames:
        if _whose(file) == "user's":
            return shown(file, number) + (f" (in {inner})" if inner else "")
        if _whose(file) == "package's" and not inner:
            inner = shown(file, number)
    return inner or "A line that is not known"


@functools.cache
def _whose(file: str) -> str:
    """Say whose a file is: "user's", "package's" (this or another package), "torch's", or "ours", which calls it.

    Python's own library, and the files here that look at operations, count as torch's.
    """
    path = Path(file)
    if path.is_relative_to(_ROOM):
        return "torch's" if path.name in _LOOK_ON else "ours"
    if path.is_relative_to(_TORCH):
        return "torch's"
    return {USER: "user's", PYTHON: "torch's"}.get(owner(file), "package's")
