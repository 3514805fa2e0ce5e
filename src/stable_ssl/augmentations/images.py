"""Images as users give them: PIL images, tensors and arrays, alone and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

ORIENTATION = 0x0112  # the number of the orientation in EXIF
HOLDERS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where PIL keeps the orientation


def as_array(image: Any) -> np.ndarray:
    """Return one image as (height, width, channels).

    A tensor is taken as (channels, height, width), and a PIL image as `as_plain` returns it.
    """
    if isinstance(image, Tensor):
        return image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
    array = np.asarray(as_plain(image) if hasattr(image, "getexif") else image)
    return array[:, :, None] if array.ndim == 2 else array


def as_plain(image: Any) -> Any:
    """Return a PIL image upright, as its EXIF orientation says. If it is not grey, it is RGB.

    Transparency is left out: pixels have the colours that are stored. Grey images of more than 8 bits stay as they are.
    """
    image.load()
    image = _upright(image)
    if image.mode == "RGB" or is_grey(image):
        return image
    if "transparency" in image.info:
        image = image.convert("RGBA")  # else PIL warns of some palettes
    return image.convert("RGB")


def is_grey(image: Any) -> bool:
    """Say whether a PIL image has grey levels, of 8 bits or more, and nothing else."""
    return image.mode == "L" or image.mode[0] in "IF"


def orientation_of(image: Any) -> int:
    """Return the EXIF orientation of a PIL image, from 1 (upright) to 8."""
    if image.format == "TIFF" or HOLDERS.isdisjoint(image.info):  # Pillow turns a TIFF itself, and gives that size
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # a damaged EXIF says nothing, and the pixels may be good
        return 1
    return orientation if orientation in range(1, 9) else 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image (height, width, channels) of an EXIF orientation upright."""
    if orientation >= 5:  # rows and columns change places
        pixels = pixels.swapaxes(0, 1)
    steps = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
    down, right = steps.get(orientation, (1, 1))
    return pixels[::down, ::right]


def _upright(image: Any) -> Any:
    from PIL.Image import Transpose as To

    orientation = orientation_of(image)
    if orientation == 1:
        return image
    turns = {2: To.FLIP_LEFT_RIGHT, 3: To.ROTATE_180, 4: To.FLIP_TOP_BOTTOM, 5: To.TRANSPOSE, 6: To.ROTATE_270}
    turns |= {7: To.TRANSVERSE, 8: To.ROTATE_90}
    # PIL's exif_transpose would write the EXIF anew, which fails for some files.
    image = image.transpose(turns[orientation])
    image.info = {name: value for name, value in image.info.items() if name not in HOLDERS}
    return image


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
