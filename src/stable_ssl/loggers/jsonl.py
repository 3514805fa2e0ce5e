"""The file `metrics.jsonl`, which has one JSON object per line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..exceptions import CheckpointError

_MANY_BYTES = 1 << 16


class MetricsFile:
    """A file of JSON lines to which records are appended.

    Floats read back as the same bits. Those that are not finite are written as `NaN` and `Infinity`, which Python's
    `json` reads.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        self._pending = bytearray()

    def log(self, record: dict[str, Any]) -> None:
        """Append a record. It is kept in memory until `position`, `close`, or the next 64 KiB of records."""
        self._pending += json.dumps(record).encode() + b"\n"
        if len(self._pending) > _MANY_BYTES:
            with contextlib.suppress(OSError):  # a full disk may have room later; if not, `position` raises
                self._write()

    def position(self) -> int:
        """Write all records to disk and return the length of the file in bytes, which a checkpoint remembers.

        Raises
        ------
        OSError
            Some records could not be written. They are kept in memory, and the next call tries again.
        """
        if not self.path.exists():  # it was removed or moved: records go on in a new file
            self._file.close()
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self._write()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def _write(self) -> None:
        begin, done = self._file.seek(0, os.SEEK_END), 0
        try:
            while done < len(self._pending):
                done += self._file.write(self._pending[done:])
        except OSError as error:
            error.filename = str(self.path)
            done = self._pending.rfind(b"\n", 0, done) + 1
            self._file.truncate(begin + done)  # no half record stays
            raise
        finally:
            del self._pending[:done]

    def cut_back(self, position: int) -> None:
        """Remove everything after the first `position` bytes, so that a resumed run writes those records anew.

        Raises
        ------
        CheckpointError
            The file is shorter than `position`.
        """
        length = self._file.seek(0, os.SEEK_END)
        if length < position:
            raise CheckpointError(
                f"'{self.path}' has {length} bytes, but had {position} when the checkpoint was written, so lines "
                "are missing. Restore the file from a copy."
            )
        self._file.truncate(position)
        self._file.seek(position)

    def close(self) -> None:
        """Write all records to disk and close the file."""
        try:
            self.position()
        finally:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without a last line that was not written to its end."""
    return list(iterate_metrics(path))


def iterate_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records that `read_metrics` returns, one by one."""
    if path.exists():
        with open(path) as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))
