"""Kills a small run at random moments, resumes it each time, and looks whether it ends as one left alone.

    python benchmarks/chaos.py [--kills 100] [--workers 0] [--ranks 1] [--epochs 30] [--seed 0]

SIGKILL and SIGTERM by turns of a coin; one kill in ten hits while the process still starts. Each is checked to have
hit. Of several ranks, rank 0 is hit or all of them, by another coin; the next start does not wait for those left over.
The run trains a small network with dropout, batch-norm, a schedule, accumulation and an evaluation each epoch, and
saves every 25 steps. Exit status 1 unless the endings are the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from stable_ssl.runtime.checkpoint import CheckpointStore

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


def start(folder: Path, args: argparse.Namespace, beat: Path) -> subprocess.Popen:
    beat.unlink(missing_ok=True)  # a process left over may write to the one before
    beat.touch()
    command = [sys.executable, "-c", RUN, str(folder), str(args.workers), str(args.ranks), str(beat), str(args.epochs)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder.with_suffix(".stderr"), "w") as stderr:
        return subprocess.Popen(command, stderr=stderr, env=env, start_new_session=True)


def wait_for_a_step(process: subprocess.Popen, beat: Path) -> None:
    while process.poll() is None and not beat.read_text().endswith("\n"):
        time.sleep(0.002)


def newest_step(folder: Path) -> int:
    return max((int(path.name[5:]) for path in folder.glob("checkpoints/step_*")), default=0)


def is_finished(folder: Path) -> bool:
    status = folder / "status.json"
    return status.exists() and json.loads(status.read_text())["status"] == "finished"


def ending(folder: Path) -> tuple[dict, list[str]]:
    """Return the last checkpoint's state, and the records of the log without `perf/`."""
    _, state, _ = CheckpointStore(folder / "checkpoints").load_newest()  # type: ignore[misc]
    del state["log_position"]  # in bytes, some of which are of `perf/`
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines]
    return state, [json.dumps(record) for record in records]


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    root = Path(tempfile.mkdtemp(prefix="chaos_"))
    beat = root / "beat"

    process = start(root / "alone", args, beat)
    begun = time.monotonic()
    wait_for_a_step(process, beat)
    start_up = time.monotonic() - begun
    begun = time.monotonic()
    assert process.wait() == 0, (root / "alone.stderr").read_text()
    duration = time.monotonic() - begun
    num_steps = ending(root / "alone")[0]["progress"]["global_step"]

    hits = {signal.SIGKILL: 0, signal.SIGTERM: 0}
    lost: list[int] = []
    in_start_up = 0
    folder = root / "killed"
    while sum(hits.values()) < args.kills:
        process = start(folder, args, beat)
        signum = chance.choice(list(hits))
        early = chance.random() < 0.1
        if early:
            signum = signal.SIGKILL  # nobody listens for SIGTERM yet
            time.sleep(chance.uniform(0, start_up))
        else:
            wait_for_a_step(process, beat)
            # What is left of the run is enough for the kills that are left.
            left = 1 - newest_step(folder) / num_steps
            time.sleep(chance.uniform(0, 0.9 * duration * left / (args.kills - sum(hits.values()))))
        if process.poll() is None and args.ranks > 1 and chance.random() < 0.5:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        if process.wait() == 0 or is_finished(folder):  # before the signal came
            break
        expected = -signum if signum == signal.SIGKILL else 128 + signum
        assert process.returncode == expected, (process.returncode, folder.with_suffix(".stderr").read_text())
        hits[signum] += 1
        in_start_up += early
        step = int(beat.read_text() or 0)
        lost.append(max(step - newest_step(folder), 0) if step else 0)
        print(f"\r{sum(hits.values())} kills, step {step}  ", end="", file=sys.stderr, flush=True)
    assert start(folder, args, beat).wait() == 0

    (state, log), (expected_state, expected_log) = ending(folder), ending(root / "alone")
    is_same = same(state, expected_state) and log == expected_log
    row = {
        "ranks": args.ranks,
        "workers": args.workers,
        "kills that hit": sum(hits.values()),
        "SIGKILL": hits[signal.SIGKILL],
        "SIGTERM": hits[signal.SIGTERM],
        "while starting": in_start_up,
        "steps lost to a kill (median, most)": f"{statistics.median(lost)}, {max(lost)}",
        "steps of the run": state["progress"]["global_step"],
        "same ending to the bit": "yes" if is_same else "NO",
    }
    print("\n\n" + "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (row, ["---"] * len(row), row.values())))
    if not is_same:
        print(f"Look at {root}.")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
