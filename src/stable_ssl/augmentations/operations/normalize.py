"""Values of a given mean and standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .base import WHITE, ToFloats, are_numbers, is_number


@dataclass(frozen=True)
class Normalize(ToFloats):
    """Turn each level into (level / 255 - mean) / std, as float32.

    Parameters
    ----------
    mean, std
        Of values from 0 to 1: one number for all channels, or one per channel.

    >>> Normalize(0.5, 0.25).mean
    (0.5,)
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if is_number(getattr(self, name)):
                self._set(name, (getattr(self, name),))
            self._require(are_numbers(getattr(self, name)), name, "a number, or one for each channel")
            self._set(name, tuple(map(float, getattr(self, name))))
        self._require(len(self.mean) > 0, "mean", "a number, or one for each channel")
        self._require(all(value > 0 for value in self.std), "std", "above 0")
        self._require(len(self.std) == len(self.mean), "std", f"{len(self.mean)} numbers, as many as mean has")

    @property
    def channels(self) -> tuple[int, ...]:
        """As many as there are means; any number if there is one."""
        return (len(self.mean),) if len(self.mean) > 1 else ()

    def write(self, pixels: np.ndarray, out: np.ndarray) -> None:
        """Write the normalised values to `out`."""
        self._write(pixels, out, self.mean, self.std)

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Return the normalised values."""
        mean, std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels / WHITE - mean) / std
