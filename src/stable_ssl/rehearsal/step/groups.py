"""The groups of parameters of a run: how many there are, with which rate, decay and schedule."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from ...engine.optimizing import unscheduled

_MOST_STEPS = 5_000  # for which a function of the step is asked for its value
_MOST_SECONDS = 2.0  # for a schedule that has to be gone through step by step

Rates = tuple[float, float, float | None]


def table_of_groups(trainer: Any) -> list[dict[str, Any]]:
    """Return what a run does to each group of its parameters.

    Parameters
    ----------
    trainer
        It is set up. Afterwards, it is of no more use: its schedule has gone on.

    Returns
    -------
    list of dict
        Per group of an optimizer: its `name` in `optim.groups`; the class of its `optimizer`; its `modules`; its
        numbers of `tensors` and `parameters`; `lr`, its largest rate; its `weight_decay`; its `schedule` in words; and
        its `rates`: the first, the largest and the last one, which is None if it takes too long to find. What no
        optimizer has comes last.
    """
    names = {id(parameter): name for name, parameter in trainer.named_parameters()}
    schedule = trainer.optim["scheduler"]
    made: list[dict[str, Any]] = []
    for optimizer in [trainer.optim["optimizer"], *trainer._steps.trained.side.values()]:
        is_own = optimizer is trainer.optim["optimizer"] and schedule is not None
        rates = _rates(trainer) if is_own else [_constant(group) for group in optimizer.param_groups]
        kind = type(schedule).__name__ if is_own else ""
        for group, found in zip(optimizer.param_groups, rates, strict=True):
            made.append(
                {
                    "name": group.get("name"),
                    "optimizer": type(optimizer).__name__,
                    **_sizes(group["params"], names),
                    "lr": found[1],
                    "weight_decay": float(group.get("weight_decay") or 0.0),
                    "schedule": _in_words(found, kind),
                    "rates": list(found),
                }
            )
    if rest := [parameter for parameter in trainer.parameters() if id(parameter) in names]:
        fixed = {"name": None, "optimizer": None, "lr": 0.0, "weight_decay": 0.0, "rates": [0.0, 0.0, 0.0]}
        made.append({**fixed, **_sizes(rest, names), "schedule": "not trained"})
    return made


def _sizes(parameters: list[Any], names: dict[int, str]) -> dict[str, Any]:
    """Return the modules and sizes of some parameters, whose names are taken out of `names`."""
    parts = [names.pop(id(parameter), "").split(".") for parameter in parameters]
    return {
        "modules": list(dict.fromkeys(part[1] if part[0] == "module" else part[0] for part in parts)),
        "tensors": len(parameters),
        "parameters": sum(parameter.numel() for parameter in parameters),
    }


def _constant(group: dict[str, Any]) -> Rates:
    return (float(group["lr"]),) * 3


def _in_words(rates: Rates, kind: str) -> str:
    """Return the course of a rate in words, such as "0.1 → 0.3 → 0, OneCycleLR"."""
    shown = ["…" if rate is None else f"{rate:.3g}" for rate in rates]
    course = [now for number, now in enumerate(shown) if number == 0 or now != shown[number - 1]]
    return " → ".join(course) + (f", {kind}" if kind else "") if len(course) > 1 else f"{course[0]}, constant"


def _rates(trainer: Any) -> list[Rates]:
    """Return the first, the largest and the last rate of each group of the method's optimizer."""
    schedule, total = trainer.optim["scheduler"], trainer.optim["total_steps"]
    constant = unscheduled(trainer.optim["groups"])
    fixed = {
        number: _constant(group)
        for number, group in enumerate(trainer.optim["optimizer"].param_groups)
        if group.get("name", "") in constant
    }
    if getattr(type(schedule), "get_lr", None) is LambdaLR.get_lr:
        courses = [_of_function(factor, total) for factor in schedule.lr_lambdas]
        rows = zip(schedule.base_lrs, courses, strict=True)
        found = [(float(base * first), float(base * largest), base * last) for base, (first, largest, last) in rows]
    else:
        found = _gone_through(trainer, total)
    return [fixed.get(number, rates) for number, rates in enumerate(found)]


def _of_function(factor: Callable[[int], float], total: int) -> tuple[float, float, float]:
    """Return the first, the largest and the last value of a function of the step."""
    stride = max(total // _MOST_STEPS, 1)
    near = max(range(0, total, stride), key=factor)
    largest = max(map(factor, range(max(near - stride, 0), min(near + stride + 1, total))))
    return factor(0), largest, factor(total - 1)


def _gone_through(trainer: Any, total: int) -> list[Rates]:
    """Return what `_rates` does by letting the schedule step."""
    trainer._saver._schedule.fit(-1, {}, 0)  # back to its beginning
    schedule, groups = trainer.optim["scheduler"], trainer.optim["optimizer"].param_groups
    rows = [[float(group["lr"]) for group in groups]]
    end = time.monotonic() + _MOST_SECONDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch expects a step of the optimizer before each one of the schedule
        while len(rows) < total and time.monotonic() < end:
            schedule.step()
            rows.append([float(group["lr"]) for group in groups])
    is_whole = len(rows) == total
    return [(course[0], max(course), course[-1] if is_whole else None) for course in zip(*rows, strict=True)]
