"""`StreamLoader`: the batches of a stream, in an order that is drawn, resumed exactly with any number of workers."""

from __future__ import annotations

import copy
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import default_collate

from ..exceptions import DataError
from ..runtime.seeding import Stream, derive_seed, preserved_generators
from .checks import check_stream_loader, require
from .collating import collate
from .huggingface_stream import HuggingFaceStream
from .reading import CollateSamples, CollateViews, Reader
from .views import BatchViews, WithViews, as_declared, as_read, check_views, find_shape
from .workers import WorkerBatches, torch_options

log = logging.getLogger("stable_ssl")


class StreamLoader:
    """Yields the batches of a stream; the same batches in every run, and from the same place on if a run is resumed.

    This process reads the stream and draws the order. Images are decoded, and views made, by the workers, as functions
    of (seed, epoch, number of the sample). So any number of workers gives the same batches.

    The order of an epoch is a function of (seed, epoch): the shards are put into an order, and the samples of each
    `buffer` that is read are put into an order. Each of several processes reads shards of its own if their number can
    be divided by that of the processes. Otherwise each reads all, and takes its share of the samples. In training, an
    epoch ends for all processes when the first of them has no batch left.

    A stream has no length: set `optim.max_steps` to the mini-batches that make an epoch. An epoch that is cut short by
    it is over; the next one has an order of its own.

    Parameters
    ----------
    stream
        A `HuggingFaceStream`.
    batch_size
        Samples per batch on each process.
    views
        The views to make of the image of each sample, as for a `Loader`.
    shuffle
        Draw a new order in each epoch.
    buffer
        How many samples are read, still encoded, before an order of them is drawn. As many are read again if a run is
        resumed.
    drop_last
        Leave out the last batch of an epoch if it is not full. Several processes do so in training in any case.
    num_workers, collate_fn, worker_init_fn, pin_memory, prefetch_factor, timeout, multiprocessing_context, \
    persistent_workers
        As for `torch.utils.data.DataLoader`.

    Attributes
    ----------
    has_more
        Whether this process has a batch of the epoch after the one that was given last.

    Raises
    ------
    ConfigError
        An argument is wrong, or the declared views can't be made of the first image.
    DataError
        The stream can't be read, or is empty.
    """

    is_stream = True
    has_more = True

    def __init__(
        self,
        stream: HuggingFaceStream,
        batch_size: int = 1,
        *,
        views: Callable | Sequence[Callable] | None = None,
        shuffle: bool = False,
        buffer: int = 1000,
        drop_last: bool = False,
        num_workers: int = 0,
        collate_fn: Callable | None = None,
        worker_init_fn: Callable | None = None,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        timeout: float = 0,
        multiprocessing_context: Any = None,
        persistent_workers: bool = False,
    ):
        arguments = dict(locals())
        require(("stream", stream, isinstance(stream, HuggingFaceStream), "a HuggingFaceStream"))
        self.views = as_declared(views)
        check_stream_loader(arguments, is_declared=self.views is not None)
        self.stream, self.batch_size, self.shuffle, self.buffer = stream, batch_size, shuffle, buffer
        self._dataset: Any = _Decoded(stream)
        if views is not None:
            self._dataset = WithViews(self._dataset, views) if self.views is None else as_read(self._dataset)
        self._drop_last = drop_last
        self._collate = collate if collate_fn in (None, default_collate) else collate_fn
        self._options = torch_options(arguments)
        self._state: dict[str, Any] = {}
        self._workers: WorkerBatches | None = None

    def bind(self, seed: int, name: str, rank: int = 0, world_size: int = 1, *, is_even: bool = False) -> None:
        """Set what the batches depend on, beside the constructor's arguments, and check the views.

        The parameters are those of `Loader.bind`. `is_even` gives all processes batches of one size.
        """
        self.close()
        self.seed, self.name, self._rank, self._world_size = seed, name, rank, world_size
        self._drops_last = self._drop_last or (is_even and world_size > 1)
        reader = Reader(self._dataset, seed, name, keeps_entries=self.views is not None)
        if reader.unseedable:
            log.warning(
                "data.%s: these generators can't be seeded, so what they draw is not the same in each run: %s.",
                name,
                ", ".join(reader.unseedable),
            )
        make: Any = CollateSamples(self._collate, name, single=False)
        if self.views is not None:
            make = CollateViews(BatchViews(self.views, channels=self._check_views(self.views)), seed)
        self._workers = WorkerBatches(reader, make, self._options)

    def _check_views(self, views: Any) -> int:
        """Return the number of channels of the first image, of which the views can be made."""
        reader = Reader(self._dataset, self.seed, self.name)
        with preserved_generators():
            first = next(_Samples(self.stream, self.name, list(range(self.stream.num_shards)), 0).samples(), None)
            if first is None:
                raise DataError(f"data.{self.name}: '{self.stream.name}' has no sample.")
            shape = find_shape(lambda index: reader[(0, first)], 1)
        check_views(views, shape, self.seed, self.name)
        return shape[2]

    @property
    def layout(self) -> str:
        """What the order depends on beside the seed and the epoch, in words."""
        order = f"shuffled by {self.buffer}" if self.shuffle else "not shuffled"
        return f"{self.stream.num_shards} shards, {self._world_size} processes, {order}"

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of epoch 0."""
        if self._workers is None:
            self.bind(0, "data")
        return (batch for _, batch in self.batches(epoch=0))

    def state_dict(self) -> dict[str, Any]:
        """Return the place of the batch that was given last."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have the next epoch begin after the batch that was given last, if it is the state's epoch."""
        self._state = state

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[list[int], Any]]:
        """Yield (sample numbers, batch) for each batch of an epoch from number `start` on.

        With the state of the batch before `start`, at most `buffer` samples are read again. Without, all are that come
        before it, but none is decoded.

        Raises
        ------
        DataError
            A sample can't be read, a batch can't be collated, or a worker died.
        """
        assert self._workers is not None, "bind comes first"
        states: deque[dict[str, Any]] = deque()
        is_here = (self._state.get("epoch"), self._state.get("batches")) == (epoch, start)
        wanted = _drawn_early(self._cut(epoch, start, self._state if is_here else None, states))
        for numbers, batch in self._workers.batches(epoch, wanted):
            self._state = states.popleft()
            self.has_more = bool(states)
            yield [int(number) for number in numbers], batch

    def _cut(self, epoch: int, start: int, state: dict[str, Any] | None, states: deque) -> Iterator[list[Any]]:
        """Yield the samples of each batch from number `start` on, and add to `states` where it ends."""
        samples = self._ordered(epoch, state)
        for number in itertools.count(start if state else 0):
            batch = list(itertools.islice(samples, self.batch_size))
            if not batch or (self._drops_last and len(batch) < self.batch_size):
                return
            if number >= start:
                states.append({"epoch": epoch, "batches": number + 1, **batch[-1][1]})
                yield [sample for sample, _ in batch]

    def _ordered(self, epoch: int, state: dict[str, Any] | None) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield (sample, the state after it) of this process's share of an epoch, in order."""
        shards, share = self._permuted(self.stream.num_shards, epoch), (self._rank, self._world_size)
        reading = _Samples(self.stream, self.name, shards, epoch, *share, place=state and state["place"])
        samples, offset = reading.samples(), state["offset"] if state else 0
        while True:
            place = reading.place()
            block = list(itertools.islice(samples, self.buffer))
            if not block:
                return
            order = self._permuted(len(block), epoch, 1 + self._rank, place["seen"])
            for position in range(offset, len(block)):
                yield block[order[position]], {"place": place, "offset": position + 1}
            offset = 0

    def _permuted(self, length: int, *keys: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, Stream.ORDER, *keys))
        return torch.randperm(length, generator=generator).tolist() if self.shuffle else list(range(length))

    def close(self) -> None:
        """End the worker processes."""
        if self._workers is not None:
            self._workers.close()


