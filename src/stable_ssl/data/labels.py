"""Labels of images: from the names of folders, or from a CSV file."""

from __future__ import annotations

import csv
import logging
import os
import unicodedata
from pathlib import Path

from ..exceptions import ConfigError, nearest, some_of
from ..runtime.files import printable

log = logging.getLogger("stable_ssl")

MOST_CLASSES = 1_000_000

Labelled = tuple[list[str], list[int], list[str]]  # files, their labels, the names of the classes


def by_folder(root: Path, files: list[str]) -> Labelled:
    """Return the class of each file: the folder in `root` that it is in, or is below.

    Parameters
    ----------
    root, files
        The folder, and the paths of its images relative to it.

    Raises
    ------
    ConfigError
        An image is in `root` itself.
    """
    loose = [file for file in files if "/" not in file]
    if loose:
        raise ConfigError(
            f"labels: '{printable(loose[0])}' has no class, because it is in '{printable(root)}' itself, as "
            f"{len(loose)} of {len(files)} images. Move them into folders of classes, or set labels to none."
        )
    return files, *_numbered([file.partition("/")[0] for file in files])


def find_labels(labels: str | Path, root: Path) -> Path:
    """Return the CSV file of labels: its path may be relative to this folder, or to `root`.

    Raises
    ------
    ConfigError
        There is no such file, or it can't be read. The message says what labels may be.
    """
    path = Path(labels).expanduser()
    path = root / path if not os.path.exists(path) and os.path.exists(root / path) else path
    try:
        open(path, "rb").close()
        return path
    except FileNotFoundError:
        what = f"is not there, and not in '{printable(root)}' either"
    except IsADirectoryError:
        what = "is a folder"
    except OSError as error:
        what = f"can't be read: {error.strerror}"
    files = [*map(str, path.parent.glob("*.csv")), *(file.name for file in root.glob("*.csv"))]
    raise ConfigError(
        f"labels: '{printable(labels)}' {what}. Labels are none, folder (each folder in '{printable(root)}' is a "
        f"class), or a CSV file with the columns path,label.{nearest(str(labels), ['none', 'folder', *files])}"
    )


def read_labels(path: Path, root: Path, files: list[str]) -> Labelled:
    """Return the files that have a row in a CSV file, with their labels; -1 if the row's label is empty.

    Parameters
    ----------
    path
        The CSV file, with the columns `path` and `label`.
    root, files
        The folder, and the paths of its images relative to it.

    Raises
    ------
    ConfigError
        The file can't be read, or rows are wrong.
    """
    path = find_labels(path, root)
    name, known = printable(path), set(files)
    label_of: dict[str, str] = {}
    wrong: dict[str, list[str]] = {}
    rows, is_utf_8 = _rows(path, name), _is_utf_8("".join(files))
    for (line, file, label), relative in zip(rows, _as_in_folder([row[1] for row in rows], known), strict=True):
        what = _wrong_with(file, label, relative, known, root, is_utf_8)
        if what is None and relative in label_of:
            what = "must not repeat a path"
        if what is None:
            label_of[relative] = str(label)
            continue
        wrong.setdefault(what, []).append(f"line {line} ('{printable(file)}')")
    if wrong:
        raise ConfigError([f"labels: '{name}': {some_of(rows)} {what}." for what, rows in wrong.items()])
    if len(label_of) < len(files):
        num_others = len(files) - len(label_of)
        log.info(
            "%d of %d images have no row in '%s', and are left out. A row with an empty label keeps an image.",
            num_others,
            len(files),
            name,
        )
    kept = [file for file in files if file in label_of]
    texts = [label_of[file] for file in kept if label_of[file]]
    if not texts:
        raise ConfigError(f"labels: '{name}' has no label that is not empty. Set labels to none.")
    if len(texts) < len(kept):
        log.info("%d of %d images have no label in '%s'.", len(kept) - len(texts), len(kept), name)
    labels, classes = _counted(texts, name) if all(map(_is_number, texts)) else _numbered(texts)
    number_of = dict(zip(texts, labels, strict=True))
    return kept, [number_of.get(label_of[file], -1) for file in kept], classes


def _as_in_folder(paths: list[str], known: set[str]) -> list[str]:
    """Return the paths as the folder has them; those of no image stay as they are.

    A character such as ü may be one, or u and two dots: macOS writes names in the second form, other systems in the
    first.
    """
    found = [os.path.normpath(path) for path in paths]
    if known.issuperset(found):
        return found
    composed: dict[str, list[str]] = {}
    for name in known:
        composed.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    alike = [composed.get(unicodedata.normalize("NFC", path), []) for path in found]
    return [path if path in known or len(names) != 1 else names[0] for path, names in zip(found, alike, strict=True)]


def _wrong_with(file: str, label: str | None, relative: str, known: set[str], root: Path, is_utf_8: bool) -> str | None:
    """Return what a row must have and does not; None if it is right. Names of files in the folder may be no UTF-8."""
    if not file or label is None:
        return "must have a path and a label, which may be empty"
    if is_utf_8 and not _is_utf_8(label):
        return f"must have a label in UTF-8, not '{printable(label)}' for example: save the file as UTF-8"
    if os.path.isabs(file):
        return "must have a path that is relative to root"
    if relative in known:
        return None
    if os.path.normpath(file.replace("\\", "/")) in known:
        return "must have / between folders and names, and not \\"
    of_text = "" if _is_utf_8(file) else "; its path is not UTF-8, so save the file as UTF-8"
    return f"must have the path of an image in '{printable(root)}'{of_text}"


def _is_utf_8(text: str) -> bool:
    """Return whether a text was read from UTF-8: other bytes were kept as characters that can't be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rows(path: Path, name: str) -> list[tuple[int, str, str | None]]:
    """Return the line, the path and the label of each row; None as the label if the line ends before it."""
    try:
        # Names of files may be no UTF-8, and some programs write a mark of the encoding first.
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = [(reader.line_num, *_stripped(row)) for row in reader]
    except (OSError, csv.Error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"labels: '{name}' can't be read: {why}.") from error
    if "path" not in columns or "label" not in columns:
        found = printable(", ".join(map(str, columns))) if columns else "nothing"
        raise ConfigError(f"labels: the first line of '{name}' must be path,label; it has {found}.")
    if not rows:
        raise ConfigError(f"labels: '{name}' has no rows below its first line.")
    return rows


def _stripped(row: dict[str, str | None]) -> tuple[str, str | None]:
    label = row.get("label")
    return (row.get("path") or "").strip(), None if label is None else label.strip()


def _numbered(names: list[str]) -> tuple[list[int], list[str]]:
    """Return the number of each name in the order of all names' bytes, which no locale changes; and these names."""
    classes = sorted(set(names), key=os.fsencode)
    number = {name: index for index, name in enumerate(classes)}
    return [number[name] for name in names], classes


def _counted(labels: list[str], name: str) -> tuple[list[int], list[str]]:
    """Return labels that count classes from 0 as numbers, and a name per class."""
    for label in labels:
        if not (label.isascii() and label.isdigit() and int(label) < MOST_CLASSES):
            raise ConfigError(
                f"labels: '{name}' has the label {label}. Labels that are numbers count the classes from 0 to at most "
                f"{MOST_CLASSES - 1}; others must be names."
            )
    numbers = [int(label) for label in labels]
    return numbers, [str(number) for number in range(max(numbers) + 1)]


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
