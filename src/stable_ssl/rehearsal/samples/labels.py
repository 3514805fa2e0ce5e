"""The labels of data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data.dataloader import default_convert

from ...data import Loader
from ...data.collating import collate
from .looking import Label, Look, as_label, name_of, unwrapped

ENOUGH = 20  # samples of a class, or of one class only, from which it is no accident


@dataclass
class Labels:
    """The labels of a data set.

    Attributes
    ----------
    name
        Of the data set.
    numbers
        The labels that are whole numbers.
    places
        What messages call the sample of each number.
    others
        How many samples have a label of each other kind, by the kind in words, and the first such label.
    absent
        How many samples have no part that may be a label.
    num_classes
        As many as the data set has names for; None if it has none.
    is_all
        Whether these are the labels of all samples.
    is_final
        Whether batches have these labels, and not what a `collate_fn` of the user's makes of them.
    """

    name: str
    numbers: np.ndarray
    places: Callable[[int], str]
    others: dict[str, tuple[int, str]]
    absent: int
    num_classes: int | None
    is_all: bool
    is_final: bool = True

    @property
    def classes(self) -> np.ndarray:
        """The classes that there are, in order."""
        return np.unique(self.numbers[self.numbers >= 0])

    @property
    def is_one_based(self) -> bool:
        """Whether the classes seem to be counted from 1: there is no class 0, and all others."""
        classes = self.classes
        enough = self.is_all or (len(classes) and len(self.numbers) >= ENOUGH * int(classes[-1]))
        return bool(enough) and len(classes) > 1 and bool((classes == np.arange(1, len(classes) + 1)).all())

    @property
    def expected(self) -> int | None:
        """The number of classes, as far as it is known."""
        highest = int(self.classes[-1]) + 1 if len(self.classes) else 0
        return max(self.num_classes or 0, highest) if self.is_all else self.num_classes

    def first(self, label: int) -> str:
        """Return what messages call the first sample with a label."""
        return self.places(int(np.flatnonzero(self.numbers == label)[0]))


def labels_of_set(loader: Loader, looks: list[Look]) -> Labels:
    """Return the labels of a data set: all, if it has a list of them that agrees with its samples; else those seen."""
    dataset, indices = unwrapped(loader.dataset)
    classes = getattr(dataset, "classes", None)
    named = len(classes) if isinstance(classes, list | tuple) and classes else None
    # In the order of the data set, as batches that are not shuffled have them.
    seen = [(look, look.label) for look in sorted(looks, key=lambda look: look.index) if not look.error]
    is_final = loader.views is not None or loader._collate in (collate, default_convert)
    for attribute in ("targets", "labels"):
        listed = getattr(dataset, attribute, None)
        if not isinstance(listed, list | tuple | np.ndarray) and type(listed).__name__ != "Tensor":
            continue
        try:
            table = np.asarray(listed)
        except ValueError:  # lists of several lengths
            continue
        is_whole = table.ndim == 1 and table.dtype.kind in "iu" and len(table) > int(indices.max(initial=-1))
        if is_whole and all(label == int(table[indices[look.index]]) for look, label in seen):
            own = table[indices]
            places = partial(name_of, loader.dataset)
            return Labels(loader.name, own, places, {}, 0, named, is_all=True, is_final=is_final)
    numbers = np.array([label for _, label in seen if isinstance(label, int)], np.int64)
    known = [look.name for look, label in seen if isinstance(label, int)]
    others, absent = _others([label for _, label in seen])
    is_all = len(seen) == len(loader.dataset)
    return Labels(loader.name, numbers, known.__getitem__, others, absent, named, is_all, is_final)


def labels_of_batches(name: str, values: Iterable[Any]) -> Labels:
    """Return the labels in some batches of a stream: tensors or lists; None for a batch without."""
    found: list[Label | None] = []
    for value in values:
        found += [None] if value is None else [as_label(one) for one in value]
    numbers = np.array([label for label in found if isinstance(label, int)], np.int64)
    places = "label {} of those that were read".format
    return Labels(name, numbers, places, *_others(found), num_classes=None, is_all=False)


def _others(labels: Iterable[Label | None]) -> tuple[dict[str, tuple[int, str]], int]:
    """Return how many labels there are of each kind that is no whole number, with the first; and how many lack."""
    found: dict[str, tuple[int, str]] = {}
    absent = 0
    for label in labels:
        if isinstance(label, tuple):
            count, first = found.get(label[0], (0, label[1]))
            found[label[0]] = count + 1, first
        absent += label is None
    return found, absent
