"""Views where the loader makes them: by the batch those that are declared, by the sample any other transform's."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import VisionDataset
from torchvision.datasets.folder import default_loader
from torchvision.datasets.vision import StandardTransform

from ..augmentations import MultiView, View
from ..augmentations.operations import Operation
from ..augmentations.views import as_array, send
from ..exceptions import ConfigError, DataError
from .datasets import Digits, Parquet, to_float_tensor
from .multi_view import MultiViewSampler

log = logging.getLogger("stable_ssl")

SHARE_OF_MEMORY = 0.25  # that the images of one data set may take


class WithViews(Dataset):
    """A data set whose samples' images are replaced by views of them, each drawn from the default generators."""

    def __init__(self, dataset: Any, views: Callable | Sequence[Callable]):
        self.dataset = dataset
        self.transform = views if callable(views) else MultiViewSampler(views)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image, rest = split(self.dataset[index])
        views = self.transform(image)
        return views if rest is None else (views, *rest)


class BatchViews:
    """Makes a batch of samples that were read, by declared views.

    Parameters
    ----------
    views
        What to make.
    collate
        Makes a batch of tuples; the views of a sample stand where its image stood.
    device
        Where torch makes the views; None for this package's loops on the CPU.
    """

    def __init__(self, views: MultiView, collate: Callable, device: torch.device | None = None):
        self.views, self.collate, self.device = views, collate, device

    def __call__(self, samples: Sequence[Any], seed: int, epoch: int, indices: Sequence[int]) -> Any:
        """Return the batch: `[views, labels, …]`, or the views alone where a sample is only an image."""
        images, rests = self.take_apart(samples, indices)
        return self.batch(images, self.collate_rests(rests), seed, epoch, indices)

    def take_apart(self, samples: Sequence[Any], indices: Sequence[int]) -> tuple[list[np.ndarray], Sequence[Any]]:
        """Return the images, and the rest of each sample."""
        images, rests = zip(*map(split, samples), strict=True)
        return [to_array(image, index) for image, index in zip(images, indices, strict=True)], rests

    def collate_rests(self, rests: Sequence[Any]) -> Any:
        """Return a batch of what samples have beside their images; None where that is nothing."""
        return None if rests[0] is None else self.collate([tuple(rest) for rest in rests])

    def batch(self, images: Any, rest: Any, seed: int, epoch: int, indices: Sequence[int]) -> Any:
        """Return the batch of images, as arrays or a tensor, and of the collated rest."""
        if self.device is not None:
            images = send(images if isinstance(images, Tensor) else stack(images, indices), self.device)
        made: Any = self.views.make(images, seed, epoch, indices)
        made = made[0] if isinstance(self.views, View) else made
        return made if rest is None else [made, *rest]


class Held:
    """A data set's images in memory, uint8.

    Parameters
    ----------
    images
        An array or a tensor on a device (samples, height, width, channels), or a list of arrays of several sizes.
    rests
        What each sample has beside its image.
    """

    def __init__(self, images: Any, rests: list[Any]):
        self.images, self.rests = images, rests

    def batch(self, make: BatchViews, seed: int, epoch: int, indices: list[int]) -> Any:
        """Return the batch of these samples."""
        if isinstance(self.images, Tensor):
            images: Any = self.images.index_select(0, send(torch.tensor(indices), self.images.device))
        else:
            images = [self.images[i] for i in indices] if isinstance(self.images, list) else self.images[indices]
        return make.batch(images, make.collate_rests([self.rests[i] for i in indices]), seed, epoch, indices)


def stack(images: Any, indices: Sequence[int]) -> Tensor:
    """Return images as a tensor.

    Raises
    ------
    DataError
        They are not of one size.
    """
    for image, index in zip(images, indices, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"sample {index} is {image.shape} and sample {indices[0]} is {images[0].shape}, (height, width, "
                "channels): views on a device need images of one size. Set on='cpu', or resize them before."
            )
    return torch.from_numpy(np.stack(images) if isinstance(images, list) else images)


def one_ahead(jobs: Iterable[Callable[[], Any]], device: torch.device) -> Iterator[Any]:
    """Yield what each job returns, each begun before the one before it is used: by a thread, on CUDA a side stream."""
    # The thread runs our own loops, which release the GIL, and nothing of the user's.
    with ThreadPoolExecutor(1, "views") if device.type != "cuda" else _SideStream(device) as ahead:
        coming = None
        for job in jobs:
            ready, coming = coming, ahead.submit(job)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


