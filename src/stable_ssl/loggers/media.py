"""Images, histograms and arrays that are logged: copied at once on their device, made ready on the host later."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

_CHANNELS = (1, 3, 4)
_MODES = ("1", "L", "RGB", "RGBA", "I", "I;16", "F")  # the modes of Pillow whose values are pixels
_IMAGES_OF_A_GRID = 16
_BINS = 64


class Image(NamedTuple):
    """An image on the host: uint8, (height, width, channels)."""

    pixels: np.ndarray

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return what a snapshot holds of it, by key."""
        return {name: self.pixels}


class Histogram(NamedTuple):
    """A histogram on the host: `counts`, (bins,), between `edges`, (bins + 1,)."""

    counts: np.ndarray
    edges: np.ndarray

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return what a snapshot holds of it, by key."""
        return {f"{name}/counts": self.counts, f"{name}/edges": self.edges}


class Array(NamedTuple):
    """Numbers on the host that are neither, such as a confusion matrix."""

    values: np.ndarray

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return what a snapshot holds of it, by key."""
        return {name: self.values}


Media = Image | Histogram | Array


def image(name: str, value: Any) -> Callable[[], Image]:
    """Return a function that makes an image of a value as it is now.

    Parameters
    ----------
    name
        The image's name, for the error.
    value
        A tensor or array (height, width), (channels, height, width) or (height, width, channels), a batch of such
        images, or an image of Pillow. Of a batch, the first 16 make a grid. Floats from 0 to 1 and whole numbers from 0
        to 255 are shown as they are. If other values occur, the smallest becomes black and the largest white.

    Raises
    ------
    TypeError
        The value has another shape, or is no image.
    """
    if isinstance(value, PILImage.Image):
        value = np.asarray(value if value.mode in _MODES else value.convert("RGB"))
    images = _copied(name, value)
    if images.ndim == 2:
        return functools.partial(_image, images[None])
    is_first = images.ndim > 2 and images.shape[-3] in _CHANNELS
    is_last = images.ndim > 2 and images.shape[-1] in _CHANNELS
    if images.ndim not in (3, 4) or not (is_first or is_last):
        raise TypeError(
            f"'{name}' can't be logged as an image: its shape is {tuple(images.shape)}. Give (height, width), "
            "(channels, height, width) or (height, width, channels) with 1, 3 or 4 channels, or a batch of such images."
        )
    if is_last and not (is_first and isinstance(value, Tensor)):  # torch's images have channels first
        images = images.movedim(-1, -3)
    return functools.partial(_image, images)


def histogram(name: str, values: Any) -> Callable[[], Histogram]:
    """Return a function that makes a histogram of values as they are now.

    Parameters
    ----------
    name
        The histogram's name, for the error.
    values
        A tensor, an array or a list of numbers, of any shape. Those that are not finite are left out.

    Raises
    ------
    TypeError
        The values are no real numbers.
    """
    return functools.partial(_histogram, _copied(name, values))


def array(name: str, values: Any) -> Callable[[], Array]:
    """Return a function that makes an array of the host of values as they are now.

    Raises
    ------
    TypeError
        The values are no numbers.
    """
    return functools.partial(_array, _copied(name, values, allows_complex=True))


def _copied(name: str, values: Any, allows_complex: bool = False) -> Tensor:
    """Return a copy of numbers, on the device that they are on."""
    try:
        copy = values.detach().clone() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, order="C"))
    except (TypeError, ValueError, RuntimeError):
        copy = None
    if copy is None or copy.layout != torch.strided or (copy.is_complex() and not allows_complex):
        raise TypeError(f"'{name}' can't be logged: its value, a {type(values).__name__}, is no array of numbers.")
    return copy


def _image(images: Tensor) -> Image:
    """Return an image of (channels, height, width), or a grid of a batch of them."""
    images = images[:_IMAGES_OF_A_GRID] if images.ndim == 4 else images
    pixels = _as_pixels(images.cpu())
    if pixels.ndim == 4:
        from torchvision.utils import make_grid

        pixels = make_grid(pixels)
    return Image(pixels.movedim(0, -1).contiguous().numpy())


def _as_pixels(values: Tensor) -> Tensor:
    """Return values as uint8."""
    if values.dtype == torch.uint8:
        return values
    top = 1.0 if values.is_floating_point() or values.dtype == torch.bool else 255.0
    values = values.double()
    finite = values[values.isfinite()]
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, top)
    if low < 0 or high > top:
        values, top = values - low, high - low or 1.0
    return (values / top * 255).nan_to_num().round().clamp(0, 255).to(torch.uint8)


def _histogram(values: Tensor) -> Histogram:
    # Rounded to fp32, because NumPy can't divide a range of a few units in the last place into bins.
    numbers = values.cpu().float().double().flatten().numpy()
    return Histogram(*np.histogram(numbers[np.isfinite(numbers)], bins=_BINS))


def _array(values: Tensor) -> Array:
    values = values.cpu()
    return Array((values.float() if values.dtype == torch.bfloat16 else values).resolve_conj().numpy())
