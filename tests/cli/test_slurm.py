"""What `stable-ssl train --slurm` asks Slurm for, and what it refuses; jobs that run are in tests/slurm."""

from __future__ import annotations

import pickle
import re

import pytest

from stable_ssl.cli import main
from stable_ssl.cli.run import Run
from stable_ssl.cli.slurm import read_settings

TRAIN = ["train", "supervised_digits", "--slurm"]


@pytest.fixture
def login_node(tmp_path, monkeypatch):
    """A folder on a machine whose sbatch takes every job."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "srun"):
        (programs / name).write_text("#!/bin/sh\necho Submitted batch job 123\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flags(login_node, job="123"):
    """Return what the job's script asks for."""
    lines = (login_node / "runs" / "slurm" / f"{job}_submission.sh").read_text().splitlines()
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))


def submitted(login_node, job="123"):
    """Return the object that the job runs."""
    with open(login_node / "runs" / "slurm" / f"{job}_submitted.pkl", "rb") as file:
        return pickle.load(file)


def test_settings_become_those_of_the_job(login_node, capsys):
    settings = ["partition=low,high", "time=30", "cpus=2", "mem=1.5", "account=me", "constraint=a&b", "setup=ulimit -a"]
    assert main([*TRAIN, *(f"slurm.{text}" for text in settings), "optim.epochs=3"]) == 0
    asked = flags(login_node)
    expected = {
        "partition": "low,high", "time": "30", "cpus-per-task": "2", "mem": "1536MB", "account": "me",
        "constraint": "'a&b'", "nodes": "1", "ntasks-per-node": "1", "job-name": "supervised_digits",
    }  # fmt: skip
    assert {key: asked[key] for key in expected} == expected
    script = (login_node / "runs/slurm/123_submission.sh").read_text()
    assert "--kill-on-bad-exit=1" in script
    assert "ulimit -a" in script
    task = submitted(login_node)
    assert task.function.config["trainer"]["optim"]["epochs"] == 3
    assert task.function.checkpoint().function is task.function
    assert task._timeout_countdown >= 1000
    said = capsys.readouterr().out
    assert all(
        text in said
        for text in ("runs/SupervisedTrainer_123'", f"{login_node}/runs/slurm/123_0_log.out", "scancel 123")
    )


def test_a_sweep_is_submitted_as_one_array(login_node, capsys):
    assert main([*TRAIN, "-m", "hardware.seed=1,2", "optim.epochs=range(3,5)"]) == 0
    assert flags(login_node)["array"].startswith("0-3%")
    configs = [submitted(login_node, f"123_{index}").function.config["trainer"] for index in range(4)]
    assert [(c["hardware"]["seed"], c["optim"]["epochs"]) for c in configs] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert re.search(
        r"123_3: the run will be in 'multirun/supervised_digits_\w{8}/hardware.seed=2,optim.epochs=4'",
        capsys.readouterr().out,
    )


def test_a_job_that_an_older_version_submitted_can_go_on():
    task = Run({"trainer": {}}, ["folder"])
    older = pickle.dumps(task, protocol=0).replace(b"stable_ssl.cli.run", b"stable_ssl.cli.slurm")
    assert b"stable_ssl.cli.slurm" in older
    assert vars(pickle.loads(older)) == vars(task)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["slurm.partitoin=low"], "slurm.partitoin: unknown setting. Did you mean 'partition'?"),
        (["slurm.ntasks_per_node=2"], "Did you mean 'tasks_per_node'?"),
        (["slurm.time=1:30:00"], "slurm.time: '1:30:00' is not a whole number of at least 1."),
        (["slurm.gpus=-1"], "slurm.gpus: -1 is not a whole number of at least 0."),
        (["optim.epoch=1"], "optim.epoch: unknown key"),
        (["hardware.seed=1,2"], "several values, which need --multirun"),
        (["-m", "optim.epochs=1,-1"], "optim.epochs"),
        (["-m", "hardware.seed=1,2", "logger.dump_path=run"], "would share 'run'; leave it out"),
        (["-m", "hydra/launcher=submitit_slurm"], "has no effect with --slurm"),
        (["slurm.tasks=2", "hardware.world_size=4"], "world_size: 4, but slurm.nodes × slurm.tasks is 2"),
        (["slurm.gpus=2", "slurm.nodes=2", "hardware.world_size=2"], "slurm.nodes × slurm.tasks is 4"),
        (["hardware.world_size=2"], "world_size: 2, but slurm.nodes × slurm.tasks is 1"),
    ],
)
def test_a_mistake_is_found_before_anything_is_submitted(login_node, capsys, args, words):
    assert main([*TRAIN, *args]) == 2
    assert words in capsys.readouterr().err
    assert not (login_node / "runs").exists()


def test_a_refusal_by_slurm_is_told_in_its_words(login_node, capsys):
    (login_node / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified: lo' >&2\nexit 1\n")
    assert main([*TRAIN, "slurm.partition=lo"]) == 2
    assert "invalid partition specified: lo" in capsys.readouterr().err


def test_without_sbatch_the_error_says_so(login_node, capsys):
    (login_node / "bin" / "sbatch").unlink()
    assert main(TRAIN) == 2
    assert "there is no sbatch on the PATH" in capsys.readouterr().err


def test_settings_of_a_job_need_the_job(login_node, capsys):
    assert main(["train", "supervised_digits", "slurm.time=1"]) == 2
    assert "'slurm.time=1' is a setting of a Slurm job; add --slurm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("texts", "tasks"),
    [([], 1), (["slurm.gpus=4"], 4), (["slurm.gpus=0"], 1), (["slurm.gpus=4", "slurm.tasks=1"], 1)],
)
def test_there_is_a_task_for_each_gpu_unless_said_otherwise(texts, tasks):
    assert read_settings(texts)[1]["tasks_per_node"] == tasks
