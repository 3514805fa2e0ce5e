"""Checkpoints that can be trusted: written whole or not at all, verified before use, loaded without running code.

checkpoints/step_00001200/
    state.pt     the state, for `torch.load(weights_only=True)`
    meta.json    written last: what made it, and size and checksum of the other file
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..exceptions import CheckpointError
from .environment import software

log = logging.getLogger("stable_ssl")

FORMAT = 1


class CheckpointStore:
    """The resumable checkpoints of one run.

    Parameters
    ----------
    folder
        Where they are; made when the first is saved.
    keep
        How many to keep.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep
        self._read_back = False
        self._copy: Any = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: tuple[int, Future] | None = None

    def save(self, step: int, state: dict[str, Any], facts: dict[str, Any], kept: bool = False) -> None:
        """Copy a state to host memory, and write it as a checkpoint in the background.

        The first one is waited for, and read back. The memory of the copy is kept for the next one, until `close`.

        Parameters
        ----------
        step
            Global step; names the folder. A checkpoint of the same step is replaced.
        state
            Tensors, numbers, strings and containers of them.
        facts
            What `meta.json` says beside software and files.
        kept
            Never delete this one.

        Raises
        ------
        CheckpointError
            The state can't be loaded again (found by reading the first one back).
        """
        self.wait()
        is_first = not self._read_back  # asked now: the writer may be done with that before it is asked afterwards
        self._copy = on_host(state, self._copy)
        self._writing = step, self._writer.submit(self._write, step, self._copy, facts, kept)
        if is_first:
            self.wait()

    def wait(self) -> bool:
        """Wait until the checkpoint being written is durable; False, and a line in the log, where it could not be.

        What was there before it still is then.
        """
        if self._writing is None:
            return True
        (step, future), self._writing = self._writing, None
        try:
            future.result()
        except (OSError, RuntimeError) as error:
            # torch's writer of archives hides the disk's error behind one of its own.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            log.error("The checkpoint of step %d could not be written, the one before it stands: %s", step, cause)
            return False
        return True

    def close(self) -> None:
        """Wait for the checkpoint being written, and give up the host memory."""
        self.wait()
        self._copy = None

    def _write(self, step: int, state: dict[str, Any], facts: dict[str, Any], kept: bool) -> None:
        """Write one checkpoint, durable when this returns, and delete the oldest beyond `keep`."""
        final = self.folder / f"step_{step:08d}"
        part = self.folder / f".{final.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            with _HashingFile(part / "state.pt") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
                fingerprint = {"bytes": file.tell(), "sha256": file.sha256.hexdigest()}
            if not self._read_back:
                _load_state(part)
                self._read_back = True
            meta = {
                "format": FORMAT,
                "software": software(),
                "kept": kept,
                **facts,
                "files": {"state.pt": fingerprint},
            }
            with open(part / "meta.json", "w") as file:
                json.dump(meta, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(part)
            replaced = self.folder / f".{final.name}.old"
            if final.exists():  # `load_newest` looks at this one too, should we end between the two renames
                final.rename(replaced)
            part.rename(final)
            sync_folder(self.folder)
            self._delete(replaced)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        deletable = [folder for folder in self._newest_first() if not _is_kept(folder)]
        for old in deletable[self.keep :]:
            self._delete(old)

    def load_newest(self) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
        """Return (folder, state, meta) of the newest checkpoint that verifies; None where there is none at all.

        One that does not verify is reported and put aside, as `invalid_step_…`, and the one before it is used.

        Raises
        ------
        CheckpointError
            There are checkpoints, and none of them is valid.
        """
        reasons: dict[Path, str] = {}
        for folder in self._newest_first():
            try:
                meta = _verify(folder)
                state = _load_state(folder)
            except CheckpointError as error:
                log.error("%s", error)
                reasons[folder] = str(error)
                continue
            for invalid in reasons:  # or they would count among the newest
                aside = self.folder / f"invalid_{invalid.name.lstrip('.')}"
                shutil.rmtree(aside, ignore_errors=True)
                invalid.rename(aside)
            return folder, state, meta
        if reasons:
            raise CheckpointError(
                "\n".join(
                    [f"None of the checkpoints in '{self.folder}' is valid; not starting over.", *reasons.values()]
                )
            )
        return None

    def is_empty(self) -> bool:
        """Whether nothing was saved yet, valid or not."""
        return not self._newest_first()

    def _newest_first(self) -> list[Path]:
        folders = [*self.folder.glob("step_*[0-9]"), *self.folder.glob(".step_*[0-9].old")]
        return sorted(folders, key=lambda folder: (int(folder.stem.split("_")[1]), not folder.suffix), reverse=True)

    def _delete(self, folder: Path) -> None:
        """Delete metadata first, so that a deletion cut short leaves nothing that looks valid."""
        (folder / "meta.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


class _HashingFile(io.BufferedWriter):
    """A file that knows the checksum of what was written to it, so that it need not be read again for that."""

    def __init__(self, path: Path):
        super().__init__(open(path, "wb", buffering=0))  # noqa: SIM115 (closed with this one)
        self.sha256 = hashlib.sha256()

    def write(self, data) -> int:
        self.sha256.update(data)
        return super().write(data)


def on_host(state: Any, earlier: Any = None) -> Any:
    """Return a copy of a nested state that nobody else changes, its tensors in host memory.

    Tensors of `earlier`, a copy that is not needed any more, are overwritten where they fit: fresh memory costs more
    than the copying.
    """
    if isinstance(state, Tensor):
        state = state.detach()
        copy = earlier if _has_form(earlier, state) else torch.empty_like(state, device="cpu")
        _overwrite(copy, state)
        return copy
    if isinstance(state, dict):
        earlier = earlier if isinstance(earlier, dict) else {}
        return {key: on_host(value, earlier.get(key)) for key, value in state.items()}
    if isinstance(state, list | tuple):
        earlier = earlier if isinstance(earlier, list | tuple) and len(earlier) == len(state) else [None] * len(state)
        return type(state)(on_host(value, before) for value, before in zip(state, earlier, strict=True))
    return state


def digest(value: Any) -> bytes:
    """Return what tells nested states of host tensors, numbers and strings apart."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, dict | list | tuple):
            found.update(f"{type(value).__name__} {len(value)}".encode())
            for item in value.items() if isinstance(value, dict) else value:
                add(item)
        else:
            found.update(repr(value).encode())

    add(value)
    return found.digest()


def _overwrite(copy: Tensor, tensor: Tensor) -> None:
    if tensor.device.type == "cpu":
        # torch's threads would wait for each other at every tensor, which takes ten times as long on shared cores.
        with contextlib.suppress(TypeError, RuntimeError):  # a kind of tensor that NumPy lacks
            numpy.copyto(copy.numpy(), tensor.numpy())
            return
    copy.copy_(tensor)


def _has_form(candidate: Any, tensor: Tensor) -> bool:
    """Whether `candidate` is a tensor that differs from `tensor` in device and values only."""
    return (
        type(candidate) is type(tensor)
        and candidate.layout == tensor.layout == torch.strided
        and (candidate.dtype, candidate.shape, candidate.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    )


def _is_kept(folder: Path) -> bool:
    try:
        return json.loads((folder / "meta.json").read_text())["kept"]
    except (OSError, ValueError, KeyError):
        return False


def sync_folder(folder: Path) -> None:
    """Make renames and deletions inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verify(folder: Path) -> dict[str, Any]:
    """Return the content of `meta.json` after checking the files against it."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        expected = meta["files"]["state.pt"]
        version = meta["format"]
    except FileNotFoundError:
        raise CheckpointError(f"'{folder}' is not a whole checkpoint: it has no meta.json.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"'{folder / 'meta.json'}' can't be read: {error!r}") from error
    if version != FORMAT:
        raise CheckpointError(f"'{folder}' has format {version}; this version reads format {FORMAT}.")
    try:
        found = _fingerprint(folder / "state.pt")
    except OSError as error:
        raise CheckpointError(f"'{folder / 'state.pt'}' can't be read: {error}") from error
    if found != expected:
        raise CheckpointError(f"'{folder / 'state.pt'}' is damaged: {found} instead of {expected}.")
    return meta


def _load_state(folder: Path) -> dict[str, Any]:
    try:
        return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"'{folder / 'state.pt'}' can't be loaded: a state may hold tensors, numbers, strings and containers "
            f"of them only, so that loading never runs code. {error}"
        ) from error
