"""`stable-ssl resume` finds what its run is made of, goes on with a run that nobody else goes on with, and says which."""

from __future__ import annotations

import fcntl
import json
import pickle
import re
import sys
from pathlib import Path

import processes
import pytest
import yaml

from stable_ssl.cli import main

COMMAND = Path(sys.executable).with_name("stable-ssl")
MINE = """
import torch
import stable_ssl

class Numbers(torch.utils.data.TensorDataset):
    def __init__(self, path):
        super().__init__(torch.load(path), torch.zeros(8, dtype=torch.long))

class Mine(stable_ssl.SupervisedTrainer):
    def before_fit(self):
        print("the class beside the file")
"""
CONFIG = """
trainer:
  _target_: mine.Mine
  data: {train: {_target_: stable_ssl.data.Loader, dataset: {_target_: mine.Numbers, path: numbers.pt}, batch_size: 4}}
  module: {backbone: {_target_: torch.nn.Linear, in_features: 3, out_features: 2}}
  hardware: {device: cpu, time_limit: 0.0001}
  optim: {epochs: 2, optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 0.1}}
"""


def run(*args, cwd):
    return processes.run([COMMAND, *args], cwd=cwd)


def status_of(folder):
    return json.loads((folder / "status.json").read_text())["status"]


@pytest.fixture
def project(tmp_path):
    """A folder with data, a configuration and a class beside that, and two runs that reached their time limit."""
    import torch

    home = tmp_path / "home"
    (home / "configs").mkdir(parents=True)
    (home / "configs" / "mine.py").write_text(MINE)
    (home / "configs" / "mine.yaml").write_text(CONFIG)
    torch.save(torch.zeros(8, 3), home / "numbers.pt")
    done = run("train", "configs/mine.yaml", "logger.dump_path=runs/first", cwd=home)
    assert done.returncode == 75, done.stderr
    return home


