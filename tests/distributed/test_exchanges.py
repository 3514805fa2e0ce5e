"""What the processes of a run exchange in a step."""

from __future__ import annotations

import functools
import json
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from toys import Toy, toy_backbone, toy_dataset

import stable_ssl.engine.agreement
from stable_ssl import BreakStep
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


class Embedding(Counting):
    def after_fit_epoch(self):
        assert len(list(self.representations("test"))) == 2 + self.rank


def block():
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU())


def train(folder, strategy, seconds):
    """Return the collectives of the 20 steps from one loss to another. Then the ranks embed 3 batches, and 2."""
    stable_ssl.engine.agreement.SECONDS_BETWEEN_EXCHANGES = seconds
    count_collectives()
    torch.manual_seed(0)
    Embedding(
        {"train": Loader(toy_dataset(23 * 8), 4), "test": Loader(toy_dataset(5), 1)},
        {"backbone": nn.Sequential(nn.Linear(8, 16), nn.Sequential(block(), block()), nn.Linear(16, 2))},
        {"device": "cpu", "strategy": strategy},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 1},
        {"dump_path": folder, "level": 40, "checkpoint_every_minutes": 1e6},
    )()
    return dict(Embedding.found)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_step_has_one_exchange_which_does_not_wait_and_each_step_is_logged(start_ranks, tmp_path, strategy):
    seconds = {"rarely": 1e6, "often": 0.0}
    rarely, often = (start_ranks(train, tmp_path / n, strategy, s).results()[0] for n, s in seconds.items())
    assert rarely == {"all_reduce": 20}
    assert often == {"all_reduce": 20, "all_gather": often["all_gather"]}
    assert often["all_gather"] > 15
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in seconds]
    records = [[json.loads(line) for line in found] for found in lines]
    losses = [{r["global_step"]: r["train/loss"] for r in found if "train/loss" in r} for found in records]
    assert list(losses[0]) == list(range(1, 24))
    assert losses[0] == losses[1]


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

    stable_ssl.engine.agreement.SECONDS_BETWEEN_EXCHANGES = 1e6
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


class Reentrant(nn.Module):
    """Uses a layer twice, each time under reentrant checkpointing, so that its gradient comes in two parts."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = x.clone().requires_grad_()
        for _ in range(2):
            x = checkpoint(self.layer, x, use_reentrant=True)
        return self.last(x)


class Asking(Toy):
    """Leaves out the 2nd mini-batch of all; on rank 1, asks for a checkpoint in its 5th step."""

    def compute_loss(self):
        if self.batch_idx == 1:
            raise BreakStep
        return super().compute_loss()

    def after_fit_step(self):
        if self.rank == 1 and self.stepped and self.global_step == 5:
            self.checkpoint()


def ask(folder):
    torch.manual_seed(0)
    trainer = Asking(
        {"train": Loader(toy_dataset(160), 4)},
        {"backbone": Reentrant()},
        {"device": "cpu"},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 1, "accumulation_steps": 2},
        {"dump_path": folder, "level": 40, "checkpoint_keep": 9},
    )
    trainer()
    return int(trainer.global_step)


def test_a_checkpoint_that_one_rank_asks_for_is_written_once_a_step_later(start_ranks, tmp_path):
    assert start_ranks(ask, tmp_path).results() == [10, 10]
    found = sorted(
        json.loads((path / "meta.json").read_text())["progress"]["global_step"]
        for path in (tmp_path / "checkpoints").iterdir()
    )
    assert found[:1] == [6]
    assert 7 not in found
