"""What may stand in a trainer's `data`, and how it becomes something that the trainer can go on with."""

from __future__ import annotations

import itertools
import logging
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from ..exceptions import ConfigError
from ..runtime.seeding import FIRST_STATE, Stream, derive_seed, seed_generators
from .hidden import has, search
from .huggingface_stream import HuggingFaceStream, has_lossy_state
from .loader import Loader
from .order import is_plain_order
from .picklable import pickling_explained
from .streams import StreamLoader
from .workers import WorkerInit, deaths_explained, end_workers, keep_open

log = logging.getLogger("stable_ssl")

_END = object()


def as_loader(source: Any, name: str) -> Loader | StreamLoader | IterableLoader:
    """Return what stands in a trainer's `data` as something with `bind`, `batches` and `close`.

    A `Loader` or `StreamLoader` is that already. A plain torch `DataLoader` over a map-style data set is rebuilt as a
    `Loader`, and the log says so. Any other iterable of batches is wrapped.

    Raises
    ------
    ConfigError
        It is a data set without a loader, no iterable at all, or a `DataLoader` with options that a `Loader` refuses.
    """
    if isinstance(source, Loader | StreamLoader | IterableLoader):
        return source
    if type(source) is DataLoader and not isinstance(source.dataset, IterableDataset):
        try:
            return _rebuild(source, name)
        except ConfigError as error:
            raise ConfigError([f"data.{name}: {problem}" for problem in error.problems]) from error
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        raise ConfigError(
            f"data.{name}: a data set ({type(source).__name__}) without a loader. "
            "Wrap it: stable_ssl.data.Loader(dataset, batch_size=…)."
        )
    if isinstance(source, HuggingFaceStream):
        raise ConfigError(f"data.{name}: a stream without a loader. Wrap it: StreamLoader(stream, batch_size=…).")
    if not hasattr(source, "__iter__"):
        raise ConfigError(f"data.{name}: a {type(source).__name__} is neither a loader nor an iterable of batches.")
    return IterableLoader(source, name)


def _rebuild(loader: DataLoader, name: str) -> Loader:
    """Return a `Loader` with the options of a plain torch `DataLoader`."""
    order, described = _order_of(loader)
    made = Loader(
        loader.dataset,
        # DataLoader has no batch size if it was given a batch sampler.
        1 if "batch_sampler" in order else loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        # Torch takes anything for true or false.
        drop_last=bool(loader.drop_last),
        pin_memory=bool(loader.pin_memory),
        persistent_workers=bool(loader.persistent_workers),
        prefetch_factor=loader.prefetch_factor if loader.num_workers else None,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        **order,
    )
    log.info("data.%s: the DataLoader is rebuilt as a Loader; the order is %s.", name, described)
    return made


def _order_of(loader: DataLoader) -> tuple[dict[str, Any], str]:
    """Return the arguments of a `Loader` that keep a DataLoader's order, and the order in words."""
    sampler: Any = loader.sampler
    # DataLoader makes a batch sampler itself if it has a batch size.
    if loader.batch_sampler is not None and loader.batch_size is None:
        return {"batch_sampler": loader.batch_sampler}, _drawn_from(loader.batch_sampler)
    described = ""
    if type(sampler) is DistributedSampler:  # a subclass may give any samples
        sampler = (RandomSampler if sampler.shuffle else SequentialSampler)(sampler.dataset)  # type: ignore[arg-type]
        described = "a DistributedSampler's, whose samples the trainer shares out itself"
    shuffles = is_plain_order(sampler, loader.dataset)
    if shuffles is None:
        return {"sampler": sampler}, described or _drawn_from(sampler)
    plain = "a function of the seed and the epoch" if shuffles else "that of the data set"
    return {"shuffle": shuffles}, described or plain


def _drawn_from(sampler: Any) -> str:
    return f"drawn from its {type(sampler).__name__} under a seed of the epoch"


