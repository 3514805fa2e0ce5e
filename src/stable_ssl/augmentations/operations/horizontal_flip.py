"""Left and right swapped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..draw import Drawn
from .base import Sometimes, choose


@dataclass(frozen=True)
class HorizontalFlip(Sometimes):
    """Swap left and right.

    Parameters
    ----------
    p
        Probability that an image is flipped.
    """

    p: float = 0.5

    def on_cpu(self, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
        """Flip in place."""
        from ..kernels.places import flip_horizontally

        flip_horizontally(pixels, drawn["is_applied"])
        return pixels

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Flip the images that the row says."""
        return choose(rows[0], pixels.flip(3), pixels)
