"""`metrics.jsonl`: one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ..exceptions import CheckpointError

_MANY = 1 << 16  # bytes


class MetricsFile:
    """Appends records to a file of JSON lines.

    Floats are written so that they read back to the bit; those that are not finite as `NaN` and `Infinity`, which
    Python's `json` reads.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        self._pending = bytearray()

    def log(self, record: dict[str, Any]) -> None:
        """Append a record. It is on disk after `position` or `close`, or when many are pending."""
        self._pending += json.dumps(record).encode() + b"\n"
        if len(self._pending) > _MANY:
            with contextlib.suppress(OSError):  # a full disk may have room later; `position` says so else
                self._write()

    def position(self) -> int:
        """Return the length in bytes, with everything on disk; a checkpoint remembers it.

        Raises
        ------
        OSError
            Not everything could be written; what could not is kept, for the next time.
        """
        self._write()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def _write(self) -> None:
        while self._pending:
            del self._pending[: self._file.write(self._pending)]

    def cut_back(self, position: int) -> None:
        """Forget what came after `position`, a half-written line included.

        Raises
        ------
        CheckpointError
            The file is shorter than that.
        """
        length = self._file.seek(0, os.SEEK_END)
        if length < position:
            raise CheckpointError(
                f"'{self.path}' has {length} bytes, but the checkpoint was written after {position}: lines are missing."
            )
        self._file.truncate(position)
        self._file.seek(position)

    def close(self) -> None:
        """Write everything and close the file."""
        try:
            self.position()
        finally:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; a last line that was cut off is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
