"""A run of two ranks that was stopped or killed ends where one that was left alone ends; and no rank is left hanging."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import time

import pytest
import torch
from endings import ending, same
from toys import Toy, toy_backbone, toy_dataset

from stable_ssl.data import Loader


class Embedding(Toy):
    """Sets what RankMe looks at, and keeps a count of its own on each rank."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("seen", torch.zeros(()))

    def compute_loss(self):
        self.latest_embeddings = self.module["backbone"][0](self.batch[0])
        self.seen += self.batch[0].sum()
        return super().compute_loss()


class Stopping(Embedding):
    """Rank `who` gets a signal in the middle of step 4, or in the first evaluation."""

    who, where, armed = 1, "train", True

    def compute_loss(self):
        if self.rank == self.who and self.where == "train" and self.global_step == 3:
            self.stop()
        return super().compute_loss()

    def before_eval_step(self):
        if self.rank == self.who and self.where == "evaluation" and self.epoch == 0:
            self.stop()

    def stop(self):
        if type(self).armed:
            type(self).armed = False
            os.kill(os.getpid(), signal.SIGTERM)


def make(cls, folder, epochs=2, branch_from=None):
    from stable_ssl.monitors import RankMe

    torch.manual_seed(0)
    return cls(
        {"train": Loader(toy_dataset(48), 4, shuffle=True), "test": Loader(toy_dataset(17, seed=1), 4)},
        {"backbone": toy_backbone()},
        {"device": "cpu"},
        {
            "optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
            "scheduler": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6),
            "epochs": epochs,
            "accumulation_steps": 2,
        },
        {"dump_path": folder, "level": 30, "monitor": {"train": {"rankme": RankMe(limit=10)}}},
        branch_from=branch_from,
    )


def run(cls, folder):
    trainer = make(cls, folder)
    trainer()
    return trainer.state_dict()


def run_stopping(folder, who, where):
    Stopping.armed, Stopping.who, Stopping.where = who is not None, who, where
    trainer = make(Stopping, folder)
    trainer()
    return trainer.state_dict()


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("where", ["train", "evaluation"])
def test_ranks_stop_at_one_step_and_go_on_as_if_left_alone(start_ranks, tmp_path, who, where):
    first, second = start_ranks(run_stopping, tmp_path / "alone", None, "").results()
    assert not torch.equal(first["seen"], second["seen"])
    assert start_ranks(run_stopping, tmp_path / "stopped", who, where).join() == [128 + signal.SIGTERM] * 2
    status = json.loads((tmp_path / "stopped" / "status.json").read_text())
    assert status["status"] == "preempted"
    assert status["progress"]["global_step"] == (5 if where == "train" else 3)  # told at step 4
    both = start_ranks(run_stopping, tmp_path / "stopped", None, "").results()
    for resumed, alone in zip(both, (first, second), strict=True):
        assert same(dict(resumed), dict(alone))
    assert same(ending(tmp_path / "stopped"), ending(tmp_path / "alone"))


def test_a_run_may_go_on_with_half_the_processes_and_batches_of_twice_the_size(start_ranks, tmp_path):
    assert start_ranks(run_stopping, tmp_path, 0, "train").join() == [143, 143]
    Stopping.armed = False
    trainer = make(Stopping, tmp_path)
    trainer.data["train"] = Loader(toy_dataset(48), 8, shuffle=True)
    trainer()
    assert trainer.global_step == 6
    assert "Going on with 1 processes instead of 2" in (tmp_path / "console.log").read_text()


def run_branch(parent, folder):
    trainer = make(Embedding, folder, branch_from=parent)
    trainer()
    return trainer.state_dict()


def test_a_branch_of_two_ranks_has_what_each_of_them_had_of_its_own(start_ranks, tmp_path):
    alone = start_ranks(run_stopping, tmp_path / "alone", None, "").results()
    assert start_ranks(run_stopping, tmp_path / "parent", 1, "train").join() == [128 + signal.SIGTERM] * 2
    both = start_ranks(run_branch, tmp_path / "parent", tmp_path / "branch").results()
    for branched, other in zip(both, alone, strict=True):
        assert same(dict(branched), dict(other))


class SlowToLeave(Stopping):
    """Rank 0 is long over its last checkpoint."""

    has_slept = False

    def get_extra_state(self):
        if self.rank == 0 and self.global_step == 5 and not self.has_slept:
            self.has_slept = True
            time.sleep(35)
        return {}

    def set_extra_state(self, state):
        pass


def run_slow_to_leave(folder):
    SlowToLeave.armed, SlowToLeave.who, SlowToLeave.where = True, 1, "train"
    run(SlowToLeave, folder)


@pytest.mark.slow
def test_ranks_wait_for_one_that_is_long_over_its_last_checkpoint(start_ranks, tmp_path):
    ranks = start_ranks(run_slow_to_leave, tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        ranks.processes[1].wait(30)
    assert ranks.join(30) == [128 + signal.SIGTERM] * 2
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "preempted"


class Failing(Embedding):
    """On rank 1 something goes wrong, while rank 0 is where no collective tells it."""

    how = "raise"

    def before_fit_step(self):
        if self.global_step < 2:
            return
        if self.rank == 1 and self.how == "raise":
            raise ValueError("a mishap of rank 1")
        if self.rank == 1 and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.rank == 1 and self.how == "exit":
            os._exit(0)
        if self.rank == 0:
            time.sleep(120)


def fail(folder, how):
    Failing.how = how
    run(Failing, folder)


@pytest.mark.parametrize(("how", "status", "seconds"), [("raise", 1, 10), ("kill", -9, 30)])
def test_a_rank_that_fails_ends_the_others(start_ranks, tmp_path, how, status, seconds):
    ranks = start_ranks(fail, tmp_path, how)
    ranks.processes[1].wait(60)
    begun = time.monotonic()
    assert ranks.join(seconds) == [1, status]
    assert time.monotonic() - begun < seconds
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "failed"
    said = (tmp_path / "console.log").read_text()
    assert ("rank 1 failed: ValueError: a mishap of rank 1" if how == "raise" else "rank 1 is gone") in said


class FailingInSetup(Embedding):
    def prepare_modules(self, modules):
        if self.rank == 1:
            raise FileNotFoundError("no weights on this node")


def test_a_rank_that_fails_while_setting_up_ends_the_others(start_ranks, tmp_path):
    ranks = start_ranks(run, FailingInSetup, tmp_path)
    begun = time.monotonic()
    assert ranks.join(30) == [1, 1]
    assert time.monotonic() - begun < 30


def test_an_error_of_rank_0_while_it_claims_the_folder_is_everybodys(start_ranks, tmp_path):
    (tmp_path / "file").touch()
    assert start_ranks(run, Embedding, tmp_path / "file" / "run").join(30) == [1, 1]
