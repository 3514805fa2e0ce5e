"""The sections of a run's configuration, whatever is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..nodes import plain
from .stage import Stage


def trainer_of(stage: Stage) -> Mapping[str, Any]:
    """Return the configuration of the trainer; an empty one if it is no dict, which is said elsewhere."""
    found = plain(stage.config.get("trainer"))
    return found if isinstance(found, Mapping) else {}


def section(stage: Stage, name: str) -> Mapping[str, Any]:
    """Return a section of the trainer's configuration, such as `data`; an empty one if it is no dict."""
    found = trainer_of(stage).get(name)
    return found if isinstance(found, Mapping) else {}
