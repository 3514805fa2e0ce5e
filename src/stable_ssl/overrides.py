"""What overrides may not do, although the files of a configuration may."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .exceptions import ConfigError, nearest

log = logging.getLogger("stable_ssl")

# The keys that resolvers read beside the one that they name.
_READ_BY = {"feature_dim": ("size", "channels"), "num_classes": ("num_classes",)}


def check_watched_sets(overrides: Iterable[str], trainer: Mapping[str, Any]) -> None:
    """Refuse overrides that give a metric or monitor to a set which is not in `data`.

    In a file, such a metric is only left out with a warning, because several experiments may share the file.

    Parameters
    ----------
    overrides
        The overrides, as on the command line.
    trainer
        The composed configuration, under its key `trainer`.

    Raises
    ------
    ConfigError
        There is no such set. The message suggests the nearest.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sets = [name for name in trainer.get("data") or {} if not name.startswith("_")]
    problems = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        parts = override.key_or_group.removeprefix("trainer.").split(".")
        if parts[0] != "logger" or parts[1:2] not in (["metric"], ["monitor"]) or override.is_delete():
            continue
        value = override.value()
        names = parts[2:3] or (list(value) if isinstance(value, dict) else [])
        problems += [
            f"logger.{parts[1]}.{name}: there is no such set in data.{nearest(str(name), sets)}"
            for name in map(str, names)
            if name not in sets and sets
        ]
    if problems:
        raise ConfigError(problems)


def warn_of_no_effect(overrides: Iterable[str], config: Any) -> None:
    """Warn of overrides that set a key beside `trainer` to which nothing refers.

    Parameters
    ----------
    overrides
        The overrides, complete.
    config
        The composed configuration, with interpolations unresolved.
    """
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(config, resolve=False)
    if "behaviour" in content:  # the keys of a run's own configuration become attributes of the trainer
        return
    used, waiting = set[str](), ["trainer", "hydra"]
    while waiting:
        used.add(name := waiting.pop())
        named = {key for text in _references(content.get(name)) for key in re.findall(r"\w+", text)}
        named |= {key for resolver, keys in _READ_BY.items() if resolver in named for key in keys}
        waiting += [key for key in content if key in named and key not in used]
    for override in overrides:
        key = re.split(r"[.=@/]", override.lstrip("+~"))[0]
        if key in content.keys() - used:
            log.warning("'%s' has no effect: nothing in this configuration refers to %s.", override, key)


def _references(value: Any) -> Iterator[str]:
    """Yield the texts with interpolations in a configuration."""
    if isinstance(value, str):
        yield from [value] if "${" in value else []
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _references(item)


def quoted(text: str) -> str:
    """Return a text as a value of Hydra's overrides; there, backslashes before a quote stand for half as many."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"
