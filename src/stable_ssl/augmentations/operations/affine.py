"""Rotation, shift, scale and shear in one map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..draw import Drawn, within
from .base import Range, Sometimes, are_numbers, choose, is_number


@dataclass(frozen=True)
class Affine(Sometimes):
    """Rotate, shift, scale and shear about the centre; what comes from outside is black.

    Parameters
    ----------
    degrees
        Range of the rotation; a number d stands for (-d, d).
    translate
        Largest shift along x and y, as fractions of width and height.
    scale
        Range of the factor.
    shear
        Range of the angle along x in degrees; a number s stands for (-s, s), four numbers for ranges along x and y.
    p
        Probability that an image is changed.
    interpolation
        "nearest" or "bilinear".

    >>> Affine(degrees=15).degrees
    (-15.0, 15.0)
    """

    degrees: float | Range = 0.0
    translate: Range = (0.0, 0.0)
    scale: Range = (1.0, 1.0)
    shear: float | Range = 0.0
    p: float = 1.0
    interpolation: str = "nearest"

    num_draws = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_number(self.degrees):
            self._set("degrees", (-abs(self.degrees), abs(self.degrees)))  # type: ignore[arg-type]
        if is_number(self.shear):
            self._set("shear", (-abs(self.shear), abs(self.shear)))  # type: ignore[arg-type]
        self._require(are_numbers(self.shear) and len(self.shear) in (2, 4), "shear", "1, 2 or 4 angles")  # type: ignore
        self._set("shear", (*map(float, self.shear), 0.0, 0.0)[:4])  # type: ignore[arg-type]
        self._check_range("degrees", -360, 360)
        is_right = are_numbers(self.translate) and len(self.translate) == 2 and all(0 <= t <= 1 for t in self.translate)
        self._require(is_right, "translate", "two fractions from 0 to 1")
        self._set("translate", tuple(map(float, self.translate)))
        self._check_range("scale", 1e-3, 1e3)
        self._check_interpolation(("nearest", "bilinear"))

    def draw(self, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
        """Return angles in degrees, shifts in whole pixels, and factors."""
        shift_y, shift_x = (sizes * self.translate[::-1]).T
        shear: Any = self.shear
        return super().draw(numbers, sizes) | {
            "angle": within(self.degrees, numbers[1]),
            "translate_x": np.rint(within((-shift_x, shift_x), numbers[2])),
            "translate_y": np.rint(within((-shift_y, shift_y), numbers[3])),
            "scale": within(self.scale, numbers[4]),
            "shear_x": within(shear[:2], numbers[5]),
            "shear_y": within(shear[2:], numbers[6]),
        }

    def on_cpu(self, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
        """Write the mapped images to new memory."""
        from ..kernels.places import affine

        out = np.empty_like(pixels)
        affine(pixels, drawn["is_applied"], _inverse_matrices(drawn), self.interpolation == "bilinear", out)
        return out

    def rows(self, drawn: Drawn) -> np.ndarray:
        """Return whether the map is applied, and its matrix, (7, batch)."""
        return np.concatenate([drawn["is_applied"][None], _inverse_matrices(drawn).T])

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Gather each pixel from where the matrix says."""
        height, width = pixels.shape[2:]
        a, b, c, d, e, f = (row[:, None, None] for row in rows[1:])
        down = torch.arange(height, device=pixels.device)[:, None] - (height - 1) / 2
        right = torch.arange(width, device=pixels.device) - (width - 1) / 2
        x = right * a + down * b + c + (width - 1) / 2
        y = right * d + down * e + f + (height - 1) / 2
        if self.interpolation == "nearest":
            return choose(rows[0], _at(pixels, y.round(), x.round()), pixels)
        left, top = x.floor(), y.floor()
        part_x, part_y = (x - left)[:, None], (y - top)[:, None]
        upper = _at(pixels, top, left) * (1 - part_x) + _at(pixels, top, left + 1) * part_x
        lower = _at(pixels, top + 1, left) * (1 - part_x) + _at(pixels, top + 1, left + 1) * part_x
        return choose(rows[0], (upper * (1 - part_y) + lower * part_y).round(), pixels)


def _at(pixels: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return the pixels at whole coordinates, (batch, height, width) each; 0 outside the image."""
    height, width = pixels.shape[2:]
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    places = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long().flatten(1)[:, None]
    values = pixels.flatten(2).gather(2, places.expand(-1, pixels.shape[1], -1)).view_as(pixels)
    return torch.where(is_inside[:, None], values, 0)


def _inverse_matrices(drawn: Drawn) -> np.ndarray:
    """Return the maps as `kernels.places.affine` takes them, (batch, 6), float32."""
    names = ("angle", "translate_x", "translate_y", "scale", "shear_x", "shear_y")
    rows = zip(*(drawn[name].tolist() for name in names), strict=True)
    return np.array([_inverse_matrix(*row) for row in rows], np.float32)


def _inverse_matrix(angle: float, shift_x: float, shift_y: float, scale: float, shear_x: float, shear_y: float) -> Any:
    """Return the map, from output to input, that undoes: shear, scale, rotate, shift."""
    angle, shear_x, shear_y = map(math.radians, (angle, shear_x, shear_y))
    a = math.cos(angle - shear_y) / math.cos(shear_y)
    c = math.sin(angle - shear_y) / math.cos(shear_y)
    b = -a * math.tan(shear_x) - math.sin(angle)
    d = -c * math.tan(shear_x) + math.cos(angle)
    # The matrix (a b, c d) has determinant 1.
    a, b, c, d = d / scale, -b / scale, -c / scale, a / scale
    return a, b, -a * shift_x - b * shift_y, c, d, -c * shift_x - d * shift_y
