"""All channels grey."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..draw import Drawn
from .base import Sometimes, choose


@dataclass(frozen=True)
class Grayscale(Sometimes):
    """Give all channels the luma of ITU-R BT.601. The number of channels stays.

    Parameters
    ----------
    p
        Probability that an image is changed.

    >>> Grayscale().channels
    (1, 3)
    """

    p: float = 0.1

    @property
    def channels(self) -> tuple[int, ...]:
        """Grey or RGB."""
        return 1, 3

    def on_cpu(self, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
        """Make the images grey in place."""
        from ..kernels.colours import grayscale

        if pixels.shape[1] == 3:
            grayscale(pixels, drawn["is_applied"])
        return pixels

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Make the images grey that the row says."""
        return choose(rows[0], grey(pixels).expand_as(pixels), pixels)


def grey(pixels: Tensor) -> Tensor:
    """Return the luma of grey or RGB images as whole levels, (batch, 1, height, width)."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.split(1, 1)
    return torch.add(torch.add(red * 0.2989, green, alpha=0.587), blue, alpha=0.114).floor()  # rounded as by `fma`
