"""What a run needs of its disk: room, and a folder that it may write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ...config import LoggerConfig, OptimConfig, parse_config
from ...engine.facts import check_held, what_is_held
from ...exceptions import ConfigError, some_of
from ...nodes import build, is_node
from ...runtime.checkpoint import CheckpointStore
from ...runtime.files import size_in_words
from ...runtime.folder import holds_a_users_file, written_at_start
from ...runtime.runs_of_2025 import run_of_2025
from ...runtime.status import COMPLETE, read_status
from ..sections import section
from ..stage import Stage

# Folders that other machines do not see, as a rule.
_OF_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm", "/run")
_MOST_WRITTEN = 1 << 25  # bytes, to see how fast the disk is


def check_disk(stage: Stage) -> None:
    """Check the folder of the run, and whether its disk has room for checkpoints and weights."""
    problems: list[str] = []
    given = section(stage, "logger")
    logger = parse_config(
        LoggerConfig, {k: v for k, v in given.items() if k not in ("metric", "monitor")}, "", problems
    )
    optim = parse_config(OptimConfig, section(stage, "optim"), "", problems)
    if logger is None or optim is None:  # which is said elsewhere
        return
    path = Path(logger.dump_path or "runs").expanduser()
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    room = _check_room(stage, place, logger, optim) if _is_writable(stage, path, place) else ""
    run = _check_folder(stage, path, logger, optim) if logger.dump_path and path.is_dir() else ""
    stage.report.tell("disk", summary="; ".join(filter(None, [room, run])))
    if stage.slurm is not None:
        places = _places(section(stage, "data"), "data")
        _check_reach(stage, [("logger.dump_path", str(path)), *places])


# The folder ---------------------------------------------------------------------------------------------------------


def _is_writable(stage: Stage, path: Path, place: Path) -> bool:
    """Report if the folder can't be written: a file without a name is written and read no more. Note how fast it is."""
    try:
        with written_at_start(path), TemporaryFile(dir=place) as file:
            content = os.urandom(_MOST_WRITTEN if _free(place) > 8 * _MOST_WRITTEN else 4096)
            begin = perf_counter()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            seconds = perf_counter() - begin
    except ConfigError as error:
        stage.report.refuse("disk", error)
        return False
    if len(content) == _MOST_WRITTEN:
        stage.report.tell("disk", bytes_per_second=round(len(content) / seconds))
    return True


def _free(place: Path) -> int:
    return shutil.disk_usage(place).free


def _check_folder(stage: Stage, path: Path, logger: Any, optim: Any) -> str:
    """Report if a folder that is there can't be the run's. Return from where the run goes on, in words, if it does."""
    report = stage.report
    if not (path / "config.yaml").exists() and (old := run_of_2025(path)):
        report.error("disk", f"logger.dump_path: {old}")
        return ""
    if holds_a_users_file(path):
        what = f"'{path / 'config.yaml'}' is not of a run, and would be overwritten"
        report.error("disk", f"logger.dump_path: {what}. Choose another folder.")
        return ""
    status = read_status(path)
    if status.get("status") == "running":
        report.warn(
            "disk",
            f"logger.dump_path: a process is running in '{path}' now. Wait for its end, or choose another folder.",
        )
    held = what_is_held(CheckpointStore(path / "checkpoints", logger.checkpoint_keep), path)
    if held is None:
        return ""
    try:
        config = _resolved(stage, held)
        check_held(path, held, config)
    except ConfigError as error:
        report.error("disk", " ".join(["logger.dump_path:", *error.problems]))
        return ""
    step = held["progress"].get("global_step")
    report.tell("disk", resumes=str(path), resumes_from_step=step)
    if status.get("status") in COMPLETE and optim.epochs <= status.get("epochs", optim.epochs):
        report.warn(
            "disk",
            f"logger.dump_path: the run in '{path}' is {status['status']}, so nothing would be done. Choose another "
            "folder, or set more optim.epochs.",
        )
    return f"goes on with the run in '{path}', from step {step}"


