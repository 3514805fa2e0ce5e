"""Processes that torchrun, or the run itself, starts."""

from __future__ import annotations

import functools
import json
import os
import sys
import textwrap
from pathlib import Path

import processes
import pytest
import torch
from toys import Toy, toy_backbone, toy_dataset

from stable_ssl.data import Loader

SCRIPT = """
    import functools, sys, time, torch
    from toys import Toy, toy_backbone, toy_dataset
    from stable_ssl.data import Loader

    class Failing(Toy):
        def compute_loss(self):
            if self.global_step == 1 and len(sys.argv) > 2:
                if self.rank == 0:
                    (self.folder / "rank_0_is_in_step_2").touch()
                    return super().compute_loss()
                while not (self.folder / "rank_0_is_in_step_2").exists():
                    time.sleep(0.01)
                raise ValueError("a mishap of rank 1")
            return super().compute_loss()

    hardware = {"device": "cpu"}
    if "RANK" not in __import__("os").environ or sys.argv[1].endswith("own"):
        hardware["world_size"] = 2
    trainer = Failing(
        {"train": Loader(toy_dataset(), 4, shuffle=True)},
        {"backbone": toy_backbone()},
        hardware,
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 2},
        {"dump_path": sys.argv[1], "checkpoint_every_step": 1},  # which writes the records out, too
    )
    trainer()
    sys.stdout.write(f"trained by rank {trainer.rank}\\n")
"""


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def start(*args, launcher=(sys.executable,)):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return processes.run([*launcher, script, *args], env=env, cwd=tmp_path)

    return start


def steps(folder):
    return [json.loads(line)["global_step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_script_starts_its_own_processes(start, tmp_path):
    done = start(tmp_path / "own")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "trained by rank 0", "trained by rank 1"]
    assert done.stderr.count("2 processes train together") == 1
    assert steps(tmp_path / "own") == [1, 2, 3, 4, 5, 6]
    assert "world_size: 2" in (tmp_path / "own" / "config.yaml").read_text()


def test_the_error_of_a_rank_is_shown_and_the_status_is_1(start, tmp_path):
    done = start(tmp_path / "own", "fail")
    assert done.returncode == 1
    assert 'raise ValueError("a mishap of rank 1")' in done.stderr
    assert "rank 1 failed: ValueError: a mishap of rank 1" in done.stderr
    assert steps(tmp_path / "own") == [1]


def test_torchrun_starts_the_processes(start, tmp_path):
    torchrun = Path(sys.executable).with_name("torchrun")
    done = start(tmp_path / "torchrun", launcher=(torchrun, "--standalone", "--nproc-per-node=2"))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "trained by rank 0", "trained by rank 1"]
    assert steps(tmp_path / "torchrun") == [1, 2, 3, 4, 5, 6]


def test_the_command_line_trains_on_several_processes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "stable_ssl",
        "train",
        "supervised_digits",
        "optim.epochs=1",
        "optim.max_steps=2",
        "hardware.world_size=2",
        f"logger.dump_path={tmp_path / 'run'}",
    ]
    done = processes.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(steps(tmp_path / "run")) == 2
    again = processes.run(
        [sys.executable, "-m", "stable_ssl", "resume", tmp_path / "run", "optim.epochs=2"], cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    assert "2 processes train together" in again.stderr
    assert max(steps(tmp_path / "run")) == 4


def test_several_processes_need_a_script(tmp_path):
    code = """
    import sys
    sys.ps1 = ">>> "
    from stable_ssl.engine.agreement import join
    join(2)
    """
    done = processes.run([sys.executable, "-c", textwrap.dedent(code)])
    assert "hardware.world_size: 2 processes run one script, and there is none here" in done.stderr


def test_submitit_starts_the_processes(tmp_path, monkeypatch):
    import submitit

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    executor = submitit.LocalExecutor(tmp_path / "logs")
    executor.update_parameters(tasks_per_node=2, timeout_min=2)
    trainer = Toy(
        {"train": Loader(toy_dataset(), 4, shuffle=True)},
        {"backbone": toy_backbone()},
        {"device": "cpu"},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 2},
        {"dump_path": str(tmp_path / "run")},
    )
    job = executor.submit(trainer)
    job.results()
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert "2 processes train together" in (tmp_path / "run" / "console.log").read_text()
