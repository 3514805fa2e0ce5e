"""What an earlier scan of a folder found, kept in the user's cache: a scan that can't be read or kept is made anew."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..runtime.files import printable, user_cache

log = logging.getLogger("stable_ssl")

VERSION = 1
ENCODING = sys.getfilesystemencoding()
# Of each file: its bytes, when it changed (ns), its height and width as displayed, whether it is grey, and whether it
# has more than 8 bits. A height of 0 says that nothing is known.
COLUMNS = np.dtype(
    [("size", "<i8"), ("mtime", "<i8"), ("height", "<i4"), ("width", "<i4"), ("is_grey", "?"), ("is_deep", "?")]
)


def cache_of(root: Path) -> Path | None:
    """Return the file for the scan of a folder, in `$XDG_CACHE_HOME` or `~/.cache`; None if there is no such place."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
    place = user_cache()
    return place / "scans" / f"{name}.npz" if place else None


class Scan:
    """What is known of files.

    Parameters
    ----------
    files
        Their paths, relative to the folder.
    rows
        A row of `COLUMNS` per file.
    """

    def __init__(self, files: list[str], rows: np.ndarray):
        self.files, self.rows = files, rows

    def of(self, files: list[str]) -> np.ndarray:
        """Return the rows of some files, zeros for a file that is not known."""
        place = dict(zip(self.files, range(len(self.files)), strict=True))
        found = np.array([place.get(file, -1) for file in files], int)
        table = np.zeros(len(files), COLUMNS)
        table[found >= 0] = self.rows[found[found >= 0]]
        return table

    def replace(self, files: list[str], rows: np.ndarray, all_files: list[str]) -> None:
        """Take other rows for some files, and forget the files that are not in `all_files`."""
        others = sorted(set(all_files).difference(files))
        rows = np.concatenate([rows, self.of(others)])
        is_known = rows["height"] > 0
        self.files = [file for file, keep in zip([*files, *others], is_known.tolist(), strict=True) if keep]
        self.rows = rows[is_known]


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[bool]:
    """Wait until no other process of this user scans the folder; others wait until this one is done.

    So the processes of a run do not all read the same headers. If files can't be locked there, nobody waits.

    Yields
    ------
    Whether another process was waited for.
    """
    path = cache_of(root)
    if path is None:
        yield False
        return
    place = int(path.stem[:7], 16)  # a byte of the file stands for the folder; a lock needs no byte to be there
    has_waited = False
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path.parent / ".lock", "w"))
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except (BlockingIOError, PermissionError):  # another process has it
                log.info("'%s': another process looks at the images. Its result is waited for.", printable(root))
                fcntl.lockf(file, fcntl.LOCK_EX, 1, place)
                has_waited = True
        except OSError as error:
            log.debug("'%s': scans can't be locked: %s", printable(root), error)
        yield has_waited


def read_scan(root: Path) -> Scan:
    """Return the scan of a folder that was kept; an empty one if there is none, or it can't be used."""
    path, nothing = cache_of(root), Scan([], np.zeros(0, COLUMNS))
    if path is None:
        return nothing
    try:
        with np.load(path, allow_pickle=False) as saved:
            if saved["version"] != VERSION:
                raise ValueError("it is of another version")
            names, rows = saved["files"].tobytes().decode(ENCODING, "surrogateescape"), saved["rows"]
        files = names.split("\0") if names else []
        if rows.dtype != COLUMNS or len(rows) != len(files):
            raise ValueError("it is damaged")
        return Scan(files, rows)
    except OSError:  # there is none, or it can't be read: then it can't be written either, which is said
        return nothing
    except Exception as error:  # damaged files raise errors of many kinds
        log.info("'%s', what is known of '%s', is not used: %s", printable(path), printable(root), error)
        with contextlib.suppress(OSError):
            path.unlink()
        return nothing


def write_scan(root: Path, scan: Scan) -> None:
    """Keep the scan of a folder."""
    path = cache_of(root)
    if path is None:
        return
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            part = Path(file.name)
            names = np.frombuffer("\0".join(scan.files).encode(ENCODING, "surrogateescape"), np.uint8)
            np.savez(file, version=VERSION, files=names, rows=scan.rows)
        part.replace(path)  # other processes may do so at the same time
    except OSError as error:
        log.warning(
            "What is known of '%s' can't be kept in '%s', so that each start looks at all images: %s",
            printable(root),
            printable(path),
            error,
        )
        if part is not None:
            part.unlink(missing_ok=True)
