"""What `stable-ssl prepare` makes of each image of a folder: the bytes that it gets in the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..exceptions import DataError
from ..runtime.files import printable, state_of
from .encoded import EncodedImages
from .faults import is_of_machine, is_out_of_memory
from .folder import Images
from .images import spread
from .prepared_file import HEADER, INDEX, RECORD, SOURCES, Plan

MARGIN = 1.15  # of the estimated size of JPEGs


class DamagedImageError(DataError):
    """An image can't be decoded, because of what its file holds."""


class _ChangedError(DataError):
    """A file is not what it was when the command began."""


@dataclass(frozen=True)
class Format:
    """How the images of a file are stored.

    Attributes
    ----------
    name
        "jpeg", "yuv" (planes of brightness and, at half the height and width, of colour) or "raw" (pixels).
    size
        The shorter side of images that are larger, in pixels. 0: all keep their size.
    quality
        Of JPEGs that are encoded, from 1 to 100.
    subsampling
        Of JPEGs that are encoded: "420", "422" or "444".
    """

    name: str = "jpeg"
    size: int = 256
    quality: int = 90
    subsampling: str = "420"

    def settings(self) -> dict[str, Any]:
        """Return what an image's bytes depend on."""
        of_jpeg = {"quality": self.quality, "subsampling": self.subsampling} if self.name == "jpeg" else {}
        return {"format": self.name, "size": self.size, **of_jpeg}

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and the width that an image will have."""
        shorter = min(height, width)
        if not self.size or shorter <= self.size:
            return height, width
        return round(height * self.size / shorter), round(width * self.size / shorter)

    def encode(self, pixels: np.ndarray) -> bytes:
        """Return the bytes of an image, uint8 (height, width, channels)."""
        is_grey = pixels.shape[2] == 1
        if self.name == "jpeg":
            from simplejpeg import encode_jpeg

            colours, subsampling = ("GRAY", "Gray") if is_grey else ("RGB", self.subsampling)
            return bytes(encode_jpeg(np.ascontiguousarray(pixels), self.quality, colours, subsampling))
        if self.name == "raw" or is_grey:
            return pixels.tobytes()
        luma, blue, red = Image.fromarray(pixels).convert("YCbCr").split()
        return b"".join(plane.tobytes() for plane in (luma, blue.reduce(2), red.reduce(2)))

    def num_bytes(self, sizes: np.ndarray, channels: int) -> int:
        """Return how many bytes images of these sizes, (images, 2), take as pixels or planes."""
        shapes = np.array([self.shape(*size) for size in sizes.tolist()], np.int64)
        if self.name == "yuv" and channels == 3:
            return int(shapes.prod(1).sum() + 2 * (-(-shapes // 2)).prod(1).sum())
        return int(shapes.prod(1).sum()) * channels


class FolderToPrepare:
    """The images of a folder, each with the bytes that it gets in the file.

    Parameters
    ----------
    images
        The folder.
    form
        How they are stored.
    skips
        Whether images that can't be decoded are left out. Else they are errors.
    """

    def __init__(self, images: Images, form: Format, skips: bool = False):
        from .. import __version__

        self._images, self.form, self.skips = images, form, skips
        self.channels = images.channels or 3
        settings = {
            **form.settings(),
            "channels": self.channels,
            "levels": images.levels and list(images.levels),
            "classes": images.classes,
            "source": os.path.realpath(images.root),
            "version": __version__,
        }
        try:
            rows = [(*state_of(os.stat(images.path_of(i))), label) for i, label in enumerate(images.targets)]
        except OSError as error:
            raise DataError(f"'{printable(error.filename)}' can't be read any more: {error.strerror}.") from error
        self.plan = Plan(settings, images.files, np.array(rows, SOURCES))
        parts = self._content, images.name_of, images.targets.__getitem__, images.decoder
        self._pixels = EncodedImages(*parts, np.arange(len(images)), self.channels, images.sizes)

    def __len__(self) -> int:
        return len(self._images)

    def encoded(self, number: int) -> tuple[int, int, bytes]:
        """Return the height and the width of an image, and its bytes in the file.

        Raises
        ------
        DamagedImageError
            It can't be decoded.
        DataError
            It can't be read, or is not the file that it was when this object was made.
        """
        try:
            pixels = self._pixels.read(number)
            height, width = self.form.shape(*pixels.shape[:2])
            if (height, width) != pixels.shape[:2]:
                pixels = _resized(pixels, height, width)
            elif self.form.name == "jpeg" and self._pixels.is_upright_jpeg(number):
                return height, width, self._content(number)
            return height, width, self.form.encode(pixels)
        except MemoryError:
            raise
        except Exception as error:
            is_other = is_of_machine(error) or is_out_of_memory(error) or isinstance(error, _ChangedError)
            # Errors of the file system have a number; Pillow raises errors of the same class without one.
            kind = DataError if is_other or getattr(error, "errno", None) else DamagedImageError
            raise kind(f"{self._images.name_of(number)} can't be prepared: {str(error).rstrip('.')}.") from error

    def _content(self, number: int) -> bytes:
        """Return what the file of an image holds, which is what it held when this object was made."""
        with open(self._images.path_of(number), "rb") as file:
            if state_of(os.fstat(file.fileno())) != tuple(self.plan.sources[number].tolist()[:2]):
                raise _ChangedError("it has changed since this command began. Give the same line again")
            return file.read()

    def num_bytes(self) -> int:
        """Return how many bytes the file will have: exactly, but for JPEGs, of which a few are tried."""
        beginning = HEADER.size + len(self.plan.to_bytes()) + len(self) * (RECORD.size + INDEX.itemsize)
        total = self.form.num_bytes(self._images.sizes, self.channels)
        if self.form.name == "jpeg":
            lengths = {number: self._length(number) for number in spread(len(self))}
            tried = [number for number, length in lengths.items() if length]
            if tried:
                share = sum(lengths.values()) / self.form.num_bytes(self._images.sizes[tried], self.channels)
                total = int(total * share * (MARGIN if len(tried) < len(self) else 1))
        return beginning + total

    def _length(self, number: int) -> int:
        """Return how many bytes an image gets; 0 if it is left out."""
        try:
            return len(self.encoded(number)[2])
        except DamagedImageError:
            if not self.skips:
                raise
            return 0


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return an image, uint8 (height, width, channels), in another size; a smaller one is antialiased."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, -1)
