"""The check of a run, from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .cards import Card
from .report import Report
from .stage import Stage, maker_of

Part = Callable[[Stage], None]


def rehearse(
    config: Mapping[str, Any],
    make: Callable[[], Any] | None = None,
    card: Card | None = None,
    world_size: int = 1,
    all_data: bool = False,
    is_quick: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Find out what can be known about a run, without its GPU.

    Parameters
    ----------
    config
        The configuration of the run, `{"trainer": {...}}`.
    make
        Makes the run's trainer, anew at each call. None: as the configuration describes it.
    card
        The card that it is meant for. None: figures are given, and no verdict on memory.
    world_size
        Number of processes, one per card.
    all_data
        Read all samples, instead of some.
    is_quick
        Look at the configuration, and at the first sample of each data set, only.
    say
        Gets the name of each part of the check when it begins.
    """
    report = Report()
    with TemporaryDirectory(prefix="stable_ssl_") as folder:
        stage = Stage(config, make or maker_of(config), Path(folder), report, card, world_size, all_data)
        for name, part in parts(is_quick).items():
            say(name)
            try:
                part(stage)
            except Exception as error:  # each part tells of the run's faults; what it raises is a fault of its own
                report.broken[name] = f"{type(error).__name__}: {error}"
    return report


def parts(is_quick: bool) -> dict[str, Part]:
    """Return the parts of a check by name, in their order."""
    return {}
