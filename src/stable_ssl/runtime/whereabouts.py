"""Where a thread is: whether it waits in an exchange between processes, and the line of code in words."""

from __future__ import annotations

import os
import sys
import sysconfig
import zlib
from pathlib import Path
from types import CodeType
from typing import NamedTuple

import torch

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_NETWORKS, _DISTRIBUTED = (f"{_TORCH}{name}{os.sep}" for name in ("nn", "distributed"))
_LIBRARIES = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "purelib", "platlib"))
_OTHERS = (_PACKAGE, _TORCH, *_LIBRARIES, "<frozen ")
_WAIT_HERE = tuple(f"{_PACKAGE}runtime{os.sep}{name}.py" for name in ("gradients", "world"))  # for torch's work


class Whereabouts(NamedTuple):
    """Where a thread is.

    Attributes
    ----------
    is_exchange
        Whether it is inside a function that exchanges values with other processes.
    moment
        The calls that it is in, and how far each is. It is the same a while later only if the thread has not moved, or
        has come back to the same point.
    place
        A number that is the same on all processes whose threads are at the same lines.
    words
        The lines of the user's code that are being run by the library; of the library's code, if there are none.
    """

    is_exchange: bool
    moment: tuple[tuple[int, int], ...]
    place: int
    words: str


def whereabouts(thread: int) -> Whereabouts:
    """Return where a thread of this process is, by its identity. It need not run Python at the moment."""
    frame, calls = sys._current_frames().get(thread), []
    while frame:  # a frame that is kept would keep the tensors of its function
        calls.append((frame.f_code, frame.f_lineno, frame.f_lasti))
        frame = frame.f_back
    ours = [number for number, (code, _, _) in enumerate(calls) if code.co_filename.startswith(_PACKAGE)]
    calls = calls[: ours[-1] + 1] if ours else calls  # those that the library makes, the innermost first
    lines = [(code, line) for code, line, _ in calls]
    place = ";".join(f"{Path(code.co_filename).name}:{line}" for code, line in lines)
    moment = tuple((id(code), offset) for code, _, offset in calls)
    return Whereabouts(_is_exchange([code for code, _ in lines]), moment, zlib.crc32(place.encode()), _words(lines))


def _is_exchange(codes: list[CodeType]) -> bool:
    """Return whether the innermost calls are of torch's functions for several processes, or wait for these."""
    if codes and codes[0].co_filename in _WAIT_HERE:
        return True
    for code in codes:
        if not code.co_filename.startswith(_TORCH) or code.co_filename.startswith(_NETWORKS):
            return False
        if code.co_filename.startswith(_DISTRIBUTED):
            return True
    return False


def _words(lines: list[tuple[CodeType, int]]) -> str:
    users = [(code, line) for code, line in lines if not code.co_filename.startswith(_OTHERS)]
    library = [(code, line) for code, line in lines if code.co_filename.startswith(_PACKAGE)]
    waits = [(code, line) for code, line in library if code.co_filename not in _WAIT_HERE]
    return ", ".join(_described(code, line) for code, line in reversed(users or waits[:1] or library[:1]))


def _described(code: CodeType, line: int) -> str:
    name = code.co_filename.removeprefix(str(Path(_PACKAGE).parent) + os.sep)
    return f"{code.co_name} ({name if name != code.co_filename else Path(name).name}, line {line})"
