"""Commands on a run of two ranks that divide its modules: by the two ranks, and by one process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys

import pytest
import torch
from torch import nn

import stable_ssl
from stable_ssl import BaseTrainer, ConfigError
from stable_ssl.cli import main

FILE = """
trainer:
  _target_: test_sharded_commands.Classifier
  data:
    train: &digits
      _target_: stable_ssl.data.Loader
      batch_size: 16
      shuffle: true
      dataset: {_target_: stable_ssl.data.Digits, size: 8}
    test: {<<: *digits, shuffle: false, dataset: {_target_: stable_ssl.data.Digits, size: 8, split: test}}
  module:
    backbone:
      _target_: torch.nn.Sequential
      _args_: [{_target_: torch.nn.Flatten}, {_target_: torch.nn.Linear, in_features: 64, out_features: 10}]
  optim: {epochs: 1, max_steps: 3, optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 0.01, eps: 1.e-3}}
  hardware: {device: cpu, strategy: fsdp}
  logger: {level: 30, eval_every_epoch: 9}
"""
BRANCH = ["--out", "branch", "optim.epochs=2", "logger.save_final_model=true"]


class Classifier(BaseTrainer):
    fails = False

    def check_setup(self):
        if self.fails == "alike":
            raise ConfigError("module: it can't be.")

    def forward(self, x):
        return self.module["backbone"](x)

    def compute_loss(self):
        if self.fails == "one" and self.rank == 1 and self.global_step == 1:
            raise RuntimeError("a mishap of rank 1")
        return nn.functional.cross_entropy(self.forward(self.batch[0]), self.batch[1])


def use_commands(folder):
    """Train, branch, and fail together; return the statuses, and what is said of the failure."""
    os.chdir(folder)
    statuses = [main(["train", "file.yaml", "logger.dump_path=run"]), main(["branch", "run", *BRANCH])]
    Classifier.fails = "alike"
    with contextlib.redirect_stderr(io.StringIO()) as said:
        statuses.append(main(["train", "file.yaml", "--no-check", "logger.dump_path=alike"]))
    return statuses, said.getvalue()


def fail(folder):
    """Fail on rank 1. Each rank writes what it says into a file."""
    os.chdir(folder)
    (folder / "file.yaml").write_text(FILE)
    Classifier.fails = "one"
    with open(f"said_{os.environ['RANK']}", "w") as file, contextlib.redirect_stderr(file):
        sys.exit(main(["train", "file.yaml", "--no-check", "logger.dump_path=run"]))


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """Return the folder, and what the ranks returned."""
    from ranks import Ranks

    folder = tmp_path_factory.mktemp("commands")
    (folder / "file.yaml").write_text(FILE)
    return folder, Ranks(use_commands, folder).results()


def test_two_ranks_begin_a_branch_and_so_does_one_process_with_a_whole_model(used, tmp_path, monkeypatch):
    folder, ranks = used
    assert [statuses[:2] for statuses, *_ in ranks] == [[0, 0], [0, 0]]
    monkeypatch.chdir(tmp_path)
    whole = ["hardware.strategy=ddp", "hardware.world_size=1", "data.train.batch_size=32"]
    assert main(["branch", str(folder / "run"), *BRANCH, *whole]) == 0
    two, one = (stable_ssl.load(place / "branch").state_dict() for place in (folder, tmp_path))
    parent = stable_ssl.load(folder / "run").state_dict()
    for key, value in two.items():
        torch.testing.assert_close(value, one[key], rtol=1e-5, atol=1e-6, msg=key)
        assert (value - parent[key]).abs().max() > 1e-3


def test_one_process_evaluates_a_sharded_checkpoint_as_the_file_of_whole_weights(used, tmp_path, capsys):
    (checkpoint,) = (used[0] / "branch" / "checkpoints").glob("*06")
    figures = []
    for source in (checkpoint, used[0] / "branch" / "weights" / "final.safetensors"):
        assert main(["eval", str(source), "--protocol", "knn", "--json"]) == 0
        figures.append([found["figures"] for found in json.loads(capsys.readouterr().out)])
    assert figures[0] == figures[1]


def test_a_failure_of_one_rank_has_one_traceback(start_ranks, tmp_path):
    assert start_ranks(fail, tmp_path).join() == [1, 1]
    said, said_by_failing = ((tmp_path / f"said_{rank}").read_text() for rank in range(2))
    assert "rank 1 failed: RuntimeError: a mishap of rank 1" in said
    assert (said.count("Traceback"), said_by_failing.count("Traceback")) == (0, 1)


def test_an_error_that_both_ranks_raise_alike_is_printed_once(used):
    statuses, texts = zip(*used[1], strict=True)
    assert [status[2] for status in statuses] == [2, 2]
    assert sorted(texts) == ["", "stable-ssl: module: it can't be.\n"]
