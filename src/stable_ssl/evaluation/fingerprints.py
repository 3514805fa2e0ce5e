"""Telling data sets and views apart without reading the images: by paths, sizes and times of files."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from ..augmentations import MultiView, View
from ..data import Digits, HuggingFaceDataset, Images, Parquet, Prepared, WebDataset
from ..data.datasets import to_float_tensor
from ..runtime.files import state_of

_LIBRARIES = ("stable_ssl", "torchvision", "torch")


def is_of_libraries(network: nn.Module) -> bool:
    """Return whether no code of a user's own is in a network, which could change while its values stay."""
    return all(library in (*_LIBRARIES, "timm") for library in _libraries_of(network))


def versions_of(network: nn.Module) -> list[str]:
    """Return the versions of this package and of the libraries whose code is in a network."""
    names = sorted({"stable_ssl", *_libraries_of(network)})
    return [f"{name} {getattr(sys.modules.get(name), '__version__', '')}" for name in names]


def _libraries_of(network: nn.Module) -> set[str]:
    parts = [*network.modules(), *getattr(network, "trainers", ())]
    return {type(part).__module__.partition(".")[0] for part in parts}


def of_view(view: Any) -> str | None:
    """Return a digest of a view; None if it can't be told from others. No view has one too."""
    if view is None or isinstance(view, View | MultiView):
        views = view.views if isinstance(view, MultiView) else [view]
        operations = [(type(o).__name__, vars(o)) for one in views if one is not None for o in one.operations]
        return _digest([repr(operations)])
    return None if " at 0x" in repr(view) else _digest([repr(view)])


def of_dataset(dataset: Any) -> str | None:
    """Return a digest of a data set's samples and labels; None if it can't be told from others.

    Files count by path, size and time of change. Images that a data set holds in memory count by their values.
    """
    parts, transform = _parts(dataset), getattr(dataset, "transform", None)
    if parts is None or not _is_of_library(dataset) or getattr(dataset, "target_transform", None) is not None:
        return None
    if transform not in (None, to_float_tensor) and not _says_what_it_does(transform):
        return None
    options = [repr(getattr(dataset, name, None)) for name in ("levels", "channels", "x", "y", "image", "label")]
    named = "" if transform in (None, to_float_tensor) else repr(transform)
    try:
        return _digest([type(dataset).__name__, str(len(dataset)), named, *options, *parts])
    except OSError:  # a file is gone, of which reading tells
        return None


def _is_of_library(value: Any) -> bool:
    """Return whether an object's class is of this package, torchvision or torch: its options say what it does."""
    return type(value).__module__.partition(".")[0] in _LIBRARIES


def _says_what_it_does(transform: Any) -> bool:
    """Return whether the text of a transform names all that it does."""
    parts = getattr(transform, "transforms", None)
    parts = parts if isinstance(parts, list | tuple) else []
    return _is_of_library(transform) and " at 0x" not in repr(transform) and all(map(_says_what_it_does, parts))


def _parts(dataset: Any) -> Iterable[Any] | None:
    if isinstance(dataset, Subset):
        inner = of_dataset(dataset.dataset)
        return None if inner is None else [inner, np.asarray(dataset.indices)]
    if isinstance(dataset, Images):
        return _files([dataset.path_of(index) for index in range(len(dataset))], dataset.targets)
    if isinstance(dataset, Prepared):
        return _files([dataset.root], dataset.targets, "\0".join(dataset.names))
    if isinstance(dataset, Parquet | WebDataset):
        return _files(dataset.files, dataset.targets)
    if isinstance(dataset, HuggingFaceDataset):
        return [dataset.dataset._fingerprint]
    if isinstance(dataset, Digits):
        return [*map(np.asarray, dataset.images), np.asarray(dataset.targets)]
    if isinstance(getattr(dataset, "samples", None), list):  # torchvision's folders
        return _files([path for path, _ in dataset.samples], [label for _, label in dataset.samples])
    if isinstance(getattr(dataset, "data", None), np.ndarray | torch.Tensor):  # torchvision's data sets in memory
        labels: Any = next((getattr(dataset, name) for name in ("targets", "labels") if hasattr(dataset, name)), [])
        return [np.asarray(dataset.data), np.asarray(labels)]
    return None


def _files(paths: Iterable[Any], labels: Any, *others: str) -> Iterator[Any]:
    for path in paths:
        yield f"{os.path.realpath(path)}\0{state_of(os.stat(path))}"
    yield np.asarray(labels)
    yield from others


def _digest(parts: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for part in parts:
        array = np.ascontiguousarray(part) if isinstance(part, np.ndarray) else None
        found.update(os.fsencode(f"{part}\0") if array is None else array.tobytes())
    return found.hexdigest()
