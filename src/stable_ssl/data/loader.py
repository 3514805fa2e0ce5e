"""`Loader`: batches as a pure function of (seed, epoch), read by any number of workers, from any position on."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler
from torch.utils.data.dataloader import default_collate, default_convert

from ..augmentations import MultiView
from ..exceptions import ConfigError, DataError
from ..runtime.device import describe_batch
from ..runtime.preemption import StopWaiting
from ..runtime.seeding import Stream, derive_seed, preserved_generators, seed_generators
from .views import (
    BatchViews,
    Held,
    WithViews,
    as_declared,
    as_read,
    choose_device,
    hold,
    one_ahead,
    split,
    stack,
    to_array,
)
from .workers import WorkerInit, end_workers, keep_open


class Loader:
    """Yields the batches of a map-style data set; the same ones on every run, whatever reads them.

    The order of an epoch is a function of (seed, epoch), and the default Python, NumPy and torch generators are seeded
    from (seed, epoch, index) right before each sample is read. So a transform that draws from them gives the same views
    with 0, 2 or 8 workers, and an epoch can be entered at any batch without reading those before it. (A transform with
    a private generator is not covered, except albumentations', which is seeded through `set_random_seed`.)

    Parameters
    ----------
    dataset
        Has `__len__` and `__getitem__`.
    batch_size
        Samples in a batch, on each rank. None: each item of the data set is a batch.
    views
        What is made of the image of each (image, …) sample. The `MultiView` or `View` of `stable_ssl.augmentations` is
        made by the batch, as a function of (seed, epoch, index, view): of images in memory where they fit and never
        change, one batch ahead of the one in use and without workers; else by the workers that read them. Any other
        transform, or a list of them, is applied to each sample where it is read. Several give a list of views: the
        batch is `[[view_1, view_2], labels]`. An operation is a `View` of it alone; a list of these is a `MultiView`.
    on
        Where declared views are made: "cpu"; "device", the run's, of images of one size; or "auto": on a CUDA device
        where the images are held and take less than a quarter of its memory, else on the CPU. The log says which.
    shuffle
        Draw a new order each epoch.
    drop_last
        Leave out a last batch that is not full.
    sampler, batch_sampler
        Torch's own, instead of `shuffle`: drawn once an epoch under a seed that is a function of (seed, epoch), then
        shared out over the ranks.
    num_workers, collate_fn, worker_init_fn, pin_memory, prefetch_factor, timeout, multiprocessing_context,
    persistent_workers
        As for `torch.utils.data.DataLoader`.

    Raises
    ------
    ConfigError
        The arguments contradict each other, or there is nothing to load.
    """

    is_stream = False

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        *,
        views: Callable | Sequence[Callable] | None = None,
        on: str = "auto",
        shuffle: bool = False,
        drop_last: bool = False,
        sampler: Any = None,
        batch_sampler: Any = None,
        num_workers: int = 0,
        collate_fn: Callable | None = None,
        worker_init_fn: Callable[[int], None] | None = None,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        timeout: float = 0,
        multiprocessing_context: Any = None,
        persistent_workers: bool = False,
    ):
        for method in ("__len__", "__getitem__"):
            if not hasattr(dataset, method):
                raise ConfigError(f"dataset: a {type(dataset).__name__} has no {method}; pass a stream as it is.")
        if batch_size is not None and (not _is_count(batch_size) or batch_size < 1):
            raise ConfigError(f"batch_size: {batch_size!r} is not a count of at least 1.")
        if not _is_count(num_workers):
            raise ConfigError(f"num_workers: {num_workers!r} is not a count.")
        views = as_declared(views)
        if len(dataset) == 0:
            raise ConfigError(f"dataset: this {type(dataset).__name__} is empty.")
        if shuffle and (sampler is not None or batch_sampler is not None):
            raise ConfigError("shuffle: a sampler decides on the order already; give only one of them.")
        if sampler is not None and batch_sampler is not None:
            raise ConfigError("sampler: a batch_sampler decides on the samples already; give only one of them.")
        if drop_last and batch_size and batch_sampler is None and sampler is None and batch_size > len(dataset):
            raise ConfigError(
                f"batch_size: {batch_size} is more than the {len(dataset)} samples, and drop_last leaves nothing."
            )
        if num_workers == 0 and (prefetch_factor is not None or persistent_workers):
            raise ConfigError("num_workers: prefetch_factor and persistent_workers need at least 1.")
        self.views = views if isinstance(views, MultiView) else None
        if on not in ("auto", "cpu", "device") or (on != "auto" and not self.views):
            raise ConfigError(f"on: '{on}' is not 'auto', or, with declared views, 'cpu' or 'device'.")
        if self.views and collate_fn is not None:
            raise ConfigError("collate_fn: declared views make the batch; leave it out, or use transforms for views.")
        if self.views and batch_size is None:
            raise ConfigError("batch_size: declared views are made by the batch; None is for items that are batches.")
        self.dataset = dataset if views is None else as_read(dataset) if self.views else WithViews(dataset, views)
        self.on = on
        self.device = torch.device("cpu")
        self._held: Held | None = None
        self._make: BatchViews | None = None
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self._collate = collate_fn or (default_convert if batch_size is None else default_collate)
        self._options = {
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "timeout": timeout,
            "persistent_workers": persistent_workers,
            "multiprocessing_context": multiprocessing_context,
            "prefetch_factor": prefetch_factor,
            "worker_init_fn": WorkerInit(worker_init_fn),
        }
        self._engine: DataLoader | None = None
        self._iterator: Any = None
        self.bind(seed=0)

    def bind(self, seed: int, name: str = "data", rank: int = 0, world_size: int = 1, *, is_even: bool = False) -> None:
        """Fix what the batches depend on.

        Parameters
        ----------
        seed
            The run's.
        name
            For messages.
        rank, world_size
            This process, of how many.
        is_even
            Give all ranks as many batches, of one size: training needs that. Of an epoch's last samples, up to
            `world_size` - 1 are left out then; without it every sample comes once.
        """
        self.close()
        self.seed, self.name, self.rank, self.world_size, self._is_even = seed, name, rank, world_size, is_even

    def prepare(self, device: torch.device) -> None:
        """Take up the run's device, and see whether the declared views can be made of the first image.

        Raises
        ------
        ConfigError
            They can't; says which view needs what.
        DataError
            The image can't be read, or is no image.
        """
        self.close()
        self.device, self._make, self._held = device, None, None
        if self.views:
            with preserved_generators():
                sample = _Reader(self.dataset, self.seed, self.name)[(0, 0)]
            image = to_array(split(sample)[0], 0)
            try:
                self.views.check(image.shape[2])
                self.views.parameters(self.seed, 0, [0], image.shape)
            except ValueError as error:
                raise ConfigError(f"data.{self.name}.views: {error}") from error

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, over all ranks."""
        return len(self.dataset) if self.sampler is None else len(self.sampler)

    def __len__(self) -> int:
        """Return the batches of an epoch, for this rank."""
        if self.batch_sampler is not None:
            # The first ranks have those that are left over.
            left_over = 0 if self._is_even else self.world_size - 1 - self.rank
            return (len(self.batch_sampler) + left_over) // self.world_size
        whole, rest = divmod(self.num_samples, (self.batch_size or 1) * self.world_size)
        return whole + (not self.drop_last and len(self._share(range(rest))) > 0)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of epoch 0."""
        return (batch for _, batch in self.batches(epoch=0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[list[int], Any]]:
        """Yield (sample indices, batch) for each batch of an epoch from `start` on; those before it are not read.

        Raises
        ------
        DataError
            A sample can't be read, a batch can't be collated, or a worker died.
        """
        wanted = self._index_batches(epoch)[start:]
        if self.views and self._make is None:
            self._decide(self.views, epoch)
        make, held = self._make, self._held
        if make and held:
            jobs = (functools.partial(held.batch, make, self.seed, epoch, indices) for indices in wanted)
            yield from zip(wanted, one_ahead(jobs, make.device or torch.device("cpu")), strict=True)
            return
        if self._engine is None:
            self._engine = self._make_engine()
        self._engine.batch_sampler.entries = [[(epoch, index) for index in indices] for indices in wanted]  # type: ignore
        self._iterator = batches = iter(self._engine)
        keep_open(batches)
        try:
            for indices in wanted:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if "DataLoader worker" not in str(error) and "DataLoader timed out" not in str(error):
                        raise
                    raise DataError(
                        f"data.{self.name}: a worker process died or hung while batches from the one of samples "
                        f"{_some(indices)} on were read: {error}"
                    ) from error
                if make and make.device:
                    images, rest = batch
                    batch = make.batch(images, rest, self.seed, epoch, indices)
                yield indices, batch
        finally:
            # A worker that hangs is waited for: not before the run has saved.
            if not self._options["persistent_workers"] and not isinstance(sys.exception(), StopWaiting):
                end_workers(batches)

    def close(self) -> None:
        """End the worker processes."""
        self._engine, iterator, self._iterator = None, getattr(self, "_iterator", None), None
        if iterator is not None:
            end_workers(iterator)

    def __del__(self) -> None:
        self.close()

    def _decide(self, views: MultiView, epoch: int) -> None:
        """Read the images into memory if they fit, and choose where views of them are made."""
        reader, share = _Reader(self.dataset, self.seed, self.name), 1 / self.world_size
        self._held = hold(self.dataset, self.name, lambda index: reader[(epoch, index)], share)
        device = choose_device(self.on, self._held, self.device, self.name)
        self._make = BatchViews(views, self._collate, device)

    def _make_engine(self) -> DataLoader:
        """Return torch's loader, over samples asked for as (epoch, index): persistent workers know the epoch."""
        reader = _Reader(self.dataset, self.seed, self.name)
        collate: Any = _Collate(self._collate, self.name, single=self.batch_size is None and self.batch_sampler is None)
        if self._make:
            reader.keeps_entries = True
            collate = _CollateViews(self._make, self.seed)
        return DataLoader(reader, batch_sampler=_Entries(), collate_fn=collate, **self._options)

    def _index_batches(self, epoch: int) -> list[list[int]]:
        """Return this rank's batches of an epoch, as sample indices.

        A global batch is the next world_size × batch_size samples of one global order, cut into one piece a rank.
        """
        if self.batch_sampler is not None:
            drawn = [list(batch) for batch in self._draw(self.batch_sampler, epoch)]
            if not self._is_even:
                return drawn[self.rank :: self.world_size]
            groups = [drawn[at : at + self.world_size] for at in range(0, len(drawn), self.world_size)]
            return [group[self.rank][: min(map(len, group))] for group in groups if len(group) == self.world_size]
        order = self._order(epoch)
        size = (self.batch_size or 1) * self.world_size
        pieces = []
        for first in range(0, len(order), size):
            whole = order[first : first + size]
            if len(whole) < size and self.drop_last:
                break
            pieces.append(self._share(whole))
        return [piece for piece in pieces if piece]

    def _share(self, whole: Any) -> Any:
        """Return this rank's piece of a global batch, with nothing repeated."""
        usable = len(whole) // self.world_size * self.world_size if self._is_even else len(whole)
        first, end = (usable * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return whole[first:end]

    def _order(self, epoch: int) -> list[int]:
        if self.sampler is not None:
            return list(self._draw(self.sampler, epoch))
        if not self.shuffle:
            return list(range(len(self.dataset)))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, Stream.ORDER, epoch))
        return torch.randperm(len(self.dataset), generator=generator).tolist()

    def _draw(self, sampler: Any, epoch: int) -> list[Any]:
        """Draw an epoch from somebody's sampler, as a function of (seed, epoch)."""
        with preserved_generators():
            seed_generators(self.seed, Stream.ORDER, epoch)
            parts: list[Any] = [sampler, getattr(sampler, "sampler", None)]
            for part in parts:
                if isinstance(getattr(part, "generator", None), torch.Generator):
                    part.generator.manual_seed(derive_seed(self.seed, Stream.ORDER, epoch))
                if hasattr(part, "set_epoch"):
                    part.set_epoch(epoch)
            return list(sampler)


