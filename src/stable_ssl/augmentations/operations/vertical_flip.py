"""Top and bottom swapped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..draw import Drawn
from .base import Sometimes, choose


@dataclass(frozen=True)
class VerticalFlip(Sometimes):
    """Swap top and bottom.

    Parameters
    ----------
    p
        Probability that an image is flipped.

    >>> import torch
    >>> VerticalFlip(p=1)(torch.tensor([[[1], [2]]], dtype=torch.uint8)).flatten()
    tensor([2, 1], dtype=torch.uint8)
    """

    p: float = 0.5

    def on_cpu(self, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
        """Flip in place."""
        for i in np.flatnonzero(drawn["is_applied"]):
            pixels[i] = pixels[i, :, ::-1].copy()
        return pixels

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Flip the images that the row says."""
        return choose(rows[0], pixels.flip(2), pixels)
