"""Kills a small run at random moments, resumes it each time, and looks whether it ends as one left alone.

    python benchmarks/chaos.py [--kills 100] [--workers 0] [--ranks 1] [--epochs 30] [--seed 0]

A coin chooses SIGKILL or SIGTERM; one kill in ten hits while the process still starts. Each is checked to have hit. Of
several ranks, another coin chooses rank 0 or all of them; the next start does not wait for those left over.
The run trains a small network with dropout, batch-norm, a schedule, accumulation and an evaluation each epoch, and
saves every 25 steps. Exit status 1 unless the endings are the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from endings import ending, same

RUN = """
import functools, logging, os, sys
import torch
from torch import nn
from stable_ssl import SupervisedTrainer
from stable_ssl.data import Loader
from torchmetrics.classification import MulticlassAccuracy

folder, workers, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
beat = open(sys.argv[4] if os.environ.get("RANK", "0") == "0" else os.devnull, "w")

class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        x = torch.randn(8, generator=torch.Generator().manual_seed(index))
        return x + 0.1 * torch.randn(8), int(x[0] > 0)

class Beating(SupervisedTrainer):
    def after_fit_step(self):
        beat.seek(0)
        beat.write(f"{self.global_step}\\n")
        beat.flush()

torch.set_num_threads(1)  # more would only wait for each other
torch.manual_seed(0)
Beating(
    data={"train": Loader(Samples(), 5, shuffle=True, num_workers=workers), "test": Loader(Samples(), 100)},
    module={"backbone": nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2)
    )},
    hardware={"device": "cpu", "world_size": ranks},
    optim={
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        "scheduler": {"_target_": "stable_ssl.schedulers.LinearWarmupCosineAnnealing"},
        "epochs": int(sys.argv[5]),
        "accumulation_steps": 2,
        "grad_max_norm": 1.0,
    },
    logger={
        "dump_path": folder,
        "level": logging.ERROR,
        "checkpoint_every_step": 25,
        "metric": {"test": {"accuracy": MulticlassAccuracy(2)}},
    },
)()
"""


def newest_step(folder: Path) -> int:
    return max((int(path.name[5:]) for path in folder.glob("checkpoints/step_*")), default=0)


def is_finished(folder: Path) -> bool:
    status = folder / "status.json"
    return status.exists() and json.loads(status.read_text())["status"] == "finished"


class Chaos:
    """A run that is killed again and again, beside one that is left alone.

    Parameters
    ----------
    root
        A folder for both.
    kills, workers, ranks, epochs, seed
        As on the command line.
    start_process
        Starts Python, with the arguments of `subprocess.Popen`.
    """

    def __init__(self, root: Path, kills=100, workers=0, ranks=1, epochs=30, seed=0, start_process=subprocess.Popen):
        self.kills, self.workers, self.ranks, self.epochs = kills, workers, ranks, epochs
        self.alone, self.killed, self._beat = root / "alone", root / "killed", root / "beat"
        self._chance = random.Random(seed)
        self._start_process = start_process
        self.hits = {signal.SIGKILL: 0, signal.SIGTERM: 0}
        self.lost: list[int] = []  # steps, per kill
        self.num_in_start_up = 0

    def run(self) -> dict[str, object]:
        """Return what happened, as a row of the table."""
        self._leave_alone()
        while sum(self.hits.values()) < self.kills and self._kill():
            print(f"\r{sum(self.hits.values())} kills  ", end="", file=sys.stderr, flush=True)
        last = self._start(self.killed)
        assert last.wait() == 0, self._stderr(self.killed)
        state, log = ending(self.killed)
        return {
            "ranks": self.ranks,
            "workers": self.workers,
            "kills that hit": sum(self.hits.values()),
            "SIGKILL": self.hits[signal.SIGKILL],
            "SIGTERM": self.hits[signal.SIGTERM],
            "while starting": self.num_in_start_up,
            "steps lost to a kill (median, most)": f"{statistics.median(self.lost)}, {max(self.lost)}",
            "steps of the run": state["progress"]["global_step"],
            "same ending to the bit": "yes" if same((state, log), ending(self.alone)) else "NO",
        }

    def _leave_alone(self) -> None:
        process = self._start(self.alone)
        self._await_step(process, 1)
        assert process.wait() == 0, self._stderr(self.alone)
        self._num_steps = ending(self.alone)[0]["progress"]["global_step"]

    def _kill(self) -> bool:
        """Start the run and kill it; return whether the signal came before its end."""
        process = self._start(self.killed)
        signum = self._chance.choice(list(self.hits))
        is_early = self._chance.random() < 0.1
        if is_early:
            signum = signal.SIGKILL  # nobody listens for SIGTERM yet
            self._await_step(process, 1, self._chance.uniform(0, self._start_up))
        else:
            # The steps that are left are enough for the kills that are left.
            newest = newest_step(self.killed)
            most = 0.9 * (self._num_steps - newest) / (self.kills - sum(self.hits.values()))
            self._await_step(process, newest + 1 + int(self._chance.uniform(0, most)))
            time.sleep(self._chance.uniform(0, 0.01))  # any moment of a step, of a save or of an evaluation
        if process.poll() is None and self.ranks > 1 and self._chance.random() < 0.5:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        if process.wait() == 0 or is_finished(self.killed):
            return False
        expected = -signum if signum == signal.SIGKILL else 128 + signum
        assert process.returncode == expected, (process.returncode, self._stderr(self.killed))
        self.hits[signum] += 1
        self.num_in_start_up += is_early
        step = int(self._beat.read_text() or 0)
        self.lost.append(max(step - newest_step(self.killed), 0) if step else 0)
        return True

    def _start(self, folder: Path):
        self._beat.unlink(missing_ok=True)  # a process left over may write to the one before
        self._beat.touch()
        args = [str(folder), str(self.workers), str(self.ranks), str(self._beat), str(self.epochs)]
        with open(folder.with_suffix(".stderr"), "w") as stderr:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            return self._start_process(
                [sys.executable, "-c", RUN, *args], env=env, stderr=stderr, start_new_session=True
            )

    def _await_step(self, process, step: int, timeout: float = math.inf) -> None:
        """Wait until the run has done a step, or has ended; no longer than `timeout`, in seconds."""
        begun, has_begun = time.monotonic(), False
        while process.poll() is None and time.monotonic() - begun < timeout:
            said = self._beat.read_text()
            if said.endswith("\n"):
                if not has_begun:
                    self._start_up, has_begun = time.monotonic() - begun, True
                if int(said) >= step:
                    return
            time.sleep(0.002)

    def _stderr(self, folder: Path) -> str:
        return folder.with_suffix(".stderr").read_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    root = Path(tempfile.mkdtemp(prefix="chaos_"))
    row = Chaos(root, **vars(parser.parse_args())).run()
    print("\n\n" + "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (row, ["---"] * len(row), row.values())))
    is_same = row["same ending to the bit"] == "yes"
    if not is_same:
        print(f"Look at {root}.")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
