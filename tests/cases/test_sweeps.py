"""A sweep: its points do not stop each other, are found again, and say which point they are."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest

from stable_ssl import ConfigError
from stable_ssl.cli import main, sweep
from stable_ssl.cli.sweep import Sweep
from stable_ssl.compose import compose, importable

COMMAND = Path(sys.executable).with_name("stable-ssl")
MINE = """
import os, pathlib, signal
import stable_ssl
import torch

class Mine(stable_ssl.BaseTrainer):
    breaks = False

    def forward(self, x):
        return self.module["net"](x)

    def compute_loss(self):
        return self.forward(self.batch[0]).square().mean()

    def after_fit_step(self):
        if self.breaks and self.global_step == 2 and not pathlib.Path("mended").exists():
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does if the memory is full
"""
CONFIG = """
trainer:
  _target_: mine.Mine
  data:
    train:
      _target_: stable_ssl.data.Loader
      dataset: {_target_: torch.utils.data.TensorDataset, _args_: [{_target_: torch.zeros, _args_: [8, 3]}]}
      batch_size: 4
  module: {net: {_target_: torch.nn.Linear, in_features: 3, out_features: 2}}
  hardware: {device: cpu}
  optim: {epochs: 2, optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 0.1}}
  logger: {checkpoint_every_step: 1}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text(MINE)
    (tmp_path / "configs" / "mine.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def forked(monkeypatch):
    """The processes of points are forked from one that has imported torch; tests/cli has a sweep without this."""
    monkeypatch.setattr(sweep, "_run", lambda command, home, env: processes.run(command, cwd=home, env=env).returncode)


def points(*overrides):
    return Sweep(Path("configs").absolute(), "mine", overrides).points


def folders(*overrides):
    return [str(point.folder) for point in points(*overrides)]


def test_a_point_that_is_killed_does_not_stop_the_others_and_the_same_command_goes_on(project, forked, capfd):
    command = ["train", "configs/mine.yaml", "-m", "breaks=1,0"]
    assert main(command) == 1
    said = capfd.readouterr().out
    first, second = (Path(path) for path in folders("breaks=1,0"))
    assert f"breaks=1 (1 of 2): the run is in '{first}'." in said
    assert "sweep: 1 of 2 points are finished." in said
    assert f"    breaks=1: failed with status -9; look into '{first}'." in said
    assert "The same command goes on with what is not finished." in said
    (project / "mended").touch()
    status = (second / "status.json").read_text()
    assert main([*command, "hardware.time_limit=5"]) == 0
    said = capfd.readouterr().out
    assert f"breaks=0: finished already, in '{second}'." in said
    assert "sweep: 2 of 2 points are finished." in said
    assert (second / "status.json").read_text() == status
    assert "Going on from" in (first / "console.log").read_text()
    assert json.loads((first / "status.json").read_text())["status"] == "finished"


def test_a_point_that_was_refused_is_said_to_be_and_one_that_is_finished_gets_no_process(project, forked, capfd):
    command = ["train", "configs/mine.yaml", "-m", "optim.epochs=1,-1", "hydra.sweep.dir=sw"]
    for _ in range(2):
        assert main(command) == 1
        said = capfd.readouterr().out
        assert "    optim.epochs=-1: was refused, with status 2; its messages above say why." in said
        assert "look into" not in said
        assert "The same command" not in said
    assert "optim.epochs=1: finished already, in 'sw/optim.epochs=1'." in said
    assert "optim.epochs=1 (" not in said
    # Settings that change no result may differ. The run itself compares what may.
    for more, is_left in (
        (["logger.level=30"], False),
        (["optim.optimizer.lr=0.2"], True),
        (["optim.grad_max_norm=1"], True),
    ):
        with importable(project / "configs"):
            left = Sweep(project / "configs", "mine", ["optim.epochs=1,3", "hydra.sweep.dir=sw", *more]).left()
        assert [point.name for point in left] == [*["optim.epochs=1"] * is_left, "optim.epochs=3"]


def test_a_sweep_of_which_a_run_reached_its_time_limit_has_that_status(project, forked):
    assert main(["train", "configs/mine.yaml", "-m", "hardware.seed=1,2", "hardware.time_limit=0.0001"]) == 75
    assert all((Path(folder) / "checkpoints").exists() for folder in folders("hardware.seed=1,2"))


def test_a_folder_says_which_point_it_is_and_is_that_of_no_other(project):
    first, second = folders("optim.optimizer.lr=0.1,0.2", "hardware.seed=5")
    assert re.fullmatch(r"multirun/mine_\w{8}/optim.optimizer.lr=0.1", first)
    # More values are points of the same sweep, and so are the same ones under settings that change no result.
    assert folders("optim.optimizer.lr=0.3,0.2,0.1", "hardware.seed=5")[1:] == [second, first]
    assert folders("optim.optimizer.lr=0.1,0.2", "hardware.seed=5", "hardware.time_limit=3")[0] == first
    assert folders("optim.optimizer.lr=0.1,0.2", "hardware.seed=6")[0] != first
    # A name that can't be that of a folder is told from others by a digest.
    named = [Path(path).name for path in folders("+tag='a/b','a b'," + "x" * 300)]
    assert [re.sub(r"_\w{8}$", "", name)[:10] for name in named] == ["tag=_a_b_", "tag=_a_b_", "tag=xxxxxx"]
    assert len(set(named)) == 3
    assert max(map(len, named)) < 200
    # What the user says about folders counts.
    assert folders("hardware.seed=1,2", "hydra.sweep.dir=mine") == ["mine/hardware.seed=1", "mine/hardware.seed=2"]
    assert folders("hardware.seed=1,2", "hydra.sweep.dir=mine", "hydra.sweep.subdir=p${hydra.job.num}") == [
        "mine/p0",
        "mine/p1",
    ]
    assert folders("hardware.seed=1,2", "logger.dump_path=run${trainer.hardware.seed}") == ["run1", "run2"]
    assert folders("hardware.seed=1,2", "hydra.sweep.dir=mine", "+trainer.note=${hydra:runtime.output_dir}")


def test_a_fixed_folder_for_several_points_is_refused_before_any_begins(project, capsys):
    for more in ([], ["hydra/launcher=submitit_local"], ["--slurm"]):
        assert main(["train", "configs/mine.yaml", "-m", "hardware.seed=1,2", "logger.dump_path=run", *more]) == 2
        assert "logger.dump_path: runs of the sweep would share 'run'; leave it out" in capsys.readouterr().err
    assert not Path("run").exists()
    assert folders("hardware.seed=1", "logger.dump_path=run") == ["run"]
    for twice in ([], ["hydra.sweep.dir=mine"]):
        with pytest.raises(ConfigError, match=r"hardware.seed=1: the sweep has this point 2 times; list each value"):
            points("hardware.seed=2,1,1", *twice)
    with pytest.raises(ConfigError, match=r"hydra.sweep.subdir: runs of the sweep would share 'mine/x'; leave it out"):
        points("hardware.seed=1,2", "hydra.sweep.dir=mine", "hydra.sweep.subdir=x")
    with pytest.raises(ConfigError, match="a sweep needs a list of values"):
        points("optim.optimizer.lr=interval(0,1)")


def test_the_folder_that_is_given_to_hydra_is_that_of_the_run(project, monkeypatch):
    def path(*overrides):
        return compose("configs/mine.yaml", overrides)["trainer"]["logger"].get("dump_path")

    assert path() is None
    assert path("hydra.run.dir=mine") == "mine"
    assert path("hydra.run.dir=mine/${trainer.optim.epochs}") == "mine/2"
    assert path("hydra.run.dir=mine", "logger.dump_path=other") == "other"
    assert path("hydra.run.dir=mine", "logger.dump_path=${hydra:runtime.output_dir}") == str(project / "mine")
    text = (project / "configs" / "mine.yaml").read_text()
    (project / "configs" / "mine.yaml").write_text("hydra: {run: {dir: written}}\n" + text)
    assert path() == "written"
    # A trainer whose constructor takes no logger chooses its folder itself.
    (project / "configs" / "own.py").write_text("class Own:\n    def __init__(self, width): ...\n")
    (project / "configs" / "own.yaml").write_text("trainer: {_target_: own.Own, width: 3}\n")
    monkeypatch.syspath_prepend(project / "configs")
    assert compose("configs/own.yaml", ["hydra.run.dir=mine"]) == {"trainer": {"_target_": "own.Own", "width": 3}}
    # A script of the user's own with Hydra's decorator gets Hydra's folder, too.
    (project / "script.py").write_text(
        "import hydra\nfrom stable_ssl.runtime.folder import choose_path\n"
        "@hydra.main(version_base='1.2', config_path='configs', config_name='mine')\n"
        "def main(config):\n    print(choose_path('name'))\nmain()\n"
    )
    done = processes.run([sys.executable, "script.py"], cwd=project)
    assert done.stdout == f"{project / 'written'}\n"


def test_a_setting_of_hydra_that_has_no_effect_is_named(project, capsys):
    assert main(["train", "configs/mine.yaml", "-m", "hardware.seed=1,1", "hydra.run.dir=mine"]) == 2
    assert "'hydra.run.dir=mine' has no effect with --multirun; hydra.sweep.dir=FOLDER" in capsys.readouterr().err
    for more in ([], ["--slurm"]):
        assert main(["train", "configs/mine.yaml", "optim.epochs=-1", "hydra.sweep.dir=mine", *more]) == 2
        assert "'hydra.sweep.dir=mine' has no effect without --multirun" in capsys.readouterr().err


CHILD = """
import signal, sys, time
caught = []
signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
print("ready", flush=True)
while not caught: time.sleep(0.01)
sys.exit(128 + signal.SIGTERM)
"""
PARENT = """
import os, sys
from pathlib import Path
from stable_ssl.cli.sweep import _run
_run([sys.executable, "-c", sys.argv[1]], Path.cwd(), dict(os.environ))
print("another point")
"""


def test_a_signal_to_a_sweep_ends_its_point_and_then_the_sweep(tmp_path):
    with open(tmp_path / "said", "w") as said:
        parent = processes.start([sys.executable, "-c", PARENT, CHILD], cwd=tmp_path, stdout=said)
        deadline = time.monotonic() + 60
        while "ready" not in (tmp_path / "said").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(parent.pid, signal.SIGTERM)
        assert parent.wait(60) == 128 + signal.SIGTERM
    assert (tmp_path / "said").read_text() == "ready\n"


@pytest.mark.slow
def test_points_of_a_launcher_of_hydra_do_not_stop_each_other(project):
    (project / "configs" / "mine.py").write_text(
        MINE.replace("os.kill(os.getpid(), signal.SIGKILL)", "raise OSError('as asked')")
    )
    command = [COMMAND, "train", "configs/mine.yaml", "-m", "breaks=1,0", "hydra/launcher=submitit_local"]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "2 points share the CPUs of this machine: OMP_NUM_THREADS=" in done.stdout
    assert "OSError: as asked" in done.stderr
    assert "    breaks=1: failed with status 1" in done.stdout
    (project / "mended").touch()
    again = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "breaks=0: finished already" in again.stdout
    assert "sweep: 2 of 2 points are finished." in again.stdout


def test_values_that_a_file_lists_are_swept_too_and_other_sweepers_are_refused(project):
    file = project / "configs" / "mine.yaml"
    file.write_text(f"hydra: {{sweeper: {{params: {{hardware.seed: '1,2', optim.epochs: '3,4'}}}}}}\n{CONFIG}")
    found = Sweep(file.parent, "mine", ["optim.epochs=5,6"]).points
    assert [point.name for point in found] == [f"hardware.seed={s},optim.epochs={e}" for s in (1, 2) for e in (5, 6)]
    assert [point.config["trainer"]["hardware"]["seed"] for point in found] == [1, 1, 2, 2]
    file.write_text(f"hydra: {{sweeper: {{_target_: somewhere.Optuna}}}}\n{CONFIG}")
    with pytest.raises(ConfigError, match=r"hydra/sweeper: somewhere.Optuna can't be used"):
        Sweep(file.parent, "mine", ["optim.epochs=5,6"])
