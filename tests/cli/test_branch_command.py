"""`stable-ssl branch`, and its Python form."""

from __future__ import annotations

import json
import shutil

import pytest

import stable_ssl
from stable_ssl.cli import main

FILE = """
trainer:
  _target_: stable_ssl.SupervisedTrainer
  data:
    train:
      _target_: stable_ssl.data.Loader
      batch_size: 64
      shuffle: true
      dataset: {_target_: stable_ssl.data.Digits, size: 8}
  module:
    backbone:
      _target_: torch.nn.Sequential
      _args_: [{_target_: torch.nn.Flatten}, {_target_: torch.nn.Linear, in_features: 64, out_features: 10}]
  optim: {epochs: 2, max_steps: 2, optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 0.1}}
  hardware: {device: cpu}
  logger: {checkpoint_every_step: 1, checkpoint_keep: 9, dump_path: parent}
"""


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "parent"
    (folder.parent / "file.yaml").write_text(FILE)
    assert main(["train", str(folder.parent / "file.yaml"), f"logger.dump_path={folder}"]) == 0
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command in the folder of the test, and returns its status and what it said."""

    def run(*args):
        monkeypatch.chdir(tmp_path)  # a command may end in the working folder of the run
        status = main([str(arg) for arg in args])
        return status, capsys.readouterr().err

    return run


def steps(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["global_step"] for record in records if "train/loss" in record]


def test_a_branch_trains_at_once_and_is_resumed_if_it_is_the_same(parent, tmp_path, run):
    branch = ["branch", parent, "--step", "2", "--out", "new", "optim.grad_max_norm=1.0"]
    status, said = run(*branch)
    assert (status, steps(tmp_path / "new")) == (0, [3, 4])
    assert "optim.grad_max_norm: None in the parent, 1.0 here." in said
    assert steps(parent) == [1, 2, 3, 4]
    status, said = run(*branch)
    assert (status, steps(tmp_path / "new")) == (0, [3, 4])
    assert "is finished" in said
    status, said = run(*branch[:-1], "optim.grad_max_norm=2.0")
    assert status == 2
    assert "optim.grad_max_norm: the run in the folder has 1.0, this one 2.0." in said
    assert run("resume", "new", "optim.epochs=3")[0] == 0
    assert steps(tmp_path / "new") == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--step", "99"], "the steps of those that there are: [1, 2, 3, 4]."),
        (["optim.epoch=3"], "optim.epoch: unknown key"),
        ([], "nothing is left to train"),
        (["--out", "parent"], "is the folder of this run itself"),
    ],
)
def test_a_branch_that_can_not_begin_has_status_2_and_leaves_the_run_alone(parent, tmp_path, run, args, words):
    (tmp_path / "parent").symlink_to(parent)
    before = {path: path.stat().st_mtime_ns for path in parent.rglob("*") if path.name not in (".lock", "console.log")}
    status, said = run("branch", parent, *args)
    assert status == 2
    assert words in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_edited_rate_in_config_yaml_is_refused_by_resume_and_taken_by_branch(parent, tmp_path, run):
    shutil.copytree(parent, tmp_path / "edited")
    file = tmp_path / "edited" / "config.yaml"
    file.write_text(file.read_text().replace("lr: 0.1\n", "lr: 0.01\n"))
    status, said = run("resume", "edited", "optim.epochs=3")
    assert status == 2
    assert "optim.optimizer.lr: the run in the folder has 0.1, this one 0.01.\n" in said
    assert "begin a branch: `stable-ssl branch" in said
    status, said = run("branch", "edited", "--out", "new", "optim.epochs=3")
    assert status == 0
    assert "optim.optimizer.lr: 0.1 in the parent, 0.01 here." in said


def test_the_python_form_returns_the_trainer(parent, tmp_path):
    trainer = stable_ssl.branch(parent, ["optim.epochs=3", "logger.level=50"], out=tmp_path / "new")
    assert (trainer.global_step, trainer.epoch) == (6, 3)
    assert steps(tmp_path / "new") == [5, 6]


def test_a_run_with_live_objects_says_how_its_script_branches(parent, tmp_path, run):
    shutil.copytree(parent, tmp_path / "live")
    file = tmp_path / "live" / "config.yaml"
    file.write_text(file.read_text().replace("_target_: torch.optim.SGD", "_target_: <live Mine>"))
    status, said = run("branch", "live")
    assert status == 2
    assert f"Run that script again with its changes, branch_from='{tmp_path / 'live'}'" in said
