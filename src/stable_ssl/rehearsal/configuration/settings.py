"""What the configuration alone tells: mistakes, attributes and hooks that nothing reads, unusual values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...base import BaseTrainer
from ...config import SECTIONS, full_key, parse_config
from ...exceptions import ConfigError
from ...lines import place_of
from ...nodes import OF_A_RUN, argument_names, locate, plain
from ..division import strategy_problems
from ..report import ERROR
from ..stage import Stage
from .hooks import misnamed, uncallable
from .users_code import UsersCode, is_users, targets_in, with_place
from .usual import Settings, section, unusual

PART = "configuration"
_OF_TRAINERS = ("data", "module", "loss", "module_init", "branch_from", *SECTIONS)
_OF_PACKAGE = (
    *OF_A_RUN,
    "pretrain",
)  # beside `trainer`, for what reads the run's folder; `pretrain` writes its own key


def check_configuration(stage: Stage) -> None:
    """Say what is wrong with a configuration before anything is built, and what may be. No data are read.

    It makes the trainer, and looks at the code of the user's classes and at the values of the settings.
    """
    config = plain(dict(stage.config))
    made = _make(stage)
    node = config.get("trainer", config)
    if made is not None and not callable(made):
        kind = type(made).__name__
        stage.report.error(PART, f"trainer._target_: it makes a {kind}, which is no trainer and can't be called.")
    if not isinstance(node, Mapping):
        return
    cls = type(made) if made is not None else _class_of(node)
    targets = list(targets_in({key: value for key, value in node.items() if not key.startswith("_")}))
    code = UsersCode([cls, *(target for _, _, target in targets)])
    if cls is not None and issubclass(cls, BaseTrainer):
        told = [finding.text.removeprefix("trainer.").partition(":")[0] for finding in stage.report.of(ERROR)]
        for name, text in _unread(cls, made, config, node, code):
            if name not in told:
                stage.report.warn(PART, text)
        check_hooks(stage, cls, code)
        _check_folders(stage, node)
    for path, _, target in targets:
        if isinstance(target, type):
            check_hooks(stage, target, code, is_monitor=path.startswith("logger.monitor."))
    _check_values(stage, made, node)


def check_hooks(stage: Stage, cls: type, code: UsersCode, is_monitor: bool = False) -> None:
    """Say which methods of a user's class no run calls, because their names are wrong, and which it can't call."""
    for text in misnamed(cls, code, is_monitor):
        stage.report.warn(PART, text)
    sets = [name for name in section(stage.config.get("trainer"), "data") if not name.startswith("_")]
    for name, text in uncallable(cls, is_monitor):
        is_called = sets != ["train"] if "eval" in name or name == "predict" else "train" in sets
        (stage.report.error if is_called else stage.report.warn)(PART, text)


def _make(stage: Stage) -> Any:
    """Return the run's trainer, or None if it can't be made, which is reported."""
    try:
        return stage.make()
    except ConfigError as error:
        stage.report.refuse(PART, with_place(error))
    except Exception as error:  # of the user's constructor
        stage.report.error(PART, f"trainer: {type(error).__name__}: {error}{place_of(error)}")
    return None


def _class_of(node: Mapping[str, Any]) -> Any:
    """Return the trainer's class, or None if it can't be imported or is none."""
    try:
        target = locate(node.get("_target_"), "trainer")
    except ConfigError:
        return None
    return target if isinstance(target, type) else None


def _unread(
    cls: type, made: Any, config: Mapping[str, Any], node: Mapping[str, Any], code: UsersCode
) -> Iterator[tuple[str, str]]:
    """Yield (name, sentence) per argument that becomes an attribute of the trainer which nothing reads."""
    if made is not None:
        given = {**made._attributes, **made._extras}
    else:
        beside = config if config is not node else {}
        given = {key: value for key, value in {**node, **beside}.items() if key not in _OF_TRAINERS}
        given = {key: value for key, value in given.items() if not key.startswith("_")}
    own = UsersCode([base for base in cls.__mro__ if is_users(base)])
    known = {name: name for name in dir(cls) if not name.startswith("_")}
    nodes = {name: node[name] for name in ("loss", "optim", "module", "data", "logger") if name in node}
    for path, inner, _ in targets_in(nodes):
        for argument in argument_names(inner):
            known.setdefault(argument, f"{path}.{argument}")
    settings = {f"optim.{key}": section(node, "optim").get(key) for key in ("optimizer", "scheduler")}
    for name in given:
        if name not in _OF_PACKAGE and not hasattr(cls, name) and not (own.reads(name) or code.reads(name)):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            meant = full_key(name, settings) or (known[near[0]] if near else "")
            hint = f" Did you mean '{meant}'?" if meant else ""
            yield name, f"{name}: becomes an attribute of {cls.__name__}, and nothing reads it.{hint}"


def _check_values(stage: Stage, made: Any, node: Mapping[str, Any]) -> None:
    """Say which values are unusual, or do not suit the device."""
    settings = _settings(stage, made, node)
    if settings is None:
        return
    for text in unusual(settings):
        stage.report.warn(PART, text)
    _check_devices(stage, settings)
    problems, assumed = strategy_problems(stage, settings.hardware["strategy"], settings.hardware["precision"])
    for text in problems:
        stage.report.error(PART, text)
    for text in assumed:
        stage.report.warn(PART, text)
    for name in ("wandb", "tensorboard"):
        if settings.logger[name] and find_spec(name) is None:
            install = f"`pip install 'stable-ssl[{name}]'`"
            stage.report.warn(PART, f"logger.{name}: there is no package {name}. Install it: {install}.")


def _settings(stage: Stage, made: Any, node: Mapping[str, Any]) -> Settings | None:
    """Return the settings to compare; those that are right, if the trainer could not be made."""
    if isinstance(made, BaseTrainer):
        parsed: Iterable[Any] = (made.hardware, made.optim, made.logger)
    else:
        parsed = [parse_config(kind, node.get(name) or {}, name, []) for name, kind in SECTIONS.items()]
    hardware, optim, logger = parsed
    if hardware is None or optim is None or logger is None:
        return None
    world_size = max(stage.world_size, hardware["world_size"])
    return Settings(hardware, optim, logger, node, world_size)


def _check_devices(stage: Stage, settings: Settings) -> None:
    """Refuse one device for several processes, of which each needs its own, and fp16 on the CPU if a queue is used."""
    name = settings.hardware["device"]
    if settings.world_size > 1 and name not in ("auto", "cuda", "cpu"):
        stage.report.error(
            PART,
            f"hardware.device: '{name}' is one device, but each of {settings.world_size} processes needs its own. Set "
            "it to cuda or cpu.",
        )
    if settings.hardware["precision"] == "fp16" and name in ("cpu", "mps"):
        is_error = settings.world_size > 1 or stage.slurm is not None
        (stage.report.error if is_error else stage.report.warn)(
            PART, f"hardware.precision: fp16 needs a CUDA device, and hardware.device is '{name}'. Set it to fp32."
        )


def _check_folders(stage: Stage, node: Mapping[str, Any]) -> None:
    """Refuse a run's folder that is a file, and the folder of a run to branch from that is not there."""
    logger, branch = node.get("logger"), node.get("branch_from")
    path = logger.get("dump_path") if isinstance(logger, Mapping) else None
    parts = [Path(str(path)).expanduser()] if path else []
    for part in [one for first in parts for one in (first, *first.parents)]:
        if part.exists() and not part.is_dir():
            stage.report.error(PART, f"logger.dump_path: '{path}' can't be a folder, because '{part}' is a file.")
    run = branch.get("run") if isinstance(branch, Mapping) else branch
    if isinstance(run, str | Path) and not Path(run).expanduser().exists():
        stage.report.error(PART, f"branch_from.run: there is no folder '{run}'.")
