"""`Loader`: batches as a pure function of (seed, epoch), read by any number of workers, from any position on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from torch.utils.data.dataloader import default_collate, default_convert

from ..augmentations import MultiView
from ..exceptions import DataError
from ..runtime.launchers import threads_of_process
from ..runtime.seeding import preserved_generators
from .checks import check_loader
from .collating import collate, split
from .decoding import DecodedBatches
from .encoded import as_encoded
from .in_memory import HeldImages, choose_device, hold
from .order import Share, count_cut, count_dealt, cut, deal, draw, epoch_order
from .reading import CollateSamples, CollateViews, Reader, UnreadableError
from .unreadable import NONE_READ, described, find_unreadable, name_all
from .views import BatchViews, WithViews, as_declared, as_read, check_views, find_shape, to_array
from .workers import WorkerBatches, torch_options

log = logging.getLogger("stable_ssl")


class Loader:
    """Yields the batches of a map-style data set; the same batches in every run, whatever reads them.

    The order of an epoch is a function of (seed, epoch). Before each sample is read, the default Python, NumPy and
    torch generators are seeded from (seed, epoch, index). So a transform that draws from them gives the same views
    with 0, 2 or 8 workers, and an epoch can be entered at any batch without reading the batches before it. Pipelines of
    albumentations are seeded through `set_random_seed`, also in functions that the data set or the views use. Other
    generators of a transform's own are not covered, and the log names them.

    Parameters
    ----------
    dataset
        Has `__len__` and `__getitem__`. If a sample is the same whenever it is read, a class of your own says so by
        `constant = True`; its images are then held in memory too.
    batch_size
        Samples per batch on each rank. None: each item of the data set is a batch.
    views
        The views to make of the image of each (image, …) sample. Several views give a list: the batch is
        `[[view_1, view_2], labels]`. There are two kinds:

        - A declared view: a `View`, a `MultiView` or an operation of `stable_ssl.augmentations`, or a list of views and
          operations. The views of a batch are made together, as a function of (seed, epoch, index, view). If the images
          fit into memory and never change, they are held there: then no worker is needed, and a batch is made while the
          one before it is used. If they do not fit, and are those of `Images`, `Prepared`, `WebDataset`, `ImageFolder`,
          `Parquet`, or torchvision's `ImageFolder` and `ImageNet` without a transform, threads of this process decode
          them and make the views: as many as this process has CPUs, or `num_workers`. Otherwise the workers that read
          the images make the views.
        - Any other transform, or a list of them: applied to each sample when it is read. A pipeline of albumentations
          gets an array (height, width, channels), and its image is the view.
    on
        Where declared views are made. "cpu". "device": the run's device, which needs images of one size. "auto": the
        run's device if it is a CUDA device, and the images are held in memory and take less than a quarter of the
        memory that is free on it; else the CPU. The log says which.
    shuffle
        Draw a new order in each epoch.
    drop_last
        Leave out the last batch of an epoch if it is not full.
    sampler, batch_sampler
        Torch's samplers, instead of `shuffle`. An epoch is drawn under a seed that is a function of (seed, epoch), and
        then shared out over the ranks.
    num_workers, collate_fn, worker_init_fn, pin_memory, prefetch_factor, timeout, multiprocessing_context, \
    persistent_workers
        As for `torch.utils.data.DataLoader`.
    unreadable
        What happens to samples that can't be read, such as corrupt files. "raise": the run ends, and names them all.
        "skip": they are left out, as if they were not in the data set, and the log names them. All samples are read
        once for that before the first batch, and again whenever the run is started.

    Raises
    ------
    ConfigError
        An argument is wrong, two contradict each other, or there is nothing to load; has a sentence for each problem.

    Examples
    --------
    >>> from stable_ssl.augmentations import HorizontalFlip, RandomResizedCrop, View
    >>> from stable_ssl.data import Digits, Loader
    >>> view = View([RandomResizedCrop(12), HorizontalFlip()])
    >>> loader = Loader(Digits("test"), batch_size=32, views=[view, view], shuffle=True)
    >>> (one, two), labels = next(iter(loader))
    >>> one.shape, labels.shape
    (torch.Size([32, 1, 12, 12]), torch.Size([32]))
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
        unreadable: str = "raise",
    ):
        arguments = dict(locals())
        self.views = as_declared(views)
        check_loader(arguments, is_declared=self.views is not None)
        self.dataset = dataset
        if self.views is not None:
            self.dataset = as_read(dataset)
        elif views is not None:
            self.dataset = WithViews(dataset, views)
        self.on = on
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self._collate = collate_fn or (default_convert if batch_size is None else collate)
        if collate_fn is default_collate and batch_size is not None:  # as a DataLoader without a collate_fn has it
            self._collate = collate
        self._options = torch_options(arguments)
        self._has_own_init = worker_init_fn is not None
        self.unreadable = unreadable
        self.left_out: list[int] = []  # the indices of samples that can't be read
        self.others: list[str] = []  # sets of the run that read the same files, for its errors
        self._has_warned = self._is_complete = False
        self.device = torch.device("cpu")
        self._channels: int | None = None  # of the images, once it is known
        self._make: BatchViews | None = None  # declared views, once it is decided where they are made
        self._held: HeldImages | None = None
        self._decoded: DecodedBatches | None = None
        self._workers: WorkerBatches | None = None
        self.bind(seed=0)

    def bind(self, seed: int, name: str = "data", rank: int = 0, world_size: int = 1, *, is_even: bool = False) -> None:
        """Set what the batches depend on, beside the constructor's arguments.

        Parameters
        ----------
        seed
            The run's seed.
        name
            Of the data set, in messages.
        rank, world_size
            The number of this process, from 0, and the number of processes.
        is_even
            Give all ranks as many batches, and batches of one size: training needs that. Of the last samples of an
            epoch, up to `world_size` - 1 are then left out. Without it every sample comes once.
        """
        self.close()
        self.seed, self.name, self._share = seed, name, Share(rank, world_size, is_even)

    def prepare(self, device: torch.device) -> None:
        """Set the run's device, and check that the declared views can be made of the first image.

        Raises
        ------
        ConfigError
            They can't; the error says which view needs what.
        DataError
            The first sample can't be read, or does not begin with an image.
        """
        self.close()
        self.leave_out(self.find_unreadable())
        self.device, self._make, self._held, self._decoded = device, None, None, None
        if self.views is None:
            return
        with self._naming_all():
            shape = self._find_shape()
        self._channels = shape[2]
        check_views(self.views, shape, self.seed, self.name)

    def find_unreadable(self) -> dict[int, str]:
        """Return why samples can't be read, by index, if they are to be left out. All samples are tried."""
        if self.unreadable == "raise" or self._is_complete:
            return {}
        with preserved_generators():
            return find_unreadable(self.dataset, self.name, self._options, is_brief=False)[0]

    def leave_out(self, found: dict[int, str]) -> None:
        """Leave samples out, from now on, and say so in the log.

        Raises
        ------
        DataError
            No other sample is there.
        """
        self._is_complete = True
        if not found:
            return
        holder = self.dataset if isinstance(self.dataset, WithViews) else self
        indices = [index for index in range(len(holder.dataset)) if index not in found]
        if not indices:
            tried = f"data.{self.name}: {len(found)} of {len(found)} samples were tried."
            raise DataError(f"{described(found, len(found))}\n{tried} {NONE_READ}")
        holder.dataset, self.left_out = Subset(holder.dataset, indices), sorted(found)
        total = len(found) + len(indices)
        log.warning(
            "data.%s: %d of %d samples are left out:\n%s", self.name, len(found), total, described(found, total)
        )

    @contextlib.contextmanager
    def _naming_all(self) -> Iterator[None]:
        """Name all samples that can't be read if one can't be in the block."""
        try:
            yield
        except UnreadableError as error:
            raise name_all(error, self.dataset, self.name, self._options, self.others) from error

    @property
    def num_samples(self) -> int:
        """Samples per epoch, over all ranks."""
        self.leave_out(self.find_unreadable())
        return len(self.dataset) if self.sampler is None else len(self.sampler)

    def __len__(self) -> int:
        """Return the number of batches per epoch on this rank."""
        if self.batch_sampler is not None:
            return count_dealt(len(self.batch_sampler), self._share)
        return count_cut(self.num_samples, self.batch_size or 1, self.drop_last, self._share)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of epoch 0."""
        return (batch for _, batch in self.batches(epoch=0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[list[int], Any]]:
        """Yield (sample indices, batch) for each batch of an epoch from number `start` on; no earlier batch is read.

        Raises
        ------
        DataError
            A sample can't be read, a batch can't be collated, or a worker died.
        """
        self.leave_out(self.find_unreadable())
        with self._naming_all():
            yield from self._batches(epoch, self._index_batches(epoch)[start:])

    def _batches(self, epoch: int, wanted: list[list[int]]) -> Iterator[tuple[list[int], Any]]:
        """Yield (sample indices, batch) for each list of sample indices."""
        if self.views is not None and self._make is None:
            self._decide(self.views, epoch)
        if self._make is not None and self._held is not None:
            yield from self._held.batches(self._make, self.seed, epoch, wanted)
        elif self._decoded is not None:
            yield from self._decoded.batches(self.seed, epoch, wanted)
        else:
            self._workers = self._workers or self._make_workers()
            yield from self._workers.batches(epoch, wanted)

    def close(self) -> None:
        """End the worker processes."""
        workers, self._workers = getattr(self, "_workers", None), None
        if workers is not None:
            workers.close()

    def __del__(self) -> None:
        self.close()

    def _index_batches(self, epoch: int) -> list[list[int]]:
        """Return this rank's batches of an epoch, as sample indices."""
        if self.batch_sampler is not None:
            return deal(draw(self.batch_sampler, self.seed, epoch), self._share)
        order = epoch_order(len(self.dataset), shuffle=self.shuffle, sampler=self.sampler, seed=self.seed, epoch=epoch)
        return cut(order, self.batch_size or 1, self.drop_last, self._share)

    def _decide(self, views: MultiView, epoch: int) -> None:
        """Read the images into memory if they fit, and choose where views of them are made."""
        reader = self._reader()
        share_of_memory, channels = 1 / self._share.world_size, self._channels or self._find_shape()[2]
        images, count = None if self._has_own_init else as_encoded(self.dataset, channels), 0

        def read(index: int) -> tuple[np.ndarray, Any]:
            if images is None:
                image, rest = split(reader[(epoch, index)])
                return to_array(image, index, channels), rest
            try:
                return images.read(index), images.rest(index)
            except Exception as error:
                raise reader.explained(error, index) from error

        if images is not None:
            count = self.num_workers or threads_of_process(self._share.world_size)
        self._held = hold(self.dataset, self.name, read, share_of_memory, count)
        device = choose_device(self.on, self._held, self.device, self.name)
        self._make = BatchViews(views, device, channels)
        if images is not None and self._held is None:
            log.info("data.%s: images are decoded and views made in threads of this process: %d.", self.name, count)
            self._decoded = DecodedBatches(images, self._make, reader.explained, count)

    def _find_shape(self) -> tuple[int, ...]:
        reader = self._reader()
        with preserved_generators():
            return find_shape(lambda index: reader[(0, index)], len(self.dataset))

    def _reader(self, keeps_entries: bool = False) -> Reader:
        """Return a reader of the data set. The log names the generators in it that can't be seeded, once."""
        reader = Reader(self.dataset, self.seed, self.name, keeps_entries)
        if reader.unseedable and not self._has_warned:
            self._has_warned = True
            log.warning(
                "data.%s: these generators can't be seeded, so what they draw is not the same in each run: %s. "
                "The default generators of Python, NumPy and torch are.",
                self.name,
                ", ".join(self._as_given(name) for name in reader.unseedable),
            )
        return reader

    def _as_given(self, name: str) -> str:
        """Return the name of something in the data set, with `views` for what was given as that."""
        own = {"dataset.transform.transforms.": "views.", "dataset.transform": "views", "dataset.dataset": "dataset"}
        found = [prefix for prefix in own if isinstance(self.dataset, WithViews) and name.startswith(prefix)]
        return own[found[0]] + name.removeprefix(found[0]) if found else name

    def _make_workers(self) -> WorkerBatches:
        if self._make is None:
            single = self.batch_size is None and self.batch_sampler is None
            collate = CollateSamples(self._collate, self.name, single)
            return WorkerBatches(self._reader(), collate, self._options)
        reader = self._reader(keeps_entries=True)
        with_views = CollateViews(self._make, self.seed)
        return WorkerBatches(reader, with_views, self._options, with_views.finish if self._make.device else None)
