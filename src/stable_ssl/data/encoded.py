"""Data sets whose images are files that this package decodes itself, so that no code of the user's sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import VisionDataset
from torchvision.datasets.folder import default_loader
from torchvision.datasets.vision import StandardTransform

from ..augmentations.images import orientation_of, turn
from ..runtime.files import printable
from .datasets import Digits, EncodedDataset
from .images import ImageDecoder, content_of, open_content, open_image
from .prepared import Prepared, PreparedImages
from .views import to_array

_SWAPS_SIDES = (5, 6, 7, 8)  # orientations
_UNKNOWN, _PILLOW, _TURBO = 0, 1, 2  # who decodes an image


class OtherSizeError(Exception):
    """An image has another size than its file's header said."""


class EncodedImages:
    """The images of a data set as files or bytes, and the rest of each sample.

    libjpeg-turbo decodes what is a JPEG of grey levels or YCbCr. Its pixels are those that Pillow gives, since Pillow
    uses libjpeg-turbo too. Pillow decodes everything else.

    Parameters
    ----------
    source
        Returns the file of an image, as an `ImageDecoder` takes it.
    name
        Returns what errors call an image that has no path.
    rest
        Returns the parts of a sample that are not its image.
    decoder
        Decodes what libjpeg-turbo does not.
    indices
        The number of each sample in `source`, `name` and `rest`.
    channels
        1 or 3: how many the pixels have. A grey image becomes RGB.
    sizes
        Height and width of each image as displayed, (images, 2), by the numbers in `source`. None: they are read.
    """

    def __init__(
        self,
        source: Callable[[int], Any],
        name: Callable[[int], str],
        rest: Callable[[int], Any],
        decoder: ImageDecoder,
        indices: np.ndarray,
        channels: int,
        sizes: np.ndarray | None = None,
    ):
        self._source, self._name, self.rest_of, self._decoder = source, name, rest, decoder
        self._indices, self.channels = indices, channels
        # Height and width as displayed, the EXIF orientation, and who decodes the image; all are found once.
        self._headers = np.zeros((len(indices), 4), np.int32)
        if sizes is not None:
            self._headers[:, :2] = sizes[indices]

    def rest(self, index: int) -> Any:
        """Return the parts of a sample that are not its image."""
        return self.rest_of(self._indices[index])

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image as displayed. Its file's header is read once."""
        if not self._headers[index, 0]:
            self._look_at(index, *self._content(index))
        height, width = self._headers[index, :2].tolist()
        return height, width

    def _look_at(self, index: int, content: Any, name: str) -> None:
        """Read the header of an image."""
        with open_content(content, name) as file:
            image = open_image(file, name)
            orientation = orientation_of(image)
            width, height = image.size[::-1] if orientation in _SWAPS_SIDES else image.size
            self._headers[index] = height, width, orientation, self._who_decodes(image)

    def _who_decodes(self, image: Image.Image) -> int:
        is_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
        # Pillow computes grey levels of RGB by another formula.
        is_kept = image.mode == "L" or (self.channels == 3 and self._decoder.channels != 1)
        limit = Image.MAX_IMAGE_PIXELS
        is_safe = limit is None or image.width * image.height <= limit  # else Pillow warns of it, or refuses it
        return _TURBO if is_jpeg and is_kept and is_safe else _PILLOW

    def is_upright_jpeg(self, index: int) -> bool:
        """Say whether libjpeg-turbo decoded an image to its pixels, with nothing else to do."""
        return bool(self._headers[index, 2] == 1 and self._headers[index, 3] == _TURBO)

    def decode(self, index: int, out: np.ndarray) -> None:
        """Write the pixels of an image, upright, to `out`: uint8 (height, width, channels).

        Raises
        ------
        OtherSizeError
            The image has another size. `size` tells the right one from now on.
        """
        content, name = self._content(index)
        # Pillow reads a file itself, and only what it needs of it.
        encoded = _read(content, name) if self._headers[index, 3] != _PILLOW else b""
        if self._headers[index, 3] == _UNKNOWN:
            self._look_at(index, encoded, name)
            if tuple(self._headers[index, :2]) != out.shape[:2]:
                raise OtherSizeError
        orientation, who = self._headers[index, 2:].tolist()
        if who == _TURBO and _decode_jpeg(encoded, orientation, out):
            return
        pixels = to_array(self._decoder(content, name), index, self.channels)
        if pixels.shape != out.shape:
            self._headers[index] = *pixels.shape[:2], 1, _PILLOW
            raise OtherSizeError
        out[:] = pixels

    def read(self, index: int) -> np.ndarray:
        """Return the pixels of an image, upright: uint8 (height, width, channels)."""
        while True:
            pixels = np.empty((*self.size(index), self.channels), np.uint8)
            with contextlib.suppress(OtherSizeError):
                self.decode(index, pixels)
                return pixels

    def _content(self, index: int) -> tuple[Any, str]:
        """Return the bytes or the path of a file, and its name."""
        number = int(self._indices[index])
        content, path = content_of(self._source(number))
        return content, f"'{printable(path)}'" if path else self._name(number)