def _resolved(stage: Stage, held: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the run as its folder would have it."""
    trainer = stage.make()
    hardware = trainer._configured["hardware"]
    if stage.world_size > 1:
        hardware["world_size"] = stage.world_size
    if hardware["seed"] is None and held["config"]:
        hardware["seed"] = held["config"]["hardware"]["seed"]
    config: dict[str, Any] = trainer._resolved()["trainer"]
    return config


def _places(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the key and the value of each place of data."""
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        if name in ("root", "path") and isinstance(inner, str):
            yield f"{key}.{name}", inner
        else:
            yield from _places(inner, f"{key}.{name}")


def _check_reach(stage: Stage, places: list[tuple[str, str]]) -> None:
    """Warn of folders that the nodes of a Slurm job do not see.

    Parameters
    ----------
    places
        (key, path) of each folder or file.
    """
    own = [*_OF_ONE_MACHINE, *([os.environ["TMPDIR"]] if os.environ.get("TMPDIR") else [])]
    real = [Path(os.path.realpath(place)) for place in own]
    found = [
        f"{key} ('{path}')"
        for key, path in places
        if any(Path(os.path.realpath(os.path.expanduser(path))).is_relative_to(place) for place in real)
    ]
    if found:
        stage.report.warn(
            "disk",
            f"{some_of(found)}: other machines do not see such a place, as a rule. A Slurm job runs on "
            "another machine, and a requeued one perhaps on a third: choose folders that all of them share.",
        )


# Room ---------------------------------------------------------------------------------------------------------------


def _check_room(stage: Stage, place: Path, logger: Any, optim: Any) -> str:
    """Compare what the run writes with what is free. Return both in words."""
    report, free = stage.report, _free(place)
    files = os.statvfs(place)
    if files.f_files and not files.f_favail:
        report.error(
            "disk", f"logger.dump_path: the disk of '{place}' takes no more files. Delete some, or choose another."
        )
    checkpoint, weights = _sizes(stage)
    if not checkpoint:
        return ""
    kept, num_weights = _counts(logger, optim)
    total = checkpoint * (kept + 1) + weights * num_weights  # a new checkpoint is written before the oldest is deleted
    report.tell("disk", checkpoint_bytes=checkpoint, checkpoints=kept, weights_bytes=weights, weights=num_weights)
    report.tell("disk", total_bytes=total, free_bytes=free, folder=str(place.absolute()))
    files_of_weights = f" and {num_weights} file{'s' * (num_weights != 1)} of weights" if num_weights else ""
    text = f"{kept + 1} checkpoints of {size_in_words(checkpoint)}{files_of_weights}"
    room = f"the disk of '{place.absolute()}' has {size_in_words(free)}"
    if checkpoint > free:
        report.error(
            "disk", f"logger.dump_path: a checkpoint takes {size_in_words(checkpoint)}, and {room}. Make room."
        )
    elif total > free:
        report.warn(
            "disk",
            f"logger.dump_path: {text} take {size_in_words(total)}, "
            f"and {room}. Make room, lower logger.checkpoint_keep, or raise logger.checkpoint_frequency.",
        )
    return f"{text}; {size_in_words(free)} are free"


def _counts(logger: Any, optim: Any) -> tuple[int, int]:
    """Return how many checkpoints, and how many files of weights, the run keeps at most."""
    every = logger.checkpoint_frequency
    regular = optim.epochs // every if every else 0
    whole = regular if not logger.checkpoint_model_only else 0
    return logger.checkpoint_keep + whole, regular + bool(logger.save_final_model) + bool(logger.best)


def _sizes(stage: Stage) -> tuple[int, int]:
    """Return the bytes of a checkpoint and of a file of weights; 0 if there is nothing to tell them by."""
    modules = [part for key, part in stage.built.items() if key.startswith("module.") and isinstance(part, nn.Module)]
    modules = modules if stage.trainer is None else [stage.trainer.module]
    weights = sum(map(_bytes_of, modules))
    if stage.trainer is not None and (written := _newest(stage.trainer.folder / "checkpoints")):
        return written, weights
    if stage.lacks_room and (copied := stage.report.facts.get("memory", {}).get("host_parts", {}).get("checkpoint")):
        return copied, weights
    loss = stage.built.get("loss")
    parts = [*modules, *([loss] if isinstance(loss, nn.Module) else [])]
    learned = {id(p): p for part in parts for p in part.parameters() if p.requires_grad}.values()
    of_optimizer = _state_per_byte(stage) * sum(p.numel() * p.element_size() for p in learned)
    return int(sum(map(_bytes_of, parts)) + of_optimizer), weights


def _bytes_of(module: nn.Module) -> int:
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}.values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _newest(folder: Path) -> int:
    """Return the bytes of the newest checkpoint in a folder; 0 if there is none."""
    newest = max(folder.glob("step_*[0-9]"), default=None)
    return sum(file.stat().st_size for file in newest.iterdir()) if newest else 0


def _state_per_byte(stage: Stage) -> float:
    """Return how many bytes of state the optimizer keeps per byte of a parameter. A step of a small one tells it."""
    node: Any = section(stage, "optim").get("optimizer")
    try:
        parameter = nn.Parameter(torch.ones(64, 64))
        make = build({**node, "_partial_": True} if is_node(node) else node, "optim.optimizer")
        optimizer = make([parameter])
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        state = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    except Exception:  # it needs a closure, or more than one parameter: said elsewhere if it is wrong
        return 2.0
    return sum(value.numel() * value.element_size() for value in state) / (64 * 64 * 4)
