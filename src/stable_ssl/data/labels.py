"""Labels of images from a CSV file."""

from __future__ import annotations

import csv
import logging
import os
import posixpath
from pathlib import Path

from ..exceptions import ConfigError
from .scanning import printable

log = logging.getLogger("stable_ssl")

MOST_CLASSES = 1_000_000
MOST_NAMED = 5  # lines of the file


def read_labels(path: Path, root: Path, files: list[str]) -> tuple[list[str], list[int], list[str]]:
    """Return the files that have a label, their labels as numbers, and the names of the classes.

    Parameters
    ----------
    path
        The CSV file, with the columns `path` and `label`. If all labels are whole numbers, they count the classes from
        0. Else they are names, which are numbered in their order.
    root, files
        The folder, and the paths of its images relative to it.

    Raises
    ------
    ConfigError
        The file can't be read, or a row is wrong.
    """
    rows = _rows(path)
    problems = _Problems(path)
    known, labelled = set(files), dict[str, str]()
    for line, file, label in rows:
        name = posixpath.normpath(file) if file else ""
        if not file or not label:
            problems.add("needs a path and a label", line)
        elif os.path.isabs(file):
            problems.add("must have a path relative to root", line, file)
        elif name not in known:
            problems.add(f"has a path that is no image in '{printable(root)}'", line, file)
        elif name in labelled:
            problems.add("repeats a path", line, file)
        labelled[name] = label
    problems.end()
    numbers, classes = _numbered(path, list(labelled.values()))
    if len(labelled) < len(files):
        log.info(
            "'%s': %d of %d images have no row in '%s', and are left out.",
            printable(root),
            len(files) - len(labelled),
            len(files),
            printable(path),
        )
    label_of = dict(zip(labelled, numbers, strict=True))
    kept = [file for file in files if file in label_of]
    return kept, [label_of[file] for file in kept], classes


def _rows(path: Path) -> list[tuple[int, str, str]]:
    """Return the line, the path and the label of each row."""
    try:
        # Paths may have names that are no UTF-8, and some programs begin a file with a mark of the encoding.
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            rows = [
                (reader.line_num, (row.get("path") or "").strip(), (row.get("label") or "").strip()) for row in reader
            ]
            columns = [name or "" for name in reader.fieldnames or []]
    except (OSError, csv.Error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"labels: '{printable(path)}' can't be read: {why}. It must be 'none', 'folder' or the path of a CSV file."
        ) from error
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        raise ConfigError(
            f"labels: '{printable(path)}' has no column {missing}; it has {columns}. The first line must be path,label."
        )
    if not rows:
        raise ConfigError(f"labels: '{printable(path)}' has no rows.")
    return rows


def _numbered(path: Path, labels: list[str]) -> tuple[list[int], list[str]]:
    """Return labels as numbers, and the names of the classes."""
    if not all(map(_is_number, labels)):
        classes = sorted(set(labels))
        number = {name: index for index, name in enumerate(classes)}
        return [number[label] for label in labels], classes
    wrong = [label for label in labels if not (label.isascii() and label.isdigit() and int(label) < MOST_CLASSES)]
    if wrong:
        raise ConfigError(
            f"labels: '{printable(path)}' has the label '{wrong[0]}'. Labels that are numbers count classes from 0 to "
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


class _Problems:
    """Rows that are wrong, by kind of mistake; raises one error that has a sentence per kind."""

    def __init__(self, path: Path):
        self.path, self.found = path, dict[str, list[str]]()

    def add(self, what: str, line: int, file: str = "") -> None:
        self.found.setdefault(what, []).append(f"line {line}" + (f" ('{printable(file)}')" if file else ""))

    def end(self) -> None:
        if self.found:
            raise ConfigError([self._sentence(what, lines) for what, lines in self.found.items()])

    def _sentence(self, what: str, lines: list[str]) -> str:
        more = f", and {len(lines) - MOST_NAMED} more" if len(lines) > MOST_NAMED else ""
        return f"labels: '{printable(self.path)}': {', '.join(lines[:MOST_NAMED])}{more} {what}."
