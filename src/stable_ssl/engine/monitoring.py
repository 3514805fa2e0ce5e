"""The monitors of a run: when they look at the trainer, and where their values go.

Each monitor gets the trainer as an argument of its methods; nothing here keeps it.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from ..loggers.metrics import logged_names, require_methods
from .parts import Part
from .recording import Recorder

log = logging.getLogger("stable_ssl")


class Monitors:
    """The monitors of `train`, which follow its optimizer steps, and those of each evaluation set.

    Parameters
    ----------
    built
        `logger.monitor`: `{set: {name: monitor}}`.
    recorder
        Where their values are logged.
    """

    def __init__(self, built: Mapping[str, Mapping[str, Any]], recorder: Recorder):
        for set_name, monitors in built.items():
            require_methods(monitors, ("compute",), f"logger.monitor.{set_name}")
        self._built, self._recorder = built, recorder
        named = {set_name: logged_names(monitors) for set_name, monitors in built.items()}
        self._training = [
            (name, monitor, hasattr(monitor, "on_step")) for name, monitor in named.pop("train", {}).items()
        ]
        # The monitors of evaluation sets get either the trainer or predictions.
        self._of_predictions = {key: _those(named[key], _takes_predictions) for key in named}
        self._of_trainer = {key: _those(named[key], lambda monitor: not _takes_predictions(monitor)) for key in named}

    def check(self, trainer: nn.Module) -> None:
        """Let each monitor that has a method `check` see whether it fits the trainer."""
        for path, monitor in self._by_path():
            if hasattr(monitor, "check"):
                monitor.check(trainer, f"logger.monitor.{path}")

    def parts(self) -> Iterator[Part]:
        """Yield the monitors that have a state as parts of a checkpoint."""
        for path, monitor in self._by_path():
            if hasattr(monitor, "state_dict") and hasattr(monitor, "load_state_dict"):
                yield Part(f"monitor.{path}", monitor, is_optional=True)
            else:
                kind = type(monitor).__name__
                log.info("logger.monitor.%s: a %s has no state_dict(), so a resumed run begins it anew.", path, kind)

    def _by_path(self) -> Iterator[tuple[str, Any]]:
        return ((f"{group}.{name}", monitor) for group, named in self._built.items() for name, monitor in named.items())

    def after_step(self, trainer: nn.Module) -> None:
        """Let the monitors of `train` look at an optimizer step, and log their values at logging steps.

        A monitor without `on_step` computes its value after each step, as all did in early 2025.
        """
        is_logging = self._recorder.is_logging
        for name, monitor, has_on_step in self._training:
            if has_on_step:
                monitor.on_step(trainer)
            if is_logging or not has_on_step:
                self._recorder.log_values(name, monitor.compute(trainer))

    def need_predictions(self, set_name: str) -> bool:
        """Return whether a monitor of an evaluation set wants the predictions of its batches."""
        return bool(self._of_predictions.get(set_name))

    def after_eval_step(self, set_name: str, trainer: nn.Module, predictions: Any) -> None:
        """Let the monitors of an evaluation set look at one of its batches.

        What they compute of predictions is logged as the mean over the batches.
        """
        for name, monitor in self._of_predictions.get(set_name, {}).items():
            self._recorder.log_values(name, monitor.compute(predictions))
        for monitor in self._of_trainer.get(set_name, {}).values():
            if hasattr(monitor, "on_eval"):
                monitor.on_eval(trainer)

    def values(self, set_name: str, trainer: nn.Module) -> dict[str, Callable[[], Any]]:
        """Return, for each monitor of an evaluation set, a function that computes its value after all batches.

        Those that take predictions are left out.
        """
        monitors = self._of_trainer.get(set_name, {})
        return {name: functools.partial(monitor.compute, trainer) for name, monitor in monitors.items()}


def _those(monitors: Mapping[str, Any], condition: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the monitors for which a condition is true, by name."""
    return {name: monitor for name, monitor in monitors.items() if condition(monitor)}


def _takes_predictions(monitor: Any) -> bool:
    """Return whether the method `compute` has a parameter whose name is not that of the trainer."""
    try:
        parameters = inspect.signature(monitor.compute).parameters.values()
    except (TypeError, ValueError):
        return False
    first = next((p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)), None)
    return first is not None and first.name != "trainer" and not first.name.startswith("_")
