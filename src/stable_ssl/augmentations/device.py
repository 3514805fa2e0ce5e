"""Views made by torch, of whole batches on a device: those of `cpu`, but for one level in a few values.

Nothing here waits for the device, except on Apple's, for which the CPU computes the weights of a resize. All that was
drawn goes to the device in one copy. Each operation is done to the whole batch; an image to which it is not applied
keeps its pixels. On CUDA a view's operations are compiled together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .draw import Drawn
from .operations.base import WHITE, Operation, ToFloats


def make_view(operations: Sequence[Operation], drawn: Sequence[Drawn], images: Tensor) -> Tensor:
    """Return a view of each image, float32 (batch, channels, height, width), on the device of the images.

    Parameters
    ----------
    operations, drawn
        The operations of the view, and what was drawn for each.
    images
        uint8 (batch, height, width, channels).
    """
    rows = [operation.rows(parameters) for operation, parameters in zip(operations, drawn, strict=True)]
    counts = tuple(map(len, rows))
    numbers = [each for each in rows if len(each)] or [np.empty((0, len(images)))]
    packed = torch.from_numpy(np.concatenate(numbers).astype(np.float32))
    is_compiled = _pays_to_compile(images.device)
    make = _compiled(tuple(operations), counts) if is_compiled else functools.partial(_make, operations, counts)
    return make(images, send(packed, images.device))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, without waiting for it. A mask has itself as `on_host`, as in any batch."""
    sent = tensor.to(device) if device.type != "cuda" else tensor.pin_memory().to(device, non_blocking=True)
    if tensor.dtype == torch.bool and sent is not tensor:
        sent.on_host = tensor  # type: ignore[attr-defined]
    return sent


def _pays_to_compile(device: torch.device) -> bool:
    return device.type == "cuda"


@functools.cache
def _compiled(operations: tuple[Operation, ...], counts: tuple[int, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(functools.partial(_make, operations, counts), fullgraph=True)


def _make(operations: Sequence[Operation], counts: Sequence[int], images: Tensor, packed: Tensor) -> Tensor:
    """Apply each operation with its rows of the packed numbers, (numbers, batch)."""
    pixels, is_float = images.permute(0, 3, 1, 2).float(), False
    for operation, rows in zip(operations, packed.split(list(counts)), strict=True):
        pixels = operation.on_device(rows, pixels)
        is_float |= isinstance(operation, ToFloats)
    return pixels.contiguous() if is_float else (pixels / WHITE).contiguous()
