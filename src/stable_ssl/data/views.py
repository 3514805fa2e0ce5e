"""Views where the loader makes them: by the batch those that are declared, by the sample any other transform's."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import VisionDataset
from torchvision.datasets.vision import StandardTransform

from ..augmentations import MultiView, View
from ..exceptions import DataError
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
    """

    def __init__(self, views: MultiView, collate: Callable):
        self.views, self.collate = views, collate

    def __call__(self, samples: Sequence[Any], seed: int, epoch: int, indices: Sequence[int]) -> Any:
        """Return the batch: `[views, labels, …]`, or the views alone where a sample is only an image."""
        images, rests = zip(*map(split, samples), strict=True)
        arrays = [to_array(image, index) for image, index in zip(images, indices, strict=True)]
        return self.batch(arrays, rests, seed, epoch, indices)

    def batch(self, images: Any, rests: Sequence[Any], seed: int, epoch: int, indices: Sequence[int]) -> Any:
        """Return the batch of images that are arrays already, with the rest of each sample."""
        made: Any = self.views.make(images, seed, epoch, indices)
        made = made[0] if isinstance(self.views, View) else made
        if rests[0] is None:
            return made
        return [made, *self.collate([tuple(rest) for rest in rests])]


class Held:
    """A data set's images in memory, uint8, and views of them by the batch, one batch ahead of the one in use.

    Parameters
    ----------
    images
        An array (samples, height, width, channels), or a list of arrays of several sizes.
    rests
        What each sample has beside its image.
    """

    def __init__(self, images: Any, rests: list[Any]):
        self.images, self.rests = images, rests

    def batches(self, make: BatchViews, seed: int, epoch: int, wanted: list[list[int]]) -> Iterator[Any]:
        """Yield the batches with these indices."""

        def one(indices: list[int]) -> Any:
            several = isinstance(self.images, list)
            images = [self.images[index] for index in indices] if several else self.images[indices]
            return make.batch(images, [self.rests[index] for index in indices], seed, epoch, indices)

        # Our own compiled loops, which release the GIL, and nothing of the user's run in this thread.
        with ThreadPoolExecutor(1, "views") as ahead:
            coming = [ahead.submit(one, indices) for indices in wanted[:1]]
            for indices in wanted[1:]:
                batch = coming.pop().result()
                coming.append(ahead.submit(one, indices))
                yield batch
            for last in coming:
                yield last.result()


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
    expected = to_array(split(read(0))[0], 0).nbytes * len(dataset)
    arrays: list[np.ndarray] = []
    rests: list[Any] = []
    taken = 0
    for index in range(len(dataset) if expected <= limit else 0):
        image, rest = split(read(index))
        arrays.append(to_array(image, index))
        rests.append(rest)
        taken += arrays[-1].nbytes
        if taken > limit:
            break
    if len(arrays) < len(dataset):
        log.info("%s: the images would take about %.0f GB of memory.", where, max(expected, taken) / 1e9)
        return None
    is_even = len({array.shape for array in arrays}) == 1
    log.info(
        "data.%s: %d images are held in memory (%.1f MB), and views made by the batch, without workers.",
        name,
        len(arrays),
        taken / 1e6,
    )
    return Held(np.stack(arrays) if is_even else arrays, rests)


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
    module = type(dataset).__getitem__.__module__
    if not module.startswith(("torchvision.datasets.", "stable_ssl.data.")):
        return False
    if type(getattr(dataset, "transforms", None)) not in (type(None), StandardTransform):  # of image and label together
        return False
    return dataset.transform in (None, np.asarray) and getattr(dataset, "target_transform", None) is None


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
    if isinstance(image, Tensor):
        image = image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
    elif getattr(image, "mode", None) not in (None, "L", "RGB"):
        image = image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise DataError(
            f"sample {index} is {array.dtype} {array.shape}; declared views are made of PIL images, uint8 tensors "
            "(channels, height, width) or uint8 arrays (height, width, channels). Leave out the data set's transform."
        )
    return array[:, :, None] if array.ndim == 2 else array
