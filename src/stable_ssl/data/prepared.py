"""`Prepared`: the images of a file that `stable-ssl prepare` wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..exceptions import ConfigError
from ..runtime.files import printable
from .checks import is_function, require
from .datasets import FUNCTION_OF_IMAGE, to_float_tensor
from .held_out import held_out
from .images import ImageDecoder
from .prepared_file import PreparedFile


class Prepared(Dataset):
    """The images of a file that `stable-ssl prepare FOLDER` wrote.

    It is another data set than the folder if images were made smaller or encoded anew, since views are then made of
    other pixels. A checkpoint says so if a run is moved from one to the other.

    Parameters
    ----------
    root
        The file.
    split, in_memory, transform
        As for `Images`.

    Attributes
    ----------
    names : list of str
        Paths of the source files, relative to their folder.
    targets, classes, sizes
        As those of `Images`.
    channels : int
        1 (grey) or 3 (RGB).

    Raises
    ------
    ConfigError
        An argument is wrong, or there is no such file.
    DataError
        The file is damaged, not complete, of a newer version, or was not written by `stable-ssl prepare`.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        in_memory: str | bool = "auto",
        transform: Callable | None = None,
    ):
        is_wish = in_memory == "auto" or isinstance(in_memory, bool)
        require(
            ("root", root, isinstance(root, str | Path), "a file that `stable-ssl prepare` wrote"),
            ("split", split, split in (None, "train", "test"), "'train', 'test' or none"),
            ("in_memory", in_memory, is_wish, "'auto', true or false"),
            ("transform", transform, is_function(transform), FUNCTION_OF_IMAGE),
        )
        self.root = Path(root).expanduser().absolute()
        self.in_memory, self.transform = in_memory, to_float_tensor if transform is None else transform
        try:
            self.file = PreparedFile(self.root)
        except OSError as error:
            raise ConfigError(f"root: '{printable(root)}' can't be read: {error.strerror}.") from error
        plan = self.file.plan
        labels = plan.sources["label"]
        numbers = np.flatnonzero(self.file.index["height"])  # those that could not be decoded have none
        if split is not None:
            is_held_out = held_out([plan.names[number] for number in numbers], labels[numbers].tolist())
            numbers = numbers[np.flatnonzero(is_held_out == (split == "test"))]
        self._numbers = numbers
        self.names, self.targets = [plan.names[number] for number in numbers], labels[numbers].tolist()
        self.classes, self.channels = plan.settings["classes"], plan.settings["channels"]
        self.sizes = np.stack([self.file.index[side][numbers] for side in ("height", "width")], axis=1).astype(int)
        self._images = self.encoded(np.arange(len(numbers)), self.channels)

    @property
    def num_bytes(self) -> int:
        """How much memory all images take."""
        return int(self.sizes.prod(axis=1).sum() * self.channels)

    def encoded(self, indices: np.ndarray, channels: int) -> PreparedImages:
        """Return some of the images, to be decoded in threads."""
        targets = [self.targets[index] for index in indices]
        return PreparedImages(self.file, self._numbers[indices], targets, channels)

    def path_of(self, index: int) -> str:
        """Return what errors call an image."""
        return printable(f"{self.names[index]} in {self.root}")

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = self._images.read(index)
        image = Image.fromarray(pixels[:, :, 0] if self.channels == 1 else pixels)
        return self.transform(image), self.targets[index]


class PreparedImages:
    """Some images of a prepared file; see `EncodedImages`, of which it has the methods.

    Parameters
    ----------
    file
        The file.
    numbers
        Of the images, in the file.
    targets
        The label of each image.
    channels
        1 or 3: how many the pixels have.
    """

    def __init__(self, file: PreparedFile, numbers: np.ndarray, targets: list[int], channels: int):
        self.file, self._numbers, self._targets, self.channels = file, numbers, targets, channels
        self._decode = {"raw": _raw, "yuv": _yuv, "jpeg": _jpeg}[file.plan.settings["format"]]

    def rest(self, index: int) -> list[int]:
        """Return the parts of a sample that are not its image."""
        return [self._targets[index]]

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image."""
        row = self.file.index[self._numbers[index]]
        return int(row["height"]), int(row["width"])

    def decode(self, index: int, out: np.ndarray) -> None:
        """Write the pixels of an image to `out`: uint8 (height, width, channels)."""
        self._decode(self.file, int(self._numbers[index]), out)

    def read(self, index: int) -> np.ndarray:
        """Return the pixels of an image: uint8 (height, width, channels)."""
        pixels = np.empty((*self.size(index), self.channels), np.uint8)
        self.decode(index, pixels)
        return pixels


def _raw(file: PreparedFile, number: int, out: np.ndarray) -> None:
    file.read(number, out)


def _yuv(file: PreparedFile, number: int, out: np.ndarray) -> None:
    height, width, channels = out.shape
    if channels == 1:  # brightness only
        file.read(number, out)
        return
    from ..augmentations.kernels.planes import rgb_of_planes

    content = file.read(number)
    rows, columns = -(-height // 2), -(-width // 2)
    luma, colours = content[: height * width], content[height * width :].reshape(2, rows, columns)
    rgb_of_planes(luma.reshape(height, width), colours[0], colours[1], out.reshape(height, -1))


def _jpeg(file: PreparedFile, number: int, out: np.ndarray) -> None:
    from simplejpeg import decode_jpeg

    encoded = file.read(number)
    try:
        decode_jpeg(encoded, "RGB" if out.shape[2] == 3 else "GRAY", buffer=out)
    except ValueError:  # such as a warning of libjpeg-turbo, which Pillow passes over
        name = printable(f"'{file.plan.names[number]}' in '{file.path}'")
        out[:] = np.asarray(ImageDecoder(channels=out.shape[2])(encoded.tobytes(), name)).reshape(out.shape)
