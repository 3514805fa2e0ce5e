"""A Gaussian blur."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..draw import Drawn, within
from .base import Range, Sometimes, is_count, per_image


@dataclass(frozen=True)
class GaussianBlur(Sometimes):
    """Blur with a Gaussian; the image is reflected at its borders.

    Parameters
    ----------
    kernel_size
        Taps along each axis, odd. None: as many as cover 3 standard deviations on either side, for the largest `sigma`.
        Sides of the image must be longer than half of that.
    sigma
        Range of the standard deviation, in pixels.
    p
        Probability that an image is blurred.

    >>> GaussianBlur(23).least_size
    (12, 12)
    >>> GaussianBlur(None, sigma=(0.1, 2.0)).kernel_size
    13
    """

    kernel_size: int | None = 23
    sigma: Range = (0.1, 2.0)
    p: float = 1.0

    num_draws = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("sigma", 1e-3, math.inf)
        taps: Any = 2 * math.ceil(3 * self.sigma[1]) + 1 if self.kernel_size is None else self.kernel_size
        self._require(is_count(taps) and taps % 2 == 1, "kernel_size", "an odd count of taps")
        self._set("kernel_size", taps)

    @property
    def least_size(self) -> tuple[int, int]:
        """So many pixels that the reflection at a border does not reach the other one."""
        return self._radius + 1, self._radius + 1

    @property
    def _radius(self) -> int:
        assert self.kernel_size is not None  # __post_init__ has chosen one
        return self.kernel_size // 2

    def draw(self, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
        """Return `sigma`, (batch,)."""
        return super().draw(numbers, sizes) | {"sigma": within(self.sigma, numbers[1])}

    def on_cpu(self, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
        """Blur in place."""
        from ..kernels.blurring import gaussian_blur

        # Taps further out change no value by as much as rounding to float32 does.
        radii = np.minimum(self._radius, np.ceil(4.25 * drawn["sigma"])).astype(np.int64)
        gaussian_blur(pixels, drawn["is_applied"], self._weights(drawn), radii)
        return pixels

    def rows(self, drawn: Drawn) -> np.ndarray:
        """Return the weights, (radius + 1, batch): those of an image that is not blurred are 1 and zeros."""
        weights = self._weights(drawn)
        weights[~drawn["is_applied"]] = np.arange(weights.shape[1]) == 0
        return weights.T

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Blur along x, then along y; round once."""
        radius = len(rows) - 1
        for axis in (3, 2):
            length = pixels.shape[axis]
            sides = [radius, radius, 0, 0] if axis == 3 else [0, 0, radius, radius]
            padded = torch.nn.functional.pad(pixels, sides, "reflect")
            total = per_image(rows[0]) * pixels
            for distance in range(1, radius + 1):
                both = (padded.narrow(axis, radius + side * distance, length) for side in (-1, 1))
                total = total + per_image(rows[distance]) * sum(both)
            pixels = total
        return pixels.round()

    def _weights(self, drawn: Drawn) -> np.ndarray:
        """Return the weights of the centre and at each distance from it, float32 (batch, radius + 1)."""
        distances = np.arange(self._radius + 1)
        weights = np.exp(-0.5 * (distances / drawn["sigma"][:, None]) ** 2)
        weights /= weights[:, :1] + 2 * weights[:, 1:].sum(axis=1, keepdims=True)
        return weights.astype(np.float32)
