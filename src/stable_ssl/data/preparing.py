"""Writes a folder's images into one file that is read fast; `stable-ssl prepare` is its command line."""

from __future__ import annotations

import fcntl
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ..exceptions import ConfigError, DataError
from ..runtime.files import printable, state_of, sync_folder
from ..runtime.launchers import threads_of_process
from .encoded import EncodedImages
from .folder import Images
from .images import spread
from .prepared_file import HEADER, INDEX, RECORD, SOURCES, Plan, PreparedFile, header, read, read_plan, records
from .threads import Threads

MARGIN = 1.15  # of the estimated size of JPEGs
NOT_COMPARED = ("source", "version")  # may differ between a file and the line that goes on with it

# Says how much is done: what is being done, how many images are done, and how many there are.
Report = Callable[[str, int, int], None]


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
    """

    def __init__(self, images: Images, form: Format):
        from .. import __version__

        self._images, self.form = images, form
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
            raise DataError(f"{self._images.name_of(number)} can't be prepared: {str(error).rstrip('.')}.") from error

    def _content(self, number: int) -> bytes:
        """Return what the file of an image holds, which is what it held when this object was made."""
        with open(self._images.path_of(number), "rb") as file:
            if state_of(os.fstat(file.fileno())) != tuple(self.plan.sources[number].tolist()[:2]):
                raise DataError("it has changed since this command began. Give the same line again")
            return file.read()

    def num_bytes(self) -> int:
        """Return how many bytes the file will have: exactly, but for JPEGs, of which a few are tried."""
        beginning = HEADER.size + len(self.plan.to_bytes()) + len(self) * (RECORD.size + INDEX.itemsize)
        total = self.form.num_bytes(self._images.sizes, self.channels)
        if self.form.name == "jpeg":
            tried = spread(len(self))
            share = sum(len(self.encoded(number)[2]) for number in tried) / self.form.num_bytes(
                self._images.sizes[tried], self.channels
            )
            total = int(total * share * (MARGIN if len(tried) < len(self) else 1))
        return beginning + total


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return an image, uint8 (height, width, channels), in another size; a smaller one is antialiased."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, -1)


def prepare(source: FolderToPrepare, out: Path, report: Report) -> bool:
    """Write a file, or go on with it.

    Until it is complete, it is called `out`.part. Whatever ends the process, the next call goes on after the last whole
    image. All is read back once before the file gets its name.

    Parameters
    ----------
    source
        The images.
    out
        The file.
    report
        Is told what is done.

    Returns
    -------
    Whether there was something to do: False if the file is complete.

    Raises
    ------
    ConfigError
        There is a file of other images or settings, another process writes it, there is not enough space, or no file
        can be made there.
    DataError
        An image can't be read, or the file can't be written, or it has not kept what was written.
    """
    part = out.with_name(f"{out.name}.part")
    if out.exists():
        try:
            found = PreparedFile(out)
        except OSError as error:
            raise DataError(f"'{printable(out)}' can't be read: {error.strerror or error}.") from error
        _check_alike(found.plan, source.plan, out)
        return False
    try:
        with _opened(out, part) as file:
            _lock(file, part)
            try:
                _Writer(file.fileno(), source, part, report).write()
            finally:
                if not os.fstat(file.fileno()).st_size:
                    part.unlink()
            written = PreparedFile(part)
            if hasattr(os, "posix_fadvise"):  # else the images would be read back from memory, not from the disk
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            check_all(written, report)
            os.replace(part, out)
            # To close any descriptor of the file ends the lock, so `written` must live until here.
            del written
        sync_folder(out.parent)
    except OSError as error:
        raise DataError(
            f"'{printable(part)}' can't be written: {error.strerror or error}. What is written stays, and the same "
            "line goes on with it."
        ) from error
    return True


def _opened(out: Path, part: Path) -> IO[bytes]:
    """Open the file that is written, or raise a ConfigError that says why it can't be made."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    except OSError as error:
        where = printable(str(error.filename))
        raise ConfigError(
            f"'{printable(out)}' can't be made: {error.strerror}: '{where}'. Choose another place by --out FILE."
        ) from error


