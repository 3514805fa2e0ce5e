"""The schedule of a run that goes on for more epochs than it had."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

from .optimizing import replay, unscheduled

log = logging.getLogger("stable_ssl")

_RATES = ("lr", "momentum", "betas")  # the options of an optimizer that torch's schedules change
_LENGTHS = ("total_steps", "total_iters", "T_max", "_milestones")  # what torch's schedules call their lengths


class Schedule:
    """A schedule as it was built, for the number of steps that the run has now.

    A checkpoint has the lengths of the schedule that was saved. They are wrong if the run has more epochs now: then the
    schedule goes to its place anew, so that the run has the rates of a single run of that length.

    Parameters
    ----------
    optim
        The run's `OptimConfig`, with optimizer and schedule built.

    Attributes
    ----------
    total_steps
        Optimizer steps of the whole run.
    """

    def __init__(self, optim: Any):
        self.total_steps: int = optim["total_steps"]
        self._schedule, self._optimizer = optim["scheduler"], optim["optimizer"]
        self._constant = unscheduled(optim["groups"])
        self._first = copy.deepcopy(self._schedule.state_dict())
        self._first_rates = [
            {key: copy.deepcopy(group[key]) for key in _RATES if key in group} for group in self._optimizer.param_groups
        ]

    def fit(self, total_steps: int | None, saved: Mapping[str, Any], step: int) -> None:
        """Make a restored schedule that of the run's steps, if it was saved in a run of another number of them.

        Parameters
        ----------
        total_steps
            The steps of the run when it was saved. None: the checkpoint does not tell, as those of early versions.
        saved
            The state that was restored.
        step
            The steps of the schedule that are over.
        """
        if total_steps == self.total_steps or (total_steps is None and _lengths(saved) == _lengths(self._first)):
            return
        self._schedule.load_state_dict(self._first)
        for group, rates in zip(self._optimizer.param_groups, self._first_rates, strict=True):
            group.update(rates)
        replay(self._schedule, self._optimizer, step, self._constant)
        log.info("The schedule is now that of a run of %d steps.", self.total_steps)


def _lengths(state: Mapping[str, Any]) -> list[Any]:
    return [*map(state.get, _LENGTHS), *map(_lengths, state.get("_schedulers", ()))]
