"""The last and the best value of each metric of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Summary:
    """Keeps the last and the best value that each name had in the records of a run.

    The best value of a metric is the smallest if torchmetrics says so of it (`higher_is_better`), or if the name
    has "loss" or "error" in it. Else it is the largest. `logger.best.mode` decides for the value that it names.
    Values under `perf/` are left out.

    Parameters
    ----------
    metrics
        The metrics and monitors of each set: `{set: {name: metric or monitor}}`.
    best
        `logger.best` as a dict, or None.

    Examples
    --------
    >>> summary = Summary({})
    >>> summary.add({"global_step": 1, "train/loss": 0.5, "test/accuracy": 0.9})
    >>> summary.add({"global_step": 2, "train/loss": 0.7, "test/accuracy": 0.8})
    >>> summary.values()
    {'train/loss': {'last': 0.7, 'best': 0.5}, 'test/accuracy': {'last': 0.8, 'best': 0.9}}
    """

    def __init__(self, metrics: Mapping[str, Mapping[str, Any]], best: Mapping[str, Any] | None = None):
        self._metrics, self._named = metrics, best or {}
        self._last: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._signs: dict[str, int] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Take the values of one record. A value that is not finite is never the best."""
        signs, best = self._signs, self._best
        for name, value in record.items():
            sign = signs.get(name)
            if sign is None:
                sign = signs[name] = self._sign(name)
            if sign:
                self._last[name] = value
                if (name not in best or sign * (value - best[name]) > 0) and math.isfinite(value):
                    best[name] = value

    def values(self) -> dict[str, dict[str, float | None]]:
        """Return the last and the best value per name. Another thread may add values at the same time."""
        return {name: {"last": value, "best": self._best.get(name)} for name, value in self._last.copy().items()}

    def _sign(self, name: str) -> int:
        """Return 1 if larger values of a name are better, -1 if smaller ones are, 0 if it is no metric."""
        set_name, slash, metric = name.partition("/")
        if not slash or set_name == "perf":
            return 0
        if name == self._named.get("metric") and self._named["mode"]:
            return 1 if self._named["mode"] == "max" else -1
        is_larger_better = getattr(self._metrics.get(set_name, {}).get(metric), "higher_is_better", None)
        if is_larger_better is None:
            is_larger_better = "loss" not in metric and "error" not in metric
        return 1 if is_larger_better else -1
