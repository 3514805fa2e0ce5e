"""Data sets of (image, label): the transform gets a PIL image."""

from __future__ import annotations

import bisect
import functools
import glob
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms.v2.functional import pil_to_tensor

from ..exceptions import ConfigError
from .checks import is_count, is_function, require
from .images import ImageDecoder, check_options, find_channels

log = logging.getLogger("stable_ssl")

FUNCTION_OF_IMAGE = "a function of an image, or none"


def to_float_tensor(image: Image.Image) -> Any:
    """Return a PIL image as a float tensor in [0, 1], (channels, height, width)."""
    return pil_to_tensor(image).float().div_(255)


class EncodedDataset(Dataset):
    """Images as encoded files, with labels: what `Images`, `Parquet` and `WebDataset` share.

    `source` returns the file of an image, as `decoder` takes it, and `name_of` what errors call it.
    """

    source: Callable[[int], Any]
    name_of: Callable[[int], str]
    transform: Callable[[Image.Image], Any]
    targets: list[int]
    levels: Sequence[float] | None
    channels: int | None

    @functools.cached_property
    def decoder(self) -> ImageDecoder:
        """Decodes the images."""
        return ImageDecoder(self.levels, self.channels or find_channels(self.source, len(self)))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.decoder(self.source(index), self.name_of(index))), self.targets[index]


class Digits(Dataset):
    """Scikit-learn's handwritten digits: 1,797 real grey images of 8 × 8 pixels, embedded in scikit-learn.

    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.

    Parameters
    ----------
    split
        "train" (1,442 images) or "test" (355 images): a fixed split, stratified by digit.
    size
        Height and width in pixels; images are scaled bilinearly.
    transform
        Applied to the PIL image (mode "L"). Without it, the image is a float tensor in [0, 1], (1, size, size).

    Raises
    ------
    ConfigError
        An argument is wrong.

    Examples
    --------
    >>> from stable_ssl.data import Digits
    >>> digits = Digits("test", size=8)
    >>> image, label = digits[0]
    >>> len(digits), image.shape, label
    (355, torch.Size([1, 8, 8]), 5)
    """

    classes = [str(digit) for digit in range(10)]

    def __init__(self, split: str = "train", size: int = 16, transform: Callable | None = None):
        require(
            ("split", split, split in ("train", "test"), "'train' or 'test'"),
            ("size", size, is_count(size, 1), "a number of pixels, at least 1"),
            ("transform", transform, is_function(transform), FUNCTION_OF_IMAGE),
        )
        from sklearn.datasets import load_digits

        images, targets = load_digits(return_X_y=True)
        # Every fifth image of each digit is held out.
        place = np.zeros(len(targets), dtype=int)
        for digit in range(10):
            place[targets == digit] = np.arange((targets == digit).sum())
        chosen = (place % 5 == 4) == (split == "test")
        pixels = np.rint(images[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        self.images = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in pixels]
        self.targets = targets[chosen].tolist()
        self.transform = to_float_tensor if transform is None else transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index]), self.targets[index]


class ImageFolder(datasets.ImageFolder):
    """Images in one folder per class, as torchvision's `ImageFolder`; or all images of a folder, without labels.

    Parameters
    ----------
    root
        The folder of the classes' folders.
    labels
        Whether the folders in `root` are classes. Without, all images in `root` and in the folders below it are taken,
        and every label is -1.
    transform
        Applied to the PIL image (mode "L" or "RGB"). Without it, the image is a float tensor in [0, 1], (channels,
        height, width).
    levels
        The levels (low, high) that become 0 and 255, for images of more than 8 bits or of floats.
    channels
        3: every image becomes RGB. 1: every image becomes grey. None: grey images stay grey if all are; else they
        become RGB.
    **kwargs
        As for torchvision's. Without `is_valid_file`, files with the endings in torchvision's `IMG_EXTENSIONS` are
        taken, and the log names the other endings.

    Raises
    ------
    ConfigError
        An argument is wrong, or the folder has no such folders with images.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable | None = None,
        *,
        labels: bool = True,
        levels: Sequence[float] | None = None,
        channels: int | None = 3,
        **kwargs: Any,
    ):
        require(
            ("root", root, isinstance(root, str | Path), "a folder"),
            ("labels", labels, isinstance(labels, bool), "true or false"),
            ("transform", transform, is_function(transform), FUNCTION_OF_IMAGE),
            *check_options(levels, channels),
            ("levels", levels, levels is None or "loader" not in kwargs, "none, since loader decodes the images"),
        )
        kwargs.setdefault("loader", ImageDecoder(levels, channels))
        left_out: Counter[str] = Counter()
        if kwargs.get("is_valid_file") is None:
            kwargs["is_valid_file"] = functools.partial(_is_image, left_out)
        self.has_labels = labels
        try:
            super().__init__(str(root), to_float_tensor if transform is None else transform, **kwargs)
        except FileNotFoundError as error:
            advice = " For all images below it, without labels, set labels to false." if labels else ""
            raise ConfigError(
                f"root: '{root}' is no folder of classes with images: {str(error).strip()}{listed(left_out)}{advice}"
            ) from error
        if left_out:
            is_known = left_out.keys() & Image.registered_extensions().keys()
            log.log(
                logging.WARNING if is_known else logging.INFO,
                "'%s':%s To take such files, give is_valid_file, a function of a path.",
                root,
                listed(left_out),
            )
        if channels is None and isinstance(self.loader, ImageDecoder):
            self.loader.channels = find_channels(lambda index: self.samples[index][0], len(self))

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Return the classes, and the label of each; without labels, the folder itself with the label -1."""
        return super().find_classes(directory) if self.has_labels else ([], {"": -1})


