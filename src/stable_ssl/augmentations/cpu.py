"""Drawn views made on the CPU: what torchvision's v2 functions give on uint8 tensors, bit by bit.

(A blurred value may differ by one level, in less than one in a thousand; so may an affine map's.)
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from . import kernels, resampling
from .draw import RESIZING, Drawn, blur_weights, inverse_matrices, output_size
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

# All operations are done to as many images as fit into a core's cache together.
_PIECE_BYTES = 4 << 20
_NUM_BUFFERS = 16


def make_view(operations: Sequence[Operation], drawn: Sequence[Drawn], images: Any) -> torch.Tensor:
    """Return a view of each image, float32 (batch, channels, height, width).

    Parameters
    ----------
    operations
        Of the view: those on uint8, perhaps a `Normalize`, and those on float32.
    drawn
        Their parameters.
    images
        uint8 (batch, height, width, channels); or a list of images (height, width, channels).

    Raises
    ------
    ValueError
        The views of the images are not of one size.
    """
    place = next((i for i, operation in enumerate(operations) if isinstance(operation, Normalize)), len(operations))
    normalization = operations[place] if place < len(operations) else Normalize((0.0,), (1.0,))
    batch: np.ndarray | None = None
    for first, last, piece in _pieces(images):
        parts = [{name: values[first:last] for name, values in parameters.items()} for parameters in drawn]
        pixels = change(operations[:place], parts[:place], piece)
        if batch is None:
            batch = _buffer((len(images), *pixels.shape[1:]))
        if batch.shape[1:] != pixels.shape[1:]:
            raise ValueError(
                f"views of {_size(batch)} and of {_size(pixels)} pixels make no batch: images of different sizes need "
                "an operation that gives them one, such as RandomResizedCrop or CenterCrop."
            )
        num_channels = pixels.shape[1]
        mean, std = (
            np.broadcast_to(np.float32(values), num_channels).copy()
            for values in (normalization.mean, normalization.std)  # type: ignore[attr-defined]
        )
        kernels.normalize(pixels, mean, std, batch[first:last])
        for operation, part in zip(operations[place + 1 :], parts[place + 1 :], strict=True):
            _erase(operation, part, batch[first:last])
    assert batch is not None
    return torch.from_numpy(batch)


def change(operations: Sequence[Operation], drawn: Sequence[Drawn], images: np.ndarray) -> np.ndarray:
    """Return uint8 images (batch, channels, height, width) of those (batch, height, width, channels), changed."""
    pixels = images.transpose(0, 3, 1, 2)
    if not (operations and isinstance(operations[0], RESIZING)):
        pixels = pixels.copy()  # others work in place
    for operation, parameters in zip(operations, drawn, strict=True):
        pixels = _CHANGES[type(operation)](operation, parameters, pixels)
    return pixels


_buffers = threading.local()


def _buffer(shape: tuple[int, ...]) -> np.ndarray:
    """Return memory of a view that nobody has any more, or new one: touching new pages takes as long as the work."""
    known: list[tuple[np.ndarray, weakref.ref]] = _buffers.__dict__.setdefault("known", [])
    free = [i for i, (memory, user) in enumerate(known) if memory.shape == shape and user() is None]
    memory = known.pop(free[0])[0] if free else np.empty(shape, np.float32)
    batch = memory.view()  # what a tensor of it holds, whatever is made of that tensor
    known.append((memory, weakref.ref(batch)))
    del known[:-_NUM_BUFFERS]
    return batch


def _pieces(images: Any) -> Any:
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


def _crop(operation: Operation, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
    boxes = np.stack([drawn["top"], drawn["left"], drawn["height"], drawn["width"]], axis=1)
    height, width = output_size(operation, *pixels.shape[2:])
    cropped = np.empty((*pixels.shape[:2], int(height), int(width)), np.uint8)
    resampling.crop_and_resize(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), boxes, cropped)
    return cropped


def _flip_horizontally(operation: Operation, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
    kernels.flip_horizontally(pixels, drawn["is_applied"])
    return pixels


def _flip_vertically(operation: Operation, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
    for i in np.flatnonzero(drawn["is_applied"]):
        pixels[i] = pixels[i, :, ::-1].copy()
    return pixels


def _affine(operation: Affine, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
    out = np.empty_like(pixels)
    kernels.affine(pixels, drawn["is_applied"], inverse_matrices(drawn), operation.interpolation == "bilinear", out)
    return out


def _jitter(operation: ColorJitter, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
    factors = np.stack([drawn[name] for name in ("brightness", "contrast", "saturation", "hue")], axis=1)
    kernels.color_jitter(pixels, drawn["is_applied"], drawn["order"], factors)
    return pixels


def _grayscale(operation: Grayscale, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
    if pixels.shape[1] == 3:
        kernels.grayscale(pixels, drawn["is_applied"])
    return pixels


def _blur(operation: GaussianBlur, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
    # What lies further out changes no value by as much as rounding to float32 does.
    radii = np.minimum(operation.kernel_size // 2, np.ceil(4.25 * drawn["sigma"])).astype(np.int64)
    resampling.gaussian_blur(pixels, drawn["is_applied"], blur_weights(operation, drawn), radii)
    return pixels


def _solarize(operation: Solarize, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
    kernels.solarize(pixels, drawn["is_applied"], np.uint8(math.ceil(operation.threshold)))
    return pixels


def _erase(operation: Any, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
    value = np.array(operation.value).astype(pixels.dtype)[:, None, None]
    for i in np.flatnonzero(drawn["is_applied"]):
        top, left, height, width = (int(drawn[name][i]) for name in ("top", "left", "height", "width"))
        pixels[i, :, top : top + height, left : left + width] = value
    return pixels


_CHANGES: dict[type, Callable[[Any, Drawn, np.ndarray], np.ndarray]] = {
    RandomResizedCrop: _crop,
    Resize: _crop,
    CenterCrop: _crop,
    HorizontalFlip: _flip_horizontally,
    VerticalFlip: _flip_vertically,
    Affine: _affine,
    ColorJitter: _jitter,
    Grayscale: _grayscale,
    GaussianBlur: _blur,
    Solarize: _solarize,
    Erasing: _erase,
}
