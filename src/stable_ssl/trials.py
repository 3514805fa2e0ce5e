"""Parts that cost nothing to make: made once on trial, so that their faults are known before data are read."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .data import Loader
from .exceptions import ConfigError
from .nodes import build, is_node, locate, plain, sentences_of

# Their constructors read no file, draw nothing and take no time.
_HARMLESS = (
    "stable_ssl.augmentations",
    "stable_ssl.monitors",
    "torchmetrics.classification",
    "torchmetrics.regression",
)
_OF_OPTIMIZATION = ("torch.optim", "stable_ssl.optimizers", "stable_ssl.schedulers")
_MANY_STEPS = 10**9  # more than a run has, so that no step that an argument names comes too late


class _AnyData:
    """Stands for a data set that was not read."""

    def __len__(self) -> int:
        return _MANY_STEPS

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


_WITHOUT_DATA = {"dataset": _AnyData()}


def try_nodes(value: Any, path: str) -> Iterator[str]:
    """Yield what the constructors of loaders, views, metrics and monitors in a value say is wrong with their arguments.

    Parameters
    ----------
    value
        A node, or a dict or list of nodes. Those that hold any other class are left alone.
    path
        The value's key.
    """
    value = plain(value)
    if is_node(value) and _is_of(value, (Loader.__module__,)) and _is_harmless({**value, **_WITHOUT_DATA}):
        yield from _problems_of({**value, **_WITHOUT_DATA}, path)
    elif is_node(value) and _is_harmless(value):
        yield from _problems_of(value, path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from try_nodes(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from try_nodes(item, f"{path}[{index}]")


def _problems_of(node: Any, path: str) -> list[str]:
    try:
        build(node, path)
    except ConfigError as error:
        return error.problems
    return []


def _is_harmless(value: Any) -> bool:
    """Say whether all nodes in a value are of the classes that cost nothing."""
    if is_node(value) and not _is_of(value, (*_HARMLESS, Loader.__module__)):
        return False
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return all(map(_is_harmless, items))


def _is_of(node: Any, packages: tuple[str, ...]) -> bool:
    try:
        module = str(getattr(locate(node["_target_"], ""), "__module__", ""))
    except ConfigError:
        return False
    return module.startswith(packages)


def try_optimization(optimizer: Any, scheduler: Any) -> Iterator[str]:
    """Yield what is wrong with the optimizer and the schedule, which are made for one weight that stands in.

    Only those of torch and of this package are made.
    """
    for path, value in (("optim.optimizer", optimizer), ("optim.scheduler", scheduler)):
        is_usable = value is None or is_node(value) or callable(value) or hasattr(value, "param_groups")
        if not is_usable and not hasattr(value, "step"):
            example = value if isinstance(value, str) and "." in value else "torch.optim.AdamW"
            yield f"{path}: {value!r} is neither a node nor a callable. Set {path}._target_, such as {example}."
            return
    weights = [nn.Parameter(torch.zeros(1))]
    try:
        made = _made(optimizer, "optim.optimizer", weights)
        if isinstance(made, torch.optim.Optimizer):
            _made(scheduler, "optim.scheduler", made)
    except ConfigError as error:
        yield from error.problems


def _made(part: Any, path: str, argument: Any) -> Any:
    """Return what a node makes with its first argument; None if it is none of a known class."""
    if not is_node(part) or not _is_of(part, _OF_OPTIMIZATION):
        return None
    function = build({**part, "_partial_": True}, path)
    names = getattr(getattr(function.func, "__init__", None), "__code__", None)
    if path == "optim.scheduler" and "total_steps" in getattr(names, "co_varnames", ()):
        function = functools.partial(function, **{"total_steps": _MANY_STEPS, **function.keywords})
    try:
        return function(argument)
    except Exception as error:
        made = functools.partial(function.func, argument)
        raise ConfigError(sentences_of(error, function, path, made)) from error