class _Entries(Sampler):
    """Batches of (epoch, index) pairs, set anew for each epoch."""

    def __init__(self) -> None:
        self.entries: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class _Reader(Dataset):
    """Reads one sample under its own seed."""

    def __init__(self, dataset: Any, seed: int, name: str):
        self.dataset, self.seed, self.name = dataset, seed, name
        self.seedable = list(_find_seedable(dataset))
        self.keeps_entries = False  # return (epoch, index, sample)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, entry: tuple[int, int]) -> Any:
        epoch, index = entry
        seed_generators(self.seed, Stream.SAMPLE, epoch, index)
        for transform in self.seedable:
            transform.set_random_seed(derive_seed(self.seed, Stream.SAMPLE, epoch, index) & 0xFFFFFFFF)
        # Workers compute with one thread, and a reduction (the mean in a contrast change, say) over several threads
        # may round differently: so one thread here too.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            sample = self.dataset[index]
            return (epoch, index, sample) if self.keeps_entries else sample
        except Exception as error:
            path = _path_of(self.dataset, index)
            where = f"sample {index}" + (f" ('{path}')" if path else "")
            raise DataError(f"data.{self.name}: {where} can't be read: {type(error).__name__}: {error}") from error
        finally:
            torch.set_num_threads(threads)


