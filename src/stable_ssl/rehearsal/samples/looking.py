"""What samples of a data set look like, one by one: read as a run reads them, and measured."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Subset

from ...augmentations.images import as_array
from ...data import Loader
from ...data.collating import split
from ...data.encoded import is_plain
from ...data.reading import Reader, UnreadableError, path_of
from ...data.views import WithViews, to_array
from ...data.workers import WorkerBatches
from ...exceptions import DataError
from ...lines import place_of
from ...runtime.batches import LABEL_KEYS
from ...runtime.cpus import cpus_here
from ...runtime.device import describe_batch
from ...runtime.files import printable
from ..offline import needs_network

NUM_LOOKED_AT = 100
NUM_MEASURED = 1000  # whose mean and deviation are kept
SECONDS = 20.0  # for the samples of one data set, unless all are wanted
_MOST_PIXELS = 1 << 18  # of an image, that are measured

Label = int | tuple[str, str]


@dataclass(slots=True)
class Look:
    """What a sample looks like.

    Attributes
    ----------
    index, name
        Its number in the data set, and what messages call it: "sample 7 ('cat/7.jpg')".
    error
        Why it can't be used. None: it can.
    is_unreadable
        Whether the sample is to blame for that, as a file that is damaged.
    is_remote
        Whether the sample would have to be read over the network.
    kind
        Its parts in words, such as "(float32 (3, 32, 32), int)".
    shape
        Height, width and channels of its image; None if it has none.
    dtype
        Of the values of its image.
    mean, square
        Of the values of each channel: their mean, and that of their squares. Levels of uint8 count from 0 to 1. None:
        there are no values, or those of enough other samples are kept.
    lowest, highest
        Of these values.
    label
        A whole number, or the kind of anything else in words, with the first of it. None: the sample has no such part.
    checksum
        Of the values.
    """

    index: int
    name: str
    error: str | None = None
    is_unreadable: bool = False
    is_remote: bool = False
    kind: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    mean: np.ndarray | None = None
    square: np.ndarray | None = None
    lowest: float = 0.0
    highest: float = 0.0
    label: Label | None = None
    checksum: int = 0


class Looker(Reader):
    """Returns the look of a sample instead of the sample.

    Parameters
    ----------
    dataset, name
        The data set, as a `Loader` reads it, and its name.
    seed
        The run's seed.
    is_declared
        Whether declared views are made of its images.
    channels
        Of the images that declared views get; None if that is not known.
    """

    def __init__(self, dataset: Any, name: str, seed: int, is_declared: bool, channels: int | None = None):
        super().__init__(dataset, seed, name)
        self.is_declared, self.channels = is_declared, channels

    def __getitem__(self, entry: tuple[int, int]) -> Look:
        index = entry[1]
        look = Look(index, name_of(self.dataset, index))
        try:
            sample = super().__getitem__(entry)
            self._measure(look, sample)
        except (DataError, MemoryError) as error:
            look.error, look.is_remote = f"{error}{place_of(error)}", needs_network(error)
            look.is_unreadable = isinstance(error, UnreadableError) and not look.is_remote
        return look

    def _measure(self, look: Look, sample: Any) -> None:
        look.kind = describe_batch(sample, with_ranges=False)
        try:
            image, rest = split(sample)
        except (DataError, ValueError) as error:  # a dict without an image, or an empty sample
            if self.is_declared:
                raise DataError(f"data.{self.name}: {look.name}: {error}") from error
            return
        look.label = _label(rest)
        if self.is_declared:
            try:
                to_array(image, look.index, self.channels)
            except DataError as error:
                raise DataError(f"data.{self.name}: {error}") from error
            pixels: Any = as_array(image)
        else:
            while isinstance(image, list | tuple) and image:  # several views
                image = image[0]
            pixels = None
            if isinstance(image, Tensor | np.ndarray) or hasattr(image, "getexif"):
                with suppress(Exception):  # such as a sparse tensor, or one that needs a gradient
                    pixels = as_array(image)
        if pixels is not None and pixels.dtype.kind in "biuf" and pixels.size:
            _measure_values(look, pixels)


def name_of(dataset: Any, index: int) -> str:
    """Return what messages call a sample."""
    path = path_of(dataset, index)
    return printable(f"sample {index}" + (f" ('{path}')" if path else ""))


def _measure_values(look: Look, pixels: np.ndarray) -> None:
    look.dtype, look.checksum = str(pixels.dtype), zlib.crc32(np.ascontiguousarray(pixels).data)
    if pixels.ndim == 3:
        look.shape = tuple(pixels.shape)
        step = max(1, int((pixels.shape[0] * pixels.shape[1] / _MOST_PIXELS) ** 0.5))
        pixels = pixels[::step, ::step]
    values = pixels.reshape(-1, pixels.shape[-1] if pixels.ndim == 3 else 1).astype(np.float64)
    values = values / 255 if pixels.dtype == np.uint8 else values
    with np.errstate(invalid="ignore", over="ignore"):
        look.mean, look.square = values.mean(axis=0), (values**2).mean(axis=0)
        look.lowest, look.highest = float(values.min()), float(values.max())


def _label(rest: Any) -> Label | None:
    """Return the label among the parts of a sample that are not its image."""
    found = [rest[key] for key in LABEL_KEYS if key in rest] if isinstance(rest, Mapping) else rest
    return as_label(found[0]) if found else None


def as_label(value: Any) -> Label:
    """Return a label as a whole number; the kind of anything else in words, and the label itself."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, bool | int):
        return int(value)
    if isinstance(value, float):
        return "floats", f"{value:.6}"
    if isinstance(value, str):
        return "texts", repr(value[:40])
    if value is None:
        return "None", "None"
    kind = str(value.dtype) if isinstance(value, np.ndarray) else describe_batch(value, with_ranges=False)
    return kind, kind


