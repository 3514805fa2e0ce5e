"""Drawn views made by torch, of whole batches on a device: those of `cpu`, but for one level in a few values.

Nothing here waits for the device, but on Apple's, where the weights of a resize are computed on the CPU. All that was
drawn goes there in one copy; each operation is then done to the whole batch, and where it is not applied its result is
not taken. On CUDA a view's operations are compiled together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .draw import Drawn, blur_weights, inverse_matrices, output_size
from .operations import (
    Affine,
    CenterCrop,
    ColorJitter,
    Erasing,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Normalize,
    Operation,
    RandomResizedCrop,
    Resize,
    Solarize,
    VerticalFlip,
)
from .views import send

_WHITE = 255.0


def make_view(operations: Sequence[Operation], drawn: Sequence[Drawn], images: Tensor) -> Tensor:
    """Return a view of each image, float32 (batch, channels, height, width), on the device of the images.

    Parameters
    ----------
    operations, drawn
        Of the view; their parameters.
    images
        uint8 (batch, height, width, channels).
    """
    rows = [
        _as_rows(operation, parameters, len(images)) for operation, parameters in zip(operations, drawn, strict=True)
    ]
    packed = torch.from_numpy(np.concatenate(rows).astype(np.float32)) if rows else torch.empty(0, len(images))
    counts = tuple(map(len, rows))
    is_compiled = _pays_to_compile(images.device)
    make = _compiled(tuple(operations), counts) if is_compiled else functools.partial(_make, operations, counts)
    return make(images, send(packed, images.device))


def _pays_to_compile(device: torch.device) -> bool:
    return device.type == "cuda"


@functools.cache
def _compiled(operations: tuple[Operation, ...], counts: tuple[int, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(functools.partial(_make, operations, counts), fullgraph=True)


def _make(operations: Sequence[Operation], counts: Sequence[int], images: Tensor, packed: Tensor) -> Tensor:
    pixels, is_normalized = images.permute(0, 3, 1, 2).float(), False
    for operation, rows in zip(operations, packed.split(list(counts)), strict=True):
        pixels = _CHANGES[type(operation)](operation, rows, pixels)
        is_normalized |= isinstance(operation, Normalize)
    return pixels.contiguous() if is_normalized else (pixels / _WHITE).contiguous()


def _as_rows(operation: Operation, drawn: Drawn, batch_size: int) -> np.ndarray:
    """Return what the device needs to know of each image, (numbers, batch)."""
    if isinstance(operation, GaussianBlur):
        weights = blur_weights(operation, drawn)
        weights[~drawn["is_applied"]] = np.arange(weights.shape[1]) == 0
        return weights.T
    if isinstance(operation, Affine):
        return np.concatenate([drawn["is_applied"][None], inverse_matrices(drawn).T])
    if isinstance(operation, ColorJitter):  # a factor's complement in float32 is not the complement of its float32
        drawn = drawn | {f"1 - {name}": 1 - drawn[name] for name in ("brightness", "contrast", "saturation", "hue")}
    return np.concatenate([np.atleast_2d(values.T) for values in drawn.values()] or [np.empty((0, batch_size))])


def _per_image(row: Tensor) -> Tensor:
    """Return (batch,) as (batch, 1, 1, 1)."""
    return row[:, None, None, None]


def _where(row: Tensor, changed: Tensor, pixels: Tensor) -> Tensor:
    return torch.where(_per_image(row) > 0, changed, pixels)


def _crop(operation: Operation, rows: Tensor, pixels: Tensor) -> Tensor:
    top, left, height, width = rows
    new_height, new_width = map(int, output_size(operation, *pixels.shape[2:]))
    return _resize(_resize(pixels, 3, left, width, new_width), 2, top, height, new_height)


def _resize(pixels: Tensor, axis: int, start: Tensor, length: Tensor, new: int) -> Tensor:
    """Resize along one axis the part of each image that is `length` long from `start` on, and round."""
    limit = pixels.shape[axis]
    first, weights = _resize_weights(start, length, new, num_taps=2 * math.ceil(max(limit / new, 1)) + 1)
    shape = [len(pixels), 1, 1, 1]
    shape[axis] = new
    wanted = list(pixels.shape)
    wanted[axis] = new
    total: Any = 0.5
    for tap in range(weights.shape[2]):
        places = (first + tap).clamp(max=limit - 1).view(shape).expand(wanted)
        total = total + weights[:, :, tap].view(shape) * pixels.gather(axis, places)
    return total.floor().float()


def _resize_weights(start: Tensor, length: Tensor, new: int, num_taps: int) -> tuple[Tensor, Tensor]:
    """Return the first input of each output, (batch, new), and the weights from there on, (batch, new, taps).

    They are those of `resampling`, which torch rounds to as many bits as the largest allows in an int16.
    """
    device = start.device
    start, length = (row.double() if device.type != "mps" else row.cpu().double() for row in (start, length))
    scale = (length / new)[:, None]
    support = scale.clamp(min=1)
    centre = scale * (torch.arange(new, device=start.device) + 0.5)
    first = (centre - support + 0.5).clamp(min=0).floor()
    last = torch.minimum((centre + support + 0.5).floor(), length[:, None])
    taps = first[:, :, None] + torch.arange(num_taps, device=start.device)
    exact = (1 - ((taps - centre[:, :, None] + 0.5) / support[:, :, None]).abs()).clamp(min=0)
    exact = torch.where(taps < last[:, :, None], exact, 0)
    exact = exact / exact.sum(2, keepdim=True)
    powers = 2.0 ** torch.arange(1, 23, device=start.device)
    precision = ((0.5 + exact.amax((1, 2))[:, None] * powers).floor() < 1 << 15).sum(1)
    unit = (2.0**precision)[:, None, None]
    weights = (0.5 + exact * unit).floor() / unit
    # Sums of float32 are exact while weights have 16 bits at most, as they do with so few taps.
    weights = weights.float() if num_taps <= 7 or device.type == "mps" else weights
    return (first + start[:, None]).long().to(device), weights.to(device)


def _flip(axis: int) -> Callable[[Operation, Tensor, Tensor], Tensor]:
    return lambda operation, rows, pixels: _where(rows[0], pixels.flip(axis), pixels)


def _affine(operation: Affine, rows: Tensor, pixels: Tensor) -> Tensor:
    height, width = pixels.shape[2:]
    a, b, c, d, e, f = (row[:, None, None] for row in rows[1:])
    down = torch.arange(height, device=pixels.device)[:, None] - (height - 1) / 2
    right = torch.arange(width, device=pixels.device) - (width - 1) / 2
    x = right * a + down * b + c + (width - 1) / 2
    y = right * d + down * e + f + (height - 1) / 2

    def at(y: Tensor, x: Tensor) -> Tensor:
        is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        places = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long().flatten(1)[:, None]
        values = pixels.flatten(2).gather(2, places.expand(-1, pixels.shape[1], -1)).view_as(pixels)
        return torch.where(is_inside[:, None], values, 0)

    if operation.interpolation == "nearest":
        return _where(rows[0], at(y.round(), x.round()), pixels)
    left, top = x.floor(), y.floor()
    part_x, part_y = (x - left)[:, None], (y - top)[:, None]
    upper = at(top, left) * (1 - part_x) + at(top, left + 1) * part_x
    lower = at(top + 1, left) * (1 - part_x) + at(top + 1, left + 1) * part_x
    return _where(rows[0], (upper * (1 - part_y) + lower * part_y).round(), pixels)


def _jitter(operation: ColorJitter, rows: Tensor, pixels: Tensor) -> Tensor:
    is_applied, order, factors, complements = rows[0], rows[1:5], rows[5:9], rows[9:13]
    changes = (_brighten, _contrast, _saturate, _turn_hue)[: 4 if pixels.shape[1] == 3 else 2]
    for turn in order:
        changed = pixels
        for number, change in enumerate(changes):
            made = change(pixels, _per_image(factors[number]), _per_image(complements[number]))
            changed = _where((turn == number) * is_applied, made, changed)
        pixels = changed
    return pixels


def _brighten(pixels: Tensor, factor: Tensor, complement: Tensor) -> Tensor:
    return (pixels * factor).clamp(max=_WHITE).floor()


def _contrast(pixels: Tensor, factor: Tensor, complement: Tensor) -> Tensor:
    grey = _grey(pixels)
    return _blend(pixels, grey.sum((1, 2, 3), keepdim=True) / grey[0].numel(), factor, complement)


def _saturate(pixels: Tensor, factor: Tensor, complement: Tensor) -> Tensor:
    return _blend(pixels, _grey(pixels), factor, complement)


def _blend(pixels: Tensor, other: Tensor, factor: Tensor, complement: Tensor) -> Tensor:
    return torch.addcmul(pixels * factor, other, complement).clamp(0, _WHITE).floor()


def _grey(pixels: Tensor) -> Tensor:
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.split(1, 1)
    return torch.add(torch.add(red * 0.2989, green, alpha=0.587), blue, alpha=0.114).floor()  # rounded as by `fma`


def _turn_hue(pixels: Tensor, turn: Tensor, complement: Tensor) -> Tensor:
    """Through HSV and back, rounding as `kernels` does."""
    r, g, b = (pixels / _WHITE).split(1, 1)
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

    def choose(*by_sector: Tensor) -> Tensor:
        chosen = by_sector[0]
        for number in range(1, 6):
            chosen = torch.where(sector == number, by_sector[number], chosen)
        return chosen

    turned = (choose(value, q, p, p, t, value), choose(t, value, value, q, p, p), choose(p, p, t, value, value, q))
    return (torch.cat(turned, 1) * 255.999).floor()


def _grayscale(operation: Grayscale, rows: Tensor, pixels: Tensor) -> Tensor:
    return _where(rows[0], _grey(pixels).expand_as(pixels), pixels)


def _blur(operation: GaussianBlur, rows: Tensor, pixels: Tensor) -> Tensor:
    radius = len(rows) - 1
    for axis in (3, 2):
        length = pixels.shape[axis]
        sides = [radius, radius, 0, 0] if axis == 3 else [0, 0, radius, radius]
        padded = torch.nn.functional.pad(pixels, sides, "reflect")
        total = _per_image(rows[0]) * pixels
        for distance in range(1, radius + 1):
            both = (padded.narrow(axis, radius + side * distance, length) for side in (-1, 1))
            total = total + _per_image(rows[distance]) * sum(both)
        pixels = total
    return pixels.round()


def _solarize(operation: Solarize, rows: Tensor, pixels: Tensor) -> Tensor:
    return _where(rows[0], torch.where(pixels >= operation.threshold, _WHITE - pixels, pixels), pixels)


def _erase(operation: Erasing, rows: Tensor, pixels: Tensor) -> Tensor:
    is_applied, top, left, height, width = rows[:, :, None, None]
    y = torch.arange(pixels.shape[2], device=pixels.device)[:, None]
    x = torch.arange(pixels.shape[3], device=pixels.device)
    is_erased = (is_applied > 0) & (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    value = torch.tensor(operation.value, device=pixels.device).view(-1, 1, 1)
    return torch.where(is_erased[:, None], value, pixels)


def _normalize(operation: Normalize, rows: Tensor, pixels: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (operation.mean, operation.std)
    )
    return (pixels / _WHITE - mean) / std


_CHANGES: dict[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    RandomResizedCrop: _crop,
    Resize: _crop,
    CenterCrop: _crop,
    HorizontalFlip: _flip(3),
    VerticalFlip: _flip(2),
    Affine: _affine,
    ColorJitter: _jitter,
    Grayscale: _grayscale,
    GaussianBlur: _blur,
    Solarize: _solarize,
    Erasing: _erase,
    Normalize: _normalize,
}
