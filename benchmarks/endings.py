"""Tell whether two runs end with the same bits, by the files in their folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from stable_ssl.runtime.checkpoint import CheckpointStore


def ending(folder: Path) -> tuple[dict, list[dict]]:
    """Return the last checkpoint's state, and the records of the log without `perf/`."""
    found = CheckpointStore(folder / "checkpoints").load_newest()
    assert found is not None, f"{folder} has no checkpoint"
    _, state, _ = found
    del state["log_position"]  # in bytes: the digits of `perf/` differ in number
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return state, [{k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines]


def same(one, other) -> bool:
    """Return whether two values, such as two endings, are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)  # not a number, both


def status_of(trainer) -> str:
    """Return the status that a run's folder holds."""
    return json.loads((trainer.folder / "status.json").read_text())["status"]


def newest_state(trainer) -> dict:
    """Return the state of a run's newest checkpoint."""
    return CheckpointStore(trainer.folder / "checkpoints").load_newest()[1]