def _is_image(left_out: Counter[str], path: str) -> bool:
    """Return whether a file has the ending of an image. Count the endings of the others, hidden files aside."""
    file = Path(path)
    is_image = file.suffix.lower() in datasets.folder.IMG_EXTENSIONS
    if not is_image and not file.name.startswith("."):
        left_out[file.suffix.lower() or "no ending"] += 1
    return is_image


def listed(left_out: Counter[str]) -> str:
    """Return the sentence that names the endings of files that are left out; nothing if there are none."""
    if not left_out:
        return ""
    counts = ", ".join(f"{count} × {ending}" for ending, count in left_out.most_common(5))
    return f" Files whose endings are not those of images are left out: {counts}."


class Parquet(EncodedDataset):
    """Images and labels from Parquet files: encoded bytes, or the {bytes, path} that Hugging Face writes.

    The bytes stay encoded in memory, shared with forked workers, and are decoded when a sample is read.

    Parameters
    ----------
    path
        A file, a folder of `*.parquet`, a pattern such as "train-*.parquet", or a list of these.
    image, label
        Names of the columns. None for `label`: every label is -1.
    transform, levels, channels
        As for `ImageFolder`.

    Raises
    ------
    ConfigError
        An argument is wrong, there is no such file or column, or pyarrow is not installed.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        image: str = "image",
        label: str | None = "label",
        transform: Callable | None = None,
        levels: Sequence[float] | None = None,
        channels: int | None = None,
    ):
        paths = [path] if isinstance(path, str | Path) else path
        is_list = isinstance(paths, Sequence) and len(paths) > 0 and all(isinstance(p, str | Path) for p in paths)
        require(
            ("path", path, is_list, "a file, a folder, a pattern, or a list of these"),
            ("image", image, isinstance(image, str), "the name of a column"),
            ("label", label, label is None or isinstance(label, str), "the name of a column, or none"),
            ("transform", transform, is_function(transform), FUNCTION_OF_IMAGE),
            *check_options(levels, channels),
        )
        self.levels, self.channels = levels, channels
        self.files = [file for item in paths for file in _parquet_files(item)]
        self.image, self.label = image, label
        self.transform = to_float_tensor if transform is None else transform
        self._open()

    def _open(self) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ConfigError("Parquet needs `pip install 'stable-ssl[parquet]'`.") from error
        names = pyarrow.parquet.read_schema(self.files[0]).names
        wanted = [self.image] if self.label is None else [self.image, self.label]
        missing = [name for name in wanted if name not in names]
        if missing:
            advice = " Without labels, set label to none." if self.image in names else ""
            raise ConfigError(f"path: '{self.files[0]}' has no column {missing}; it has {names}.{advice}")
        tables = [pyarrow.parquet.read_table(file, columns=wanted, memory_map=True) for file in self.files]
        self._ends = list(itertools.accumulate(map(len, tables)))  # of each file, as numbers of images
        table = pyarrow.concat_tables(tables).combine_chunks()
        self._images = table[self.image]
        self.targets = [-1] * len(table) if self.label is None else table[self.label].to_pylist()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the images' bytes: a spawned worker opens the files itself."""
        return {key: value for key, value in vars(self).items() if key not in ("_images", "targets")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def source(self, index: int) -> Any:
        """Return the file of an image, as `decoder` takes it."""
        return self._images[index].as_py()

    def name_of(self, index: int) -> str:
        """Return what errors call an image."""
        return f"image {index} of '{self.files[bisect.bisect_right(self._ends, index % len(self))]}'"


def _parquet_files(path: str | Path) -> list[str]:
    """Return the files that a path or pattern stands for, sorted."""
    folder = Path(path).expanduser()
    found = sorted(map(str, folder.glob("*.parquet"))) if folder.is_dir() else sorted(glob.glob(str(folder)))
    if not found:
        raise ConfigError(f"path: no Parquet file at '{path}'.")
    return found
