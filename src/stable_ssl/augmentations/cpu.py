"""Views made on the CPU: those of torchvision's v2 functions on uint8 tensors, bit by bit.

(A blur differs by one level in less than 1 of 1,000 values; so does an affine map.)
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .draw import Drawn
from .operations.base import Operation, ToFloats

# All operations are done to as many images as fit into a core's cache together.
_PIECE_BYTES = 4 << 20
_NUM_BUFFERS = 16


def make_view(operations: Sequence[Operation], drawn: Sequence[Drawn], images: Any) -> torch.Tensor:
    """Return a view of each image, float32 (batch, channels, height, width).

    Parameters
    ----------
    operations, drawn
        The operations of the view, and what was drawn for each.
    images
        uint8 (batch, height, width, channels); or a list of images (height, width, channels).

    Raises
    ------
    ValueError
        The views of the images are not of one size.
    """
    place = next((i for i, operation in enumerate(operations) if isinstance(operation, ToFloats)), len(operations))
    on_levels, (to_floats, *on_floats) = operations[:place], operations[place:] or [ToFloats()]
    batch: np.ndarray | None = None
    for first, last, piece in _pieces(images):
        parts = [{name: values[first:last] for name, values in parameters.items()} for parameters in drawn]
        pixels = _change(on_levels, parts[:place], piece)
        if batch is None:
            batch = _buffer((len(images), *pixels.shape[1:]))
        if batch.shape[1:] != pixels.shape[1:]:
            raise ValueError(
                f"views of {_size(batch)} and of {_size(pixels)} pixels make no batch: images of different sizes need "
                "an operation that gives them one, such as RandomResizedCrop or CenterCrop."
            )
        floats = batch[first:last]
        to_floats.write(pixels, floats)  # type: ignore[attr-defined]
        for operation, part in zip(on_floats, parts[place + 1 :], strict=True):
            changed = operation.on_cpu(part, floats)
            if changed is not floats:
                floats[:] = changed
    assert batch is not None
    return torch.from_numpy(batch)


def _change(operations: Sequence[Operation], drawn: Sequence[Drawn], images: np.ndarray) -> np.ndarray:
    """Return uint8 images (batch, channels, height, width) of those (batch, height, width, channels), changed."""
    pixels = images.transpose(0, 3, 1, 2)
    if not (operations and operations[0].resizes):
        pixels = pixels.copy()  # an operation that keeps the size may work in place
    for operation, parameters in zip(operations, drawn, strict=True):
        pixels = operation.on_cpu(parameters, pixels)
    return pixels


_buffers = threading.local()


def _buffer(shape: tuple[int, ...]) -> np.ndarray:
    """Return memory for a view: that of an earlier one which nobody uses any more, if there is one.

    Touching new pages of memory would take as long as the work.
    """
    known: list[tuple[np.ndarray, weakref.ref]] = _buffers.__dict__.setdefault("known", [])
    free = [i for i, (memory, user) in enumerate(known) if memory.shape == shape and user() is None]
    memory = known.pop(free[0])[0] if free else np.empty(shape, np.float32)
    batch = memory.view()  # a tensor of it, and all that is made of that tensor, keep this object alive
    known.append((memory, weakref.ref(batch)))
    del known[:-_NUM_BUFFERS]
    return batch


def _pieces(images: Any) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first, last, images of one size) until there are no more."""
    if isinstance(images, list):
        for i, image in enumerate(images):
            yield i, i + 1, image[None]
        return
    length = max(1, _PIECE_BYTES // images[0].nbytes)
    for first in range(0, len(images), length):
        yield first, min(first + length, len(images)), images[first : first + length]


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]} × {pixels.shape[3]}"
