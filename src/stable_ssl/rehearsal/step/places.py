"""Where an error happened: in which method, part and line of a run."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import Any

from torch import Tensor, nn

from ...lines import OWN, owner, users_line
from ...runtime.device import describe_batch
from ..configuration.hooks import HOOKS

_METHODS = {*HOOKS} - {"_fit", "_fit_epoch", "_fit_step", "_evaluate", "_eval_step"}  # each run is inside of these


class Place:
    """Where an error happened.

    Parameters
    ----------
    error
        The error.
    trainer
        The trainer whose run it ended.
    outputs
        The shapes of the modules' outputs before it, by name, the newest last.

    Attributes
    ----------
    frames
        The calls that led to it, as (code's name, local variables), the innermost first.
    line
        "file.py:12" of the innermost call in code that is neither installed nor this package's; "" if there is none.
    key
        The configuration's key of the innermost part that was called: a module, the loss, a metric, a monitor, the
        optimizer or the schedule. "" if there is none.
    part
        That part. None: there is none.
    got
        The tensors that a module was called with, in words.
    num_dimensions
        Of the first of these tensors; 0 if there is none.
    method
        The outermost of the methods of the trainer that a user may write, such as "compute_loss()", or the phase of the
        run in words.
    evaluated
        The name of the set whose batch was being evaluated; "" if none was.
    is_sentence
        Whether this package has raised the error, with a sentence of its own.
    """

    def __init__(self, error: BaseException, trainer: Any, outputs: Mapping[str, tuple[int, ...]]):
        calls = list(traceback.walk_tb(error.__traceback__))[::-1]
        self.trainer, self.outputs = trainer, outputs
        self.frames = [(frame.f_code.co_name, frame.f_locals) for frame, _ in calls]
        self.line = users_line(error)
        keys = _keys_of(trainer)
        self.key, self.part, self.got, self.method, self.num_dimensions = "", None, "", "", 0
        for name, variables in self.frames:
            owner = variables.get("self")
            if owner is trainer and name in _METHODS:
                self.method = f"{name}()"
            if not self.key and id(owner) in keys:
                self.key, self.part = keys[id(owner)], owner
                given = _tensors_in(variables)
                self.got = ", ".join(describe_batch(value, with_ranges=False) for value in given)
                self.num_dimensions = given[0].ndim if given and isinstance(given[0], Tensor) else 0
        if not self.method and any(name == "backward" for name, _ in self.frames):
            self.method = "The backward pass"
        self.is_sentence = bool(calls) and _raises(*calls[0])
        sets = (variables.get("name_loader") for name, variables in self.frames if name == "_eval_step")
        self.evaluated = next(sets, "")

    @property
    def is_of_values(self) -> bool:
        """Whether a metric or monitor was computing its value, which may need more samples."""
        return self.key.startswith("logger.") and any(name == "compute" for name, _ in self.frames)

    @property
    def layer(self) -> str:
        """The part's key with the kind of layer that it is, such as "module.backbone.0 (Linear)"."""
        return f"{self.key} ({type(self.part).__name__})"

    @property
    def module(self) -> str:
        """The key of the module in which the part is, such as "module.backbone"."""
        return ".".join(self.key.split(".")[:2])


def _keys_of(trainer: Any) -> dict[int, str]:
    """Return the keys of a trainer's parts, by their ids."""
    if trainer is None or "_modules" not in vars(trainer):
        return {}
    keys = {id(module): name for name, module in trainer.named_modules() if name not in ("", "module")}
    for kind in ("metric", "monitor"):
        for set_name, named in (trainer.logger[kind] or {}).items():
            for name, part in named.items() if isinstance(named, Mapping) else ():
                keys[id(part)] = f"logger.{kind}.{set_name}.{name}"
    for name in ("optimizer", "scheduler"):
        if trainer.optim[name] is not None:
            keys[id(trainer.optim[name])] = f"optim.{name}"
    return keys


def _tensors_in(variables: Mapping[str, Any]) -> list[Any]:
    """Return the first tensors, and lists of tensors, among a call's arguments."""
    return [value for name, value in variables.items() if name != "self" and _has_tensors(value)][:3]


def _has_tensors(value: Any) -> bool:
    if isinstance(value, nn.Parameter):
        return False
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value))


def _raises(frame: FrameType, number: int) -> bool:
    """Return whether a line is a `raise` of this package."""
    file = frame.f_code.co_filename
    return owner(file) == OWN and linecache.getline(file, number).lstrip().startswith("raise ")