class _Collate:
    """Makes a batch of samples; says what is wrong with those that make none."""

    def __init__(self, collate: Callable, name: str, single: bool):
        self.collate, self.name, self.single = collate, name, single

    def __call__(self, samples: list[Any]) -> Any:
        try:
            return self.collate(samples[0] if self.single else samples)
        except Exception as error:
            kinds = sorted({describe_batch(sample) for sample in samples})
            raise DataError(
                f"data.{self.name}: these samples make no batch: {'; '.join(kinds[:4])}. They must be tensors, arrays "
                f"or numbers of one shape: add a transform, or a collate_fn. {type(error).__name__}: {error}"
            ) from error


class _CollateViews:
    """Makes a batch of samples that `_Reader` returned with their places; for a device, what it makes the batch of."""

    def __init__(self, make: BatchViews, seed: int):
        self.make, self.seed = make, seed

    def __call__(self, entries: list[tuple[int, int, Any]]) -> Any:
        epochs, indices, samples = zip(*entries, strict=True)
        if self.make.device is None:
            return self.make(samples, self.seed, epochs[0], indices)
        images, rests = self.make.take_apart(samples, indices)
        return stack(images, indices), self.make.collate_rests(rests)


def _find_seedable(holder: Any, depth: int = 0) -> Iterator[Any]:
    """Find albumentations' pipelines among a data set's transforms."""
    if hasattr(holder, "set_random_seed"):
        yield holder
    elif isinstance(holder, list | tuple):
        for item in holder:
            yield from _find_seedable(item, depth + 1)
    elif depth < 6:
        for name in ("dataset", "transform", "transforms", "views"):
            part = getattr(holder, name, None)
            if part is not None:
                yield from _find_seedable(part, depth + 1)


def _path_of(dataset: Any, index: int) -> str | None:
    """Return the file that a sample comes from, where the data set says so."""
    while hasattr(dataset, "dataset"):
        index = dataset.indices[index] if hasattr(dataset, "indices") else index
        dataset = dataset.dataset
    for name in ("samples", "imgs", "paths"):
        entries = getattr(dataset, name, None)
        if isinstance(entries, list | tuple) and isinstance(index, int | np.integer) and index < len(entries):
            entry = entries[index]
            return str(entry[0] if isinstance(entry, list | tuple) else entry)
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _some(indices: list[int]) -> str:
    return str(indices) if len(indices) <= 8 else f"[{', '.join(map(str, indices[:8]))}, …]"


def is_plain_order(sampler: Any) -> bool | None:
    """Return whether torch's sampler shuffles (True) or goes in order (False); None where it does something else."""
    if type(sampler) is SequentialSampler:
        return False
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source):
        return True
    return None
