"""Streams of data: they know the epoch wherever they are, and one that repeats itself is noticed."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch
from torch.utils.data import ChainDataset, DataLoader, IterableDataset, get_worker_info

from stable_ssl.data import as_loader
from stable_ssl.data.sources import checksum


class Stream(IterableDataset):
    """Twelve numbers, in an order that depends on the epoch."""

    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(torch.randperm(12, generator=torch.Generator().manual_seed(100 + self.epoch)).tolist())


class Deaf(IterableDataset):
    def __iter__(self):
        return iter(range(12))


class Mapped(IterableDataset):
    def __init__(self, stream):
        self.stages = [stream]

    def __iter__(self):
        return map(int, self.stages[0])


class Ahead:
    """What reads a torch loader, and is none."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def order(epoch):
    stream = Stream()
    stream.set_epoch(epoch)
    return list(stream)


WORKERS = {"none": {}, "one": {"num_workers": 1}, "persistent": {"num_workers": 1, "persistent_workers": True}}
HOLDERS = {
    "itself": lambda stream, **options: DataLoader(stream, 4, **options),
    "mapped": lambda stream, **options: DataLoader(Mapped(stream), 4, **options),
    "chained": lambda stream, **options: DataLoader(ChainDataset([stream]), 4, **options),
    "ahead": lambda stream, **options: Ahead(DataLoader(stream, 4, **options)),
}


@pytest.mark.parametrize(
    ("holder", "workers"),
    # The persistent workers of a loader inside something else can't be ended.
    [(holder, workers) for holder in HOLDERS for workers in WORKERS if (holder, workers) != ("ahead", "persistent")],
)
def test_a_stream_knows_the_epoch_wherever_it_is(holder, workers):
    made = as_loader(HOLDERS[holder](Stream(), **WORKERS[workers]), "train")
    try:
        for epoch in (0, 1, 5, 1):
            assert torch.cat([batch for _, batch in made.batches(epoch)]).tolist() == order(epoch)
    finally:
        made.close()


def test_persistent_workers_stay_within_an_epoch_and_where_nothing_listens():
    for stream, epochs in ((Stream(), (0, 0)), (Deaf(), (0, 1))):
        made = as_loader(DataLoader(stream, 4, num_workers=1, persistent_workers=True), "train")
        pids = []
        for epoch in epochs:
            next(made.batches(epoch))
            pids.append([worker.pid for worker in made._iterator._workers])
        made.close()
        assert pids[0] == pids[1]


@pytest.mark.parametrize("workers", WORKERS)
def test_a_stream_that_begins_two_epochs_alike_is_named_once(workers, caplog):
    made = as_loader(DataLoader(Deaf(), 4, **WORKERS[workers]), "train")
    with caplog.at_level(logging.WARNING):
        for epoch in (0, 0, 1, 2):
            list(made.batches(epoch))
    made.close()
    assert [record.message.partition(": the")[0] for record in caplog.records] == [
        "data.train: epochs 0 and 1 begin with equal batches"
    ]


class Ignoring(Deaf):
    def set_epoch(self, epoch):
        pass


class SharedOut(Stream):
    def __iter__(self):
        worker = get_worker_info()
        return itertools.islice(super().__iter__(), worker.id, None, worker.num_workers)


def test_a_stream_that_has_set_epoch_is_not_told_to_have_it(caplog):
    made = as_loader(DataLoader(Ignoring(), 4), "train")
    for epoch in (0, 1):
        list(made.batches(epoch))
    assert "Its set_epoch(epoch) was called before each epoch: use that number for the order." in caplog.text
    assert "Give its" not in caplog.text


@pytest.mark.parametrize(("stream", "is_named"), [(Stream, True), (SharedOut, False)])
def test_workers_that_all_go_through_the_whole_stream_are_named_once(stream, is_named, caplog):
    made = as_loader(DataLoader(stream(), 4, num_workers=2), "train")
    for epoch in (0, 1):
        list(made.batches(epoch))
    made.close()
    begin = "data.train: workers 0 and 1 of the DataLoader begin with equal batches"
    assert [record.message.partition(": each")[0] for record in caplog.records] == [begin] * is_named


def test_a_run_on_such_a_stream_says_so(make_toy, tmp_path):
    batch = [torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])]

    class Same:
        def __iter__(self):
            return iter([batch, batch])

        def __len__(self):
            return 2

    make_toy(data={"train": Same()}, logger={"level": 20})()
    assert "epochs 0 and 1 begin with equal batches" in (tmp_path / "run" / "console.log").read_text()


def test_a_stream_that_is_shorter_than_the_schedule_takes_it_to_be_is_named_once(make_toy, tmp_path):
    class Short(IterableDataset):
        def __iter__(self):
            return iter([(torch.randn(8), 0) for _ in range(12)])

    make_toy(data={"train": DataLoader(Short(), 4)}, max_steps=6, logger={"level": 20})()
    said = (tmp_path / "run" / "console.log").read_text()
    assert said.count("data.train ended after 3 of 6 mini-batches in epoch 1.") == 1
    assert said.count("set optim.max_steps") == 1


def test_streams_that_differ_and_lists_are_no_reason_to_warn(caplog):
    for source in (DataLoader(Stream(), 4), DataLoader(Mapped(Stream()), 4), [1, 2]):
        made = as_loader(source, "train")
        for epoch in range(3):
            list(made.batches(epoch))
    assert not caplog.text


def test_batches_of_any_kind_are_compared():
    def batch(number):
        return {
            "a": [torch.full((2,), number, dtype=torch.bfloat16), np.array([1, number])],
            "b": ("x", number, torch.tensor(0), np.array([None, "y"])),
        }

    assert checksum(batch(3)) == checksum(batch(3)) != checksum(batch(4))
    assert checksum([torch.eye(2).to_sparse()]) == checksum([torch.eye(2).to_sparse()])
