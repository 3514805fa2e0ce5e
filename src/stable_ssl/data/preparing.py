"""Writes a folder's images into one file that is read fast; `stable-ssl prepare` is its command line."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ..exceptions import ConfigError, DataError, some_of
from ..runtime.files import printable, size_in_words, sync_folder
from ..runtime.launchers import threads_of_process
from .encoding import DamagedImageError, FolderToPrepare
from .prepared_file import HEADER, INDEX, RECORD, Plan, PreparedFile, header, read, read_plan, records
from .threads import Threads

log = logging.getLogger("stable_ssl")

NOT_COMPARED = ("source", "version")  # may differ between a file and the line that goes on with it
NOT_OF_IMAGES = (*NOT_COMPARED, "classes")  # the bytes of an image don't depend on them

# Says how much is done: what is being done, how many images are done, and how many there are.
Report = Callable[[str, int, int], None]


def prepare(source: FolderToPrepare, out: Path, report: Report) -> bool:
    """Write a file, or go on with it.

    Until it is complete, it is called `out`.part. Whatever ends the process, the next call goes on after the last whole
    image. If the folder or its labels have changed since, it begins anew, and takes over the images that have not: what
    was written is called `out`.part.earlier meanwhile. All is read back once before the file gets its name.

    An image that can't be decoded is an error. If the source skips those, the reason stands in its place in the file.

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
    part, earlier = (out.with_name(f"{out.name}.{ending}") for ending in ("part", "part.earlier"))
    if out.exists():
        try:
            found = PreparedFile(out)
        except OSError as error:
            raise DataError(f"'{printable(out)}' can't be read: {error.strerror or error}.") from error
        _check_alike(found.plan, source.plan, out)
        _tell_left_out(found, source)
        return False
    try:
        with contextlib.ExitStack() as files:
            file, known = _begun(out, part, earlier, source, files)
            _Writer(file.fileno(), source, part, known, report).write()
            written = PreparedFile(part)
            if hasattr(os, "posix_fadvise"):  # else the images would be read back from memory, not from the disk
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            check_all(written, report)
            _tell_left_out(written, source)
            os.replace(part, out)
            # To close any descriptor of the file ends the lock, so `written` must live until here.
            del written
        earlier.unlink(missing_ok=True)
        sync_folder(out.parent)
    except OSError as error:
        stays = "What is written stays, and the same line goes on with it." if part.exists() else "Nothing was written."
        raise DataError(f"'{printable(part)}' can't be written: {error.strerror or error}. {stays}") from error
    return True


def _begun(
    out: Path, part: Path, earlier: Path, source: FolderToPrepare, files: contextlib.ExitStack
) -> tuple[IO[bytes], _Earlier]:
    """Return the file that is written, open and locked, and the images that it takes over.

    If the file was begun before the folder changed, it is renamed. If there is one from an earlier change too, the one
    with more images that can be taken over is kept.
    """
    file = _opened(out, part, files)
    has_changed = _has_changed(file, source, part)
    old = _opened_earlier(earlier, files)
    known = _Earlier(old, earlier, source)
    if not has_changed:
        return file, known
    begun = _Earlier(file, earlier, source)
    # The file that is dropped is closed, because a disk frees the space of closed files only.
    if len(begun) < len(known):
        part.unlink()
        file.close()
    else:
        os.replace(part, earlier)
        known = begun
        if old:
            old.close()
    return _opened(out, part, files), known


