"""Features in files: found again if they are whole, and written so that they appear completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..exceptions import ConfigError
from ..runtime.files import printable, size_in_words, whole_file

LABELS = "labels"
SAVED_EVERY = 40  # chunks after which an interrupted computation may go on
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def in_cache(folder: Path, num_bytes: int = 0) -> Iterator[None]:
    """Have an OSError of the `with` block be a ConfigError: the folder is full, or can't be used.

    Parameters
    ----------
    folder
        Where the block reads and writes.
    num_bytes
        How much it writes, for the message. 0: next to nothing.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise ConfigError(f"--cache: '{printable(folder)}' can't be used: {error.strerror}.") from error
        wanted = f" for {size_in_words(num_bytes)}" if num_bytes else ""
        raise ConfigError(
            f"--cache: there is no room{wanted} in '{printable(folder)}': {error.strerror}. Give another --cache DIR, "
            "or `--cache none`, which takes a temporary folder in $TMPDIR."
        ) from error


def path_of(folder: Path, name: str) -> Path:
    """Return the file of a feature, or of the labels."""
    return folder / f"{name}.npy"


def missing(folder: Path, names: Sequence[str], number: int, say: Callable[[str], None]) -> list[str]:
    """Return the features that a folder does not have. Damaged files are removed.

    Parameters
    ----------
    folder
        The folder.
    names
        The features.
    number
        How many images there are.
    say
        Gets a line per damaged file.
    """
    with in_cache(folder):
        without = {name for name in (*names, LABELS) if not _is_whole(path_of(folder, name), name, number)}
        for path in (path_of(folder, name) for name in sorted(without)):
            if os.path.lexists(path):
                say(f"'{printable(path)}' of the cache is damaged, so it is computed again")
                _remove(path)
    return [name for name in names if without & {name, LABELS}]


def _is_whole(path: Path, name: str, number: int) -> bool:
    """Return whether a file has the feature, or the labels, of all images."""
    try:
        found = np.lib.format.open_memmap(path, "c")  # refuses a file that is too short
    except (FileNotFoundError, IsADirectoryError):
        return False
    except (OSError, MemoryError):  # which say nothing about the file
        raise
    except Exception:  # a damaged header leads to several kinds
        return False
    kind = (np.int64, 1) if name == LABELS else (np.float32, 2)
    return (found.dtype, found.ndim) == kind and len(found) == number


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Writer:
    """Writes features and labels to files, chunk by chunk. They get their names when all are there.

    The first chunk takes the room for all, since a full disk would end a process that writes to memory-mapped files.
    If anything can't be written, the files that this one began are removed.

    Parameters
    ----------
    folder
        Their folder.
    names
        The features.
    number
        How many images there are.

    Attributes
    ----------
    first
        The number of the first chunk that is missing.

    Raises
    ------
    ConfigError
        There is no room, or the folder can't be used.
    """

    def __init__(self, folder: Path, names: Sequence[str], number: int):
        self._folder, self._names, self._number = folder, [*names, LABELS], number
        self._progress = folder / "progress.json"
        self._values: dict[str, np.ndarray] = {}
        self._num_bytes = self._num_added = self.first = 0
        with self._writing():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it is damaged, or not there
                known = json.loads(self._progress.read_text())
                if known["names"] == self._names and all(_is_whole(self._part(n), n, number) for n in self._names):
                    self._values = {name: np.load(self._part(name), mmap_mode="r+") for name in self._names}
                    self.first = int(known["chunks"])
            if not self.first:  # what is written from now on is not what it speaks of
                self._remove()

    def _part(self, name: str) -> Path:
        return self._folder / f".{name}.part.npy"

    def _remove(self) -> None:
        self._values.clear()
        for path in (self._progress, *map(self._part, self._names)):
            _remove(path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with in_cache(self._folder, self._num_bytes):
                yield
        except ConfigError:
            if not self.first:  # else they are still what the progress says
                with contextlib.suppress(OSError):
                    self._remove()
            raise

    def add(self, indices: list[int], values: dict[str, np.ndarray], labels: np.ndarray) -> None:
        """Write one chunk."""
        rows = {**values, LABELS: labels.astype(np.int64)}
        if not self._values:
            self._num_bytes = self._number * sum(one[0].nbytes for one in rows.values())
            with self._writing():
                for name, one in rows.items():
                    self._values[name] = _with_room(self._part(name), one.dtype, (self._number, *one.shape[1:]))
        for name, one in rows.items():
            self._values[name][indices] = one
        self._num_added += 1
        if self._num_added % SAVED_EVERY == 0:
            self._save()

    def _save(self) -> None:
        with self._writing():
            for array in self._values.values():
                array.flush()  # type: ignore[attr-defined]
            with whole_file(self._progress) as part:
                part.write_text(json.dumps({"names": self._names, "chunks": self.first + self._num_added}))

    def finish(self) -> None:
        """Give the files their names."""
        self._save()
        self._values.clear()
        with self._writing():
            for name in self._names:
                os.replace(self._part(name), path_of(self._folder, name))
            self._progress.unlink()


def _with_room(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Make a file of an array, for all of which the disk has room, and return the array, memory-mapped."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array
