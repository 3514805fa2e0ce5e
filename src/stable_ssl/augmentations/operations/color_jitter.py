"""Brightness, contrast, saturation and hue, changed in any order."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..draw import Drawn, below, within
from .base import WHITE, Range, Sometimes, choose, is_number, per_image
from .grayscale import grey

_FACTORS = ("brightness", "contrast", "saturation", "hue")
_NEUTRAL = ((1, 1), (1, 1), (1, 1), (0, 0))
_LARGEST = 1e6  # a factor that makes levels 0 or 255; larger results would not fit into whole numbers
_ORDERS = np.array(list(itertools.permutations(range(4))))


@dataclass(frozen=True)
class ColorJitter(Sometimes):
    """Change brightness, contrast, saturation and hue, in an order drawn for each image.

    Images of one channel have neither saturation nor hue: these changes are left out.

    Parameters
    ----------
    brightness, contrast, saturation
        Range of the factor; a number b stands for (max(0, 1 - b), 1 + b).
    hue
        Range of the difference, in turns, within (-0.5, 0.5); a number h stands for (-h, h).
    p
        Probability that an image is changed.

    >>> ColorJitter(brightness=0.4).brightness
    (0.6, 1.4)
    """

    brightness: float | Range = 0.0
    contrast: float | Range = 0.0
    saturation: float | Range = 0.0
    hue: float | Range = 0.0
    p: float = 0.8

    num_draws = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            if is_number(value) and value >= 0:
                self._set(name, (max(0.0, 1 - value), 1 + value))
            self._check_range(name, 0, math.inf)
        if is_number(self.hue):
            self._set("hue", (-self.hue, self.hue))  # type: ignore[operator]
        self._check_range("hue", -0.5, 0.5)

    @property
    def channels(self) -> tuple[int, ...]:
        """Grey or RGB."""
        return 1, 3

    def draw(self, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
        """Return the factors, and `order`, (batch, 4): the numbers of the changes, -1 for one that is switched off."""
        limits = (self.brightness, self.contrast, self.saturation, self.hue)
        changes = np.array([number if limits[number] != _NEUTRAL[number] else -1 for number in range(4)])
        order = changes[_ORDERS[below(np.array(len(_ORDERS)), numbers[1])]]
        factors = [within(limit, number) for limit, number in zip(limits, numbers[2:], strict=True)]
        return super().draw(numbers, sizes) | {"order": order, **dict(zip(_FACTORS, factors, strict=True))}

    def on_cpu(self, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
        """Change the colours in place."""
        from ..kernels.colours import color_jitter

        factors = np.stack([drawn[name] for name in _FACTORS], axis=1).clip(max=_LARGEST)
        color_jitter(pixels, drawn["is_applied"], drawn["order"], factors)
        return pixels

    def rows(self, drawn: Drawn) -> np.ndarray:
        """Return what was drawn, and 1 - each factor, (13, batch).

        The device would compute 1 - factor from a factor that float32 has rounded: the result would not be the same.
        """
        return super().rows(drawn | {f"1 - {name}": 1 - drawn[name] for name in _FACTORS})

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Make every change at each of four turns, and take the one whose turn it is."""
        is_applied, order, factors, complements = rows[0], rows[1:5], rows[5:9], rows[9:13]
        changes = (_brighten, _contrast, _saturate, _turn_hue)[: 4 if pixels.shape[1] == 3 else 2]
        for turn in order:
            changed = pixels
            for number, change in enumerate(changes):
                made = change(pixels, per_image(factors[number]), per_image(complements[number]))
                changed = choose((turn == number) * is_applied, made, changed)
            pixels = changed
        return pixels


def _brighten(pixels: Tensor, factor: Tensor, complement: Tensor) -> Tensor:
    return (pixels * factor).clamp(max=WHITE).floor()


def _contrast(pixels: Tensor, factor: Tensor, complement: Tensor) -> Tensor:
    luma = grey(pixels)
    return _blend(pixels, luma.sum((1, 2, 3), keepdim=True) / luma[0].numel(), factor, complement)


def _saturate(pixels: Tensor, factor: Tensor, complement: Tensor) -> Tensor:
    return _blend(pixels, grey(pixels), factor, complement)


def _blend(pixels: Tensor, other: Tensor, factor: Tensor, complement: Tensor) -> Tensor:
    return torch.addcmul(pixels * factor, other, complement).clamp(0, WHITE).floor()


def _turn_hue(pixels: Tensor, turn: Tensor, complement: Tensor) -> Tensor:
    """Go to hue, saturation and value and back, rounding as `kernels.colours` does."""
    r, g, b = (pixels / WHITE).split(1, 1)
    value = torch.maximum(r, torch.maximum(g, b))
    spread = value - torch.minimum(r, torch.minimum(g, b))
    saturation = torch.where(spread > 0, spread / value.clamp(min=1e-3), 0)
    divisor = torch.where(spread > 0, spread, 1)
    to_red, to_green, to_blue = ((value - channel) / divisor for channel in (r, g, b))
    hue = torch.where(
        value == r, to_blue - to_green, torch.where(value == g, 2 + to_red - to_blue, 4 + to_green - to_red)
    )
    hue = ((hue / 6 + 1) % 1 + turn) % 1 * 6
    part = (hue - hue.floor()) * saturation
    p, q, t = value * (1 - saturation), value * (1 - part), value * (1 - saturation + part)
    sector = hue.floor() % 6

    def of_sector(*by_sector: Tensor) -> Tensor:
        chosen = by_sector[0]
        for number in range(1, 6):
            chosen = torch.where(sector == number, by_sector[number], chosen)
        return chosen

    red, green, blue = (value, q, p, p, t, value), (t, value, value, q, p, p), (p, p, t, value, value, q)
    return (torch.cat([of_sector(*red), of_sector(*green), of_sector(*blue)], 1) * 255.999).floor()
