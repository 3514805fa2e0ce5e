"""The files of one checkpoint: how they are written, verified and read.

step_00001200/
    state.pt     the state, for `torch.load(weights_only=True)`
    shards/      the sharded tensors of the state, if it has some; state.pt has placeholders for them
    meta.json    written last: the software, facts about the run, and size and checksum of each other file
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..exceptions import CheckpointError
from .files import HashingFile
from .peers import Peers
from .sharded import joined, placeholders

if TYPE_CHECKING:
    from .sharded import Layout

FORMAT, FORMAT_OF_SHARDS = 1, 2  # versions of this library that read 1 only would take placeholders for values
_MAY_HOLD = "A state may only hold tensors, numbers, strings and containers of them, so that loading never runs code."


class NotSharedError(CheckpointError):
    """A process does not see the files that another one sees."""


def write_state(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Write `state.pt`, and return its fingerprint."""
    with HashingFile(folder / "state.pt") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # of torch's own, if the disk failed
            raise file.failure or error from None
        except (pickle.PicklingError, AttributeError, TypeError) as error:  # such as for a function or a lock
            raise CheckpointError(f"A checkpoint can't be written. {_MAY_HOLD} {error}") from error
        file.flush()
        os.fsync(file.fileno())
        return file.fingerprint()


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write `meta.json`."""
    with open(folder / "meta.json", "w") as file:
        json.dump(meta, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def check_seen(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Refuse to finish a checkpoint whose files are not all here, since other processes wrote some of them.

    Raises
    ------
    CheckpointError
        A file is not here, or not whole.
    """
    for name, fingerprint in files.items():
        if _size(folder / name) != fingerprint["bytes"]:
            raise CheckpointError(
                f"Rank 0 does not see '{folder / name}', which another process has written. The folder of a run of "
                "several machines must be on a disk that all of them share."
            )


def read_checkpoint(
    folder: Path,
    sections: Collection[str] | None = None,
    layout: Layout | None = None,
    peers: Peers | None = None,
    has_shards: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (state, meta) of a checkpoint.

    Several processes verify it together, each a share of its files. Then each of them reads it.

    Parameters
    ----------
    folder
        The checkpoint's folder.
    sections
        The keys of the state that are needed, such as "modules". None: all.
    layout
        Says how tensors that were saved in shards are sharded now. None: all are whole, in host memory.
    peers
        The processes that call this together. None: this one is alone.
    has_shards
        Whether the sharded tensors are read too. If not, the state has placeholders, for `with_shards`.

    Raises
    ------
    CheckpointError
        The checkpoint is not whole, damaged, or of another format; or a process does not see it. Of several processes,
        all raise the same.
    """
    peers, state, meta = peers or Peers(), {}, {}
    seen = peers.gather(_seen(folder))
    if (rank := next((rank for rank, files in enumerate(seen) if files != seen[0]), None)) is not None:
        raise NotSharedError(
            f"Rank {rank} does not see in '{folder}' what rank 0 sees. The folder of a run of several machines must be "
            "on a disk that all of them share, since each process reads it."
        )
    peers.agree(lambda: meta.update(_verify(folder, peers)))
    peers.agree(lambda: state.update(load_state(folder, sections)))
    return with_shards(folder, state, layout, peers) if has_shards else state, meta


def with_shards(folder: Path, state: dict[str, Any], layout: Layout | None, peers: Peers | None = None) -> Any:
    """Return the state of a checkpoint with its sharded tensors in place of placeholders; as `read_checkpoint` does."""
    forms = placeholders(state)
    if not forms:
        return state
    from .shard_files import read_shards

    def read() -> Any:
        try:
            return joined(state, read_shards(folder / "shards", forms, layout))
        except Exception as error:
            raise CheckpointError(f"'{folder / 'shards'}' can't be loaded. {_MAY_HOLD} {error}") from error

    return (peers or Peers()).agree(read)


def _seen(folder: Path) -> Any:
    """Return what this process sees of a checkpoint: the content of `meta.json`, and the sizes of the other files."""
    try:
        meta = (folder / "meta.json").read_bytes()
        return hashlib.sha256(meta).digest(), {name: _size(folder / name) for name in json.loads(meta)["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _verify(folder: Path, peers: Peers) -> dict[str, Any]:
    """Return the content of `meta.json`, after checking size and checksum of this process's share of the files."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        files = {"state.pt": meta["files"]["state.pt"], **meta["files"]}
        version = meta["format"]
    except FileNotFoundError:
        raise CheckpointError(f"'{folder}' is not a whole checkpoint, because it has no meta.json.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"'{folder / 'meta.json'}' can't be read: {error!r}") from error
    if version not in (FORMAT, FORMAT_OF_SHARDS):
        raise CheckpointError(
            f"'{folder}' has format {version}, but this version of stable-ssl reads formats {FORMAT} and "
            f"{FORMAT_OF_SHARDS}."
        )
    for number, (name, fingerprint) in enumerate(files.items()):
        if number % peers.size == peers.rank:
            _verify_file(folder / name, fingerprint)
    return meta


def _verify_file(path: Path, expected: dict[str, Any]) -> None:
    try:
        with open(path, "rb") as file:
            found = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise CheckpointError(f"'{path}' can't be read: {error}") from error
    if found != expected:
        sizes = [fingerprint["bytes"] for fingerprint in (found, expected)]
        what = (
            "its bytes are not those that were written" if len({*sizes}) == 1 else "it has {:,} bytes instead of {:,}"
        )
        raise CheckpointError(f"'{path}' is damaged: {what.format(*sizes)}.")


def load_state(folder: Path, sections: Collection[str] | None = None) -> dict[str, Any]:
    """Return the state of a checkpoint, with placeholders for its sharded tensors.

    Raises
    ------
    CheckpointError
        It can't be loaded.
    """
    try:
        loaded = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        return {key: value for key, value in loaded.items() if sections is None or key in sections}
    except Exception as error:
        raise CheckpointError(f"'{folder / 'state.pt'}' can't be loaded. {_MAY_HOLD} {error}") from error
