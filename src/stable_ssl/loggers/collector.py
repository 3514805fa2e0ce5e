"""Values on their way to the log."""

from __future__ import annotations

import torch
from torch import Tensor


class Collector:
    """Keeps what was logged where it is, and brings it to the host in one copy.

    A name that is given several times before `flush` becomes the mean of its values.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor | float]] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        """Keep a number, or a tensor of one element.

        Raises
        ------
        TypeError
            It is neither.
        """
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise TypeError(f"'{name}' can't be logged: a tensor of shape {tuple(value.shape)}, not one number.")
            value = value.detach().reshape(())
        elif not isinstance(value, int | float):
            raise TypeError(f"'{name}' can't be logged: a {type(value).__name__}, not a number.")
        self._values.setdefault(name, []).append(value)

    @property
    def counts(self) -> dict[str, int]:
        """How many values each name has."""
        return {name: len(values) for name, values in self._values.items()}

    def flush(self) -> dict[str, float]:
        """Return the mean of each name, in the order in which they came, and forget them. Waits for the device once."""
        on_device: dict[str, Tensor] = {}
        record: dict[str, float] = {}
        for name, values in self._values.items():
            tensors = [value for value in values if isinstance(value, Tensor)]
            if tensors:
                device = max(tensors, key=lambda tensor: tensor.device.type != "cpu").device
                both = [torch.as_tensor(value, dtype=torch.float32, device=device) for value in values]
                on_device[name] = both[0] if len(both) == 1 else torch.stack(both).mean()
            record[name] = 0.0 if tensors else sum(values) / len(values)  # type: ignore[arg-type, assignment]
        self._values = {}
        if on_device:
            device = max(on_device.values(), key=lambda tensor: tensor.device.type != "cpu").device
            together = torch.stack([value.to(device) for value in on_device.values()])
            record.update(zip(on_device, together.tolist(), strict=True))
        return record


def pooled(parts: list[tuple[dict[str, float], dict[str, int]]]) -> dict[str, float]:
    """Return the mean of each name over all values that went into several (means, counts)."""
    names = dict.fromkeys(name for means, _ in parts for name in means)
    totals = {name: sum(means[name] * counts[name] for means, counts in parts if name in means) for name in names}
    return {name: total / sum(counts.get(name, 0) for _, counts in parts) for name, total in totals.items()}