def _read(content: Any, name: str) -> bytes:
    with open_content(content, name) as file:
        return file.read()


def _decode_jpeg(encoded: bytes, orientation: int, out: np.ndarray) -> bool:
    """Write the pixels of a JPEG to `out`. Return False if Pillow must decide what they are."""
    from simplejpeg import decode_jpeg

    is_upright = orientation == 1
    height, width, channels = out.shape
    raw = (width, height) if orientation in _SWAPS_SIDES else (height, width)
    pixels = out if is_upright else np.empty((*raw, channels), np.uint8)
    try:
        # It decodes into the memory of an array only if that has the right size.
        decoded = decode_jpeg(encoded, "RGB" if channels == 3 else "GRAY", buffer=pixels)
    except ValueError:  # the file is damaged, or is no longer what its header said
        return False
    if decoded.shape != pixels.shape:
        return False
    if not is_upright:
        out[:] = turn(decoded, orientation)
    return True


def as_encoded(dataset: Any, channels: int) -> EncodedImages | PreparedImages | None:
    """Return the files of a data set's images, if it is known how it decodes them and that it does nothing else.

    Parameters
    ----------
    dataset
        As a `Loader` with declared views reads it.
    channels
        How many channels the pixels shall have.
    """
    indices = np.arange(len(dataset))
    while type(dataset) is Subset:
        dataset, indices = dataset.dataset, np.asarray(dataset.indices)[indices]
    if not is_plain(dataset):
        return None
    if isinstance(dataset, Prepared):
        return dataset.encoded(indices, channels)
    if isinstance(dataset, EncodedDataset):
        sources = dataset.source, dataset.name_of, lambda index: [dataset.targets[index]]
        return EncodedImages(*sources, dataset.decoder, indices, channels, getattr(dataset, "sizes", None))
    samples, decoder = getattr(dataset, "samples", None), getattr(dataset, "loader", None)
    if isinstance(samples, list) and isinstance(decoder, ImageDecoder):
        paths, labels = zip(*samples, strict=True)
        return EncodedImages(
            paths.__getitem__, paths.__getitem__, lambda index: [labels[index]], decoder, indices, channels
        )
    return None


def is_plain(dataset: Any) -> bool:
    """Say whether a data set is of this package or torchvision's, and gives images as they are, without a transform."""
    if not isinstance(dataset, Digits | EncodedDataset | Prepared | VisionDataset):
        return False
    if not type(dataset).__module__.startswith(("torchvision.datasets.", "stable_ssl.data.")):
        return False
    loader = getattr(dataset, "loader", default_loader)
    if loader is not default_loader and not isinstance(loader, ImageDecoder):
        return False
    if type(getattr(dataset, "transforms", None)) not in (type(None), StandardTransform):  # of image and label together
        return False
    return dataset.transform in (None, np.asarray) and getattr(dataset, "target_transform", None) is None
