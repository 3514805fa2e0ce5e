"""How many steps a time is: a throw-away trainer makes a few."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..exceptions import BreakAllEpochs
from ..instantiate import instanciate_config

WARM_UP, STEPS = 3, 20
SHARE, LEAST_SECONDS = 0.25, 10.0  # of the time asked for, that measuring may take from the first step on


@dataclass(frozen=True)
class Pace:
    """How long a step takes, in seconds, and how many an epoch has."""

    seconds: float
    steps_per_epoch: int

    def steps(self, minutes: float) -> int:
        """Return how many steps the run has: those of the time, but for less than one per epoch."""
        epochs, steps = self._shape(minutes)
        return epochs * steps

    def settings(self, minutes: float) -> list[str]:
        """Return the overrides that make a run so long."""
        epochs, steps = self._shape(minutes)
        return [f"optim.epochs={epochs}", f"optim.max_steps={steps}"]

    def _shape(self, minutes: float) -> tuple[int, int]:
        """Return the epochs and the steps of each, which may leave out a part of the images."""
        wanted = max(int(60 * minutes / self.seconds), 1)
        epochs = math.ceil(wanted / self.steps_per_epoch)
        return epochs, wanted // epochs


def measure(config: dict[str, Any], minutes: float) -> Pace:
    """Train for a few steps in a temporary folder, on the same data, and return how long a step takes.

    The first three steps are not counted, nor is anything before them. Twenty steps are timed, or fewer if a quarter of
    `minutes` is over.

    Parameters
    ----------
    config
        The configuration of the run.
    minutes
        The time that the run shall have.
    """
    with TemporaryDirectory(prefix="stable_ssl_") as folder:
        trainer = instanciate_config(_throw_away(config, folder))
        trainer.setup()
        clock = _Clock(trainer, max(SHARE * 60 * minutes, LEAST_SECONDS))
        trainer.after_fit_step = clock
        trainer.launch()
        return Pace(clock.seconds(), len(trainer.data["train"]))


def _throw_away(config: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the configuration of a run that trains as another one does, and evaluates and keeps nothing."""
    trainer = copy.deepcopy(config["trainer"])
    trainer["data"] = {name: loader for name, loader in trainer["data"].items() if name == "train" or name[0] == "_"}
    logger = trainer["logger"]
    trainer["logger"] = {
        "dump_path": folder,
        "level": 40,
        "eval_every_epoch": 0,
        "monitor": {"train": (logger.get("monitor") or {}).get("train") or {}},
        "log_every_step": 1 + WARM_UP + STEPS,
    }
    trainer["optim"]["epochs"] = WARM_UP + STEPS + 1
    return {"trainer": trainer}


class _Clock:
    """Notes when steps end, and ends training when there are enough."""

    def __init__(self, trainer: Any, limit: float):
        self._trainer, self._limit = trainer, limit
        self._ends: list[float] = []

    def __call__(self) -> None:
        if self._trainer.device.type == "cuda" and len(self._ends) in (WARM_UP - 1, WARM_UP + STEPS - 1):
            torch.cuda.synchronize()  # steps are queued
        now = time.perf_counter()
        self._ends.append(now)
        is_late = len(self._ends) > 1 and now - self._ends[0] > self._limit
        if is_late or len(self._ends) == WARM_UP + STEPS:
            raise BreakAllEpochs("the steps are timed.")

    def seconds(self) -> float:
        """Return the seconds per step, after the first ones."""
        timed = self._ends[WARM_UP - 1 :] if len(self._ends) > WARM_UP else self._ends
        return (timed[-1] - timed[0]) / (len(timed) - 1)
