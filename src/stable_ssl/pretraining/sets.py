"""What a folder holds: images of one set, or sub-folders for training and testing; and where their labels are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..exceptions import ConfigError, some_of

TESTS = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class Sets:
    """Which images are for training and for testing.

    Attributes
    ----------
    train
        The folder of the training images.
    test
        That of the test images. None: if there are labels, some of the training images are held out.
    labels
        As for `stable_ssl.data.Images`.
    notes
        What was decided, for the user.
    """

    train: Path
    test: Path | None
    labels: str
    notes: tuple[str, ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether there are labels to measure with."""
        return self.labels != "none"


def find_sets(folder: Path, labels: str | None) -> Sets:
    """Return how to read a folder.

    A folder with the sub-folders `train` and `val` (or `valid`, `validation`, `test`) is trained on the first only. If
    both have the same folders inside, two or more, these are classes, unless `labels` says otherwise. Any other folder
    is one set, without labels unless `labels` asks for them. A CSV file's paths begin at the folder, so that it is one
    set too.

    Parameters
    ----------
    folder
        The folder.
    labels
        "none", "folder", the path of a CSV file, or None.

    Raises
    ------
    ConfigError
        Labels are asked for that the folder does not have.
    """
    test = next((folder / name for name in TESTS if os.path.isdir(folder / name)), None)
    if test is None or not os.path.isdir(folder / "train"):
        return _one_set(folder, labels)
    if labels not in (None, "none", "folder"):
        return Sets(
            folder, None, str(labels), ("all sub-folders are taken, since the paths of the labels begin there",)
        )
    train = folder / "train"
    classes, others = _folders(train), _folders(test)
    if labels == "folder" and classes != others:
        raise ConfigError(
            f"pretrain: --labels folder: '{train}' and '{test}' have different classes: only one of them has "
            f"{some_of(sorted(classes ^ others)) or 'any'}. Give {train} alone, or --labels none."
        )
    taken = "folder" if labels == "folder" or (labels is None and len(classes) > 1 and classes == others) else "none"
    note = f"it trains on '{train}' only"
    if taken == "folder":
        note += f"; the labels of its {len(classes)} classes serve to measure on '{test}'"
    return Sets(train, test if taken == "folder" else None, taken, (note,))


def _one_set(folder: Path, labels: str | None) -> Sets:
    classes = _folders(folder)
    if labels == "folder" and len(classes) < 2:
        raise ConfigError(
            f"pretrain: --labels folder: '{folder}' has {len(classes)} sub-folders; it must have one per class. Give "
            "the folder of the classes, a CSV file, or --labels none."
        )
    if labels is None and len(classes) > 1:
        note = f"no labels are used; if the {len(classes)} sub-folders are classes, --labels folder measures with them"
        return Sets(folder, None, "none", (note,))
    return Sets(folder, None, labels or "none")


def _folders(folder: Path) -> set[str]:
    """Return the names of the sub-folders that are not hidden; none if the folder can't be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    except OSError:  # the scan for images says why
        return set()