def _opened(out: Path, part: Path, files: contextlib.ExitStack) -> IO[bytes]:
    """Open and lock the file that is written, or raise a ConfigError that says why that can't be."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        where = printable(str(error.filename))
        raise ConfigError(
            f"'{printable(out)}' can't be made: {error.strerror}: '{where}'. Choose another place by --out FILE."
        ) from error
    file = files.enter_context(os.fdopen(descriptor, "r+b", buffering=0))
    _lock(file, part)
    files.callback(_remove_if_empty, file, part)
    return file


def _remove_if_empty(file: IO[bytes], part: Path) -> None:
    if not file.closed and not os.fstat(file.fileno()).st_size:
        part.unlink()


def _opened_earlier(earlier: Path, files: contextlib.ExitStack) -> IO[bytes] | None:
    """Open the file that was begun before the folder changed; None if there is none."""
    try:
        return files.enter_context(earlier.open("rb", buffering=0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"'{printable(earlier)}' can't be read: {error.strerror}. Remove it, and give the same line again: its "
            "images are then made anew."
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


def _plan_of(descriptor: int, source: FolderToPrepare, path: Path) -> Plan | None:
    """Return the plan of a file that is not complete; None if not all of it was written."""
    plan = source.plan.to_bytes()
    beginning = header(plan) + plan
    found = read(descriptor, 0, len(beginning))
    if len(found) < len(beginning) and beginning.startswith(found):
        return None
    return read_plan(descriptor, path)[1]


def _has_changed(file: IO[bytes], source: FolderToPrepare, part: Path) -> bool:
    """Return whether a file was begun before the folder or its labels changed; the log then says so.

    Raises
    ------
    ConfigError
        The file was made by other settings.
    """
    known = _plan_of(file.fileno(), source, part)
    if known is None:
        return False
    if any(_settings_that_differ(known, source.plan, NOT_OF_IMAGES)):
        _check_alike(known, source.plan, part)
    differences = _differences(known, source.plan)
    if differences:
        log.warning(
            "'%s' was begun with other files or labels: %s. It is begun anew, and takes over the images that are the "
            "same.",
            printable(part),
            "; ".join(differences),
        )
    return bool(differences)


class _Earlier:
    """The images in a file that was begun before its folder changed.

    Parameters
    ----------
    file
        The file, open; None if there is none.
    path
        What errors call the file.
    source
        The folder as it is now. Images of files that have changed are left out.
    """

    def __init__(self, file: IO[bytes] | None, path: Path, source: FolderToPrepare):
        self._path, self._rows = path, dict[int, tuple[int, ...]]()
        if not file:
            return
        self._descriptor = file.fileno()
        with contextlib.suppress(DataError):  # it is damaged, so nothing is taken over
            head, known = read_plan(self._descriptor, path)
            if any(_settings_that_differ(known, source.plan, NOT_OF_IMAGES)):
                return
            now = {name: number for number, name in enumerate(source.plan.names)}
            length = os.fstat(self._descriptor).st_size
            rows = records(self._descriptor, HEADER.size + head.length_of_plan, len(known.names), length)
            for old, row in enumerate(rows):
                number = now.get(known.names[old], -1)
                is_same = number >= 0 and _state(known, old) == _state(source.plan, number)
                if is_same and row[2]:  # what was left out has no height, and is tried again
                    self._rows[number] = row

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, number: int) -> bool:
        return number in self._rows

    def encoded(self, number: int) -> tuple[int, int, bytes]:
        """Return what `FolderToPrepare.encoded` returned for an image."""
        place, length, height, width, crc = self._rows[number]
        content = read(self._descriptor, place, length)
        if zlib.crc32(content) != crc:
            raise DataError(
                f"'{printable(self._path)}' is damaged. Remove it, and give the same line again: its images are then "
                "made anew."
            )
        return height, width, content


def _state(plan: Plan, number: int) -> list[int]:
    """Return what tells whether a file has changed: its size and its time of change."""
    return plan.sources[number].tolist()[:2]  # type: ignore[no-any-return]


class _Writer:
    """Writes the images that a file lacks, and then its index."""

    def __init__(self, descriptor: int, source: FolderToPrepare, part: Path, earlier: _Earlier, report: Report):
        self._descriptor, self._source, self._part, self._report = descriptor, source, part, report
        self._earlier, self._index = earlier, np.zeros(len(source), INDEX)

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
        if _plan_of(self._descriptor, self._source, self._part) is None:
            return b"", 0, 0
        head, _ = read_plan(self._descriptor, self._part)
        end, number, length = HEADER.size + head.length_of_plan, 0, os.fstat(self._descriptor).st_size
        for row in records(self._descriptor, end, len(self._source), length):
            if not row[2] and not self._source.skips:
                self._made(number)  # which raises the error for an image that was left out
                break  # it can be decoded now, so images are made again from here on
            self._index[number] = row
            number, end = number + 1, row[0] + row[1]
            self._report("Checking", number, len(self._source))
        return read(self._descriptor, HEADER.size, head.length_of_plan), number, end

    def _check_space(self, end: int) -> None:
        needed, free = self._source.num_bytes() - end, shutil.disk_usage(self._part.parent).free
        if needed > free:
            raise ConfigError(
                f"'{printable(self._part)}' needs about {size_in_words(needed)} more, and its disk has "
                f"{size_in_words(free)} left. Make room, or choose another --out, a smaller --size, or --format jpeg."
            )

    def _write_images(self, first: int, end: int) -> int:
        """Write the images from a number on, and return where the last one ends."""
        count, total = threads_of_process(1), len(self._source)
        threads = Threads(count, "prepare")
        try:
            made = threads.map(self._made, range(first, total), ahead=2 * count)
            for number, (height, width, content) in enumerate(made, first):
                crc = zlib.crc32(content)
                place = self._append(end, RECORD.pack(number, height, width, crc, len(content)))
                end = self._append(place, content)
                self._index[number] = place, len(content), height, width, crc
                self._report("Preparing", number + 1, total)
        finally:
            threads.close()
        return end

    def _made(self, number: int) -> tuple[int, int, bytes]:
        """Return the height and the width of an image, and its bytes; if it is left out, 0, 0 and the reason."""
        if number in self._earlier:
            return self._earlier.encoded(number)
        try:
            return self._source.encoded(number)
        except DamagedImageError as error:
            if self._source.skips:
                return 0, 0, os.fsencode(str(error))
            raise DamagedImageError(
                f"{error} Mend, replace or remove it, or leave such images out by --on-error skip. Then give the line "
                "again: it goes on, and makes no image anew whose file is the same."
            ) from error

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


def _tell_left_out(file: PreparedFile, source: FolderToPrepare) -> None:
    """Name the images that a complete file leaves out: in the log, or in a DataError if the source skips none."""
    lines = [os.fsdecode(file.read(number).tobytes()) for number in np.flatnonzero(file.index["height"] == 0).tolist()]
    if not lines:
        return
    said = f"{len(lines)} of {len(file)} images can't be decoded, and are left out:\n{some_of(lines, 100, chr(10))}"
    if len(lines) == len(file):
        raise DataError(f"{said}\nSo there is nothing to write.")
    if not source.skips:
        raise DataError(
            f"{said}\n'{printable(file.path)}' is complete but for them. Give --on-error skip with the same line. Or "
            "mend or replace them, remove the file, and prepare the images anew."
        )
    log.warning("%s", said)


def _check_alike(known: Plan, wanted: Plan, path: Path) -> None:
    """Raise a ConfigError if a file is made of other images, or by other settings."""
    differences = _differences(known, wanted)
    if differences:
        raise ConfigError(
            f"'{printable(path)}' is there already, but it is not of these images and settings: "
            f"{'; '.join(differences)}. Remove it to prepare the images anew, or choose another --out."
        )


def _differences(known: Plan, wanted: Plan) -> list[str]:
    return [*_settings_that_differ(known, wanted, NOT_COMPARED), *_files_that_differ(known, wanted)]


def _settings_that_differ(known: Plan, wanted: Plan, but: Collection[str]) -> Iterator[str]:
    for key, value in wanted.settings.items():
        if key not in but and known.settings.get(key) != value:
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
            files = "1 file was" if len(names) == 1 else f"{len(names)} files were"
            yield f"{files} {what}, such as '{printable(min(names))}'"
