"""The middle of the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..draw import Drawn
from .base import Size, as_size
from .cropping import Cropping


@dataclass(frozen=True, repr=False)
class CenterCrop(Cropping):
    """Cut out the middle of the image. It must be at least as large as that.

    Parameters
    ----------
    size
        Height and width of the result, or one number for a square.

    >>> CenterCrop([24, 32]).least_size
    (24, 32)
    """

    size: Size

    def __post_init__(self) -> None:
        self._set("size", as_size(self, self.size))

    @property
    def least_size(self) -> tuple[int, int]:
        """The size of the result: nothing is padded."""
        return self.fixed_size or (1, 1)

    def draw(self, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
        """Return the middle as the box; nothing is random."""
        height, width = self.least_size
        tops, lefts = (np.rint((sizes - (height, width)) / 2).astype(np.int64)).T
        return {"top": tops, "left": lefts, "height": np.full_like(tops, height), "width": np.full_like(lefts, width)}
