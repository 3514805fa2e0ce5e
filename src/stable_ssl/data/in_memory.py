"""Images held in memory, and the batches of views that are made of them without workers."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from ..augmentations.views import send
from ..exceptions import ConfigError
from ..runtime.files import size_in_words
from ..runtime.preemption import StopWaiting
from .ahead import one_ahead
from .collating import collate_rests
from .encoded import is_plain
from .threads import Threads
from .views import BatchViews

log = logging.getLogger("stable_ssl")

SHARE_OF_MEMORY = 0.25  # of the free memory, that the images of one data set may take
_TOGETHER = 32  # images that a thread reads before it hands them over


class HeldImages:
    """The images of a data set in memory, and the rest of each sample; yields the batches of an epoch.

    Parameters
    ----------
    images
        uint8: an array (samples, height, width, channels), or a list of arrays (height, width, channels) if they are of
        several sizes.
    rests
        The parts of each sample that are not its image.
    """

    def __init__(self, images: np.ndarray | list[np.ndarray], rests: list[Any]):
        self.images: Any = images
        self.rests = rests

    @property
    def num_bytes(self) -> int | None:
        """Size of the images as one array; None if they are of several sizes."""
        return None if isinstance(self.images, list) else self.images.nbytes

    def move(self, device: torch.device) -> None:
        """Move the images, which must be one array, to a device."""
        self.images = torch.from_numpy(self.images).to(device)

    def batches(
        self, make: BatchViews, seed: int, epoch: int, wanted: list[list[int]]
    ) -> Iterator[tuple[list[int], Any]]:
        """Yield (sample indices, batch) for each list of sample indices; a batch is made while the last one is used."""
        jobs = (functools.partial(self._batch, make, seed, epoch, indices) for indices in wanted)
        yield from zip(wanted, one_ahead(jobs, make.device or torch.device("cpu")), strict=True)

    def _batch(self, make: BatchViews, seed: int, epoch: int, indices: list[int]) -> Any:
        if isinstance(self.images, Tensor):
            images: Any = self.images.index_select(0, send(torch.tensor(indices), self.images.device))
        elif isinstance(self.images, list):
            images = [self.images[index] for index in indices]
        else:
            images = self.images[indices]
        return make.batch(images, collate_rests([self.rests[index] for index in indices]), seed, epoch, indices)


def hold(
    dataset: Any, name: str, read: Callable[[int], tuple[np.ndarray, Any]], share: float, num_threads: int
) -> HeldImages | None:
    """Read a data set into memory. Return None if its images may change, or would take too much; the log says which.

    A data set may have `in_memory`: True holds it if it fits into all of the free memory, and False never.

    Parameters
    ----------
    dataset, name
        The data set, and its name in messages.
    read
        Returns the image of an index, as `HeldImages` takes it, and the rest of the sample.
    share
        The fraction of the free memory that belongs to this process.
    num_threads
        How many threads read. 0: this one does, if the data set may run code of the user's. There are no workers: they
        would have to be ended when the run is, and would send each image through a file of its own.

    Raises
    ------
    ConfigError
        `in_memory` is True, and the images don't fit.
    """
    read_instead = f"data.{name}: views are made where samples are read"
    if not is_constant(dataset):
        log.info("%s, since a %s may give other images each time.", read_instead, type(dataset).__name__)
        return None
    wish = of_whole(dataset, "in_memory")
    if wish is False:
        log.info("%s, since in_memory is false.", read_instead)
        return None
    limit = int((1 if wish is True else SHARE_OF_MEMORY) * share * free_memory())
    first, _ = read(0)
    held, expected = None, getattr(dataset, "num_bytes", first.nbytes * len(dataset))
    if expected <= limit:
        with contextlib.closing(_samples(len(dataset), read, num_threads)) as samples:
            held, expected = _read_all(len(dataset), first.shape, samples, limit)
    if held is None and wish is True:
        raise ConfigError(
            f"data.{name}: in_memory is true, but the images take about {size_in_words(expected)}, and this process "
            f"may take {size_in_words(limit)} of the free memory. Ask for more memory, or set in_memory to auto."
        )
    if held is None:
        log.info("%s: the images would take about %s of memory.", read_instead, size_in_words(expected))
        return None
    log.info(
        "data.%s: %d images are held in memory (%.1f MB), and views made of them by the batch, without workers.",
        name,
        len(held.rests),
        expected / 1e6,
    )
    return held


def _samples(
    num_samples: int, read: Callable[[int], tuple[np.ndarray, Any]], num_threads: int
) -> Generator[tuple[np.ndarray, Any]]:
    """Yield all samples in order."""
    if not num_threads:
        yield from map(read, range(num_samples))
        return
    threads = Threads(num_threads, "hold")
    try:
        parts = (range(first, min(first + _TOGETHER, num_samples)) for first in range(0, num_samples, _TOGETHER))
        for part in threads.map(lambda indices: [read(index) for index in indices], parts, ahead=2 * num_threads):
            yield from part
    finally:
        threads.close(wait=not isinstance(sys.exception(), StopWaiting))


def _read_all(
    num_samples: int, shape: tuple[int, ...], samples: Iterable[tuple[np.ndarray, Any]], limit: int
) -> tuple[HeldImages | None, int]:
    """Return the samples and the bytes of their images; None and an estimate once they take more bytes than `limit`.

    The images are one array as long as they are of the first one's `shape`, and a list of arrays if one is not.
    """
    is_array = num_samples * math.prod(shape) <= limit  # else images of the first one's shape would not fit
    images: np.ndarray | list[np.ndarray] = np.empty((num_samples, *shape), np.uint8) if is_array else []
    rests: list[Any] = []
    num_bytes = 0
    for index, (image, rest) in enumerate(samples):
        if isinstance(images, np.ndarray) and image.shape != shape:
            images = list(images[:index])
        if isinstance(images, list):
            images.append(image)
        else:
            images[index] = image
        rests.append(rest)
        num_bytes += image.nbytes
        if num_bytes > limit:
            return None, num_bytes // (index + 1) * num_samples
    return HeldImages(images, rests), num_bytes


def choose_device(on: str, held: HeldImages | None, device: torch.device, name: str) -> torch.device | None:
    """Choose the device that makes the views; None is the CPU. The log says why, and images that fit there are moved.

    Parameters
    ----------
    on
        "cpu", "device", or "auto": on a CUDA device if the images are held in memory and fit there too.
    held
        The images, if they are held in memory.
    device
        The run's device.
    name
        Of the data set, in messages.
    """
    num_bytes = None if held is None else held.num_bytes
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    fits = num_bytes is not None and num_bytes <= SHARE_OF_MEMORY * free
    if on != "auto":
        is_on_device, why = on == "device", f"on is '{on}'"
    elif device.type != "cuda":
        is_on_device, why = False, f"the run's device is {device.type}"
    elif num_bytes is None:
        is_on_device, why = False, "the images are not held in memory as one array"
    else:
        does = "fit" if fits else "do not fit"
        is_on_device, why = fits, f"the images {does} into a share of its memory: {num_bytes / 1e6:.1f} MB"
    log.info("data.%s: views are made on %s: %s.", name, device if is_on_device else "the CPU", why)
    if not is_on_device:
        return None
    if held is not None and fits:
        held.move(device)
    return device


def free_memory() -> int:
    """Return the bytes that are free: on this machine, or of what a container or job may use of it if that is less."""
    try:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except ValueError:  # macOS has no such number
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min([free, *(limit - used for limit, used in _limits())])


def whole_memory() -> int:
    """Return the bytes of memory of this machine, or what a container or job may use of it if that is less."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *(limit for limit, _ in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """Yield how many bytes each cgroup of this process may use, and how many it does."""
    folder = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such file, or no limit, which is written as "max"
            yield int((folder / limit).read_text()), int((folder / used).read_text())


def of_whole(dataset: Any, name: str) -> Any:
    """Return an attribute of a data set, or of the one that it is a part of; None if there is none."""
    return of_whole(dataset.dataset, name) if type(dataset) is Subset else getattr(dataset, name, None)


def is_constant(dataset: Any) -> bool:
    """Say whether a data set is known to give the same images each time; a user's class says so by `constant`."""
    if type(dataset) is Subset:
        return is_constant(dataset.dataset)
    if type(dataset) in (TensorDataset, list, tuple) or getattr(dataset, "constant", False) is True:
        return True
    return is_plain(dataset)
