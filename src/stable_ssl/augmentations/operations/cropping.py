"""Cutting out a box and resizing it, as three operations do it that choose the box in different ways."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..draw import Drawn
from .base import WHITE, Operation, Size

INTERPOLATIONS = ("bilinear", "bicubic")


class Cropping(Operation):
    """Cut out a box of each image and resize it (antialiased).

    A subclass draws the boxes: `top`, `left`, `height` and `width`, each (batch,).
    """

    resizes: ClassVar[bool] = True
    size: Size
    interpolation: str = "bilinear"

    def __repr__(self) -> str:
        """Return the operation as text, without a bilinear interpolation.

        Checkpoints hold this text. Those from before there was a choice go on, because it is the same.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        shown = (
            f"{name}={value!r}" for name, value in values.items() if (name, value) != ("interpolation", "bilinear")
        )
        return f"{type(self).__qualname__}({', '.join(shown)})"

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of every result; None if only the shorter side is given."""
        return None if isinstance(self.size, int) else (self.size[0], self.size[1])

    def output_size(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Return `size`, as often as there are heights."""
        if isinstance(self.size, int):
            shorter = np.minimum(height, width)
            return self.size * height // shorter, self.size * width // shorter
        return self.size[0] + 0 * height, self.size[1] + 0 * width

    def on_cpu(self, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
        """Resize with torch's fixed-point arithmetic."""
        return self.on_images(drawn, pixels.transpose(0, 2, 3, 1))

    def on_images(self, drawn: Drawn, images: np.ndarray | list[np.ndarray]) -> np.ndarray:
        """Resize images (height, width, channels) so. They may differ in size if their results do not."""
        from ..kernels.resizing import crop_and_resize

        boxes = np.stack([drawn["top"], drawn["left"], drawn["height"], drawn["width"]], axis=1)
        height, width = self.output_size(*images[0].shape[:2])
        cropped = np.empty((len(images), images[0].shape[2], int(height), int(width)), np.uint8)
        crop_and_resize(images, boxes, self.interpolation == "bicubic", cropped)
        return cropped

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Resize along x, then along y; each rounds to whole levels."""
        top, left, height, width = rows
        new_height, new_width = map(int, self.output_size(*pixels.shape[2:]))
        is_cubic = self.interpolation == "bicubic"
        return _resize(_resize(pixels, 3, left, width, new_width, is_cubic), 2, top, height, new_height, is_cubic)


def _resize(pixels: Tensor, axis: int, start: Tensor, length: Tensor, new: int, is_cubic: bool) -> Tensor:
    """Resize along one axis the part of each image that is `length` long from `start` on, and round."""
    limit = pixels.shape[axis]
    first, weights = _weights(start, length, new, limit, is_cubic)
    shape = [len(pixels), 1, 1, 1]
    shape[axis] = new
    wanted = list(pixels.shape)
    wanted[axis] = new
    total: Any = 0.5
    for tap in range(weights.shape[2]):
        places = (first + tap).clamp(max=limit - 1).view(shape).expand(wanted)
        total = total + weights[:, :, tap].view(shape) * pixels.gather(axis, places)
    levels: Tensor = total.floor()
    return (levels.clamp(0, WHITE) if is_cubic else levels).float()


def _weights(start: Tensor, length: Tensor, new: int, limit: int, is_cubic: bool) -> tuple[Tensor, Tensor]:
    """Return the first input of each output, (batch, new), and the weights from there on, (batch, new, taps).

    `limit` is the longest length possible. The weights are those of `kernels.resizing`, which torch rounds to as many
    bits as the largest allows in an int16.
    """
    device = start.device
    start, length = (row.double() if device.type != "mps" else row.cpu().double() for row in (start, length))
    reach = 2 if is_cubic else 1
    num_taps = 2 * math.ceil(reach * max(limit / new, 1)) + 1
    scale = (length / new)[:, None]
    stretch = scale.clamp(min=1)
    centre = scale * (torch.arange(new, device=start.device) + 0.5)
    first = (centre - reach * stretch + 0.5).clamp(min=0).floor()
    last = torch.minimum((centre + reach * stretch + 0.5).floor(), length[:, None])
    taps = first[:, :, None] + torch.arange(num_taps, device=start.device)
    distances = ((taps - centre[:, :, None] + 0.5) / stretch[:, :, None]).abs()
    exact = _cubic(distances) if is_cubic else (1 - distances).clamp(min=0)
    exact = torch.where(taps < last[:, :, None], exact, 0)
    exact = exact / exact.sum(2, keepdim=True)
    powers = 2.0 ** torch.arange(1, 23, device=start.device)
    precision = ((0.5 + exact.amax((1, 2))[:, None] * powers).floor() < 1 << 15).sum(1)
    unit = (2.0**precision)[:, None, None]
    weights = (exact * unit + exact.sign() * 0.5).trunc() / unit
    # Sums of float32 are exact as long as weights have 16 bits at most: they do if there are few taps.
    weights = weights.float() if num_taps <= 7 or device.type == "mps" else weights
    return (first + start[:, None]).long().to(device), weights.to(device)


def _cubic(x: Tensor) -> Tensor:
    """Return Keys' cubic for a = -1/2, as `kernels.resizing` has it, at distances of at least 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))
