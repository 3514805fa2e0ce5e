"""What an earlier scan of a folder found, kept in the user's cache: a scan that can't be read or kept is made anew."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

log = logging.getLogger("stable_ssl")

VERSION = 1
# Of each file: its bytes, when it changed (ns), its height and width as displayed, whether it is grey, and whether it
# has more than 8 bits. A height of 0 says that nothing is known.
COLUMNS = np.dtype(
    [("size", "<i8"), ("mtime", "<i8"), ("height", "<i4"), ("width", "<i4"), ("is_grey", "?"), ("is_deep", "?")]
)


def cache_of(root: Path) -> Path | None:
    """Return the file for the scan of a folder, in `$XDG_CACHE_HOME` or `~/.cache`; None if there is no such place."""
    place = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(place):  # as the standard of that variable demands
        place = os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
    return Path(place, "stable_ssl", "scans", f"{name}.npz") if os.path.isabs(place) else None


def read_scan(root: Path, files: list[str]) -> np.ndarray:
    """Return a row of `COLUMNS` per file, zeros for a file that is not known."""
    table = np.zeros(len(files), COLUMNS)
    path = cache_of(root)
    if path is None or not path.exists():
        return table
    try:
        with np.load(path, allow_pickle=False) as saved:
            if saved["version"] != VERSION:
                raise ValueError("it is of another version")
            paths, rows = saved["paths"].tobytes(), saved["rows"]
        names = paths.decode(sys.getfilesystemencoding(), "surrogateescape").split("\0")
        if rows.dtype != COLUMNS or len(rows) != len(names):
            raise ValueError("it is damaged")
    except Exception as error:  # damaged files raise errors of many kinds
        log.info("The earlier scan in '%s' is not used, and files are looked at again: %s", path, error)
        return table
    place = dict(zip(names, range(len(names)), strict=True))
    found = np.array([place.get(file, -1) for file in files])
    table[found >= 0] = rows[found[found >= 0]]
    return table


def write_scan(root: Path, files: list[str], table: np.ndarray) -> None:
    """Keep the rows of the files of which something is known."""
    path = cache_of(root)
    if path is None:
        return
    is_known = table["height"] > 0
    paths = "\0".join(file for file, keep in zip(files, is_known.tolist(), strict=True) if keep)
    content = np.frombuffer(paths.encode(sys.getfilesystemencoding(), "surrogateescape"), np.uint8)
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            part = file.name
            np.savez(file, version=VERSION, paths=content, rows=table[is_known])
        os.replace(part, path)  # other processes may write it at the same time
    except OSError as error:
        log.warning(
            "What is known of the images in '%s' can't be kept, so the next start looks at them again: %s", root, error
        )
        if part is not None:
            Path(part).unlink(missing_ok=True)
