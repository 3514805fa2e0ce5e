"""A box of random place, area and shape, resized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..draw import Drawn
from .base import Range, Size, as_size
from .boxes import NUM_DRAWS, draw_boxes, draw_places
from .cropping import INTERPOLATIONS, Cropping


@dataclass(frozen=True, repr=False)
class RandomResizedCrop(Cropping):
    """Cut out a random box and resize it (antialiased).

    Of ten drawn boxes the first that fits is taken. If none does, it is the largest one in the middle whose ratio is
    allowed (Szegedy et al., "Going deeper with convolutions", CVPR 2015).

    Parameters
    ----------
    size
        Height and width of the result, or one number for a square.
    scale
        Area of the box, as a fraction of the image's.
    ratio
        Width / height of the box; its logarithm is drawn uniformly.
    interpolation
        "bilinear" or "bicubic"; torchvision's and PIL's constants for these do as well.

    >>> RandomResizedCrop(224, scale=(0.4, 1), interpolation="bicubic").size
    (224, 224)
    """

    size: Size
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"

    num_draws = NUM_DRAWS

    def __post_init__(self) -> None:
        self._set("size", as_size(self, self.size))
        self._check_range("scale", 0, 1)
        self._check_range("ratio", 1e-3, 1e3)
        self._check_interpolation(INTERPOLATIONS)

    def draw(self, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
        """Return the boxes."""
        limits, areas = sizes.T[::-1], sizes.prod(axis=1)
        (widths, heights), is_found = draw_boxes(self.scale, self.ratio, numbers, limits, areas, smallest=1)
        tops, lefts = draw_places(numbers, sizes, heights, widths)
        narrowest, widest = self.ratio
        for i in np.flatnonzero(~is_found):
            height, width = sizes[i].tolist()
            heights[i] = min(height, round(width / narrowest))
            widths[i] = min(width, round(height * widest))
            tops[i], lefts[i] = (height - heights[i]) // 2, (width - widths[i]) // 2
        return {"top": tops, "left": lefts, "height": heights, "width": widths}
