"""Whose a line of code is, and what messages call it."""

from __future__ import annotations

import functools
import sysconfig
import traceback
from pathlib import Path

USER, PACKAGE, OWN, PYTHON = "user", "package", "stable_ssl", "python"
_OWN = Path(__file__).parent
_INSTALLED = ("site-packages", "dist-packages")
_OF_USER = ("<ipython", "<stdin", "<console")  # what was typed into an interpreter


@functools.cache
def owner(file: str) -> str:
    """Return whose a file of code is: `USER`, `PACKAGE` (an installed one), `OWN` (this package) or `PYTHON`.

    Code that was made of a text, such as "<string>" or "<frozen importlib>", counts as Python's.
    """
    path = Path(file)
    if file.startswith("<"):
        return USER if file.startswith(_OF_USER) else PYTHON
    if path.is_relative_to(_OWN):
        return OWN
    if not set(_INSTALLED).isdisjoint(path.parts):
        return PACKAGE
    return PYTHON if any(map(path.is_relative_to, _places_of_python())) else USER


@functools.cache
def _places_of_python() -> list[str]:
    return [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib")]


def shown(file: str, number: int) -> str:
    """Return "train.py:12" for a line: without the working folder, and without the folder of installed packages."""
    path = Path(file)
    for place, part in reversed(list(enumerate(path.parts))):
        if part in _INSTALLED:
            return f"{Path(*path.parts[place + 1 :])}:{number}"
    for folder in (_OWN.parent, Path.cwd()):
        if path.is_relative_to(folder):
            return f"{path.relative_to(folder)}:{number}"
    return f"{file}:{number}"


def lines_of(error: BaseException) -> list[tuple[str, int]]:
    """Return file and line of each call that led to an error, the innermost first."""
    frames = traceback.walk_tb(error.__traceback__)
    return [(frame.f_code.co_filename, number) for frame, number in frames][::-1]


def users_line(error: BaseException) -> str:
    """Return the innermost line of the user's code that led to an error, such as "train.py:12"; "" if there is none."""
    return next((shown(file, number) for file, number in lines_of(error) if owner(file) == USER), "")


def place_of(error: BaseException) -> str:
    """Return " (train.py:12)" for the user's line that an error, or what caused it, comes from; "" if there is none."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = users_line(error)
    return f" ({line})" if line and not isinstance(error, SyntaxError) else ""  # a SyntaxError says its line itself
