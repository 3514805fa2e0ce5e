"""What a run calls on modules and losses."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

log = logging.getLogger("stable_ssl")

NAMES = ("begin_epoch", "begin_step", "update_teacher")


class PartCalls:
    """Calls the methods of modules and losses that are for a run to call.

    Parameters
    ----------
    parts
        All modules and the loss. Their methods `begin_epoch`, `begin_step` and `update_teacher` are called if they
        exist, with one number. A property `epochs_of_run` is set.
    epochs
        Epochs of the run.
    """

    def __init__(self, parts: Iterable[Any], epochs: int):
        once = list({id(part): part for part in parts}.values())
        self._methods = {name: _methods(once, name) for name in NAMES}
        for part in once:
            if hasattr(type(part), "epochs_of_run"):
                part.epochs_of_run = epochs

    def call(self, name: str, value: float) -> None:
        """Call a method of all parts that have it."""
        for method in self._methods[name]:
            method(value)


def _methods(parts: Iterable[Any], name: str) -> list[Callable]:
    """Return the method of this name of each part that has it. One that takes no argument is not for a run to call."""
    methods = []
    for method in (getattr(part, name) for part in parts if callable(getattr(part, name, None))):
        try:
            inspect.signature(method).bind(0)
        except TypeError:
            owner = type(getattr(method, "__self__", None)).__name__
            log.warning("%s.%s() is not called by the run, because it can't be given one argument.", owner, name)
        else:
            methods.append(method)
    return methods
