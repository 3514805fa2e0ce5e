"""What the tests of Slurm share: a cluster, and a place to submit from with a small run in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from endings import ending

from .cluster import Cluster, missing_programs, poll

COMMAND = Path(sys.executable).with_name("stable-ssl")
SOURCE = Path(__file__).parents[2] / "src"
HELD_AT, SAVED_BEFORE = 24, 21

PATIENT = f"""
import os, signal, time
import torch
from torch.utils.data import Dataset
from stable_ssl import SupervisedTrainer

torch.set_num_threads(1)


class Samples(Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        x = torch.randn(8, generator=torch.Generator().manual_seed(index))
        return x + 0.1 * torch.randn(8), int(x[0] > 0)


class Patient(SupervisedTrainer):
    holds, fails_on_rank, was_interrupted = True, None, False

    # In the first life of its job it waits, inside a late step, for what will interrupt it.
    def before_fit(self):
        self.restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        with open(self.folder / f"lives_{{self.rank}}", "a") as lives:
            lives.write(f"{{self.restart}} {{self.global_step}}\\n")
        if self.fails_on_rank == self.rank:
            raise RuntimeError("as asked")

    def after_fit_step(self):
        is_late = self.global_step >= {HELD_AT} and not self.was_interrupted
        if self.holds and is_late and self.restart == "0" and "SLURM_JOB_ID" in os.environ:
            seen = []
            for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
                def note(*args, handler=signal.getsignal(signum)):
                    seen.append(args)
                    handler(*args)
                signal.signal(signum, note)
            (self.folder / f"held_{{self.rank}}").touch()
            deadline = time.monotonic() + 300
            while not seen:
                assert time.monotonic() < deadline, "nothing interrupted the run"
                time.sleep(0.01)
            self.was_interrupted = True
"""
CONFIG = """
trainer:
  _target_: patient.Patient
  data:
    train:
      _target_: stable_ssl.data.Loader
      dataset: {_target_: patient.Samples}
      batch_size: 5
      shuffle: true
    test:
      _target_: stable_ssl.data.Loader
      dataset: {_target_: patient.Samples}
      batch_size: 100
  module:
    backbone:
      _target_: torch.nn.Sequential
      _args_:
        - {_target_: torch.nn.Linear, in_features: 8, out_features: 32}
        - {_target_: torch.nn.BatchNorm1d, num_features: 32}
        - {_target_: torch.nn.Dropout, p: 0.2}
        - {_target_: torch.nn.Linear, in_features: 32, out_features: 2}
  hardware: {device: cpu}
  optim:
    epochs: 4
    accumulation_steps: 2
    optimizer: {_target_: torch.optim.AdamW, lr: 0.001}
    scheduler: {_target_: stable_ssl.schedulers.LinearWarmupCosineAnnealing}
  logger:
    checkpoint_every_step: 7
    metric:
      test:
        accuracy: {_target_: torchmetrics.classification.MulticlassAccuracy, num_classes: 2}
"""


@pytest.fixture(scope="session")
def cluster():
    """The cluster that is there, else one of two nodes on this machine."""
    yield from _running(Cluster.found() or Cluster())


@pytest.fixture(scope="session")
def own_cluster(cluster):
    """A cluster whose nodes may fail: one that was started here."""
    if cluster.is_own:
        yield cluster
    else:
        yield from _running(Cluster())


@pytest.fixture(scope="session")
def silent_cluster():
    """A cluster that announces a preemption with SIGTERM only, as Slurm does by itself."""
    yield from _running(Cluster(sends_user_signal=False))


def _running(cluster: Cluster):
    if cluster.is_there:
        yield cluster
        return
    missing = missing_programs()
    if missing:
        pytest.skip(f"Slurm is not installed: there is no {missing[0]} (Debian: slurm-wlm, slurm-client, munge)")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    yield site
    for cluster in site.clusters:  # of a test that failed, a job may still wait
        cluster.cancel(site.path)


@pytest.fixture(scope="session")
def make_site(tmp_path_factory):
    return lambda name: Site(tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def alone(make_site):
    """The ending of the run when it is left alone."""
    site = make_site("alone")
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    site.run("train", "patient.yaml", "logger.dump_path=run", env={**env, "OMP_NUM_THREADS": "1"})
    return ending(site.path / "run")


class Site:
    """A folder that runs are submitted from."""

    def __init__(self, path: Path):
        self.path = path
        self.clusters: set[Cluster] = set()
        (path / "patient.py").write_text(PATIENT)
        (path / "patient.yaml").write_text(CONFIG)

    def run(self, *args: str, env: dict[str, str]) -> str:
        """Run `stable-ssl`, and return what it printed."""
        done = processes.run([COMMAND, *args], cwd=self.path, env=_importing(env), timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, cluster: Cluster, *args: str) -> subprocess.Popen:
        """Start `stable-ssl`, for what does not end before its jobs do."""
        self.clusters.add(cluster)
        return subprocess.Popen(
            [str(COMMAND), *args], cwd=self.path, env=_importing(cluster.env), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def submit(self, cluster: Cluster, *args: str) -> list[tuple[str, Path, Path]]:
        """Submit with `--slurm`; return each job's number, run folder and log."""
        self.clusters.add(cluster)
        said = self.run("train", "patient.yaml", "--slurm", "slurm.partition=low", *args, env=cluster.env)
        found = re.findall(r"job (\S+): the run will be in '(.+)',\n.* in '(.+)'", said)
        return [(job, self.path / folder, self.path / log) for job, folder, log in found]

    def script(self, cluster: Cluster, text: str) -> str:
        """Run Python on the login node, and return what it printed."""
        self.clusters.add(cluster)
        (self.path / "script.py").write_text(text)
        command = [sys.executable, "script.py"]
        done = processes.run(command, cwd=self.path, env=_importing(cluster.env), timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _importing(env: dict[str, str]) -> dict[str, str]:
    """Have the package of this checkout imported, in jobs too, whatever their working folder is."""
    return {**env, "PYTHONPATH": f"{SOURCE}:{env.get('PYTHONPATH', '')}".rstrip(":")}


def await_hold(cluster: Cluster, job: str, folder: Path, log: Path, ranks: int = 1) -> None:
    """Wait until a run waits for what will interrupt it."""

    def held():
        assert not cluster.is_complete(job), log.read_text()
        return all((folder / f"held_{rank}").exists() for rank in range(ranks))

    poll(f"job {job} to train", held)


def lives(folder: Path, rank: int = 0) -> list[str]:
    """Return how often the job had been restarted, and the step that it went on from, for each of its lives."""
    return (folder / f"lives_{rank}").read_text().splitlines()
