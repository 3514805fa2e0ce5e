"""Bright values inverted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..draw import Drawn
from .base import WHITE, Sometimes, choose, is_number


@dataclass(frozen=True)
class Solarize(Sometimes):
    """Invert the values from a threshold on.

    Parameters
    ----------
    threshold
        A level from 0 to 255.
    p
        Probability that an image is changed.
    """

    threshold: float = 128
    p: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(is_number(self.threshold) and 0 <= self.threshold <= 255, "threshold", "a level from 0 to 255")

    def on_cpu(self, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
        """Invert in place."""
        from ..kernels.colours import solarize

        solarize(pixels, drawn["is_applied"], np.uint8(math.ceil(self.threshold)))
        return pixels

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Invert in the images that the row says."""
        return choose(rows[0], torch.where(pixels >= self.threshold, WHITE - pixels, pixels), pixels)
