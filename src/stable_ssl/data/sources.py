"""What may stand in a trainer's `data`, and how it becomes something that the trainer can go on with."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from ..exceptions import ConfigError
from ..runtime.seeding import Stream, seed_generators
from .loader import Loader
from .order import is_plain_order
from .workers import WorkerInit, end_workers, keep_open

_END = object()
log = logging.getLogger("stable_ssl")


def as_loader(source: Any, name: str) -> Loader | IterableLoader:
    """Return a data set's source as something with `bind`, `batches` and `close`.

    A `Loader` is that already. A plain torch `DataLoader` over a map-style data set is rebuilt as one, and the log says
    so. Any other iterable of batches is wrapped.

    Raises
    ------
    ConfigError
        It is a data set without a loader, or no iterable at all.
    """
    if isinstance(source, Loader | IterableLoader):
        return source
    if type(source) is DataLoader and not isinstance(source.dataset, IterableDataset):
        return _rebuild(source, name)
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        raise ConfigError(
            f"data.{name}: a data set ({type(source).__name__}) without a loader. "
            "Wrap it: stable_ssl.data.Loader(dataset, batch_size=…)."
        )
    if not hasattr(source, "__iter__"):
        raise ConfigError(f"data.{name}: a {type(source).__name__} is neither a loader nor an iterable of batches.")
    return IterableLoader(source, name)


def _rebuild(loader: DataLoader, name: str) -> Loader:
    options = {
        key: getattr(loader, key)
        for key in (
            "num_workers",
            "collate_fn",
            "pin_memory",
            "prefetch_factor",
            "timeout",
            "worker_init_fn",
            "multiprocessing_context",
            "persistent_workers",
        )
    }
    if options["num_workers"] == 0:
        options["prefetch_factor"] = None
    sampler = loader.sampler
    if isinstance(sampler, DistributedSampler):
        order: dict[str, Any] = {"shuffle": sampler.shuffle}
        said = "a DistributedSampler's: the sharing out is the trainer's"
    elif (shuffles := is_plain_order(sampler)) is not None:
        order = {"shuffle": shuffles}
        said = "a function of the seed and the epoch" if shuffles else "that of the data set"
    else:
        order = {"sampler": sampler}
        said = f"drawn from its {type(sampler).__name__} under a seed of the epoch"
    # DataLoader makes a batch sampler of its own from a batch size, and has no batch size where it was given one.
    if loader.batch_sampler is not None and loader.batch_size is None:
        order = {"batch_sampler": loader.batch_sampler}
        said = f"drawn from its {type(loader.batch_sampler).__name__} under a seed of the epoch"
        batch_size: int | None = 1
    else:
        batch_size = loader.batch_size
    log.info("data.%s: the DataLoader is rebuilt as a Loader; the order is %s.", name, said)
    return Loader(loader.dataset, batch_size, drop_last=loader.drop_last, **order, **options)


class IterableLoader:
    """An iterable of batches, as the trainer goes through it.

    One with `state_dict` and `load_state_dict` resumes exactly. A list or tuple of batches does too. Any other is
    fast-forwarded, which is exact only if it gives the same batches every time.
    """

    def __init__(self, source: Any, name: str = "data"):
        self.source = source
        self.name = name
        self.seed = 0
        self._whole = source
        self.is_stream = not isinstance(source, list | tuple)
        self._stateful = hasattr(source, "state_dict") and hasattr(source, "load_state_dict")
        self._is_positioned = self._is_cut_short = False
        self._iterator: Any = None
        if isinstance(source, DataLoader) and not isinstance(source.worker_init_fn, WorkerInit):
            source.worker_init_fn = WorkerInit(source.worker_init_fn)
        if self._stateful:
            # Present only where they mean something: the trainer asks for what can be saved.
            self.state_dict = source.state_dict
            self.load_state_dict = self._load_state_dict
        if length_of(source) == 0:
            raise ConfigError(f"data.{name}: empty.")

    def bind(self, seed: int, name: str, rank: int = 0, world_size: int = 1, *, is_even: bool = False) -> None:
        """Fix the run's seed, and share out a list over the ranks; a stream must do that itself."""
        self.seed, self.name = seed, name
        if world_size > 1 and self.is_stream:
            log.warning(
                "data.%s: a %s is not shared out: each of the %d processes goes through all that it gives. It can tell "
                "them apart by torch.distributed.get_rank().",
                name,
                type(self.source).__name__,
                world_size,
            )
        elif world_size > 1:
            usable = len(self._whole) // world_size * world_size if is_even else len(self._whole)
            self.source = self._whole[rank:usable:world_size]

    def __len__(self) -> int:
        """Return the batches of an epoch; TypeError where the source does not know."""
        return len(self.source)

    def _load_state_dict(self, state: Any) -> None:
        self.source.load_state_dict(state)
        self._is_positioned = True

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[None, Any]]:
        """Yield (None, batch) from batch `start` of an epoch on."""
        if not self.is_stream:
            for batch in self.source[start:]:
                yield None, batch
            return
        seed_generators(self.seed, Stream.ORDER, epoch)
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)
        if self._stateful and self._is_cut_short and not self._is_positioned:
            # It goes on where the last epoch was cut short, as it does after a resume.
            self.source.load_state_dict(self.source.state_dict())
        skip = 0 if self._is_positioned else start
        self._is_positioned, self._is_cut_short = False, True
        if skip:
            log.warning(
                "data.%s: skipping the first %d batches; the same ones as before are not promised, since a %s has no "
                "state_dict.",
                self.name,
                skip,
                type(self.source).__name__,
            )
        if not getattr(self.source, "persistent_workers", False):
            end_workers(self._iterator)
        self._iterator = batches = iter(self.source)
        if isinstance(self.source, DataLoader):
            keep_open(batches)
        length = length_of(self.source)
        for position in itertools.count(start - skip):
            seed_generators(self.seed, Stream.SAMPLE, epoch, position)
            batch = next(batches, _END)
            if batch is _END:
                self._is_cut_short = False
                return
            if position + 1 == length:
                next(batches, _END)  # the source ends its epoch before its state may be saved
                self._is_cut_short = False
            if position >= start:
                yield None, batch

    def close(self) -> None:
        """End the worker processes of a torch loader."""
        end_workers(self._iterator)
        self._iterator = None
        if isinstance(self.source, DataLoader):
            self.source._iterator = None


def length_of(source: Any) -> int | None:
    """Return the batches of an epoch; None where the source does not know."""
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None
