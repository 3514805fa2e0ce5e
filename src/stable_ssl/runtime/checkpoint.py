"""Checkpoints on disk: written completely or not at all, verified before use, and loaded without running their code.

checkpoints/step_00001200/
    state.pt     the state, for `torch.load(weights_only=True)`
    meta.json    written last: the software, facts about the run, and size and checksum of state.pt
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from ..exceptions import CheckpointError
from .environment import software
from .files import sync_folder

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

log = logging.getLogger("stable_ssl")

FORMAT = 1
_MAY_HOLD = "A state may only hold tensors, numbers, strings and containers of them, so that loading never runs code."


class CheckpointStore:
    """The resumable checkpoints of one run.

    Parameters
    ----------
    folder
        The folder of the checkpoints. The first save creates it.
    keep
        Number of checkpoints to keep. Older ones are deleted.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep
        self._read_back = False
        self._copy: Any = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: tuple[int, Future] | None = None
        self._is_written = True

    def save(self, step: int, state: dict[str, Any], facts: dict[str, Any], kept: bool = False) -> None:
        """Copy a state to host memory, then write it as a checkpoint in the background.

        The first save waits until the checkpoint is written and was read back. The memory of the copy is used again for
        the next save, until `close` gives it up.

        Parameters
        ----------
        step
            The global step, which names the folder. A checkpoint of the same step is replaced.
        state
            Tensors, numbers, strings and containers of them.
        facts
            Further entries of `meta.json`.
        kept
            Whether this checkpoint is never deleted.

        Raises
        ------
        CheckpointError
            The state is not of these types: the first checkpoint could not be read back, or one could not be written.
        """
        self.wait()
        is_first = not self._read_back  # read before the writer starts, because the writer sets it
        self._copy = on_host(state, self._copy)
        self._writing = step, self._writer.submit(self._write, step, self._copy, facts, kept)
        if is_first:
            self.wait()

    def wait(self) -> bool:
        """Wait until the last checkpoint is on disk, and return whether it could be written.

        If it could not, for example because the disk is full, an error is logged and earlier checkpoints stay valid.
        """
        if self._writing is None:
            return self._is_written
        (step, future), self._writing = self._writing, None
        try:
            future.result()
            self._is_written = True
        except OSError as error:
            log.error("The checkpoint of step %d could not be written: %s. %s", step, error, self.what_stands())
            self._is_written = False
        return self._is_written

    def close(self) -> bool:
        """Wait as `wait` does, return what it returns, and free the host memory of the copy."""
        is_written = self.wait()
        self._copy = None
        return is_written

    def _write(self, step: int, state: dict[str, Any], facts: dict[str, Any], kept: bool) -> None:
        """Write one checkpoint to disk, and delete the oldest ones beyond `keep`."""
        final = self.folder / f"step_{step:08d}"
        part = self.folder / f".{final.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            with _HashingFile(part / "state.pt") as file:
                try:
                    torch.save(state, file)
                except RuntimeError as error:  # of torch's own, if the disk failed
                    raise file.failure or error from None
                except (pickle.PicklingError, AttributeError, TypeError) as error:  # such as for a function or a lock
                    raise CheckpointError(f"A checkpoint can't be written. {_MAY_HOLD} {error}") from error
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
            if final.exists():  # if this process ends between the two renames, `load_newest` finds `replaced`
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

    def load_newest(self, is_owner: bool = True) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
        """Return (folder, state, meta) of the newest valid checkpoint, or None if there are no checkpoints.

        An invalid checkpoint is logged and renamed to `invalid_step_…`, and the one before it is tried.

        Parameters
        ----------
        is_owner
            Whether this process may rename checkpoints, because no other one uses the folder.

        Raises
        ------
        CheckpointError
            There are checkpoints, but none of them is valid.
        """
        reasons: dict[Path, str] = {}
        for folder in self._newest_first():
            try:
                state, meta = read_checkpoint(folder)
            except CheckpointError as error:
                reasons[folder] = str(error)
                continue
            for reason in reasons.values():  # if none is valid, the error holds them
                log.error("%s", reason)
            for invalid in reasons if is_owner else ():  # else they would be among the newest ones that are kept
                aside = self.folder / f"invalid_{invalid.name.lstrip('.')}"
                shutil.rmtree(aside, ignore_errors=True)
                invalid.rename(aside)
            return folder, state, meta
        if reasons:
            what = f"None of the checkpoints in '{self.folder}' is valid. Restore one, or delete all to begin anew."
            raise CheckpointError("\n".join([what, *reasons.values()]))
        return None

    def read(self, step: int | None = None) -> tuple[Path, dict[str, Any], dict[str, Any]]:
        """Return (folder, state, meta) of the checkpoint of a step, or of the newest valid one. No file is touched.

        Raises
        ------
        CheckpointError
            It is not valid, or there is no such checkpoint. Then the message lists the steps of those that there are.
        """
        found = self.load_newest(is_owner=False) if step is None else None
        if found is not None:
            return found
        by_step = {_step_of(folder): folder for folder in reversed(self._newest_first())}
        if step is None or step not in by_step:
            what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise CheckpointError(f"'{self.folder}' has {what}; the steps of those that there are: {list(by_step)}.")
        return by_step[step], *read_checkpoint(by_step[step])

    def newest_meta(self) -> dict[str, Any]:
        """Return the `meta.json` of the newest checkpoint that has one that can be read; empty if none has.

        The state beside it is not verified, which would take longer.
        """
        for folder in self._newest_first():
            with contextlib.suppress(OSError, ValueError):
                meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
                return meta
        return {}

    def is_empty(self) -> bool:
        """Return whether there is no checkpoint, valid or not."""
        return self.newest_step() is None

    def newest_step(self) -> int | None:
        """Return the global step of the newest checkpoint, valid or not; None if there is none."""
        return next((_step_of(folder) for folder in self._newest_first()), None)

    def what_stands(self) -> str:
        """Return what a run has, in sentences, if its newest state could not be written."""
        if (newest := self.newest_step()) is not None:
            return f"That of step {newest} stands: started again, the run goes on from there."
        return (
            "The run has NO CHECKPOINT: if it ends now, all that it has trained is lost, and started again it begins "
            f"anew. Mend that: the next checkpoint is written to '{self.folder}' too."
        )

    def _newest_first(self) -> list[Path]:
        """Return the folders of all checkpoints. One that was being replaced comes after its replacement."""
        folders = [*self.folder.glob("step_*[0-9]"), *self.folder.glob(".step_*[0-9].old")]
        return sorted(folders, key=lambda folder: (_step_of(folder), not folder.suffix), reverse=True)

    def _delete(self, folder: Path) -> None:
        """Delete a checkpoint. Its meta.json goes first, so that a half-deleted checkpoint is not valid."""
        (folder / "meta.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


class _HashingFile(io.BufferedWriter):
    """A file that computes its checksum while it is written, so that it need not be read again.

    `failure` is the error of the disk, if there was one. torch raises another error then, which may forget its cause.
    """

    def __init__(self, path: Path):
        super().__init__(open(path, "wb", buffering=0))  # noqa: SIM115 (closed with this one)
        self.sha256 = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: ReadableBuffer) -> int:
        self.sha256.update(data)
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def on_host(state: Any, earlier: Any = None) -> Any:
    """Return a copy of a nested state, with its tensors in host memory.

    Parameters
    ----------
    state
        Tensors, numbers, strings, and dicts, lists and tuples of them.
    earlier
        A copy that is not needed any more. Its tensors are overwritten if dtype and shape suit, because new memory
        takes more time than the copy itself.
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
    # torch.load refuses subclasses of int, such as that of `global_step`, so their values are saved.
    return int(state) if isinstance(state, int) and not isinstance(state, bool) else state


def digest(value: Any) -> bytes:
    """Return a checksum of a nested state of host tensors, numbers and strings, to compare states by."""
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
        # NumPy copies with one thread. torch's threads wait for each other at every tensor, which takes ten times as
        # long if other processes use the cores too.
        with contextlib.suppress(TypeError, RuntimeError):  # NumPy lacks some dtypes
            numpy.copyto(copy.numpy(), tensor.numpy())
            return
    copy.copy_(tensor)


def _has_form(candidate: Any, tensor: Tensor) -> bool:
    """Return whether `candidate` is a tensor that differs from `tensor` in its device and its values only."""
    return (
        type(candidate) is type(tensor)
        and candidate.layout == tensor.layout == torch.strided
        and (candidate.dtype, candidate.shape, candidate.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    )


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (state, meta) of a checkpoint.

    Raises
    ------
    CheckpointError
        The checkpoint is not whole, damaged, or of another format.
    """
    meta = _verify(folder)
    return _load_state(folder), meta


