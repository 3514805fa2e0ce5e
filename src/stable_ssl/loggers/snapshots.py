"""The folder `snapshots`: what was logged and is no number, in one file per evaluation."""

from __future__ import annotations

import io
import logging
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..runtime.files import whole_file

log = logging.getLogger("stable_ssl")

MAX_BYTES = 20_000_000  # of all files of a run
_STEP = "global_step"


class Snapshots:
    """Collects arrays by key, and writes them to `epoch_<number>.npz` at evaluations.

    Each file also has the key `global_step`. `numpy.load` reads it, without pickle. If the files get larger than 20 MB
    together, the oldest are removed.

    Parameters
    ----------
    folder
        The folder of the files, made when it is needed. None: nothing is kept, as on all processes but one.
    """

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._waiting: dict[str, np.ndarray] = {}
        self._place: tuple[int, int] | None = None  # number and step of the newest evaluation
        self._content: dict[str, np.ndarray] = {}  # of its file
        self._has_warned = False

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays for the next file. The newest one of a key replaces the others."""
        if self._folder is not None:
            self._waiting.update(arrays)

    def write(self, number: int, step: int) -> None:
        """Write what was added, for the evaluation after `number` epochs and `step` optimizer steps.

        If the file can't be written, an error is logged, and the run goes on.
        """
        if self._place != (number, step):
            self._place, self._content = (number, step), {}
        if self._folder is None or not self._waiting:
            return
        self._content |= self._waiting
        self._waiting = {}
        path = self._folder / f"epoch_{number:04d}.npz"
        try:
            self._folder.mkdir(exist_ok=True)
            data = self._packed({_STEP: np.array(step), **self._content})
            self._make_room(path, MAX_BYTES - len(data))
            with whole_file(path) as part:
                part.write_bytes(data)
        except OSError as error:
            log.error("'%s' could not be written: %s", path, error)

    def _packed(self, content: dict[str, np.ndarray]) -> bytes:
        """Return the content of a file, without the largest arrays if all of them are too large."""
        while True:
            data = io.BytesIO()
            total = sum(array.nbytes for array in content.values())
            if total <= 20 * MAX_BYTES:  # more would take long to compress, and hardly fit
                np.savez_compressed(data, **content)  # type: ignore[arg-type]
                if data.tell() <= MAX_BYTES:
                    return data.getvalue()
            largest = max(content, key=lambda key: content[key].nbytes)
            self._warn("'%s', of %.0f MB, is left out", largest, content.pop(largest).nbytes / 1e6)

    def _make_room(self, path: Path, room: int) -> None:
        """Remove the oldest files until all but `path` have at most `room` bytes."""
        others = [(file, file.stat().st_size) for file in _files(path.parent) if file != path]
        total = sum(size for _, size in others)
        for file, size in others:
            if total <= room:
                return
            self._warn("'%s', the oldest file, is removed", file.name)
            file.unlink()
            total -= size

    def _warn(self, what: str, *args: Any) -> None:
        if not self._has_warned:
            log.warning(f"snapshots/ may hold {MAX_BYTES // 10**6} MB: {what}. This is said once.", *args)
        self._has_warned = True

    def state_dict(self) -> dict[str, torch.Tensor] | None:
        """Return what waits for the next file, for a checkpoint. None if nothing does."""
        return {key: torch.tensor(array) for key, array in self._waiting.items()} or None

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what waited when the checkpoint was written."""
        self.add({key: tensor.numpy() for key, tensor in state.items()})


def cut_back(folder: Path, step: int) -> None:
    """Remove the files of evaluations after optimizer step `step`, so that a resumed run writes them anew."""
    for path in _files(folder):
        try:
            with np.load(path) as content:
                is_newer = int(content[_STEP]) > step
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            is_newer = True  # damaged
        if is_newer:
            path.unlink()


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder, the oldest first."""
    numbered = ((re.fullmatch(r"epoch_(\d+)\.npz", path.name), path) for path in folder.glob("epoch_*.npz"))
    return [path for _, path in sorted((int(found[1]), path) for found, path in numbered if found)]
