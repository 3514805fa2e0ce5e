"""`Images`: a folder of images as people have them, with or without labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..exceptions import ConfigError, DataError
from .checks import is_function, require
from .datasets import FUNCTION_OF_IMAGE, listed, to_float_tensor
from .images import ImageDecoder, check_options
from .labels import read_labels
from .scanning import Listing, list_images, printable, scan
from .unreadable import described

log = logging.getLogger("stable_ssl")


class Images(Dataset):
    """All images in a folder and in the folders below it: JPEG, PNG, TIFF, WebP and BMP files.

    Parameters
    ----------
    root
        The folder.
    labels
        "none": every label is -1. "folder": the folder in `root` that holds an image is its class, and classes are
        numbered in the order of their names. Else the path of a CSV file with the columns `path`, relative to `root`,
        and `label`.
    levels
        The levels (low, high) that become 0 and 255, for images of more than 8 bits or of floats.
    channels
        3: every image becomes RGB. 1: every image becomes grey. None: 1 if all images are grey, else 3.
    on_error
        What happens to files that can't be read. "raise": an error names them all. "skip": they are left out.
    in_memory
        Whether a `Loader` with declared views holds the images in memory. "auto": if they take less than a quarter of
        the free memory. True: always; if they don't fit, that is an error. False: never.
    transform
        Applied to the PIL image. Without it, the image is a float tensor in [0, 1], (channels, height, width).
    """

    def __init__(
        self,
        root: str | Path,
        labels: str | Path | None = "none",
        *,
        levels: Sequence[float] | None = None,
        channels: int | None = None,
        on_error: str = "raise",
        in_memory: str | bool = "auto",
        transform: Callable | None = None,
    ):
        is_labels = labels is None or isinstance(labels, str | Path)
        require(
            ("root", root, isinstance(root, str | Path), "a folder"),
            ("labels", labels, is_labels, "'none', 'folder' or the path of a CSV file"),
            *check_options(levels, channels),
            ("on_error", on_error, on_error in ("raise", "skip"), "'raise' or 'skip'"),
            ("in_memory", in_memory, in_memory == "auto" or isinstance(in_memory, bool), "'auto', true or false"),
            ("transform", transform, is_function(transform), FUNCTION_OF_IMAGE),
        )
        self.root = Path(root).expanduser()
        self.in_memory = in_memory
        self.transform = to_float_tensor if transform is None else transform
        listing = _list(self.root)
        self.files, self.targets, self.classes = _with_labels(self.root, listing, labels)
        table, unreadable = scan(self.root, self.files)
        table = self._leave_out(
            table, {**listing.unreadable, **{self.files[i]: why for i, why in unreadable.items()}}, on_error
        )
        self.sizes = np.stack([table["height"], table["width"]], axis=1)
        if levels is None and table["is_deep"].any():
            first = self.files[int(table["is_deep"].argmax())]
            raise ConfigError(
                f"levels: '{printable(first)}' and {table['is_deep'].sum() - 1} other files in "
                f"'{printable(self.root)}' have more than 8 bits, or floats. Say which levels become 0 and 255: "
                "levels: [low, high]."
            )
        self.decoder = ImageDecoder(levels, channels or (1 if table["is_grey"].all() else 3))

    def _leave_out(self, table: np.ndarray, unreadable: dict[str, str], on_error: str) -> np.ndarray:
        """Leave out the files that can't be read, or raise an error that names them; return the rows of the others."""
        if not unreadable:
            return table
        looked_at = len(self.files)
        lines = {
            i: f"'{printable(file)}' can't be read: {unreadable[file]}" for i, file in enumerate(sorted(unreadable))
        }
        is_good = np.array([file not in unreadable for file in self.files], bool)
        text, what = described(lines, looked_at), f"of {looked_at} images in '{printable(self.root)}'"
        if on_error == "raise":
            raise DataError(
                f"{text}\n{len(lines)} {what} can't be read. Remove or replace them, or set on_error: skip in Images, "
                "which leaves them out."
            )
        if not is_good.any():
            raise DataError(f"{text}\nNone {what} can be read.")
        log.warning("%d %s are left out:\n%s", len(lines), what, text)
        kept = np.flatnonzero(is_good).tolist()
        self.files, self.targets = [self.files[i] for i in kept], [self.targets[i] for i in kept]
        return table[is_good]

    @property
    def constant(self) -> bool:
        """Whether an image is the same each time it is read: a transform of the user's may do anything."""
        return self.transform in (to_float_tensor, np.asarray)

    def path_of(self, index: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, self.files[index])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.decoder(self.path_of(index))), self.targets[index]


def _list(root: Path) -> Listing:
    if not root.is_dir():
        what = "is a file; it must be the folder of the images" if root.exists() else "does not exist"
        raise ConfigError(f"root: '{printable(root)}' {what}.")
    listing = list_images(root)
    if "." in listing.unreadable:
        raise ConfigError(f"root: '{printable(root)}' can't be listed: {listing.unreadable['.']}.")
    others = listed(listing.others)
    if not listing.files and not listing.unreadable:
        raise ConfigError(f"root: '{printable(root)}' has no images.{others}")
    if others:
        log.info("'%s':%s", printable(root), others)
    if listing.num_repeated:
        log.info("'%s': %d links lead to folders that are taken already.", printable(root), listing.num_repeated)
    return listing


def _with_labels(root: Path, listing: Listing, labels: str | Path | None) -> tuple[list[str], list[int], list[str]]:
    """Return the files, their labels, and the classes."""
    files = listing.files
    if labels in (None, "none"):
        return files, [-1] * len(files), []
    if labels != "folder":
        return read_labels(Path(labels).expanduser(), root, files)
    loose = [file for file in files if "/" not in file]
    if loose:
        raise ConfigError(
            f"labels: '{printable(loose[0])}' and {len(loose) - 1} other images are in '{printable(root)}' itself, so "
            "they have no class. Move them into the folder of a class, or set labels to none."
        )
    classes = sorted({file.partition("/")[0] for file in files}, key=os.fsencode)
    number = {name: index for index, name in enumerate(classes)}
    return files, [number[file.partition("/")[0]] for file in files], classes
