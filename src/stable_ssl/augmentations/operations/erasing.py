"""A box of one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..draw import Drawn
from .base import Range, Sometimes, ToFloats, are_numbers, is_number
from .boxes import NUM_DRAWS, draw_boxes, draw_places


@dataclass(frozen=True)
class Erasing(Sometimes):
    """Fill a box with one value (Zhong et al., "Random erasing data augmentation", AAAI 2020).

    Of ten drawn boxes the first that is smaller than the image is taken. If none is, nothing is erased.

    Parameters
    ----------
    p
        Probability that a box of an image is erased.
    scale
        Area of the box, as a fraction of the image's.
    ratio
        Height / width of the box; its logarithm is drawn uniformly.
    value
        One number for all channels, or one per channel: levels from 0 to 255 before `Normalize`, normalised values
        after it.

    >>> Erasing(value=0).value
    (0.0,)
    """

    p: float = 0.5
    scale: Range = (0.02, 0.33)
    ratio: Range = (0.3, 3.3)
    value: float | Sequence[float] = 0.0

    num_draws = 1 + NUM_DRAWS
    takes_floats = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_number(self.value):
            self._set("value", (self.value,))
        self._check_range("scale", 0, 1)
        self._check_range("ratio", 1e-3, 1e3)
        self._require(are_numbers(self.value) and len(self.value) > 0, "value", "a number, or one for each channel")  # type: ignore
        self._set("value", tuple(map(float, self.value)))  # type: ignore[arg-type]

    @property
    def channels(self) -> tuple[int, ...]:
        """As many as there are values; any number if there is one."""
        return (len(self._values),) if len(self._values) > 1 else ()

    def check_place(self, after: ToFloats | None) -> None:
        """Raise a ValueError if the values are no levels, and nothing before makes float32 values."""
        if after is None and not set(self._values) <= set(range(256)):
            raise ValueError(
                f"{self}: before Normalize, value must be a level, a whole number from 0 to 255. Put it after "
                "Normalize for any other."
            )

    def draw(self, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
        """Return the boxes; `is_applied` is false for an image in which none fits."""
        drawn, numbers = super().draw(numbers, sizes), numbers[1:]
        limits, areas = sizes.T - 1, sizes.prod(axis=1)
        (heights, widths), is_found = draw_boxes(self.scale, self.ratio, numbers, limits, areas, smallest=0)
        tops, lefts = draw_places(numbers, sizes, heights, widths)
        is_applied = drawn["is_applied"] & is_found
        return {"is_applied": is_applied, "top": tops, "left": lefts, "height": heights, "width": widths}

    def on_cpu(self, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
        """Fill the boxes in place."""
        value = np.array(self.value).astype(pixels.dtype)[:, None, None]
        for i in np.flatnonzero(drawn["is_applied"]):
            top, left, height, width = (int(drawn[name][i]) for name in ("top", "left", "height", "width"))
            pixels[i, :, top : top + height, left : left + width] = value
        return pixels

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Fill the boxes."""
        is_applied, top, left, height, width = rows[:, :, None, None]
        y = torch.arange(pixels.shape[2], device=pixels.device)[:, None]
        x = torch.arange(pixels.shape[3], device=pixels.device)
        is_erased = (is_applied > 0) & (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        value = torch.tensor(self.value, device=pixels.device).view(-1, 1, 1)
        return torch.where(is_erased[:, None], value, pixels)

    @property
    def _values(self) -> Sequence[float]:
        assert isinstance(self.value, Sequence)
        return self.value