class _SideStream:
    """Runs jobs on a CUDA stream of its own, as an executor does in a thread."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)

    def __enter__(self) -> _SideStream:
        return self

    def __exit__(self, *args: Any) -> None:
        pass

    def submit(self, job: Callable[[], Any]) -> _OnStream:
        with torch.cuda.stream(self.stream):
            batch = job()
        return _OnStream(batch, self.stream.record_event())


class _OnStream:
    """A batch that a side stream is at work on."""

    def __init__(self, batch: Any, event: torch.cuda.Event):
        self.batch, self.event = batch, event

    def result(self) -> Any:
        """Return the batch, for use on the present stream, which waits for it; this process does not."""
        stream = torch.cuda.current_stream(self.event.device)
        stream.wait_event(self.event)
        for leaf in tree_leaves(self.batch):
            if isinstance(leaf, Tensor) and leaf.is_cuda:
                leaf.record_stream(stream)  # so that its memory is not given to another before
        return self.batch


def hold(dataset: Any, name: str, read: Callable[[int], Any], share: float) -> Held | None:
    """Read a data set into memory; None, and a line in the log, where that can't be or would take too much.

    Parameters
    ----------
    dataset, name
        What it is; its name in messages.
    read
        Returns a sample. Called in this process: workers would need to be ended when the run is, and to send as many
        open files as there are tensors.
    share
        Of the memory that this process may have.
    """
    where = f"data.{name}: views are made where samples are read"
    if not _is_constant(dataset):
        log.info("%s, since a %s may give other images each time.", where, type(dataset).__name__)
        return None
    limit = int(SHARE_OF_MEMORY * share * _free_memory())
    first = to_array(split(read(0))[0], 0)
    expected = first.nbytes * len(dataset)
    images: np.ndarray | list[np.ndarray] = np.empty((len(dataset) if expected <= limit else 0, *first.shape), np.uint8)
    rests: list[Any] = []
    taken = 0
    for index in range(len(images)):
        image, rest = split(read(index))
        array = to_array(image, index)
        if isinstance(images, np.ndarray) and array.shape != first.shape:
            images = list(images[:index])
        if isinstance(images, list):
            images.append(array)
        else:
            images[index] = array
        rests.append(rest)
        taken += array.nbytes
        expected = taken // (index + 1) * len(dataset)
        if taken > limit:
            break
    if len(rests) < len(dataset):
        log.info("%s: the images would take about %.1f GB of memory.", where, expected / 1e9)
        return None
    log.info(
        "data.%s: %d images are held in memory (%.1f MB), and views made of them by the batch, without workers.",
        name,
        len(rests),
        taken / 1e6,
    )
    return Held(images, rests)


def choose_device(on: str, held: Held | None, device: torch.device, name: str) -> torch.device | None:
    """Return the device that makes the views, None for the CPU, and say why in the log; images that are held go there.

    Parameters
    ----------
    on
        "cpu", "device", or "auto": on a CUDA device if the images are held and fit there.
    held
        The images, where they are held.
    device
        The run's.
    name
        Of the data set, in messages.
    """
    images = None if held is None or isinstance(held.images, list) else held.images
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    fits = images is not None and images.nbytes <= SHARE_OF_MEMORY * free
    is_on_device, why = on == "device", f"on is '{on}'"
    if on == "auto":
        is_on_device = device.type == "cuda" and fits
        if device.type != "cuda":
            why = f"the run's device is {device.type}"
        elif images is None:
            why = "the images are not held in memory as one array"
        else:
            why = (
                f"the images {'fit' if fits else 'do not fit'} into a share of its memory: {images.nbytes / 1e6:.1f} MB"
            )
    log.info("data.%s: views are made on %s: %s.", name, device if is_on_device else "the CPU", why)
    if is_on_device and fits:
        held.images = torch.from_numpy(images).to(device)  # type: ignore[union-attr]
    return device if is_on_device else None


def _free_memory() -> int:
    """Return the bytes that are free on this machine, or in what a container or job may use of it."""
    try:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except ValueError:  # macOS has no such number
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # there is none, or "max"
            folder = Path("/sys/fs/cgroup")
            free = min(free, int((folder / limit).read_text()) - int((folder / used).read_text()))
    return free


def _is_constant(dataset: Any) -> bool:
    """Say whether a data set is known to give the same images each time: a subclass may do anything."""
    if type(dataset) is Subset:
        return _is_constant(dataset.dataset)
    if type(dataset) in (TensorDataset, list, tuple):
        return True
    if not isinstance(dataset, Digits | Parquet | VisionDataset):
        return False
    if not type(dataset).__module__.startswith(("torchvision.datasets.", "stable_ssl.data.")):
        return False
    if getattr(dataset, "loader", default_loader) is not default_loader:
        return False
    if type(getattr(dataset, "transforms", None)) not in (type(None), StandardTransform):  # of image and label together
        return False
    return dataset.transform in (None, np.asarray) and getattr(dataset, "target_transform", None) is None


def as_declared(views: Any) -> Any:
    """Return an operation as a `View`, a list of views or operations as a `MultiView`, and anything else as it is.

    Raises
    ------
    ConfigError
        It is neither a transform nor a list of them.
    """
    if not (views is None or callable(views) or (isinstance(views, Sequence) and all(map(callable, views)))):
        raise ConfigError(f"views: {views!r} is neither a transform nor a list of them.")
    if isinstance(views, Operation):
        return View([views])
    if isinstance(views, Sequence) and views and all(isinstance(view, View | Operation) for view in views):
        return MultiView([View([view]) if isinstance(view, Operation) else view for view in views])
    return views


def as_read(dataset: Any) -> Any:
    """Return a data set of this package without its change to float, whose values the views want as they were read."""
    if isinstance(dataset, Subset):
        return Subset(as_read(dataset.dataset), dataset.indices)
    if getattr(dataset, "transform", None) is to_float_tensor:
        dataset = copy.copy(dataset)
        dataset.transform = np.asarray
    return dataset


def split(sample: Any) -> tuple[Any, Any]:
    """Return a sample's image and the rest of it, None where it is only an image."""
    if not isinstance(sample, tuple | list):
        return sample, None
    image, *rest = sample
    return image, rest


def to_array(image: Any, index: int) -> np.ndarray:
    """Return an image as uint8 (height, width, channels).

    Raises
    ------
    DataError
        It is something else; says which sample, and what was expected.
    """
    array = as_array(image)
    if array.dtype != np.uint8 or array.ndim != 3:
        shape = tuple(getattr(image, "shape", array.shape))
        kind = f"a {type(image).__name__}" if array.dtype == object else f"{array.dtype} {shape}"
        raise DataError(
            f"sample {index} is {kind}; declared views are made of PIL images, uint8 tensors "
            "(channels, height, width) or uint8 arrays (height, width, channels). Leave out the data set's transform, "
            "or convert the images to uint8 levels."
        )
    return array
