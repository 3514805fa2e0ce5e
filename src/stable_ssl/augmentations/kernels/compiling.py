"""How loops are compiled, and the number types and instructions that they share."""

from __future__ import annotations

import functools
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

log = logging.getLogger("stable_ssl")


def _choose_cache() -> bool:
    """Have numba keep what it compiles, in a temporary folder if it can write nowhere else; False if not even there."""
    try:
        _check_space(numba.njit(cache=True)(lambda: None).stats.cache_path)
        return True
    except (OSError, RuntimeError) as error:  # numba raises a RuntimeError if it finds no folder
        reason = error
    settings: Any = numba.config
    try:
        settings.CACHE_DIR = _temporary_folder()
        _check_space(settings.CACHE_DIR)
        place = f"in '{settings.CACHE_DIR}'"
    except OSError:
        settings.CACHE_DIR, place = "", "nowhere"
    log.warning(
        "numba can write neither beside the library nor in the home folder (%s). It keeps what it compiles %s, and "
        "compiles for some seconds where nothing is kept. NUMBA_CACHE_DIR=FOLDER names a folder that lasts.",
        reason,
        place,
    )
    return place != "nowhere"


def _check_space(folder: str | None) -> None:
    """Raise an OSError if a folder can't take a file of a compiled loop's size: a full disk still takes empty files."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 20))


def _temporary_folder() -> str:
    """Return a folder in the system's temporary one, the same for all processes of this user and for nobody else.

    numba runs what it finds in its cache, so the folder must not be one that another user can write to.
    """
    folder = Path(tempfile.gettempdir(), f"stable_ssl_numba_{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    is_safe = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return str(folder) if is_safe else tempfile.mkdtemp(prefix="stable_ssl_numba_")


# Division by zero gives inf as in NumPy: a check would keep loops from being vectorised.
kernel: Any = functools.partial(numba.njit, cache=_choose_cache(), error_model="numpy", nogil=True)

# numba finds out the types of arguments; these names tell a reader what they are.
Array: TypeAlias = Any
Number: TypeAlias = Any

# Arithmetic with Python's numbers would be in float64.
ZERO, ONE, TO_UNIT = (np.float32(number) for number in (0, 1, 1 / 255))


@intrinsic
def _fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a · b + c, rounded once, as torch's vectorised `add(…, alpha=…)` does."""
    return types.float32(types.float32, types.float32, types.float32), lambda _, builder, __, args: builder.fma(*args)


fma: Any = _fma
