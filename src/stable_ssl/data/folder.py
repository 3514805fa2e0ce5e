"""`Images`: a folder of images as people have them, with or without labels."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..exceptions import ConfigError, DataError
from ..runtime.files import printable
from .checks import is_function, require
from .datasets import FUNCTION_OF_IMAGE, EncodedDataset, listed, to_float_tensor
from .held_out import held_out
from .images import check_options
from .labels import by_folder, read_labels
from .scanning import list_images, scan
from .unreadable import described

log = logging.getLogger("stable_ssl")


class Images(EncodedDataset):
    """All images in a folder and in the folders below it: JPEG, PNG, TIFF, WebP and BMP files.

    The first start reads the header and the end of each file, which finds files that were cut short. What it found is
    kept in `$XDG_CACHE_HOME/stable_ssl` or `~/.cache/stable_ssl`; later starts look again only at files whose size or
    time of change is another one. Processes that start together look at each file once.

    Hidden files and folders are left out, and so are `__MACOSX` folders. Links are followed, but each folder is taken
    once.

    Parameters
    ----------
    root
        The folder.
    labels
        "none": every label is -1. "folder": the folder in `root` that an image is in, or is below, is its class;
        classes are numbered in the order of their names. Else the path of a CSV file with the columns `path`, relative
        to `root`, and `label`: names, which are numbered in their order, or whole numbers from 0. If there is no such
        file here, the path is taken as relative to `root`. An image whose label is empty has the label -1. Images
        without a row are left out.
    split
        "test": a fifth of each class, which follows from the images' paths (`held_out`). "train": the others, and the
        images without a label if some have one. None: all images.
    levels
        The levels (low, high) that become 0 and 255, for images of more than 8 bits or of floats.
    channels
        3: every image becomes RGB. 1: every image becomes grey. None: 1 if all images are grey, else 3.
    on_error
        What happens to files that can't be read. "raise": an error names them all. "skip": they are left out, and the
        log names them. A file that fails later ends the run in both cases.
    in_memory
        Whether a `Loader` that makes declared views holds the images in memory. "auto": if they take less than a
        quarter of the memory that is free. True: if they don't fit, that is an error. False: never.
    transform
        Applied to the PIL image. Without it, the image is a float tensor in [0, 1], (channels, height, width).

    Attributes
    ----------
    files : list of str
        Paths relative to `root`, in the order of their bytes: it is the same on every machine.
    targets : list of int
        The labels, -1 without labels.
    classes : list of str
        The names of the classes, empty without labels.
    sizes : numpy.ndarray
        Height and width of each image in pixels, as it is displayed, (images, 2).
    decoder : ImageDecoder
        Decodes a file.

    Raises
    ------
    ConfigError
        An argument is wrong, the folder has no images, or an image needs `levels`.
    DataError
        Files can't be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from stable_ssl.data import Images
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         Path(folder, name).mkdir()
    ...         Image.new("RGB", (40, 30)).save(f"{folder}/{name}/1.jpg")
    ...     images = Images(folder, labels="folder")
    ...     image, label = images[1]
    >>> images.files, images.classes, image.shape, label
    (['cat/1.jpg', 'dog/1.jpg'], ['cat', 'dog'], torch.Size([3, 30, 40]), 1)
    """

    def __init__(
        self,
        root: str | Path,
        labels: str | Path | None = "none",
        *,
        split: str | None = None,
        levels: Sequence[float] | None = None,
        channels: int | None = None,
        on_error: str = "raise",
        in_memory: str | bool = "auto",
        transform: Callable | None = None,
    ):
        is_labels = labels is None or isinstance(labels, str | Path)
        is_wish = in_memory == "auto" or isinstance(in_memory, bool)
        require(
            ("root", root, isinstance(root, str | Path), "a folder"),
            ("labels", labels, is_labels, "'none', 'folder' or the path of a CSV file"),
            ("split", split, split in (None, "train", "test"), "'train', 'test' or none"),
            *check_options(levels, channels),
            ("on_error", on_error, on_error in ("raise", "skip"), "'raise' or 'skip'"),
            ("in_memory", in_memory, is_wish, "'auto', true or false"),
            ("transform", transform, is_function(transform), FUNCTION_OF_IMAGE),
            (
                "in_memory",
                in_memory,
                in_memory is not True or transform is None,
                "'auto' or false with a transform, which may give other images each time",
            ),
        )
        self.root = Path(root).expanduser()
        self.in_memory = in_memory
        self.transform = to_float_tensor if transform is None else transform
        files, not_listed = _files(self.root)
        self.files, self.targets, self.classes = _with_labels(self.root, files, labels)
        table, unreadable = scan(self.root, self.files, files)
        reasons = not_listed | {self.files[row]: why for row, why in unreadable.items()}
        if reasons:
            table = self._leave_out(reasons, table, on_error)
        self.sizes = np.stack([table["height"], table["width"]], axis=1)
        is_deep = table["is_deep"]
        if levels is None and is_deep.any():
            raise ConfigError(
                f"levels: '{printable(self.files[int(is_deep.argmax())])}' has more than 8 bits per channel, or "
                f"floats, as {is_deep.sum()} of {len(is_deep)} images in '{printable(self.root)}'. Say which levels "
                "become 0 and 255 by levels: [low, high] of Images: levels=[LOW,HIGH] on the command line, and "
                "--levels LOW HIGH of `stable-ssl prepare`."
            )
        self.levels, self.channels = levels, channels or (1 if table["is_grey"].all() else 3)
        if split is not None:
            kept = np.flatnonzero(held_out(self.files, self.targets) == (split == "test")).tolist()
            self.files, self.targets = [self.files[row] for row in kept], [self.targets[row] for row in kept]
            self.sizes = self.sizes[kept]

    def _leave_out(self, reasons: dict[str, str], table: np.ndarray, on_error: str) -> np.ndarray:
        """Raise an error that names the files that can't be read, or leave them out; return the rows of the others."""
        lines = {row: f"'{printable(file)}' can't be read: {reasons[file]}" for row, file in enumerate(sorted(reasons))}
        num_images = len(set(self.files).union(reasons))  # a folder that can't be listed counts as one
        text = described(lines, num_images)
        said = f"{len(lines)} of {num_images} images in '{printable(self.root)}'"
        if on_error == "raise":
            raise DataError(
                f"{text}\n{said} can't be read. Remove or replace them, or leave them out by on_error: skip of Images: "
                "on_error=skip on the command line, and --on-error skip of `stable-ssl prepare`. A run that began with "
                "them goes on if they are replaced, or without them by `stable-ssl branch RUN`."
            )
        kept = [row for row, file in enumerate(self.files) if file not in reasons]
        if not kept:
            raise DataError(f"{text}\n{said} can't be read, so there is nothing to load.")
        log.warning("%s can't be read, and are left out:\n%s", said, text)
        self.files, self.targets = [self.files[row] for row in kept], [self.targets[row] for row in kept]
        return table[kept]

    @property
    def num_bytes(self) -> int:
        """How much memory all images take."""
        return int(self.sizes.prod(axis=1, dtype=np.int64).sum()) * (self.channels or 1)

    @property
    def fingerprint(self) -> str:
        """A digest of the paths, labels and sizes of all images, which a run that goes on compares."""
        digest = hashlib.sha256(b"\0".join(map(os.fsencode, self.files)))
        for numbers in (self.targets, self.sizes):
            digest.update(np.ascontiguousarray(numbers, np.int64).tobytes())
        return digest.hexdigest()[:16]

    def path_of(self, index: int) -> str:
        """Return the path of an image's file."""
        return os.path.join(self.root, self.files[index])

    def source(self, index: int) -> str:
        """Return the file of an image, as `decoder` takes it."""
        return self.path_of(index)

    def name_of(self, index: int) -> str:
        """Return what errors call an image."""
        return f"'{printable(self.path_of(index))}'"