class IterableLoader:
    """An iterable of batches, as the trainer goes through it.

    A list or tuple of batches resumes exactly, and so does an iterable with `state_dict` and `load_state_dict`. Any
    other one is gone through from its beginning, which is exact only if it gives the same batches every time.

    Before each epoch, `set_epoch(epoch)` is called on the iterable. If it lacks the method, it is called on what
    the iterable holds, such as the data set of a torch loader. That loader's workers then begin anew, because they
    hold copies. If two epochs or two of its workers begin with equal batches, the log warns.

    Parameters
    ----------
    source
        The iterable.
    name
        Of the data set, in messages.

    Raises
    ------
    ConfigError
        It is empty.
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
        self._first_batches: dict[int, int] = {}  # the epoch, by the checksum of its first batch
        self._first_of_epoch: int | None = None  # the checksum of the first batch of this epoch
        self._warned: set[str] = set()
        self._told_epoch: int | None = None
        self._has_listener = False
        # The first batch of each worker: torch takes turns with them. Without workers, only the first batch.
        is_shared = isinstance(source, DataLoader) and isinstance(source.dataset, IterableDataset)
        self._last_compared = max(source.num_workers, 1) - 1 if is_shared else 0
        if isinstance(source, DataLoader) and not isinstance(source.worker_init_fn, WorkerInit):
            source.worker_init_fn = WorkerInit(source.worker_init_fn)
        if self._stateful:
            # Other sources have no such attributes: the trainer saves the state of whatever has them.
            self.state_dict = source.state_dict
            self.load_state_dict = self._load_state_dict
        if length_of(source) == 0:
            raise ConfigError(f"data.{name}: empty.")

    def bind(self, seed: int, name: str, rank: int = 0, world_size: int = 1, *, is_even: bool = False) -> None:
        """Set the run's seed, and share out a list over the ranks; a stream must share itself out.

        The parameters are those of `Loader.bind`. With `is_even`, the last batches are left out if they are too few for
        all ranks.
        """
        self.seed, self.name = seed, name
        if self._stateful and has_lossy_state(self.source):
            log.warning(
                "data.%s: this IterableDataset is shuffled by a buffer that its state does not hold, so a resumed run "
                "goes on with other samples. Leave .shuffle() out, and use a HuggingFaceStream in a StreamLoader.",
                name,
            )
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
        """Return the number of batches per epoch; raise TypeError if the source does not know."""
        return len(self.source)

    def _load_state_dict(self, state: Any) -> None:
        self.source.load_state_dict(state)
        self._is_positioned = True

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[None, Any]]:
        """Yield (None, batch) for each batch of an epoch from number `start` on."""
        if not self.is_stream:
            for batch in self.source[start:]:
                yield None, batch
            return
        first = self._begin(epoch, start)
        iterator, length = self._iterator, length_of(self.source)
        # Per batch, `key ^ position` costs one mixed key instead of the four of (seed, Stream.SAMPLE, epoch, position).
        # `derive_seed` gives the same for both: it mixes each key into the state that the keys before it left.
        key = derive_seed(self.seed, Stream.SAMPLE, epoch) ^ FIRST_STATE
        for position in itertools.count(first):
            seed_generators(key ^ position)
            batch = self._next(iterator, position)
            if batch is _END:
                self._is_cut_short = False
                return
            if position + 1 == length:
                self._next(iterator, position)  # the source ends its epoch before its state may be saved
                self._is_cut_short = False
            if position <= self._last_compared:
                self._compare(epoch, position, batch)
            if position >= start:
                yield None, batch

    def _next(self, iterator: Iterator[Any], position: int) -> Any:
        with deaths_explained(self.name, f" from number {position} on"):
            return next(iterator, _END)

    def _begin(self, epoch: int, start: int) -> int:
        """Begin an epoch of a stream, and return the number of the batch that it gives first."""
        seed_generators(self.seed, Stream.ORDER, epoch)
        self._tell(epoch)
        if self._stateful and self._is_cut_short and not self._is_positioned:
            # A stream goes on where its last epoch was cut short, as it would after a resume.
            self.source.load_state_dict(self.source.state_dict())
        first = start if self._is_positioned else 0
        self._is_positioned, self._is_cut_short = False, True
        if start > first:
            log.warning(
                "data.%s: skipping the first %d batches; the same ones as before are not promised, since a %s has no "
                "state_dict.",
                self.name,
                start,
                type(self.source).__name__,
            )
        if not getattr(self.source, "persistent_workers", False):
            end_workers(self._iterator)
        named = {f"data.{self.name}.{key}": getattr(self.source, key, None) for key in ("dataset", "collate_fn")}
        with pickling_explained(named), deaths_explained(self.name):  # persistent workers answer here
            self._iterator = iter(self.source)
        if isinstance(self.source, DataLoader):
            keep_open(self._iterator, self.name)
        return first

    def _tell(self, epoch: int) -> None:
        """Call `set_epoch` of the source or of what it holds, and end workers that hold copies of an earlier epoch."""
        found = search(self.source, "set_epoch")
        listeners = [part for _, part, is_inner in found if has(part, "set_epoch") and not is_inner]
        listeners = [self.source] if hasattr(self.source, "set_epoch") else listeners
        for part in listeners:
            part.set_epoch(epoch)
            if epoch != self._told_epoch:
                self.close()
        self._told_epoch, self._has_listener = epoch, bool(listeners)

    def _compare(self, epoch: int, position: int, batch: Any) -> None:
        """Warn, once each, if the first batch of an epoch equals that of another epoch, or of another worker."""
        number = checksum(batch)
        if position > 0:
            if number == self._first_of_epoch and "workers" not in self._warned:
                self._warned.add("workers")
                log.warning(
                    "data.%s: workers 0 and %d of the DataLoader begin with equal batches: each of its %d workers goes "
                    "through the whole stream. In __iter__, have the data set give each worker samples of its own, by "
                    "torch.utils.data.get_worker_info().",
                    self.name,
                    position,
                    self._last_compared + 1,
                )
            return
        self._first_of_epoch = number
        other = self._first_batches.setdefault(number, epoch)
        if other != epoch and "epochs" not in self._warned:
            self._warned.add("epochs")
            advice = "Give its data set a method set_epoch(epoch), which is called before each epoch, and use it for"
            if self._has_listener:
                advice = "Its set_epoch(epoch) was called before each epoch: use that number for"
            log.warning(
                "data.%s: epochs %d and %d begin with equal batches: the stream gives the same order again. %s the "
                "order.",
                self.name,
                other,
                epoch,
                advice,
            )

    def close(self) -> None:
        """End the worker processes of a torch loader."""
        end_workers(self._iterator)
        self._iterator = None
        if isinstance(self.source, DataLoader):
            self.source._iterator = None


def length_of(source: Any) -> int | None:
    """Return the number of batches per epoch; None if the source does not know."""
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None


def checksum(batch: Any) -> int:
    """Return a number that is equal for equal batches, and hardly ever for others."""
    number = 0
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            leaf = leaf.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
        is_array = isinstance(leaf, np.ndarray) and leaf.dtype != object
        number = zlib.crc32(leaf.tobytes() if is_array else repr(leaf).encode(), number)
    return number
