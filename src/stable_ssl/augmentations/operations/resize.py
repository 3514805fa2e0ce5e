"""The whole image in another size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..draw import Drawn
from .base import Size, as_size, is_count
from .cropping import INTERPOLATIONS, Cropping


@dataclass(frozen=True, repr=False)
class Resize(Cropping):
    """Resize the whole image (antialiased).

    Parameters
    ----------
    size
        Height and width of the result, or one number for its shorter side.
    interpolation
        "bilinear" or "bicubic"; torchvision's and PIL's constants for these do as well.

    >>> Resize([48, 64], interpolation="bicubic").size
    (48, 64)
    """

    size: Size
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not is_count(self.size):
            self._set("size", as_size(self, self.size))
        self._check_interpolation(INTERPOLATIONS)

    def draw(self, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
        """Return the whole image as the box; nothing is random."""
        nothing = np.zeros(len(sizes), np.int64)
        return {"top": nothing, "left": nothing, "height": sizes[:, 0], "width": sizes[:, 1]}