def _files(root: Path) -> tuple[list[str], dict[str, str]]:
    """Return the images below a folder, and why folders in it can't be listed."""
    name = printable(root)
    if not os.path.isdir(root):  # which, unlike `Path.is_dir`, raises no error if it may not look
        is_file = os.path.exists(root)
        what = (
            "is a file; it must be the folder of the images" if is_file else "does not exist, or may not be looked at"
        )
        raise ConfigError(f"root: '{name}' {what}.")
    found = list_images(root)
    others = listed(found.others)
    if "" in found.unreadable:
        raise ConfigError(f"root: '{name}' can't be listed: {found.unreadable['']}.")
    if not found.files and not found.unreadable:
        raise ConfigError(f"root: '{name}' has no images of the kinds JPEG, PNG, TIFF, WebP and BMP.{others}")
    if others:
        log.info("'%s':%s", name, others)
    if found.num_repeated:
        log.info("'%s': %d links lead to folders that are taken already, and are left out.", name, found.num_repeated)
    return found.files, found.unreadable


def _with_labels(root: Path, files: list[str], labels: str | Path | None) -> tuple[list[str], list[int], list[str]]:
    """Return the files that have a label, the labels, and the names of the classes."""
    if labels in (None, "none"):
        return files, [-1] * len(files), []
    return by_folder(root, files) if labels == "folder" else read_labels(Path(labels), root, files)  # type: ignore[arg-type]
