"""Reading a sample under its own seed, and making a batch of samples; errors name the sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..exceptions import DataError
from ..runtime.device import describe_batch
from ..runtime.files import printable
from ..runtime.seeding import Stream, derive_seed, seed_generators
from .collating import collate_rests
from .faults import is_of_machine, is_of_worker, is_out_of_memory
from .hidden import find_seedable
from .images import FileError
from .views import BatchViews, stack


class UnreadableError(DataError):
    """A sample can't be read."""


class Reader(Dataset):
    """A data set whose samples are asked for as (epoch, index), and are functions of (seed, epoch, index).

    The default generators are seeded before each sample is read, and so are pipelines of albumentations.

    Parameters
    ----------
    dataset
        Has `__len__` and `__getitem__`.
    seed
        The run's seed.
    name
        Of the data set, in errors.
    keeps_entries
        Return (epoch, index, sample) instead of the sample.

    Attributes
    ----------
    seedable, unseedable
        The pipelines that are seeded, and the names of generators that can't be.
    """

    def __init__(self, dataset: Any, seed: int, name: str, keeps_entries: bool = False):
        self.dataset, self.seed, self.name, self.keeps_entries = dataset, seed, name, keeps_entries
        self.seedable, self.unseedable = find_seedable(dataset)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what is seeded: a spawned worker has other objects where functions hold them."""
        return {key: value for key, value in vars(self).items() if key not in ("seedable", "unseedable")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.seedable, self.unseedable = find_seedable(self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, entry: tuple[int, int]) -> Any:
        epoch, index = entry
        seed_generators(self.seed, Stream.SAMPLE, epoch, index)
        # Each has a number of its own, or two views of equal pipelines would be equal. Outer ones are seeded last.
        for number, transform in reversed([*enumerate(self.seedable)]):
            keys = (epoch, index, number) if number else (epoch, index)
            transform.set_random_seed(derive_seed(self.seed, Stream.SAMPLE, *keys) & 0xFFFFFFFF)
        # Workers compute with one thread. A reduction over several threads, such as the mean in a change of contrast,
        # may round differently: so this process reads with one thread too.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            sample = self.dataset[index]
        except Exception as error:
            if is_of_worker(error):  # of another set, whose death torch's signal handler raised here
                raise
            raise self.explained(error, index) from error
        finally:
            torch.set_num_threads(threads)
        return (epoch, index, sample) if self.keeps_entries else sample

    def explained(self, error: Exception, index: int) -> Exception:
        """Return the error that names a sample that can't be read; `UnreadableError` only if the sample is to blame."""
        if isinstance(error, FileError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # the file is named here
        path = path_of(self.dataset, index)
        sample = f"sample {index}" + (f" ('{path}')" if path else "")
        sample, said = printable(sample), printable(f"{type(error).__name__}: {error}", keeps_lines=True).rstrip(": ")
        if is_out_of_memory(error):
            return MemoryError(
                f"memory ran out as {sample} of data.{self.name} was read: {said}. Lower num_workers or batch_size of "
                "its Loader. If it happens with this sample only, its file may be damaged: then remove it."
            )
        said = f"data.{self.name}: {sample} can't be read: {said}"
        if is_of_machine(error):
            return DataError(
                f"{said}. The machine, its disks or its network failed, so the sample may be good, and is not left "
                "out. Mend that, and start the run again."
            )
        return UnreadableError(said)


class CollateSamples:
    """Makes a batch of samples; the error says what is wrong with samples that make none.

    Parameters
    ----------
    collate
        Makes a batch of a list of samples; of one sample if `single`.
    name
        Of the data set, in errors.
    single
        Each item of the data set is a batch already.
    """

    def __init__(self, collate: Callable, name: str, single: bool):
        self.collate, self.name, self.single = collate, name, single

    def __call__(self, samples: list[Any]) -> Any:
        """Return the batch."""
        try:
            return self.collate(samples[0] if self.single else samples)
        except Exception as error:
            if is_out_of_memory(error) or is_of_worker(error):
                raise
            kinds = sorted({describe_batch(sample, with_ranges=False) for sample in samples})
            raise DataError(
                f"data.{self.name}: these samples make no batch: {'; '.join(kinds[:4])}. They must be tensors, arrays "
                f"or numbers of one shape: add a transform, or a collate_fn. {type(error).__name__}: {error}"
            ) from error


class CollateViews:
    """Makes a batch of declared views of what a `Reader` with `keeps_entries` returned.

    Views on a device are made in two steps: a worker stacks the images, and `finish` makes the views of them.

    Parameters
    ----------
    make
        Makes the views.
    seed
        The run's seed.
    """

    def __init__(self, make: BatchViews, seed: int):
        self.make, self.seed = make, seed

    def __call__(self, entries: list[tuple[int, int, Any]]) -> Any:
        """Return the batch; for views on a device, the stacked images and the collated rests of the samples."""
        epochs, indices, samples = zip(*entries, strict=True)
        if self.make.device is None:
            return self.make(samples, self.seed, epochs[0], indices)
        images, rests = self.make.take_apart(samples, indices)
        return stack(images, indices), collate_rests(rests)

    def finish(self, batch: Any, epoch: int, indices: list[int]) -> Any:
        """Return the batch of stacked images and collated rests, with views made on the device."""
        images, rests = batch
        return self.make.batch(images, rests, self.seed, epoch, indices)


def path_of(dataset: Any, index: int) -> str | None:
    """Return the file that a sample comes from; None if the data set does not tell."""
    while hasattr(dataset, "dataset"):
        index = dataset.indices[index] if hasattr(dataset, "indices") else index
        dataset = dataset.dataset
    if hasattr(dataset, "path_of"):
        return str(dataset.path_of(index))
    for name in ("samples", "imgs", "paths"):
        entries = getattr(dataset, name, None)
        if isinstance(entries, list | tuple) and isinstance(index, int | np.integer) and index < len(entries):
            entry = entries[index]
            return str(entry[0] if isinstance(entry, list | tuple) else entry)
    return None