def _drawn_early(items: Iterator[Any]) -> Iterator[Any]:
    """Yield each item after the one that follows it was drawn."""
    current = next(items, None)
    while current is not None:
        current, given = next(items, None), current
        yield given


class _Samples:
    """The share of an epoch's samples that one process takes, in the order in which they are read.

    Parameters
    ----------
    stream, name
        The stream, and the name of the data set for errors.
    shards
        The numbers of all shards, in the epoch's order.
    epoch
        The epoch.
    rank, world_size
        The number of this process, from 0, and the number of processes.
    place
        Where to go on, as `place` returned it.
    """

    def __init__(
        self,
        stream: HuggingFaceStream,
        name: str,
        shards: list[int],
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        place: dict[str, Any] | None = None,
    ):
        self._stream, self._name, self._epoch = stream, name, epoch
        has_own = len(shards) % world_size == 0
        self._shards = shards[rank::world_size] if has_own else shards
        self._rank, self._step = (0, 1) if has_own else (rank, world_size)
        self._place = place or {"shard": 0, "example": 0, "seen": 0, "inner": None}
        self._part: Any = None

    def place(self) -> dict[str, Any]:
        """Return the place after the sample that was given last."""
        return {**self._place, "inner": self._part.state_dict() if self._part is not None else self._place["inner"]}

    def samples(self) -> Iterator[NumberedSample]:
        """Yield each sample from the place on."""
        while self._place["shard"] < len(self._shards):
            shard = self._shards[self._place["shard"]]
            for example in self._examples(shard):
                number, seen = self._place["example"], self._place["seen"]
                self._place = {**self._place, "example": number + 1, "seen": seen + 1}
                if seen % self._step == self._rank:
                    yield NumberedSample(shard << 32 | number).holding(example)
            self._part = None
            self._place = {**self._place, "shard": self._place["shard"] + 1, "example": 0, "inner": None}

    def _examples(self, shard: int) -> Iterator[Any]:
        try:
            self._part = self._stream.part(shard, self._epoch, self._place["inner"])
            yield from self._part
        except Exception as error:
            raise DataError(
                f"data.{self._name}: shard {shard} of '{self._stream.name}' can't be read after example "
                f"{self._place['example']}: {type(error).__name__}: {error}"
            ) from error


class NumberedSample(int):
    """The number of a sample, made of its shard and its place there. It travels to a worker with the encoded sample."""

    example: dict[str, Any]

    def holding(self, example: dict[str, Any]) -> NumberedSample:
        """Return this number, together with a sample."""
        self.example = example
        return self


class _Decoded(Dataset):
    """The samples of a stream, by their number with the encoded sample."""

    def __init__(self, stream: HuggingFaceStream):
        self.stream, self.transform = copy.copy(stream), stream.transform
        self.stream.dataset = None  # a worker reads nothing, so it needs no copy

    def path_of(self, number: int) -> str:
        """Return where a sample comes from."""
        return f"{self.stream.name}, shard {number >> 32}, example {number & 0xFFFFFFFF}"

    def __getitem__(self, number: NumberedSample) -> Any:
        return self.stream.decode(number.example, f"'{self.path_of(number)}'", self.transform)
