"""What evaluation measures with: metrics and monitors that the trainer can use, on one process and on several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..exceptions import ConfigError


def check_metrics(metrics: Mapping[str, Any], path: str, world_size: int) -> None:
    """Refuse what is no metric, and with several processes what can't be combined over them.

    Raises
    ------
    ConfigError
        Names each of them by its key below `path`.
    """
    require_methods(metrics, ("update", "compute", "reset"), path)
    alone = [name for name, metric in metrics.items() if not _states({name: metric})]
    if alone and world_size > 1:
        raise ConfigError(
            f"{path}: {alone} can't be combined over {world_size} processes, since they are no torchmetrics metrics."
        )


def require_methods(parts: Mapping[str, Any], methods: tuple[str, ...], path: str) -> None:
    """Refuse objects without some methods, and classes.

    Raises
    ------
    ConfigError
        Names each of them by its key below `path`.
    """
    problems = [
        f"{path}.{name}: {part!r} is a class; make an object of it."
        if isinstance(part, type)
        else f"{path}.{name}: a {type(part).__name__} has no {method}()."
        for name, part in parts.items()
        for method in methods
        if isinstance(part, type) or not callable(getattr(part, method, None))
    ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def fill_empty_states(metrics: Mapping[str, Any], gather: Callable[[Any], list[Any]]) -> None:
    """Give metrics that saw nothing on this rank no samples of the right shape: torchmetrics can't gather none.

    Parameters
    ----------
    gather
        Returns what each rank gave, rank by rank.
    """
    states = [(part, state) for part, state in _states(metrics) if isinstance(state, list)]
    kinds = gather([(state[0].shape[1:], state[0].dtype) if state else None for _, state in states])
    for (part, state), kinds_of_state in zip(states, zip(*kinds, strict=True), strict=True):
        known = next(filter(None, kinds_of_state), None)
        if not state and known:
            device = "cpu" if getattr(part, "compute_on_cpu", False) else part.device
            state.append(torch.empty((0, *known[0]), dtype=known[1], device=device))


def _states(metrics: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Return (metric, state) for each state of torchmetrics metrics, and of those that they are made of."""
    parts: Any = [part for metric in metrics.values() if isinstance(metric, nn.Module) for part in metric.modules()]
    return [(part, state) for part in parts if hasattr(part, "metric_state") for state in part.metric_state.values()]
