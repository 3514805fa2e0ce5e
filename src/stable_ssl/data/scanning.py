"""Finds the images below a folder, and looks at the header and the end of each file without decoding it."""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import stat
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..augmentations.images import is_grey, orientation_of
from ..exceptions import DataError
from ..runtime.files import printable, state_of
from .faults import is_of_machine, is_out_of_memory
from .images import has_deep_colours, open_image, pixel_limit
from .scan_cache import COLUMNS, Scan, one_at_a_time, read_scan, write_scan
from .threads import Threads

log = logging.getLogger("stable_ssl")

ENDINGS = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp"))
NUM_THREADS = 16  # more than cores, because a network's file system answers late
FILES_PER_JOB = 64
BUFFER = 65_536  # bytes that are read at once: most headers are shorter
TAIL = 4096  # bytes: some cameras and programs write more after the end of a JPEG
SECONDS = 5.0  # between two lines on progress
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width
END_OF_JPEG, END_OF_PNG = b"\xff\xd9", b"\0\0\0\0IEND\xaeB`\x82"


@dataclass
class Listing:
    """What is below a folder.

    Attributes
    ----------
    files
        Paths of the images relative to the folder, in the order of their bytes, which no locale changes.
    others
        How many files have which other ending.
    unreadable
        Why a folder can't be listed, by its relative path.
    num_repeated
        How many links lead to folders that were listed already.
    """

    files: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    num_repeated: int = 0


def list_images(root: Path) -> Listing:
    """Find the files below a folder whose endings are those of images; hidden files and folders are left out.

    Links are followed. Each folder is listed once, by its own path rather than by a link's, so that a circle of links
    ends.
    """
    listing, progress = Listing(), _Progress(root, "{} images were found so far.")
    known: set[tuple[int, int]] = set()
    folders, links = [""], list[bytes]()  # links come last, in the order of their bytes
    while folders or links:
        folder = folders.pop() if folders else os.fsdecode(heapq.heappop(links))
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in known:
                listing.num_repeated += 1
                continue
            known.add((status.st_dev, status.st_ino))
            _list_folder(root, folder, listing, folders, links)
        except OSError as error:
            if is_of_machine(error):
                raise _machine_failed(root, error) from error
            listing.unreadable[folder] = _why(error)
        progress(len(listing.files))
    listing.files.sort(key=os.fsencode)
    return listing


def _list_folder(root: Path, folder: str, listing: Listing, folders: list[str], links: list[bytes]) -> None:
    """Add to a listing what a folder holds, and to `folders` and `links` the folders in it."""
    below = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            ending = os.path.splitext(entry.name)[1].lower()
            if _is_folder(entry):
                if entry.is_symlink():
                    heapq.heappush(links, os.fsencode(path))
                else:
                    below.append(path)
            elif ending in ENDINGS:
                listing.files.append(path)
            elif entry.name.lower() not in ("thumbs.db", "desktop.ini"):
                listing.others[ending or "no ending"] += 1
    folders += sorted(below, key=os.fsencode, reverse=True)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, for example
        return False


