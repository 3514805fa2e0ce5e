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

Course = dict[int, float]  # rates by step, of all steps or of some that tell the course


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
        numbers of `tensors` and `parameters`; `lr`, its largest rate; its `weight_decay`; its `schedule` in words; its
        `rates`: the first, the largest and the last one, which is None if it takes too long to find; and the step from
        which on it is `settled`: its rate is the last one, or below a millionth of the largest. What no optimizer has
        comes last.
    """
    total = trainer.optim["total_steps"]
    names = {id(parameter): name for name, parameter in trainer.named_parameters()}
    schedule = trainer.optim["scheduler"]
    made: list[dict[str, Any]] = []
    for optimizer in [trainer.optim["optimizer"], *trainer._steps.trained.side.values()]:
        is_own = optimizer is trainer.optim["optimizer"] and schedule is not None
        courses = _courses(trainer) if is_own else [_constant(group, total) for group in optimizer.param_groups]
        kind = type(schedule).__name__ if is_own else ""
        for group, course in zip(optimizer.param_groups, courses, strict=True):
            rates = [course[0], max(course.values()), course.get(total - 1)]
            made.append(
                {
                    "name": group.get("name"),
                    "optimizer": type(optimizer).__name__,
                    **_sizes(group["params"], names),
                    "lr": rates[1],
                    "weight_decay": float(group.get("weight_decay") or 0.0),
                    "schedule": _in_words(rates, kind),
                    "rates": rates,
                    "settled": _settled(course, total),
                }
            )
    if rest := [parameter for parameter in trainer.parameters() if id(parameter) in names]:
        fixed = {
            "name": None,
            "optimizer": None,
            "lr": 0.0,
            "weight_decay": 0.0,
            "rates": [0.0, 0.0, 0.0],
            "settled": 0,
        }
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


def _constant(group: dict[str, Any], total: int) -> Course:
    return dict.fromkeys((0, total - 1), float(group["lr"]))


def _settled(course: Course, total: int) -> int | None:
    if total - 1 not in course:
        return None
    most = max(course[total - 1], 1e-6 * max(course.values()))
    return next((step + 1 for step in sorted(course, reverse=True) if course[step] > most), 0)


def _in_words(rates: list[float | None], kind: str) -> str:
    """Return the course of a rate in words, such as "0.1 → 0.3 → 0, OneCycleLR"."""
    shown = ["…" if rate is None else f"{rate:.3g}" for rate in rates]
    course = [now for number, now in enumerate(shown) if number == 0 or now != shown[number - 1]]
    return " → ".join(course) + (f", {kind}" if kind else "") if len(course) > 1 else f"{course[0]}, constant"


def _courses(trainer: Any) -> list[Course]:
    """Return the course of the rate of each group of the method's optimizer."""
    schedule, total = trainer.optim["scheduler"], trainer.optim["total_steps"]
    constant = unscheduled(trainer.optim["groups"])
    fixed = {
        number: _constant(group, total)
        for number, group in enumerate(trainer.optim["optimizer"].param_groups)
        if group.get("name", "") in constant
    }
    if getattr(type(schedule), "get_lr", None) is LambdaLR.get_lr:
        rows = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        found = [{step: float(base * value) for step, value in _of_function(f, total).items()} for base, f in rows]
    else:
        found = _gone_through(trainer, total)
    return [fixed.get(number, course) for number, course in enumerate(found)]


def _of_function(factor: Callable[[int], float], total: int) -> Course:
    """Return the values of a function of the step: some of all steps, all near the largest, and the last."""
    stride = max(total // _MOST_STEPS, 1)
    found = {step: factor(step) for step in range(0, total, stride)}
    near = max(found, key=found.__getitem__)
    near_it = range(max(near - stride, 0), min(near + stride + 1, total))
    return found | {step: factor(step) for step in (*near_it, total - 1)}


def _gone_through(trainer: Any, total: int) -> list[Course]:
    """Return what `_courses` does by letting the schedule step."""
    trainer._saver._schedule.fit(-1, {}, 0)  # back to its beginning
    schedule, groups = trainer.optim["scheduler"], trainer.optim["optimizer"].param_groups
    rows = [[float(group["lr"]) for group in groups]]
    end = time.monotonic() + _MOST_SECONDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch expects a step of the optimizer before each one of the schedule
        while len(rows) < total and time.monotonic() < end:
            schedule.step()
            rows.append([float(group["lr"]) for group in groups])
    return [dict(enumerate(course)) for course in zip(*rows, strict=True)]
