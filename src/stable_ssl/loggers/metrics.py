"""Checks of the metrics and monitors that a user gives, and the states of metrics over several processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..exceptions import ConfigError


def by_name(metrics: Any) -> Any:
    """Return a MetricCollection, or another `ModuleDict` of metrics, as a dict. Return anything else unchanged."""
    return dict(metrics.items()) if isinstance(metrics, nn.ModuleDict) else metrics


def check_metrics(metrics: Mapping[str, Any], path: str, world_size: int) -> None:
    """Raise a ConfigError if one of the objects can't be used as a metric.

    A metric has the methods `update`, `compute` and `reset`. With several processes, it must be a metric of
    torchmetrics, because only these can be combined over processes.

    Parameters
    ----------
    metrics
        The metrics by name.
    path
        The key of the metrics in the configuration, for the message.
    world_size
        Number of processes.

    Raises
    ------
    ConfigError
        Says for each object what is wrong with it.
    """
    require_methods(metrics, ("update", "compute", "reset"), path)
    alone = [name for name, metric in metrics.items() if not _states({name: metric})]
    if alone and world_size > 1:
        raise ConfigError(
            f"{path}: {alone} can't be combined over {world_size} processes. "
            "Use metrics of torchmetrics, or train with one process."
        )


def require_methods(parts: Mapping[str, Any], methods: tuple[str, ...], path: str) -> None:
    """Raise a ConfigError if one of the objects lacks one of the methods, or is a class instead of an object.

    Parameters
    ----------
    parts
        The objects by name.
    methods
        Names of the methods.
    path
        The key of the objects in the configuration, for the message.

    Raises
    ------
    ConfigError
        Says for each object what is wrong with it.
    """
    if not isinstance(parts, Mapping):
        raise ConfigError(f"{path}: {parts!r} is not a dict of names.")
    problems = [
        f"{path}.{name}: {part!r} is a class. Give an object of it instead."
        if isinstance(part, type)
        else f"{path}.{name}: a {type(part).__name__} has no {method}(). Give an object that has it."
        for name, part in parts.items()
        for method in methods
        if isinstance(part, type) or not callable(getattr(part, method, None))
    ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def logged_names(monitors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the monitors of a set by the names that their values are logged under.

    That is the `name` of a monitor of the user's own class, as in early 2025. It is the key in the configuration if the
    monitor has no name of its own, if another one has the same name, or if its class is of this package.
    """
    own = {key: getattr(monitor, "name", None) for key, monitor in monitors.items() if is_users(monitor)}
    named = {key: name for key, name in own.items() if isinstance(name, str) and name != "monitor"}
    keys = {*monitors} - {*named}
    is_alone = {name for name in named.values() if [*named.values()].count(name) == 1 and name not in keys}
    return {named[key] if named.get(key) in is_alone else key: monitor for key, monitor in monitors.items()}


def watched(
    metrics: Mapping[str, Mapping[str, Any]], monitors: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the metrics and monitors of each set by the names of their values: `{set: {name: metric or monitor}}`."""
    sets = dict.fromkeys([*metrics, *monitors])
    return {name: {**metrics.get(name, {}), **logged_names(monitors.get(name, {}))} for name in sets}


def is_users(part: Any) -> bool:
    """Return whether the class of an object is not of this package."""
    return type(part).__module__.split(".")[0] != __name__.split(".")[0]


def fill_empty_states(metrics: Mapping[str, Any], gather: Callable[[Any], list[Any]]) -> None:
    """Give metrics without samples on this rank an empty tensor of the right shape.

    torchmetrics can't gather the empty list that such a metric has for a state.

    Parameters
    ----------
    metrics
        The metrics by name.
    gather
        A function that is called with one object on each rank, and returns the list of these objects on all ranks.
    """
    states = [(part, state) for part, state in _states(metrics) if isinstance(state, list)]
    kinds = gather([(state[0].shape[1:], state[0].dtype) if state else None for _, state in states])
    for (part, state), kinds_of_state in zip(states, zip(*kinds, strict=True), strict=True):
        known = next(filter(None, kinds_of_state), None)
        if not state and known:
            device = "cpu" if getattr(part, "compute_on_cpu", False) else part.device
            state.append(torch.empty((0, *known[0]), dtype=known[1], device=device))


def _states(metrics: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Return (metric, state) for each state of torchmetrics metrics and of the metrics inside them."""
    parts: Any = [part for metric in metrics.values() if isinstance(metric, nn.Module) for part in metric.modules()]
    return [(part, state) for part in parts if hasattr(part, "metric_state") for state in part.metric_state.values()]
