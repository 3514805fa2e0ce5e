"""Files that appear completely or not at all, whatever ends the process or fills the disk."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_REST = "\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_CONTROL, _IN_LINES = re.compile(f"[\0-\x0a{_REST}]"), re.compile(f"[\0-\x08{_REST}]")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file for the `with` block to write. After the block, it takes the place of `path`.

    If the block or the disk fails, the temporary file is deleted, and `path` stays as it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


class HashingFile(io.BufferedWriter):
    """A file that computes its checksum while it is written, so that it need not be read again.

    `failure` is the error of the disk, if there was one. torch raises another error then, which may forget its cause.
    """

    def __init__(self, path: Path):
        super().__init__(open(path, "wb", buffering=0))  # noqa: SIM115 (closed with this one)
        self._sha256, self._bytes = hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, data: ReadableBuffer) -> int:
        """Write bytes, and return their number."""
        self._sha256.update(data)
        self._bytes += memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise

    def fingerprint(self) -> dict[str, Any]:
        """Return size and checksum of what was written."""
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}


def sync_folder(folder: Path) -> None:
    """Write a folder's list of files to disk, so that renames and deletions in it survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_cache() -> Path | None:
    """Return this package's folder in `$XDG_CACHE_HOME` or `~/.cache`; None if there is no such place."""
    place = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(place):  # as the standard of that variable demands
        place = os.path.expanduser("~/.cache")
    return Path(place, "stable_ssl") if os.path.isabs(place) else None


def state_of(status: os.stat_result) -> tuple[int, int]:
    """Return the size of a file in bytes, and when it was changed, in nanoseconds since 1970."""
    return status.st_size, status.st_mtime_ns


def size_in_words(num_bytes: float) -> str:
    """Return a number of bytes in the unit that suits it, such as "1.5 MB"."""
    unit, name = next((scale for scale in ((1e9, "GB"), (1e6, "MB")) if num_bytes >= scale[0] / 2), (1e3, "kB"))
    return f"{num_bytes / unit:,.1f} {name}"


def time_in_words(seconds: float) -> str:
    """Return a time in the unit that suits it, such as "2.5 min"."""
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    unit, name = next((scale for scale in units if seconds >= 2 * scale[0]), (1, "s"))
    number = seconds / unit
    return f"{number:,.0f} {name}" if number >= 100 else f"{number:.3g} {name}"


def printable(text: str | os.PathLike, keeps_lines: bool = False) -> str:
    """Return a path, or a text with paths, as every terminal and file takes it.

    Names of files are bytes, and some are no UTF-8. Python keeps such bytes as characters that can't be written; here
    they become "\\xe9", for example. So do characters that would control a terminal, or the direction of its text.

    Parameters
    ----------
    text
        The path or the text.
    keeps_lines
        Leave line breaks and tabs as they are, since the text has several lines.
    """
    shown = os.fspath(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return (_IN_LINES if keeps_lines else _CONTROL).sub(lambda found: found[0].encode("unicode_escape").decode(), shown)
