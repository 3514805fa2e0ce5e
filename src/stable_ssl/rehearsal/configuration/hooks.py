"""Hooks of a user's classes: those that a run never calls because of their names, and those that it can't call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from ...base import BaseTrainer
from ...exceptions import nearest
from .users_code import UsersCode, is_users

_AROUND = ("fit", "fit_epoch", "fit_step", "eval", "eval_step")
_OF_PARTS = {"begin_epoch": 1, "begin_step": 1, "update_teacher": 1}  # and the number of their arguments
_OF_MONITORS = {"check": 2, "on_step": 1, "on_eval": 1, "compute": 1}
HOOKS = (
    *(f"{when}_{what}" for what in _AROUND for when in ("before", "after")), *_OF_PARTS, "forward", "predict",
    "compute_loss", "prepare_modules", "initialize_modules", "optimized_modules", "side_optimizers", "side_losses",
    "check_setup", "before_optimizer_step", "view_counts", "format_views_labels", "compute_loss_classifiers",
    "get_extra_state", "set_extra_state", "_instanciate", "_fit", "_fit_epoch", "_fit_step", "_evaluate", "_eval_step",
)  # fmt: skip
_SETTINGS = ("required_modules", "min_batch_size", "usual_loss", "num_masks")  # class attributes that are read
# Hooks of Lightning, Keras and others, and what they are here.
_ELSEWHERE = {
    "training_step": "compute_loss", "validation_step": "after_eval_step", "test_step": "after_eval_step",
    "predict_step": "predict", "compute_metrics": "predict", "on_train_start": "before_fit",
    "on_train_begin": "before_fit", "on_train_end": "after_fit", "on_train_epoch_start": "before_fit_epoch",
    "on_train_epoch_end": "after_fit_epoch", "training_epoch_end": "after_fit_epoch",
    "on_epoch_start": "before_fit_epoch", "on_epoch_begin": "before_fit_epoch", "on_epoch_end": "after_fit_epoch",
    "on_train_batch_start": "before_fit_step", "on_train_batch_end": "after_fit_step",
    "on_batch_start": "before_fit_step", "on_batch_end": "after_fit_step", "on_step_end": "after_fit_step",
    "on_validation_start": "before_eval", "on_validation_end": "after_eval", "on_validation_epoch_end": "after_eval",
    "validation_epoch_end": "after_eval", "on_before_optimizer_step": "before_optimizer_step",
    "configure_optimizers": "side_optimizers, or the setting optim.optimizer,",
    **{f"on_{what}": f"before_{what}' or 'after_{what}" for what in _AROUND},
}  # fmt: skip
_PREFIXES = {"pre_": "before_", "post_": "after_", "on_": "before_"}

Calls = Mapping[str, int | None]  # names of hooks, and the number of their arguments; None: it may vary


def misnamed(cls: type, code: UsersCode, is_monitor: bool = False) -> Iterator[str]:
    """Yield a sentence per method that is nearly a hook, in a class of the user's or an ancestor of it that is.

    Parameters
    ----------
    cls
        A trainer, a module, or a monitor.
    code
        The user's code. A method that it calls is left alone.
    is_monitor
        Whether the class is a monitor's.
    """
    hooks = [*_hooks_of(cls, is_monitor)]
    for owner, name, value in _own(cls):
        if hasattr(BaseTrainer if issubclass(cls, BaseTrainer) else nn.Module, name) or name in hooks:
            continue
        if _function(value) is not None:
            meant = _meant(name, hooks, issubclass(cls, BaseTrainer))
        else:
            is_setting = issubclass(cls, BaseTrainer) and not isinstance(value, property | type)
            meant = nearest(name, _SETTINGS, cutoff=0.85) if is_setting else ""
        if meant and not any(name in vars(base) for base in owner.__mro__[1:]) and not code.calls(name):
            yield f"{owner.__name__}.{name}: nothing calls or reads it.{meant}"


def uncallable(cls: type, is_monitor: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (name, sentence) per hook of the user's that a run can't call, or whose call does nothing."""
    hooks = _hooks_of(cls, is_monitor)
    for owner, name, value in _own(cls):
        function, count = _function(value), hooks.get(name)
        if function is None or count is None or getattr(cls, name, None) is not getattr(owner, name):
            continue
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            kind = "yield" if inspect.isgeneratorfunction(function) else "async"
            yield name, f"{owner.__name__}.{name}: a call of it runs nothing, because it has `{kind}`. Remove that."
        elif wanted := _wrong_number(value, function, count):
            yield name, f"{owner.__name__}.{name}: {wanted}"


def _own(cls: type) -> Iterator[tuple[type, str, Any]]:
    """Yield (class, name, value) for what the user's classes among a class and its ancestors define."""
    for owner in cls.__mro__:
        if is_users(owner):
            yield from ((owner, name, value) for name, value in vars(owner).items() if not name.startswith("__"))


def _function(value: Any) -> Callable | None:
    """Return the function of a method, or None if a value is none."""
    function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    return function if inspect.isfunction(function) else None


def _hooks_of(cls: type, is_monitor: bool) -> Calls:
    """Return the hooks that a run calls of a class. The number of arguments is that of the method of this package."""
    if is_monitor:
        return _OF_MONITORS
    if not issubclass(cls, BaseTrainer):
        return _OF_PARTS
    library = [base for base in cls.__mro__ if not is_users(base) and base.__module__.startswith("stable_ssl")]
    counts: dict[str, int | None] = dict(_OF_PARTS)
    for name in HOOKS:
        found = next((vars(base)[name] for base in library if name in vars(base)), None)
        if name != "forward" and inspect.isfunction(found):
            counts[name] = len(inspect.signature(found).parameters) - 1
        elif name not in counts:
            counts[name] = None
    return counts


def _meant(name: str, hooks: list[str], is_trainer: bool) -> str:
    """Return the sentence that suggests a hook for a method's name, or ""."""
    if is_trainer and name in _ELSEWHERE:
        return f" Did you mean '{_ELSEWHERE[name]}'?"
    for prefix, ours in _PREFIXES.items() if is_trainer else ():
        if name.startswith(prefix) and (near := nearest(ours + name.removeprefix(prefix), hooks, cutoff=0.85)):
            return near
    return nearest(name, hooks, cutoff=0.8)


def _wrong_number(value: Any, function: Callable, count: int) -> str:
    """Return why a method can't be called with a number of positional arguments, or ""."""
    bound = [] if isinstance(value, staticmethod) else [None]
    signature = inspect.signature(function)
    try:
        signature.bind(*bound, *[None] * count)
    except TypeError:
        names = [*signature.parameters]
        own = ", ".join(names[len(bound) :]) or "nothing"
        number = {0: "nothing", 1: "one argument"}.get(count, f"{count} arguments")
        if not names and bound:
            return f"it has no parameter self. Write def {function.__name__}(self)."
        return f"it takes {own} beside self, but a run calls it with {number}."
    return ""
