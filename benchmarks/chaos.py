"""Kills a small run at random moments, resumes it each time, and looks whether it ends as one left alone.

    python benchmarks/chaos.py [--kills 100] [--workers 0] [--ranks 1] [--strategy ddp] [--every 25] [--epochs 30]
                               [--seed 0] [--write docs/exactness.md]

A coin chooses SIGKILL or SIGTERM; one kill in ten hits while the process still starts, and three in ten are a SIGKILL
while a checkpoint is written. Each is checked to have hit. Of several ranks, chance chooses rank 0, the last one, or
all of them; the next start does not wait for those left over if rank 0 was killed.
The run trains a small network with dropout, batch-norm, a schedule, accumulation and an evaluation each epoch, and
saves every 25 steps (`--every`). Exit status 1 unless the endings are the same to the bit. `--write` adds the row to
the table of a file, in the place of the one with the same settings.
"""

from __future__ import annotations

import argparse
import itertools
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
from collections.abc import Iterable
from pathlib import Path

from endings import ending, same
from tables import read_table, write_table

RUN = """
import functools, logging, os, sys
import torch
from torch import nn
from stable_ssl import SupervisedTrainer
from stable_ssl.data import Loader
from torchmetrics.classification import MulticlassAccuracy

folder, workers, ranks, strategy = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[6]
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
    hardware={"device": "cpu", "world_size": ranks, "strategy": strategy},
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
        "checkpoint_every_step": int(sys.argv[7]),
        "metric": {"test": {"accuracy": MulticlassAccuracy(2)}},
    },
)()
"""


def newest_step(folder: Path) -> int:
    return max((int(path.name[5:]) for path in folder.glob("checkpoints/step_*")), default=0)


def is_saving(folder: Path) -> bool:
    return any(folder.glob("checkpoints/.step_*.part"))


def is_finished(folder: Path) -> bool:
    status = folder / "status.json"
    return status.exists() and json.loads(status.read_text())["status"] == "finished"


class Chaos:
    """A run that is killed again and again, beside one that is left alone.

    Parameters
    ----------
    root
        A folder for both.
    kills, workers, ranks, strategy, every, epochs, seed
        As on the command line.
    start_process
        Starts Python, with the arguments of `subprocess.Popen`.
    """

    def __init__(
        self, root: Path, kills=100, workers=0, ranks=1, strategy="ddp", every=25, epochs=30, seed=0,
        start_process=subprocess.Popen,
    ):  # fmt: skip
        self.kills, self.workers, self.ranks, self.strategy = kills, workers, ranks, strategy
        self.every, self.epochs = every, epochs
        self.alone, self.killed, self._beat = root / "alone", root / "killed", root / "beat"
        self._chance = random.Random(seed)
        self._start_process = start_process
        self.hits = {signal.SIGKILL: 0, signal.SIGTERM: 0}
        self.lost: list[int] = []  # steps, per kill
        self.num_in_start_up = self.num_in_saves = 0

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
            "strategy": self.strategy if self.ranks > 1 else "",
            "workers": self.workers,
            "a checkpoint every": f"{self.every} steps",
            "kills that hit": sum(self.hits.values()),
            "SIGKILL": self.hits[signal.SIGKILL],
            "SIGTERM": self.hits[signal.SIGTERM],
            "while starting": self.num_in_start_up,
            "during a save": self.num_in_saves,
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
        signum, moment = self._chance.choice(list(self.hits)), self._chance.random()
        is_early, in_save = moment < 0.1, 0.1 <= moment < 0.4
        if is_early:
            self._await_step(process, 1, self._chance.uniform(0, self._start_up))
        else:
            # The steps that are left are enough for the kills that are left.
            newest = newest_step(self.killed)
            most = 0.9 * (self._num_steps - newest) / (self.kills - sum(self.hits.values()))
            self._await_step(process, newest + 1 + int(self._chance.uniform(0, most)))
            while in_save and process.poll() is None and not is_saving(self.killed):
                time.sleep(0.0005)
            time.sleep(self._chance.uniform(0, 0.01))  # any moment of a step, of a save or of an evaluation
        if is_early or in_save:
            signum = signal.SIGKILL  # at an early moment, nobody listens for SIGTERM yet
        expected = self._send(process, signum)
        was_saving = is_saving(self.killed)
        if process.wait() == 0 or is_finished(self.killed):
            return False
        assert process.returncode == expected, (process.returncode, self._stderr(self.killed))
        self.hits[signum] += 1
        self.num_in_start_up += is_early
        self.num_in_saves += was_saving and not is_early
        step = int(self._beat.read_text() or 0)
        self.lost.append(max(step - newest_step(self.killed), 0) if step else 0)
        return True

    def _send(self, process, signum: int) -> int:
        """Send a signal to one rank or to all, and return the exit status that rank 0 must have."""
        who = self._chance.choice(["first", "last", "all"]) if self.ranks > 1 else "first"
        others = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        others = [int(pid) for pid in others.read_text().split()] if process.poll() is None else []
        if who == "last" and len(others) >= self.ranks - 1:
            os.kill(others[self.ranks - 2], signum)
            return 1 if signum == signal.SIGKILL else 128 + signum
        if who == "all" and process.poll() is None:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        return -signum if signum == signal.SIGKILL else 128 + signum

    def _start(self, folder: Path):
        self._beat.unlink(missing_ok=True)  # a process left over may write to the one before
        self._beat.touch()
        args = [str(folder), str(self.workers), str(self.ranks), str(self._beat), str(self.epochs)]
        args += [self.strategy, str(self.every)]
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


def write_row(path: Path, row: dict[str, object]) -> None:
    """Put a row into the table of a file, in the place of the row with the same settings."""
    settings = len([*itertools.takewhile(lambda name: name != "kills that hit", row)])
    head, new = line(row), line(row.values())
    rows = [old for old in read_table(path, "chaos")[2:] if cells(old)[:settings] != cells(new)[:settings]]
    rows = sorted([*rows, new], key=lambda each: (int(cells(each)[0]), cells(each)[1:]))
    write_table(path, "chaos", [head, line(["---"] * len(row)), *rows])


def line(values: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, values))} |"


def cells(text: str) -> list[str]:
    return [cell.strip() for cell in text.strip("|").split("|")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--every", type=int, default=25, metavar="STEPS")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="FILE")
    args = vars(parser.parse_args())
    written, root = args.pop("write"), Path(tempfile.mkdtemp(prefix="chaos_"))
    row = Chaos(root, **args).run()
    print("\n\n" + "\n".join([line(row), line(["---"] * len(row)), line(row.values())]))
    is_same = row["same ending to the bit"] == "yes"
    if not is_same:
        print(f"Look at {root}.")
    elif written:
        write_row(written, row)
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