def test_a_run_goes_on_from_any_folder_with_the_classes_and_data_that_it_began_with(project):
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text("raise RuntimeError('another module of that name')")
    done = run("resume", "../home/runs/first", "hardware.time_limit=null", "logger.dump_path=other", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert "resume: the folder 'other' has no effect" in done.stdout
    assert "the class beside the file" in done.stdout
    assert f"resume: going on with '{project}/runs/first' (preempted, step 1), in its working folder" in done.stdout
    assert status_of(project / "runs" / "first") == "finished"
    # The same file begins a new run from any folder, too.
    (elsewhere / "mine.py").unlink()
    (project / "configs" / "mine.yaml").unlink()
    anew = run(
        "train",
        "../home/runs/first/config.yaml",
        "data.train.dataset.path=../home/numbers.pt",
        "logger.dump_path=anew",
        cwd=elsewhere,
    )
    assert anew.returncode == 0, anew.stderr


def test_without_a_name_the_newest_run_that_nobody_goes_on_with_is_chosen_and_named(project):
    first, second = project / "runs" / "first", project / "runs" / "second"
    second.mkdir()
    status = json.loads((first / "status.json").read_text())
    newer = {key: value + 60 for key, value in status.items() if key in ("time", "heartbeat")}
    (second / "status.json").write_text(json.dumps({**status, **newer, "status": "running"}))
    (project / "runs" / "damaged").mkdir()
    (project / "runs" / "damaged" / "status.json").write_text("{")
    with open(second / ".lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # as the process of a run does
        done = run("resume", "hardware.time_limit=null", cwd=project)
        assert done.returncode == 0, done.stderr
        assert f"resume: going on with '{first}' (preempted, step 1)." in done.stdout
        assert status_of(first) == "finished"
        none = run("resume", cwd=project)
    assert none.returncode == 2
    assert "no unfinished run in 'runs' ('runs/second' is going on in another process)" in none.stderr


def test_a_start_that_failed_before_training_does_not_hide_the_run_that_was_interrupted(project):
    lost = ["data.train.dataset.path=lost.pt", "logger.dump_path=runs/second"]
    run("train", "configs/mine.yaml", *lost, cwd=project)
    assert status_of(project / "runs" / "second") == "failed"
    done = run("resume", "hardware.time_limit=null", cwd=project)
    assert f"resume: going on with '{project}/runs/first'" in done.stdout
    assert status_of(project / "runs" / "first") == "finished"
    assert f"resume: going on with '{project}/runs/second'" in run("resume", cwd=project).stdout


def test_a_run_whose_configuration_is_damaged_or_lost_goes_on_with_that_of_its_checkpoint(project):
    folder, file = project / "runs" / "first", project / "runs" / "first" / "config.yaml"
    whole = file.read_text()
    for damaged in ("trainer: [", "", whole.replace("trainer:", "train:"), "- 1"):
        file.write_text(damaged)
        done = run("resume", "runs/first", cwd=project)
        assert done.returncode == 2
        assert f"Mend '{file}', or delete it: without it, `resume` takes the settings of the newest" in done.stderr
    file.write_text(whole)
    mistake = run("resume", "runs/first", "optim..epochs=2", cwd=project)
    assert mistake.returncode == 2
    assert "delete it" not in mistake.stderr
    file.unlink()
    assert (
        "`stable-ssl resume runs/first` goes on with the run, and writes"
        in run("branch", "runs/first", cwd=project).stderr
    )
    (project / "configs" / "mine.py").rename(project / "mine.py")
    done = run("resume", "runs/first", "hardware.time_limit=null", cwd=project)
    assert done.returncode == 0, done.stderr
    assert f"the settings are those of the newest checkpoint. Relative paths begin in '{project}'" in done.stdout
    assert status_of(folder) == "finished"
    written = yaml.safe_load(whole.replace(f"{project}/configs", str(project)).replace("0.0001", "null"))
    assert yaml.safe_load(file.read_text()) == written


def test_a_run_whose_checkpoints_are_all_damaged_says_so_without_a_traceback(project):
    for state in (project / "runs" / "first").glob("checkpoints/*/state.pt"):
        state.write_bytes(state.read_bytes()[:-1])
    done = run("resume", "runs/first", cwd=project)
    assert done.returncode == 1
    assert f"stable-ssl: None of the checkpoints in '{project}/runs/first/checkpoints' is valid." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_branch_from_another_working_folder_says_where_its_run_is(project):
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    branch = ["branch", "../home/runs/first", "hardware.time_limit=null"]
    for more in ([], ["logger.dump_path=runs/second"]):
        done = run(*branch, *more, cwd=elsewhere)
        assert done.returncode == 0, done.stderr
        given = r"branch: the new run will be in '(.+)'; `stable-ssl resume \1` goes on"
        new = re.search(given if more else r"The run is in '(.+)'; start it again", done.stdout + done.stderr)[1]
        assert Path(new).parent == project / "runs"
        assert status_of(Path(new)) == "finished"
    assert new == f"{project}/runs/second"
    assert not any(elsewhere.iterdir())
    assert "branch: " not in run(*branch[:1], "runs/first", *branch[2:], "logger.dump_path=third", cwd=project).stdout


def test_a_run_goes_on_as_a_slurm_job(project, monkeypatch, capsys):
    programs = project / "bin"
    programs.mkdir()
    for name in ("sbatch", "srun"):
        (programs / name).write_text("#!/bin/sh\necho Submitted batch job 123\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.chdir(project.parent)
    folder = project / "runs" / "first"
    assert main(["resume", "home/runs/first", "slurm.time=5"]) == 2
    assert "resume: 'slurm.time=5' is a setting of a Slurm job; add --slurm" in capsys.readouterr().err
    assert main(["resume", "home/runs/first", "--slurm", "slurm.time=5", "hardware.time_limit=null"]) == 0
    assert f"job 123: the run will be in '{folder}'" in capsys.readouterr().out
    with open(project / "runs" / "slurm" / "123_submitted.pkl", "rb") as file:
        task = pickle.load(file).function
    assert task.config["trainer"]["logger"]["dump_path"] == str(folder)
    assert task.config["trainer"]["hardware"]["time_limit"] is None
    assert project / "configs" in task.folders
    assert "#SBATCH --time=5" in (project / "runs" / "slurm" / "123_submission.sh").read_text()
    assert main(["resume", str(folder), "--slurm", "slurm.tasks=2"]) == 2
    assert "hardware.world_size: 1, but slurm.nodes × slurm.tasks is 2" in capsys.readouterr().err
    monkeypatch.chdir(project.parent)
    assert main(["branch", "home/runs/first", "--slurm"]) == 0
    assert f"job 123: the run will be in '{project}/runs/Mine_123'" in capsys.readouterr().out
    assert main(["branch", str(folder), "--slurm", "--out", "new", "slurm.time=7", "optim.grad_max_norm=1.0"]) == 0
    assert f"job 123: the run will be in '{project / 'new'}'" in capsys.readouterr().out
    with open(project / "runs" / "slurm" / "123_submitted.pkl", "rb") as file:
        task = pickle.load(file).function
    assert task.config["trainer"]["branch_from"]["run"] == str(folder)
    assert task.config["trainer"]["optim"]["grad_max_norm"] == 1.0
    assert project / "configs" in task.folders
    assert "#SBATCH --time=7" in (project / "runs" / "slurm" / "123_submission.sh").read_text()
