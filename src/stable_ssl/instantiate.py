"""From a configuration to a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import BaseTrainer
from .exceptions import ConfigError
from .nodes import check_nodes, is_node, live_paths, locate, plain

_SECTIONS = ("data", "module", "hardware", "optim", "logger")


def instanciate_config(config: Any) -> Any:
    """Make the trainer that a configuration describes.

    Parameters
    ----------
    config
        A dict or DictConfig with the key `trainer`, or the trainer's node itself. The trainer's `setup` builds the
        nodes inside it.

    Raises
    ------
    ConfigError
        Lists everything that is wrong with the configuration.
    """
    config = plain(config)
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
        if not key.startswith("_")
    }
    if isinstance(target, type) and issubclass(target, BaseTrainer) and target.__init__ is BaseTrainer.__init__:
        return target(**{**{name: {} for name in _SECTIONS}, **arguments})
    problems: list[str] = []
    check_nodes({"_target_": target, **{key: None for key in arguments}}, "trainer", problems)
    if problems:
        raise ConfigError(problems)
    return target(**arguments)
