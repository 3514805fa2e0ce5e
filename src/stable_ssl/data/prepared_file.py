"""The file of prepared images: one image after another, the list of their sources before them, an index after them.

All numbers are little-endian. The file begins with `HEADER`. The plan follows: a line of JSON with the settings, the
names of the source files, each with a zero byte after it, and a row of `SOURCES` per image. Each image is a `RECORD`
and its bytes. An image that can't be decoded has the height and the width 0, and the reason as its bytes. At the end,
there is a row of `INDEX` per image. While the file is written, the header says that there is no index.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..exceptions import DataError
from ..runtime.files import printable

MAGIC, VERSION = b"\x89stable-ssl\r\n\x1a\n\0", 1
# Magic, version, CRC-32 of the plan, its length, CRC-32 of the index, its place (0: there is none yet).
HEADER = struct.Struct("<16sIIQIQ")
RECORD = struct.Struct("<IIIIQ")  # number, height, width, CRC-32 of the bytes, their length
SOURCES = np.dtype([("size", "<i8"), ("mtime", "<i8"), ("label", "<i8")])  # of a file: bytes, ns since 1970, label
INDEX = np.dtype([("place", "<u8"), ("length", "<u8"), ("height", "<u4"), ("width", "<u4"), ("crc", "<u4")])
MOST_BYTES = 1 << 30  # that one call reads; Linux reads at most twice as many


@dataclass(frozen=True)
class Plan:
    """What a file is made of, known before it is written.

    Attributes
    ----------
    settings
        `format`, `size`, `channels`, `classes` and others, as JSON has them.
    names
        The paths of the source files, relative to their folder.
    sources
        A row of `SOURCES` per image.
    """

    settings: dict[str, Any]
    names: list[str]
    sources: np.ndarray

    def to_bytes(self) -> bytes:
        """Return the plan as it stands in a file."""
        names = b"".join(os.fsencode(name) + b"\0" for name in self.names)
        settings = {**self.settings, "images": len(self.names), "bytes_of_names": len(names)}
        return json.dumps(settings).encode() + b"\n" + names + self.sources.tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> Plan:
        """Return the plan that stands in a file."""
        line, _, rest = content.partition(b"\n")
        settings = json.loads(line)
        num_images, length = settings.pop("images"), settings.pop("bytes_of_names")
        names = rest[:length].decode(sys.getfilesystemencoding(), "surrogateescape").split("\0")[:-1]
        return cls(settings, names, np.frombuffer(rest[length:], SOURCES, num_images))


def header(plan: bytes, index: bytes = b"", place: int = 0) -> bytes:
    """Return the header of a file with a plan and an index, which begins at `place`."""
    return HEADER.pack(MAGIC, VERSION, zlib.crc32(plan), len(plan), zlib.crc32(index), place)


def records(descriptor: int, start: int, num_images: int, length: int) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of `INDEX` of the whole images in a file, up to the first one that is torn or damaged.

    Parameters
    ----------
    descriptor
        Of the open file.
    start
        Where the first record begins.
    num_images
        How many there are in a complete file.
    length
        Of the file, in bytes.
    """
    place = start
    for number in range(num_images):
        head = read(descriptor, place, RECORD.size)
        if len(head) < RECORD.size:
            return
        said, height, width, crc, num_bytes = RECORD.unpack(head)
        place += RECORD.size
        if (
            said != number
            or not 0 < num_bytes <= length - place
            or zlib.crc32(read(descriptor, place, num_bytes)) != crc
        ):
            return
        yield place, num_bytes, height, width, crc
        place += num_bytes


def read(descriptor: int, place: int, length: int) -> bytes:
    """Return the bytes at a place of an open file; fewer if it ends before."""
    content = bytearray(length)
    return bytes(content[: read_into(descriptor, place, memoryview(content))])


