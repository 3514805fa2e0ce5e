"""The members of a shard, which is a tar file: where each begins, from the headers alone."""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..exceptions import DataError
from ..runtime.files import state_of

BLOCK = 512  # bytes: headers are that long, and what a member holds is filled up to a multiple of it
_PLAIN = (b"0", b"\0")  # types of a file whose header says all about it
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
# KEY.ENDING, as WebDataset splits names: the key ends at the first dot of the name. Files such as `.hidden` have none.
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)


@dataclass
class Shard:
    """What a shard holds.

    Attributes
    ----------
    path
        The file.
    state
        Its size in bytes, and when it was changed, in nanoseconds since 1970.
    members
        Of each sample, by its key, the place (offset, size) of each member in bytes, by the member's ending.
    checksum
        Of all headers: names, sizes and times of the members count, what they hold does not.
    """

    path: Path
    state: tuple[int, int]
    members: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    checksum: int = 0


def read_headers(path: Path) -> Shard:
    """Find the members of a shard.

    Raises
    ------
    DataError
        It can't be opened, is compressed, damaged, cut short or empty, or has a name twice.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            shard = Shard(path, state_of(os.fstat(file.fileno())))
            links: dict[str, tuple[int, int]] = {}
            for name, offset, size, linked in _members(file.fileno(), shard):
                if linked and linked not in links:
                    raise DataError(f"'{path}' holds '{name}' as a link to '{linked}', which does not come before it.")
                links[name] = links.get(linked, (offset, size))
                _add(shard, name, links[name])
    except OSError as error:
        raise DataError(f"'{path}' can't be read: {error}") from error
    if not shard.members:
        raise DataError(f"'{path}' holds no sample: files in it must be named KEY.ENDING. Leave it out.")
    return shard


def _add(shard: Shard, name: str, place: tuple[int, int]) -> None:
    if (parts := _NAME.fullmatch(name)) is None or (name.startswith("__") and re.match("__[^/]*__(/|$)", name)):
        return
    key, ending = parts[1], parts[2].lower()
    sample = shard.members.setdefault(key, {})
    if ending in sample:
        raise DataError(f"'{shard.path}' has '{key}.{ending}' twice, so its samples can't be told apart.")
    sample[ending] = place


def _members(descriptor: int, shard: Shard) -> Iterator[tuple[str, int, int, str]]:
    """Yield (name, offset, size, name of the member that it is a link to, or "") for each file of an open shard."""
    at, end, name = 0, shard.state[0], ""
    while True:
        header = os.pread(descriptor, BLOCK, at)
        if header == bytes(BLOCK):
            return
        where = f"after '{name}'" if name else "at its beginning"
        if at == 0 and (kind := _COMPRESSED.get(header[:2])):
            raise DataError(
                f"'{shard.path}' is compressed by {kind}, so no sample has a place of its own. Unpack it to a .tar."
            )
        if not at and 0 < len(header) < BLOCK:
            raise DataError(f"'{shard.path}' is no tar file: it has {len(header)} bytes, and the smallest has 1,024.")
        if len(header) < BLOCK:
            cut = "is empty" if not header and not name else f"is cut short {where}"
            raise DataError(f"'{shard.path}' {cut}: it lacks the empty block that ends a tar file. Copy it again.")
        _check(header, shard.path, at, where)
        shard.checksum = zlib.crc32(header, shard.checksum)
        if header[156:157] in _PLAIN and header[124] < 0x80:
            name, size, linked, is_file = _name(header), int(header[124:136].rstrip(b" \0") or b"0", 8), "", True
            start = at + BLOCK
        else:
            name, start, size, linked, is_file = _read_by_tarfile(shard.path, at, where)
        at = start + -(-size // BLOCK) * BLOCK
        if start + size > end:
            raise DataError(
                f"'{shard.path}' is cut short within '{name}': it has {end} bytes, and {start + size} are needed. Copy "
                "it again."
            )
        if is_file:
            yield name, start, size, linked


def _check(header: bytes, path: Path, at: int, where: str) -> None:
    """Raise a DataError if a header's checksum is wrong."""
    try:
        is_right = int(header[148:156].split(b"\0")[0] or b"-1", 8) == sum(header) - sum(header[148:156]) + 8 * 0x20
    except ValueError:
        is_right = False
    if not is_right:
        raise DataError(f"'{path}' is no tar file, or is damaged, {where} (byte {at}).")


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _read_by_tarfile(path: Path, at: int, where: str) -> tuple[str, int, int, str, bool]:
    """Return (name, offset, size, link, whether it is a file) of a member with extended headers, a link or a folder."""
    with tarfile.open(path, "r:", errorlevel=2) as tar:
        tar.offset = at
        tar.fileobj.seek(at)  # type: ignore[union-attr]
        try:
            member = tar.tarinfo.fromtarfile(tar)
        except tarfile.HeaderError as error:
            raise DataError(f"'{path}' is damaged {where} (byte {at}): {error}.") from error
        if not (member.isreg() or member.islnk() or member.isdir()) or member.issparse():
            raise DataError(f"'{path}' holds '{member.name}', which is no plain file. Pack the file itself.")
        size = member.size if member.isreg() else 0
        return member.name, member.offset_data, size, member.linkname if member.islnk() else "", not member.isdir()