def chosen(num_samples: int, is_all: bool) -> list[int]:
    """Return the samples to look at: the first, the last, and one in each of as many equal parts, mixed."""
    if is_all or num_samples <= NUM_LOOKED_AT:
        return list(range(num_samples))
    generator = np.random.default_rng(0)
    edges = np.linspace(1, num_samples - 1, NUM_LOOKED_AT - 1).astype(int)
    inner = generator.integers(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1))
    return [0, num_samples - 1, *generator.permutation(inner).tolist()]


def look_at(looker: Looker, loader: Loader, indices: list[int], is_all: bool) -> Iterator[Look]:
    """Yield the look of each sample; if not all are wanted, of those that can be read in some seconds.

    All are read by worker processes: as many as there are CPUs, if the data set runs no code of the user's; else as
    many as the loader has.
    """
    if not is_all:
        end = time.monotonic() + SECONDS
        for index in indices:
            yield looker[(0, index)]
            if time.monotonic() > end:
                return
        return
    options = {**loader._options, "persistent_workers": False, "pin_memory": False}
    if not options["num_workers"] and is_plain(unwrapped(loader.dataset)[0]) and len(indices) > NUM_LOOKED_AT:
        options["num_workers"] = cpus_here()
    workers, known, count = WorkerBatches(looker, list, options), dict[Any, Any](), 0
    try:
        for _, looks in workers.batches(0, [indices[at : at + 64] for at in range(0, len(indices), 64)]):
            for look in looks:
                count += 1
                if count > NUM_MEASURED:
                    look.mean = look.square = None
                # A worker sends copies. Millions of looks share what is the same in all.
                look.kind, look.shape, look.dtype = (
                    known.setdefault(part, part) for part in (look.kind, look.shape, look.dtype)
                )
                yield look
    finally:
        workers.close()


def unwrapped(dataset: Any) -> tuple[Any, np.ndarray]:
    """Return the data set that a `Loader` reads, without subsets and views, and the numbers of the samples in it."""
    indices = np.arange(len(dataset))
    while isinstance(dataset, Subset | WithViews):
        indices = np.asarray(dataset.indices)[indices] if isinstance(dataset, Subset) else indices
        dataset = dataset.dataset
    return dataset, indices
