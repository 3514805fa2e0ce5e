"""What overrides may not do, although the files of a configuration may."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .exceptions import ConfigError, nearest


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


def quoted(text: str) -> str:
    """Return a text as a value of Hydra's overrides; there, backslashes before a quote stand for half as many."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"
