"""What the processes of a run exchange in a step."""

from __future__ import annotations

import functools
import json
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from toys import Toy, toy_backbone, toy_dataset

import stable_ssl.engine.agreement
from stable_ssl.data import Loader

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_object", "broadcast", "broadcast_object_list", "barrier")
BEGUN: Counter[str] = Counter()


class Counting(Toy):
    """Counts the collectives of its steps from the 3rd one on, but not those of FSDP2, which torch calls below."""

    found: Counter[str]

    def compute_loss(self):
        if self.global_step == 2:
            BEGUN.clear()
        type(self).found = Counter(BEGUN)
        return super().compute_loss()


def count_collectives():
    """Have each collective counted. In the name of one that waits is "waits"."""

    def counted(name, collective):
        @functools.wraps(collective)
        def call(*args, **kwargs):
            BEGUN[name if kwargs.get("async_op") else f"{name} waits"] += 1
            return collective(*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counted(name, getattr(dist, name)))


def train(folder, strategy, seconds):
    """Return the collectives of the 20 steps from one loss to another."""
    stable_ssl.engine.agreement.SECONDS_BETWEEN_SHARES = seconds
    count_collectives()
    Counting(
        {"train": Loader(toy_dataset(23 * 8), 4)},
        {"backbone": toy_backbone()},
        {"device": "cpu", "strategy": strategy},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 1},
        {"dump_path": folder, "level": 40, "checkpoint_every_minutes": 1e6},
    )()
    return dict(Counting.found)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_step_has_one_exchange_which_does_not_wait_and_each_step_is_logged(start_ranks, tmp_path, strategy):
    seconds = {"rarely": 1e6, "often": 0.0}
    rarely, often = (start_ranks(train, tmp_path / n, strategy, s).results()[0] for n, s in seconds.items())
    assert rarely == {"all_reduce": 20}
    assert often == {"all_reduce": 20, "all_gather": often["all_gather"]}
    assert often["all_gather"] > 15
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in seconds]
    records = [[json.loads(line) for line in found] for found in lines]
    assert [record["global_step"] for record in records[0]] == list(range(1, 24))
    assert [r["train/loss"] for r in records[0]] == [r["train/loss"] for r in records[1]]


def numbers(shards):
    for shard in shards:
        for number in range((9, 5, 8, 7)[shard]):
            yield {"x": [float(shard + number)] * 8, "y": number % 2}


class OfRecords(Counting):
    """Learns from records with the columns x and y."""

    def compute_loss(self):
        self.batch = torch.stack(self.batch["x"], 1).float(), self.batch["y"]
        return super().compute_loss()


def streamed(folder):
    """Return the collectives of the steps from one loss to another, and the number of all steps."""
    from datasets import IterableDataset

    from stable_ssl.data import HuggingFaceStream, StreamLoader

    stable_ssl.engine.agreement.SECONDS_BETWEEN_SHARES = 1e6
    count_collectives()
    stream = HuggingFaceStream(IterableDataset.from_generator(numbers, gen_kwargs={"shards": [0, 1, 2, 3]}))
    trainer = OfRecords(
        {"train": StreamLoader(stream, 2, buffer=3)},
        {"backbone": toy_backbone()},
        {"device": "cpu"},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 1, "max_steps": 50},
        {"dump_path": folder, "level": 40, "checkpoint_every_minutes": 1e6},
    )
    trainer()
    return dict(OfRecords.found), int(trainer.global_step)


def test_a_stream_asks_a_step_ahead_whether_all_have_a_batch_and_ends_with_the_first(start_ranks, tmp_path):
    pytest.importorskip("datasets")
    for found, steps in start_ranks(streamed, tmp_path).results():
        assert steps == 6  # one process has shards of 9 + 8 samples, or of 5 + 7
        assert found == {"all_reduce": 2 * 3}
