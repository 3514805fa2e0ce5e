"""Checkpoints on disk: written completely or not at all, verified before use, and loaded without running their code.

Each is a folder `checkpoints/step_00001200`; `checkpoint_files.py` says what is in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from ..exceptions import CheckpointError, PeerError
from . import sharded
from .checkpoint_files import (
    FORMAT,
    FORMAT_OF_SHARDS,
    NotSharedError,
    check_seen,
    load_state,
    read_checkpoint,
    with_shards,
    write_meta,
    write_state,
)
from .distributed import local
from .environment import software
from .files import sync_folder
from .peers import Peers

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from .sharded import Layout

    Found = tuple[Path, dict[str, Any], dict[str, Any]]

log = logging.getLogger("stable_ssl")


class CheckpointStore:
    """The resumable checkpoints of one run.

    Parameters
    ----------
    folder
        The folder of the checkpoints. The first save creates it.
    keep
        Number of checkpoints to keep. Older ones are deleted.
    peers
        The processes of the run. If there are several, all of them call `save`, `load_newest` and `read`. None: this
        process is alone.
    """

    def __init__(self, folder: Path, keep: int = 2, peers: Peers | None = None):
        self.folder = folder
        self.keep = keep
        self._peers = peers or Peers()
        self._read_back = False
        self._copy: Any = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: tuple[int, Future] | None = None
        self._is_written = True

    def save(self, step: int, state: dict[str, Any], facts: dict[str, Any], kept: bool = False) -> None:
        """Copy a state to host memory, then write it as a checkpoint in the background.

        Rank 0 writes what it has. If the state has sharded tensors, each process writes its parts of them. The first
        save waits until the checkpoint is written and was read back. The memory of the copy is used again for the next
        save, until `close` gives it up.

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
            The state holds something other than these types. That is found when a checkpoint is written, or when the
            first one is read back.
        """
        self.wait()
        is_first = not self._read_back  # read before the writer starts, because the writer sets it
        shards: dict[str, DTensor] = {}
        rest = sharded.split(state, shards)
        self._copy = on_host((rest if self._peers.rank == 0 else {}, shards), self._copy)
        rest, shards = self._copy
        self._writing = step, self._writer.submit(self._write, step, rest, shards, facts, kept)
        if is_first:
            self.wait()

    def wait(self) -> bool:
        """Wait until the last checkpoint is on disk, and return whether it could be written.

        If it could not, for example because the disk of one process is full, an error is logged and earlier checkpoints
        stay valid. All processes log and return the same.
        """
        if self._writing is None:
            return self._is_written
        (step, future), self._writing = self._writing, None
        try:
            future.result()
            self._is_written = True
        except (OSError, PeerError) as error:
            log.error("The checkpoint of step %d could not be written: %s. %s", step, error, self.what_stands())
            self._is_written = False
        return self._is_written

    def close(self) -> bool:
        """Wait as `wait` does, return what it returns, and free the host memory of the copy."""
        is_written = self.wait()
        self._copy = None
        return is_written

    def _write(
        self, step: int, state: dict[str, Any], shards: dict[str, DTensor], facts: dict[str, Any], kept: bool
    ) -> None:
        """Write one checkpoint to disk, and delete the oldest ones beyond `keep`."""
        final = self.folder / f"step_{step:08d}"
        part = self.folder / f".{final.name}.part"
        files: dict[str, dict[str, Any]] = {}
        try:
            self._peers.agree(lambda: self._begin(part, state, files))
            if shards:
                files.update(self._write_shards(part / "shards", shards))
            self._read_back = True
            meta = {
                "format": FORMAT_OF_SHARDS if shards else FORMAT,
                "software": software(),
                "kept": kept,
                **facts,
                "files": files,
            }
            self._peers.agree(lambda: self._finish(part, final, meta))
        except BaseException:
            if self._peers.rank == 0:
                shutil.rmtree(part, ignore_errors=True)
            raise

    def _begin(self, part: Path, state: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
        """Write `state.pt`, on rank 0. What processes that were killed left half-written is removed."""
        if self._peers.rank:
            return
        for left in self.folder.glob(".step_*.part"):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        files["state.pt"] = write_state(part, state)
        if not self._read_back:
            load_state(part)

    def _write_shards(self, folder: Path, shards: dict[str, DTensor]) -> dict[str, dict[str, Any]]:
        """Write the parts of all processes, and return the fingerprints of their files."""
        from .shard_files import read_shards, write_shards

        found = write_shards(folder, shards, self._peers)
        if not self._read_back:
            forms = {key: (x.shape, x.dtype, sharded.divided_dim(x)) for key, x in shards.items()}
            layout = sharded.layout_of(next(iter(shards.values())).device_mesh)
            self._peers.agree(lambda: read_shards(folder, forms, layout))
        return {f"{folder.name}/{name}": fingerprint for name, fingerprint in found.items()}

    def _finish(self, part: Path, final: Path, meta: dict[str, Any]) -> None:
        """Turn what was written into a checkpoint, on rank 0."""
        if self._peers.rank:
            return
        check_seen(part, meta["files"])
        write_meta(part, meta)
        for folder in {(part / name).parent for name in meta["files"]}:
            sync_folder(folder)
        replaced = self.folder / f".{final.name}.old"
        if final.exists():  # if this process ends between the two renames, `load_newest` finds `replaced`
            final.rename(replaced)
        part.rename(final)
        sync_folder(self.folder)
        self._delete(replaced)
        deletable = [folder for folder in self._newest_first() if not _is_kept(folder)]
        for old in deletable[self.keep :]:
            self._delete(old)

    def load_newest(
        self,
        is_owner: bool = True,
        sections: Collection[str] | None = None,
        layout: Layout | None = None,
        has_shards: bool = True,
    ) -> Found | None:
        """Return (folder, state, meta) of the newest valid checkpoint, or None if there are no checkpoints.

        An invalid checkpoint is logged and renamed to `invalid_step_…`, and the one before it is tried.

        Parameters
        ----------
        is_owner
            Whether this process may rename checkpoints, because no other run uses the folder.
        sections, layout, has_shards
            As in `read_checkpoint`.

        Raises
        ------
        CheckpointError
            There are checkpoints, but none of them is valid; or a process does not see them.
        """
        reasons: dict[Path, str] = {}
        for folder in self._peers.from_first(self._newest_first):
            try:
                found = folder, *read_checkpoint(folder, sections, layout, self._peers, has_shards)
            except NotSharedError:
                raise
            except CheckpointError as error:
                reasons[folder] = str(error)
                continue
            for reason in reasons.values():  # if none is valid, the error holds them
                log.error("%s", reason)
            if is_owner:  # else they would be among the newest ones that are kept
                self._peers.from_first(lambda: self._set_aside(reasons))
            return found
        if reasons:
            what = f"None of the checkpoints in '{self.folder}' is valid. Restore one, or delete all to begin anew."
            raise CheckpointError("\n".join([what, *reasons.values()]))
        return None

    def _set_aside(self, folders: Iterable[Path]) -> None:
        for invalid in folders:
            aside = self.folder / f"invalid_{invalid.name.lstrip('.')}"
            shutil.rmtree(aside, ignore_errors=True)
            invalid.rename(aside)

    def read(self, step: int | None = None) -> Found:
        """Return (folder, state, meta) of the checkpoint of a step, or of the newest valid one. No file is touched.

        The state has placeholders for sharded tensors, which `with_shards` reads.

        Raises
        ------
        CheckpointError
            It is not valid, or there is no such checkpoint. Then the message lists the steps of those that there are.
        """
        found = self.load_newest(is_owner=False, has_shards=False) if step is None else None
        if found is not None:
            return found
        folders = self._peers.from_first(self._newest_first)
        by_step = {_step_of(folder): folder for folder in reversed(folders)}
        if step is None or step not in by_step:
            what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise CheckpointError(f"'{self.folder}' has {what}; the steps of those that there are: {list(by_step)}.")
        return by_step[step], *read_checkpoint(by_step[step], peers=self._peers, has_shards=False)

    def with_shards(self, folder: Path, state: dict[str, Any], layout: Layout | None) -> dict[str, Any]:
        """Return the state of a checkpoint with its sharded tensors in place of placeholders.

        Raises
        ------
        CheckpointError
            They can't be read.
        """
        found: dict[str, Any] = with_shards(folder, state, layout, self._peers)
        return found

    def of(self, folder: Path) -> CheckpointStore:
        """Return the checkpoints in another folder, for the same processes."""
        return CheckpointStore(folder, self.keep, self._peers)

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


def on_host(state: Any, earlier: Any = None) -> Any:
    """Return a copy of a nested state, with its tensors in host memory.

    Parameters
    ----------
    state
        Tensors, sharded or not, numbers, strings, and dicts, lists and tuples of them.
    earlier
        A copy that is not needed any more. Its tensors are overwritten if dtype and shape suit, because new memory
        takes more time than the copy itself.
    """
    if sharded.is_sharded(state):
        return sharded.on_host(state, earlier, on_host)
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
            value = local(value)
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


def _step_of(folder: Path) -> int:
    return int(folder.stem.split("_")[1])


def _is_kept(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "meta.json").read_text())["kept"])
    except (OSError, ValueError, KeyError):
        return False
