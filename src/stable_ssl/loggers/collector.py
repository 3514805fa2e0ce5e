"""Logged values between the step that logs them and the log that they are written to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_number(value: Any) -> bool:
    """Say whether a value is a number, or a tensor or array with one element."""
    if isinstance(value, Tensor):
        return value.numel() == 1
    if isinstance(value, np.ndarray):
        return value.size == 1 and np.isrealobj(value)
    return isinstance(value, int | float | np.number | np.bool_)


class Collector:
    """Collects logged values on their devices, and copies all of them to the host at once.

    If a name is logged several times before `flush`, its values are averaged.

    Examples
    --------
    >>> collector = Collector()
    >>> collector.add("loss", torch.tensor(1.0))
    >>> collector.add("loss", 2.0)
    >>> collector.flush()
    {'loss': 1.5}
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor | float]] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        """Add a number, or a tensor or array with one element, without waiting for its device.

        Raises
        ------
        TypeError
            The value is neither.
        """
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise TypeError(
                    f"'{name}' can't be logged: its value is a tensor of shape {tuple(value.shape)}. Log one number."
                )
            if value.requires_grad:
                value = value.detach()
            if value.ndim:
                value = value.reshape(())
        elif isinstance(value, np.generic | np.ndarray) and is_number(value):
            value = float(value.item())
        elif not isinstance(value, int | float):
            raise TypeError(f"'{name}' can't be logged: its value is a {type(value).__name__}. Log one number.")
        self._values.setdefault(name, []).append(value)

    @property
    def counts(self) -> dict[str, int]:
        """The number of values that were added per name."""
        return {name: len(values) for name, values in self._values.items()}

    def flush(self) -> dict[str, float]:
        """Return the mean per name, in the order in which the names were first added, and remove all values.

        Means of tensors are those of their values in fp32. This waits for a device at most once.
        """
        record: dict[str, float] = {}
        elsewhere: dict[str, Tensor] = {}
        for name, values in self._values.items():
            mean = values[0] if len(values) == 1 else _mean(values)
            if not isinstance(mean, Tensor):
                record[name] = 0.0 + mean  # a float, whatever number was logged
            elif mean.is_cpu:
                record[name] = mean.float().item()
            else:
                record[name] = 0.0  # keeps the name's place until the copy arrives
                elsewhere[name] = mean
        self._values = {}
        if elsewhere:
            device = next(iter(elsewhere.values())).device
            together = torch.stack([mean.to(device, torch.float32) for mean in elsewhere.values()])  # (names,)
            record.update(zip(elsewhere, together.tolist(), strict=True))
        return record


def _mean(values: list[Tensor | float]) -> Tensor | float:
    """Return the mean of several values of one name: a tensor if any of them is, on its device."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return sum(values) / len(values)  # type: ignore[arg-type, return-value]
    device = next((tensor.device for tensor in tensors if not tensor.is_cpu), tensors[0].device)
    return torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value in values]).mean()


def pooled(parts: list[tuple[dict[str, float], dict[str, int]]]) -> dict[str, float]:
    """Return the mean per name over the values of several collectors, such as those of all ranks.

    Parameters
    ----------
    parts
        For each collector, what `flush` returned, and what `counts` was before.

    Examples
    --------
    >>> pooled([({"loss": 1.0}, {"loss": 1}), ({"loss": 4.0}, {"loss": 2})])
    {'loss': 3.0}
    """
    names = dict.fromkeys(name for means, _ in parts for name in means)
    totals = {name: sum(means[name] * counts[name] for means, counts in parts if name in means) for name in names}
    return {name: total / sum(counts.get(name, 0) for _, counts in parts) for name, total in totals.items()}