def _lock(file: IO[bytes], part: Path) -> None:
    """Let no other process write the file until this one closes it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise ConfigError(
            f"'{printable(part)}' is being written by another process. Wait for it, or choose another --out."
        ) from error
    if not part.exists() or not os.path.samestat(os.stat(part), os.fstat(file.fileno())):
        raise ConfigError(f"'{printable(part)}' was finished by another process just now. Give the same line again.")


class _Writer:
    """Writes the images that a file lacks, and then its index."""

    def __init__(self, descriptor: int, source: FolderToPrepare, part: Path, report: Report):
        self._descriptor, self._source, self._part, self._report = descriptor, source, part, report
        self._index = np.zeros(len(source), INDEX)

    def write(self) -> None:
        plan, first, end = self._find_end()
        self._check_space(end)
        os.ftruncate(self._descriptor, end)
        if not end:
            plan = self._source.plan.to_bytes()
            end = self._append(0, header(plan) + plan)
        end = self._write_images(first, end)
        index = self._index.tobytes()
        self._append(end, index)
        self._append(0, header(plan, index, end))
        os.fsync(self._descriptor)

    def _find_end(self) -> tuple[bytes, int, int]:
        """Return the file's plan, how many whole images it has, and where the last one ends (0: it has no plan)."""
        plan = self._source.plan.to_bytes()
        beginning, length = header(plan) + plan, os.fstat(self._descriptor).st_size
        found = read(self._descriptor, 0, min(length, len(beginning)))
        if len(found) < len(beginning) and beginning.startswith(found):
            return b"", 0, 0
        head, known = read_plan(self._descriptor, self._part)
        _check_alike(known, self._source.plan, self._part)
        end, number = HEADER.size + head.length_of_plan, 0
        for row in records(self._descriptor, end, len(self._source), length):
            self._index[number] = row
            number, end = number + 1, row[0] + row[1]
            self._report("Checking", number, len(self._source))
        return read(self._descriptor, HEADER.size, head.length_of_plan), number, end

    def _check_space(self, end: int) -> None:
        needed, free = self._source.num_bytes() - end, shutil.disk_usage(self._part.parent).free
        if needed > free:
            raise ConfigError(
                f"'{printable(self._part)}' needs about {needed / 1e9:.2f} GB more, and its disk has {free / 1e9:.2f} "
                "GB left. Make room, or choose another --out, a smaller --size, or --format jpeg."
            )

    def _write_images(self, first: int, end: int) -> int:
        """Write the images from a number on, and return where the last one ends."""
        count, total = threads_of_process(1), len(self._source)
        threads = Threads(count, "prepare")
        try:
            made = threads.map(self._source.encoded, range(first, total), ahead=2 * count)
            for number, (height, width, content) in enumerate(made, first):
                crc = zlib.crc32(content)
                place = self._append(end, RECORD.pack(number, height, width, crc, len(content)))
                end = self._append(place, content)
                self._index[number] = place, len(content), height, width, crc
                self._report("Preparing", number + 1, total)
        finally:
            threads.close()
        return end

    def _append(self, place: int, content: bytes) -> int:
        """Write bytes at a place, and return where they end."""
        left = memoryview(content)
        while left:
            left = left[os.pwrite(self._descriptor, left, place + len(content) - len(left)) :]
        return place + len(content)


def check_all(file: PreparedFile, report: Report) -> None:
    """Read all images of a file, and raise a DataError if one is not as it was written."""
    for number in range(len(file)):
        file.read(number)
        report("Reading back", number + 1, len(file))


def _check_alike(known: Plan, wanted: Plan, path: Path) -> None:
    """Raise a ConfigError if a file is made of other images, or by other settings."""
    differences = [*_settings_that_differ(known, wanted), *_files_that_differ(known, wanted)]
    if differences:
        raise ConfigError(
            f"'{printable(path)}' is there already, but it is not of these images and settings: "
            f"{'; '.join(differences)}. Remove it to prepare the images anew, or choose another --out."
        )


def _settings_that_differ(known: Plan, wanted: Plan) -> Iterator[str]:
    for key, value in wanted.settings.items():
        if key not in NOT_COMPARED and known.settings.get(key) != value:
            yield (
                "classes have other names" if key == "classes" else f"{key} was {known.settings.get(key)}, now {value}"
            )


def _files_that_differ(known: Plan, wanted: Plan) -> Iterator[str]:
    old, new = (dict(zip(plan.names, plan.sources.tolist(), strict=True)) for plan in (known, wanted))
    both = old.keys() & new.keys()
    for what, names in (
        ("added", new.keys() - both),
        ("removed", old.keys() - both),
        ("changed", {name for name in both if old[name][:2] != new[name][:2]}),
        ("given another label", {name for name in both if old[name][2] != new[name][2]}),
    ):
        if names:
            yield f"{len(names)} files were {what}, such as '{printable(min(names))}'"
