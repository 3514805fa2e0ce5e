"""From a configuration to a trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .arguments import declared_by
from .base import BaseTrainer
from .exceptions import ConfigError, nearest
from .nodes import OF_A_RUN, check_nodes, is_node, live_paths, locate, plain

_SECTIONS = ("data", "module", "hardware", "optim", "logger")


log = logging.getLogger("stable_ssl")


def instanciate_config(cfg: Any = None, debug_hash: None = None) -> Any:
    """Make the trainer that a configuration describes.

    Parameters
    ----------
    cfg
        A dict or DictConfig with the key `trainer`, or the trainer's node itself. The trainer's `setup` builds the
        nodes inside it. Other keys beside `trainer` become attributes of the trainer, unless it has such attributes.
    debug_hash
        In early 2025, a configuration as bytes that could run any code. It is refused.

    Raises
    ------
    ConfigError
        Lists everything that is wrong with the configuration.
    """
    if debug_hash is not None:
        raise ConfigError("debug_hash: bytes that may run any code are not read. Give the configuration, as cfg.")
    config = plain(cfg)
    trainer = _make(config)
    if "trainer" in config:
        add_attributes(trainer, {name: value for name, value in config.items() if name not in OF_A_RUN})
    return trainer


def add_attributes(trainer: Any, values: Mapping[str, Any]) -> None:
    """Make values attributes of a trainer, dicts as DictConfig of OmegaConf. Those whose names it has are left out."""
    from omegaconf import OmegaConf

    added = {}
    for name, value in values.items():
        if hasattr(trainer, name):
            log.info("%s: no attribute is made of it, since %s has one.", name, type(trainer).__name__)
        else:
            added[name] = OmegaConf.create(value) if isinstance(value, dict | list) else value
    for name, value in {**added, "_extras": added}.items() if added else ():
        setattr(trainer, name, value)


def _make(config: Any) -> Any:
    """Return the trainer of a configuration of plain dicts."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"The configuration is a {type(config).__name__}, not a dict.")
    node = config.get("trainer", config)
    if not is_node(node):
        raise ConfigError("trainer._target_: missing; it names the trainer's class, stable_ssl.trainers.… or your own.")
    live = live_paths(node, "trainer")
    if live:
        raise ConfigError(
            [
                "A Python script started this run with live objects, which no file describes; run that script again.",
                *(f"{path}: a live object." for path in live),
            ]
        )
    target = locate(node["_target_"], "trainer")
    # An empty section means its defaults.
    arguments = {
        key: {} if value is None and key in _SECTIONS else value
        for key, value in node.items()
        if not (key.startswith("_") and key.endswith("_"))  # those are Hydra's, as _target_
    }
    if not (isinstance(target, type) and issubclass(target, BaseTrainer)):
        return _called(target, arguments)
    wrong, arguments = _as_meant(target, arguments)
    try:
        made = _called(target, arguments)
    except ConfigError as error:
        raise ConfigError([*wrong, *error.problems]) from error
    if wrong:
        raise ConfigError(wrong)
    return made


def _as_meant(cls: type[BaseTrainer], arguments: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return a sentence per misspelled name of a section that is missing, and the arguments with their right names."""
    missing = [name for name in (*_SECTIONS, "loss") if name not in arguments]
    declared = {*dir(cls), *declared_by(BaseTrainer, cls)}
    hints = {key: nearest(key, missing, cutoff=0.8) for key in arguments.keys() - declared - {*_SECTIONS, "loss"}}
    problems = [f"{key}: unknown argument.{hints[key]}" for key in arguments if hints.get(key)]
    meant = {key: name for key, hint in hints.items() for name in missing if f"'{name}'" in hint}
    return problems, {meant.get(key, key): value for key, value in arguments.items()}


def _called(target: Any, arguments: dict[str, Any]) -> Any:
    """Call what the configuration names. Sections that a trainer of this package does not get have their defaults."""
    if isinstance(target, type) and issubclass(target, BaseTrainer) and target.__init__ is BaseTrainer.__init__:
        return target(**{**{name: {} for name in _SECTIONS}, **arguments})
    problems: list[str] = []
    check_nodes({"_target_": target, **{key: None for key in arguments}}, "trainer", problems)
    if problems:
        raise ConfigError(problems)
    return target(**arguments)