def read_into(descriptor: int, place: int, out: memoryview) -> int:
    """Read the bytes at a place of an open file into memory, and return how many there were."""
    done = 0
    while done < len(out):
        count = os.preadv(descriptor, [out[done : done + MOST_BYTES]], place + done)
        if not count:
            break
        done += count
    return done


class Header(NamedTuple):
    """The beginning of a file, as `HEADER` has it."""

    magic: bytes
    version: int
    crc_of_plan: int
    length_of_plan: int
    crc_of_index: int
    place_of_index: int


def read_plan(descriptor: int, path: Path) -> tuple[Header, Plan]:
    """Return the header and the plan of an open file, which need not be complete.

    Raises
    ------
    DataError
        It is no file of prepared images, of a newer version, or damaged.
    """
    content = read(descriptor, 0, HEADER.size)
    if content[: len(MAGIC)] != MAGIC:
        raise DataError(f"'{printable(path)}' is no file of prepared images: `stable-ssl prepare FOLDER` makes one.")
    if len(content) < HEADER.size:
        raise damaged(path, "it ends within its first bytes")
    found = Header(*HEADER.unpack(content))
    if found.version > VERSION:
        raise DataError(
            f"'{printable(path)}' was made by a newer version of stable-ssl: its format is {found.version}, and this "
            f"version reads {VERSION}. Update stable-ssl, or prepare the images again."
        )
    is_inside = found.length_of_plan <= os.fstat(descriptor).st_size - HEADER.size
    plan = bytes(read(descriptor, HEADER.size, found.length_of_plan)) if is_inside else b""
    if not plan or zlib.crc32(plan) != found.crc_of_plan:
        raise damaged(path, "its list of images does not have the checksum that was written")
    return found, Plan.from_bytes(plan)


def damaged(path: Path, why: str) -> DataError:
    """Return the error for a file that is damaged."""
    return DataError(
        f"'{printable(path)}' is damaged: {why}. Remove it, and prepare the images again: `stable-ssl prepare FOLDER`."
    )


class PreparedFile:
    """A complete file, open for reading by any number of threads.

    It is read by `pread`, and not mapped into memory: pixels then go straight to where they are used. If a disk fails,
    or the file is cut while it is used, that is an error; with a map, the process would be killed.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    DataError
        It is no file of prepared images, of a newer version, not complete, or damaged.
    OSError
        It can't be opened or read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found, self.plan = read_plan(self._descriptor, path)
        place, length = found.place_of_index, os.fstat(self._descriptor).st_size
        if not place:
            raise DataError(f"'{printable(path)}' is not complete. The line that began it goes on with it.")
        expected = place + len(self.plan.names) * INDEX.itemsize
        if length != expected:
            raise damaged(path, f"it has {length:,} bytes instead of {expected:,}")
        index = read(self._descriptor, place, length - place)
        if zlib.crc32(index) != found.crc_of_index:
            raise damaged(path, "its index does not have the checksum that was written")
        self.index, self._crc = np.frombuffer(index, INDEX), found.crc_of_index
        self._is_checked = np.zeros(len(self.index), bool)

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "crc": self._crc}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]
        if self._crc != state["crc"]:
            raise DataError(f"'{printable(self.path)}' has been replaced by another one since it was opened.")

    def __del__(self) -> None:
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)

    def read(self, number: int, out: np.ndarray | None = None) -> Any:
        """Return the bytes of an image.

        Parameters
        ----------
        number
            Of the image.
        out
            An array of as many bytes, which they are written to.

        Raises
        ------
        DataError
            They are not those that were written. Each process checks an image once, since it takes time.
        """
        place, length, _, _, crc = self.index[number].tolist()
        content: Any = np.empty(length, np.uint8) if out is None else out
        num_read = read_into(self._descriptor, place, memoryview(content).cast("B"))
        if not self._is_checked[number]:
            if num_read != length or zlib.crc32(content) != crc:
                name = printable(self.plan.names[number])
                raise damaged(self.path, f"the bytes of '{name}' are not those that were written")
            self._is_checked[number] = True
        return content
