"""How every data set of this package decodes an image. docs/images.md has a table of what each kind of file becomes."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..augmentations.images import as_plain, is_grey
from ..exceptions import DataError
from ..runtime.files import printable

NUM_LOOKED_AT = 32  # images that tell whether a data set has colours


class FileError(DataError):
    """A file can't be decoded. The error that this one was raised from says why, without the file's name."""


class ImageDecoder:
    """Decodes the file of an image to an upright PIL image of 8 bits, in mode "L" (grey) or "RGB".

    Parameters
    ----------
    levels
        The levels (low, high) that become 0 and 255 in images of more than 8 bits, or of floats. Levels beyond them
        become 0 and 255 too. Images of 8 bits are not changed. None: an image of more than 8 bits is an error.
    channels
        1: every image becomes grey. 3: every image becomes RGB. None: grey images stay grey, all others become RGB.
    """

    def __init__(self, levels: Sequence[float] | None = None, channels: int | None = None):
        self.levels, self.channels = levels, channels

    def __call__(self, source: Any, name: str = "") -> Image.Image:
        """Return the image.

        Parameters
        ----------
        source
            The file: a path, bytes, or {"bytes", "path"} as Hugging Face writes it.
        name
            What errors call it if it has no path.

        Raises
        ------
        DataError
            The file is damaged, or the image has more than 8 bits, or floats, and they can't be scaled. The error names
            the file.
        """
        content, path = content_of(source)
        name = f"'{printable(path)}'" if path else name
        try:
            return self._decoded(content, name)
        except Exception as error:
            if not name or isinstance(error, DataError | MemoryError) or getattr(error, "filename", None):
                raise
            raise FileError(f"{name} can't be read: {type(error).__name__}: {error}") from error

    def _decoded(self, content: bytes | str | Path | None, name: str) -> Image.Image:
        with open_content(content, name) as file:
            image = open_image(file, name)
            highest = _highest_level(image)
            if has_deep_colours(image):
                deep = image
                image = self._scaled(_deep_colours(deep, file, name), name)
                image.info = deep.info  # it holds the orientation
            image = as_plain(image)
        if image.mode not in ("L", "RGB"):
            pixels = np.asarray(image)
            if highest > 255:  # PIL has stretched the levels to 65535
                pixels = np.rint(pixels * (highest / 65535)).astype(pixels.dtype)
            image = self._scaled(pixels, name)
        mode = image.mode if self.channels is None else {1: "L", 3: "RGB"}[self.channels]
        return image if image.mode == mode else image.convert(mode)

    def _scaled(self, pixels: np.ndarray, name: str) -> Image.Image:
        """Return pixels of more than 8 bits as an image of 8 bits."""
        low, high = pixels.min(), pixels.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(f"{name} has values that are not finite.")
        if self.levels is None:
            raise DataError(
                f"{name} has {pixels.dtype} levels, from {low:.6g} to {high:.6g}, instead of levels from 0 to 255. "
                "Say which of them become 0 and 255: levels=(low, high) is an option of every data set "
                "of images in stable_ssl.data."
            )
        low, high = self.levels
        scaled = (pixels.astype(np.float64) - low) * (255 / (high - low))
        return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))


def check_options(levels: Any, channels: Any) -> tuple[tuple[str, Any, bool, str], ...]:
    """Return the checks of the options of an `ImageDecoder`, for `require`."""
    is_pair = isinstance(levels, Sequence) and len(levels) == 2 and all(isinstance(x, int | float) for x in levels)
    is_right = levels is None or (is_pair and levels[0] < levels[1])
    return (
        ("levels", levels, is_right, "two numbers (low, high), the smaller one first, or none"),
        ("channels", channels, channels in (None, 1, 3), "1, 3 or none"),
    )


def find_channels(source: Callable[[int], Any], num_images: int) -> int | None:
    """Return 3 if a data set has images that are not grey, else None. The headers of some images decide.

    Parameters
    ----------
    source
        Returns the file of an image, as an `ImageDecoder` takes it.
    num_images
        How many images there are.
    """
    for index in spread(num_images):
        with contextlib.suppress(Exception):  # if the file is damaged, the error comes when the image is read
            content, path = content_of(source(index))
            with open_content(content, path or "") as file:
                if not is_grey(Image.open(file)):
                    return 3
    return None


def spread(num_samples: int) -> list[int]:
    """Return the indices of at most `NUM_LOOKED_AT` samples, the first one and others at equal distances."""
    count = min(num_samples, NUM_LOOKED_AT)
    return [number * num_samples // count for number in range(count)]


def content_of(source: Any) -> tuple[bytes | str | Path | None, str | None]:
    """Return the bytes of a file, or its path if there are none; and its path if it is known."""
    if isinstance(source, dict):
        return source["bytes"] or source.get("path"), source.get("path")
    return source, None if isinstance(source, bytes) else source


def open_content(content: bytes | str | Path | None, name: str) -> BinaryIO:
    """Open the bytes or the path of a file, or raise a DataError that says that it is missing."""
    if content is None:
        raise DataError(f"{name} is missing.")
    return io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb")


def open_image(file: BinaryIO, name: str = "") -> Image.Image:
    """Read the header of an image, or raise a DataError that says what is wrong with `name`, the file."""
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:  # which names an object of Python's
        raise DataError(f"{name or 'it'} is no image, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name or 'it'} has {_size_in_words(file)}, and Pillow's limit is {pixel_limit():,} pixels. Make it "
            "smaller or cut it into pieces, or raise PIL.Image.MAX_IMAGE_PIXELS in a script"
        ) from error


def pixel_limit() -> float:
    """Return how many pixels Pillow opens at most; a script may change that."""
    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def _size_in_words(file: BinaryIO) -> str:
    """Return the size of an image that Pillow refuses to open, because of its size."""
    for read, is_it in Image.OPEN.values():
        with contextlib.suppress(Exception):
            file.seek(0)
            if is_it is None or is_it(file.read(16)):
                file.seek(0)
                width, height = read(file, "").size
                return f"{width:,} × {height:,} = {width * height:,} pixels"
    return "too many pixels"


def has_deep_colours(image: Any) -> bool:
    """Say whether an image that was not loaded yet has colours of 16 bits. PIL would keep the upper 8 in silence."""
    is_deep = any(";16" in str(tile[3]) for tile in image.tile) or _highest_level(image) > 255
    return image.format in ("PNG", "TIFF", "PPM") and not is_grey(image) and is_deep


def _highest_level(image: Any) -> int:
    """Return the level that the header of a PPM or PGM file calls the highest; 255 for other files."""
    found = [tile[3][-1] for tile in image.tile if image.format == "PPM" and isinstance(tile[3], tuple)]
    return int(found[0]) if found and isinstance(found[0], int) else 255


def _deep_colours(image: Image.Image, file: BinaryIO, name: str) -> np.ndarray:
    """Return colours of 16 bits, (height, width, 3)."""
    if image.format != "PNG":
        raise DataError(f"{name} has colours of 16 bits, which are read from PNG files only: convert it to PNG.")
    from torchvision.io import ImageReadMode, decode_image

    file.seek(0)
    pixels = decode_image(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8), ImageReadMode.UNCHANGED).numpy()
    colours = pixels[:3] if len(pixels) >= 3 else pixels[[0, 0, 0]]  # without alpha; grey with alpha has 2 channels
    return np.moveaxis(colours, 0, -1)