def scan(root: Path, files: list[str], all_files: list[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Look at the header and the end of each file in threads, unless an earlier scan saw the file as it is now.

    Parameters
    ----------
    root, files
        The folder, and the paths of the files relative to it.
    all_files
        All images in the folder, of which what is known is kept too.

    Returns
    -------
    A row of `COLUMNS` per file; and why a file can't be read, by its number.

    Raises
    ------
    DataError
        The machine, a disk or the network failed, so that the files may be good.
    """
    table, reasons = np.zeros(len(files), COLUMNS), dict[int, str]()
    sizes, mtimes = table["size"], table["mtime"]

    def find(row: int) -> None:
        status = os.stat(f"{root}/{files[row]}")
        if not stat.S_ISREG(status.st_mode):
            raise DataError("it is not a regular file")
        sizes[row], mtimes[row] = state_of(status)

    def look_at(row: int) -> None:
        table[row] = (sizes[row], mtimes[row], *_header(f"{root}/{files[row]}"))

    def unknown(saved: Scan) -> np.ndarray:
        """Take what is known of the files as they are now; return the rows of the others."""
        known = saved.of(files)
        is_known = (known["height"] > 0) & (known["size"] == sizes) & (known["mtime"] == mtimes)
        # A script may have raised Pillow's limit when they were looked at.
        is_known &= known["height"].astype(np.int64) * known["width"] <= pixel_limit()
        table[is_known] = known[is_known]
        is_known[list(reasons)] = True
        return np.flatnonzero(~is_known)

    _in_threads(root, find, np.arange(len(files)), reasons, "{} of {} images were found again.")
    if not (num_unknown := len(unknown(read_scan(root)))):
        return table, dict(sorted(reasons.items()))
    with contextlib.ExitStack() as lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged files: they do not say which
        has_waited = lock.enter_context(one_at_a_time(root))
        saved = read_scan(root)  # another process may have looked at the files in the meantime
        rows = unknown(saved)
        if has_waited and len(rows) == num_unknown:
            lock.close()  # the other process could keep nothing, and neither will the next one
        try:
            _in_threads(root, look_at, rows, reasons, "{} of {} images were looked at.")
        finally:  # what was seen before an interruption is not looked at again
            saved.replace(files, table, all_files)
            write_scan(root, saved)
    return table, dict(sorted(reasons.items()))


def _in_threads(root: Path, act: Callable[[int], None], rows: np.ndarray, reasons: dict[int, str], line: str) -> None:
    """Call a function with each number of a file; say in `reasons` why it fails, unless the machine does."""
    progress = _Progress(root, line)

    def several(start: int) -> None:
        for row in rows[start : start + FILES_PER_JOB].tolist():
            try:
                act(row)
            except Exception as error:
                if is_of_machine(error) or is_out_of_memory(error):
                    raise
                reasons[row] = _why(error)

    threads = Threads(NUM_THREADS, "scan")
    starts = range(0, len(rows), FILES_PER_JOB)
    try:
        for start, _ in zip(starts, threads.map(several, starts, ahead=2 * NUM_THREADS), strict=True):
            progress(min(start + FILES_PER_JOB, len(rows)), len(rows))
    except Exception as error:
        if not is_of_machine(error):
            raise
        raise _machine_failed(root, error) from error
    finally:
        threads.close(wait=False)


def _machine_failed(root: Path, error: Exception) -> DataError:
    return DataError(
        f"The images in '{printable(root)}' can't be looked at: {_why(error)}. The machine, its disks or its network "
        "failed, so the files may be good. Mend that, and start again."
    )


def _header(path: str) -> tuple[int, int, bool, bool]:
    """Return the height and width of an image as displayed, whether it is grey, and whether it has more than 8 bits."""
    with open(path, "rb", buffering=BUFFER) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise DataError("it is empty")
        image = open_image(file)
        is_deep, has_no_colours = has_deep_colours(image), is_grey(image)
        if is_deep and image.format != "PNG":
            raise DataError("it has colours of 16 bits, which are read from PNG files only: convert it to PNG")
        width, height = image.size
        if orientation_of(image) in SIDEWAYS:
            width, height = height, width
        is_deep = is_deep or (has_no_colours and image.mode != "L")
        if not _has_end(image, file, size):
            file.seek(0)
            open_image(file).load()  # only that tells whether it is damaged
    return height, width, has_no_colours, is_deep


def _has_end(image: Any, file: BinaryIO, size: int) -> bool:
    """Return whether a file surely ends where its format says. False: it may be cut, or be of another format."""
    if image.format in ("JPEG", "MPO"):
        after_header = file.tell()
        file.seek(max(size - TAIL, after_header))
        if END_OF_JPEG not in file.read(TAIL):
            file.seek(after_header)
            if END_OF_JPEG not in file.read():  # what is missing would become grey
                raise DataError("its end is missing")
        return True
    if image.format == "PNG":
        file.seek(max(size - len(END_OF_PNG), 0))
        return file.read(len(END_OF_PNG)) == END_OF_PNG
    if image.format in ("WEBP", "BMP"):
        file.seek(0)
        start = file.read(8)
        said = start[4:8] if image.format == "WEBP" else start[2:6]
        return 8 < int.from_bytes(said, "little") <= size - (8 if image.format == "WEBP" else 0)
    if image.format == "TIFF":
        tags = image.tag_v2
        starts, lengths = (273, 279) if 273 in tags else (324, 325)  # of strips, or of tiles
        ends = np.add(tags.get(starts, ()), tags.get(lengths, ()))
        return ends.size > 0 and bool((ends <= size).all())
    return False


def _why(error: Exception) -> str:
    """Return the reason of an error without the path, which the caller names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__


class _Progress:
    """Writes a line into the log every few seconds."""

    def __init__(self, root: Path, line: str):
        self.root, self.line, self.last = root, line, time.monotonic()

    def __call__(self, *counts: int) -> None:
        if time.monotonic() > self.last + SECONDS:
            self.last = time.monotonic()
            log.info("'%s': %s", printable(self.root), self.line.format(*(f"{count:,}" for count in counts)))
