"""The files of sharded tensors, which `torch.distributed.checkpoint` writes and reads.

shards/
    __R_0.distcp    what rank R has written
    .metadata       which part of which tensor is where
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.tensor import DTensor, empty

from .files import HashingFile
from .peers import Peers

if TYPE_CHECKING:
    from .sharded import Form, Layout


def write_shards(folder: Path, shards: dict[str, DTensor], peers: Peers) -> dict[str, dict[str, Any]]:
    """Write sharded tensors together with the other processes, and return the fingerprints of all files by name.

    Parameters
    ----------
    folder
        A new folder, on a disk that all processes share.
    shards
        This process's parts of the tensors, in host memory. The tensors and their order are the same on all processes.
    peers
        The processes.

    Raises
    ------
    OSError
        Some process could not write its part. All processes raise it.
    """
    files = _HashingFiles()
    writer = dcp.FileSystemWriter(folder, per_thread_copy_ahead=0)  # 0: no stream of the GPU, since nothing is there
    writer.fs = files
    peers.agree(lambda: _save(shards, writer, files, peers))
    return {name: found for own in peers.gather(files.fingerprints()) for name, found in own.items()}


def _save(shards: dict[str, DTensor], writer: dcp.FileSystemWriter, files: _HashingFiles, peers: Peers) -> None:
    try:
        dcp.save(cast(Any, shards), storage_writer=writer, process_group=peers.group)
    except dcp.CheckpointException as error:  # on all processes, if one of them failed
        if peers.rank in error.failures:  # torch's own error may hide that of the disk
            raise files.failure or error.failures[peers.rank][0] from error


def read_shards(folder: Path, forms: Mapping[str, Form], layout: Layout | None) -> dict[str, Tensor]:
    """Return tensors that `write_shards` wrote, by key. Each process reads what it needs, and nothing is exchanged.

    Parameters
    ----------
    folder
        The folder that was written.
    forms
        Shape, dtype and divided dimension of the tensors to read.
    layout
        Says how tensors are sharded now. None: all are read whole, into host memory.
    """
    tensors: dict[str, Any] = {}
    for key, (shape, dtype, dim) in forms.items():
        if layout:
            mesh, placements = layout(dim)
            tensors[key] = empty(shape, dtype=dtype, device_mesh=mesh, placements=placements)
        else:
            tensors[key] = torch.empty(shape, dtype=dtype)
    reader, planner = _Reader(folder), dcp.DefaultLoadPlanner()
    metadata = reader.read_metadata()
    planner.set_up_planner(tensors, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(planner.finish_plan(planner.create_local_plan()), planner).wait()
    return tensors


class _HashingFiles(FileSystem):
    """A file system that computes the checksums of the files that are written to it."""

    def __init__(self) -> None:
        self._written: dict[str, HashingFile] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        """Yield a new file."""
        with HashingFile(Path(path)) as file:
            self._written[Path(path).name.removesuffix(".tmp")] = file
            yield file

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Return size and checksum of each file by its name."""
        return {name: file.fingerprint() for name, file in self._written.items()}

    @property
    def failure(self) -> OSError | None:
        """The error of the disk, if there was one."""
        return next((file.failure for file in self._written.values() if file.failure), None)


class _Reader(dcp.FileSystemReader):
    """A reader that takes nothing but the description of tensors from `.metadata`, so that no code of it runs."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the content of `.metadata`."""
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata: Metadata = _Unpickler(file).load()
        return metadata


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]):
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few types that describe tensors and files."""
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype | torch.layout):
            return found
        if (module, name) not in _TYPES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which describes no tensor")
        return super().find_class(module, name)


_METADATA = "torch.distributed.checkpoint.metadata"
_TYPES = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata")),
    *((_METADATA, name) for name in ("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    *(("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")),
}