def _step_of(folder: Path) -> int:
    return int(folder.stem.split("_")[1])


def _is_kept(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "meta.json").read_text())["kept"])
    except (OSError, ValueError, KeyError):
        return False


def _fingerprint(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verify(folder: Path) -> dict[str, Any]:
    """Return the content of `meta.json`, after checking size and checksum of `state.pt`."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        expected = meta["files"]["state.pt"]
        version = meta["format"]
    except FileNotFoundError:
        raise CheckpointError(f"'{folder}' is not a whole checkpoint, because it has no meta.json.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"'{folder / 'meta.json'}' can't be read: {error!r}") from error
    if version != FORMAT:
        raise CheckpointError(f"'{folder}' has format {version}, but this version of stable-ssl reads format {FORMAT}.")
    try:
        found = _fingerprint(folder / "state.pt")
    except OSError as error:
        raise CheckpointError(f"'{folder / 'state.pt'}' can't be read: {error}") from error
    if found != expected:
        sizes = [fingerprint["bytes"] for fingerprint in (found, expected)]
        what = (
            "its bytes are not those that were written" if len({*sizes}) == 1 else "it has {:,} bytes instead of {:,}"
        )
        raise CheckpointError(f"'{folder / 'state.pt'}' is damaged: {what.format(*sizes)}.")
    return meta


def _load_state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        return state
    except Exception as error:
        raise CheckpointError(f"'{folder / 'state.pt'}' can't be loaded. {_MAY_HOLD} {error}") from error
