"""Images as users give them: PIL images, tensors and arrays, alone and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_array(image: Any) -> np.ndarray:
    """Return one image as (height, width, channels).

    A tensor is taken as (channels, height, width). A PIL image of bytes that is neither grey nor RGB becomes RGB.
    """
    if isinstance(image, Tensor):
        return image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
    mode = getattr(image, "mode", "RGB")
    if mode not in ("L", "RGB") and mode[0] not in "IF":
        image = image.convert("RGB")
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def like(image: Any, planes: np.ndarray) -> Any:
    """Return uint8 planes (channels, height, width) as the kind of thing that the image is."""
    if isinstance(image, Tensor):
        return torch.from_numpy(planes)
    pixels = np.ascontiguousarray(planes.transpose(1, 2, 0))
    if isinstance(image, np.ndarray):
        return pixels.reshape(*pixels.shape[: image.ndim])
    from PIL import Image

    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def look_over(images: Any, indices: Sequence[int]) -> tuple[Any, np.ndarray, int]:
    """Check a batch of images.

    Parameters
    ----------
    images
        A uint8 array or tensor (batch, height, width, channels), or a list of uint8 arrays (height, width, channels).
    indices
        Of the samples in their data set, for messages.

    Returns
    -------
    The images, their sizes (batch, 2) as height and width, and how many channels they have.

    Raises
    ------
    ValueError
        An image is of another type or shape, or not all have the same number of channels.
    """
    if len(images) != len(indices) or len(images) == 0:
        raise ValueError(f"{len(images)} images and {len(indices)} indices: there must be as many, and at least one.")
    if not isinstance(images, list):
        if images.dtype not in (np.uint8, torch.uint8) or images.ndim != 4 or 0 in images.shape:
            raise ValueError(
                f"images must be a uint8 array (batch, height, width, channels), not {images.dtype} {images.shape}."
            )
        return images, np.tile(images.shape[1:3], (len(images), 1)), images.shape[3]
    images = [np.asarray(image) for image in images]
    channels = images[0].shape[-1] if images[0].ndim else 0
    for image, index in zip(images, indices, strict=True):
        if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
            raise ValueError(
                f"sample {index} must be a uint8 image (height, width, channels), not {image.dtype} {image.shape}."
            )
        if image.shape[2] != channels:
            raise ValueError(
                f"sample {index} has {image.shape[2]} channels, and sample {indices[0]} has {channels}: convert "
                "all images to one kind."
            )
    return images, np.array([image.shape[:2] for image in images]), channels
