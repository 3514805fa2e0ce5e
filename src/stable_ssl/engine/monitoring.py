"""The monitors of a run: when they look at the trainer, and where their values go.

Each monitor gets the trainer as an argument of its methods; nothing here keeps it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from ..config import build
from ..loggers.metrics import require_methods
from .parts import Part
from .recording import Recorder


class Monitors:
    """The monitors of `train`, which follow its optimizer steps, and those of each evaluation set.

    Parameters
    ----------
    nodes
        `logger.monitor`: `{set: {name: monitor or its node}}`.
    recorder
        Where their values are logged.

    Attributes
    ----------
    built
        `{set: {name: monitor}}`.
    """

    def __init__(self, nodes: Mapping[str, Any], recorder: Recorder):
        self.built: dict[str, dict[str, Any]] = build(nodes, "logger.monitor")
        for set_name, monitors in self.built.items():
            require_methods(monitors, ("on_step", "compute", "state_dict"), f"logger.monitor.{set_name}")
        self._training, self._recorder = self.built.get("train", {}), recorder

    def check(self, trainer: nn.Module) -> None:
        """Let each monitor that has a method `check` see whether it fits the trainer."""
        for path, monitor in self._by_path():
            if hasattr(monitor, "check"):
                monitor.check(trainer, f"logger.monitor.{path}")

    def parts(self) -> Iterator[Part]:
        """Yield the monitors as parts of a checkpoint."""
        return (Part(f"monitor.{path}", monitor, is_optional=True) for path, monitor in self._by_path())

    def _by_path(self) -> Iterator[tuple[str, Any]]:
        return ((f"{group}.{name}", monitor) for group, named in self.built.items() for name, monitor in named.items())

    def after_step(self, trainer: nn.Module) -> None:
        """Let the monitors of `train` look at an optimizer step, and log their values at logging steps."""
        for name, monitor in self._training.items():
            monitor.on_step(trainer)
            if self._recorder.is_logging:
                self._recorder.log_values(name, monitor.compute(trainer))

    def after_eval_step(self, set_name: str, trainer: nn.Module) -> None:
        """Let the monitors of an evaluation set look at one of its batches."""
        for monitor in self.built.get(set_name, {}).values():
            monitor.on_eval(trainer)

    def values(self, set_name: str, trainer: nn.Module) -> dict[str, Callable[[], Any]]:
        """Return, for each monitor of an evaluation set, a function that computes its value after all batches."""
        monitors = self.built.get(set_name, {})
        return {name: functools.partial(monitor.compute, trainer) for name, monitor in monitors.items()}
