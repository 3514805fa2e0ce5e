"""The images to evaluate on: a training set and a test set with labels, of a run, a folder, a file or a recipe."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from ..compose import check_override, compose, recipe_names
from ..data import Images, Prepared
from ..data.prepared_file import MAGIC
from ..data.scanning import list_images
from ..exceptions import ConfigError, DataError, nearest
from ..nodes import build, is_node, live_paths
from ..pretraining.sets import find_sets
from ..runtime.batches import labels_in
from ..runtime.files import printable
from .fingerprints import of_dataset
from .subject import Subject

TESTS = ("test", "val", "valid", "validation")
OF_FOLDERS = ("levels", "on_error", "in_memory")  # arguments of `Images` that a user may give


@dataclass(frozen=True)
class LabelledSet:
    """A map-style data set with the class of each of its samples, (samples,), int64 and at least 0."""

    dataset: Any
    labels: Tensor

    @classmethod
    def of(cls, dataset: Any) -> LabelledSet:
        """Return a data set without the samples whose label is below 0. All are read if it does not list its labels."""
        found = cls(dataset, torch.tensor(_targets_of(dataset), dtype=torch.long))
        return found if (found.labels >= 0).all() else found.take(found.labels >= 0)

    def take(self, which: Tensor) -> LabelledSet:
        """Return the samples that a mask or a list of indices names."""
        indices = which.nonzero().flatten() if which.dtype == torch.bool else which
        return LabelledSet(Subset(self.dataset, indices.tolist()), self.labels[indices])

    def __len__(self) -> int:
        return len(self.labels)


def _targets_of(dataset: Any) -> list[int]:
    if isinstance(dataset, Subset):
        inner = dataset.dataset
        listed = labels_of(inner)
        return [int(labels_in(inner[i]) if listed is None else listed[i]) for i in dataset.indices]
    listed = labels_of(dataset)
    return [int(labels_in(dataset[i]) if listed is None else listed[i]) for i in range(len(dataset))]


@dataclass(frozen=True)
class EvaluationData:
    """Two sets of (image, label): one to learn from, and one to measure on.

    Attributes
    ----------
    name
        What tables call it.
    train, test
        Map-style data sets. A label below 0 stands for none.
    is_own
        Whether they are a run's own sets, which its own evaluation takes too.

    Raises
    ------
    ConfigError
        One of them is empty, or no map-style data set.
    """

    name: str
    train: Any
    test: Any
    is_own: bool = False

    def __post_init__(self) -> None:
        for which, part in (("train", self.train), ("test", self.test)):
            has_both = hasattr(part, "__len__") and hasattr(part, "__getitem__")
            if not has_both or isinstance(part, str | IterableDataset):
                raise ConfigError(
                    f"--data: the {which} set of '{self.name}' is a {type(part).__name__}, and no map-style data set, "
                    "which has __len__ and __getitem__."
                )
            if not len(part):
                raise ConfigError(
                    f"--data: the {which} set of '{self.name}' is empty. If a set is divided, a fifth of each class is "
                    "held out for the test, but not the only image of a class. Give more images, or a folder with "
                    "train and test."
                )

    @cached_property
    def labelled(self) -> tuple[LabelledSet, LabelledSet]:
        """Both sets without the samples that have no label."""
        return LabelledSet.of(self.train), LabelledSet.of(self.test)

    @cached_property
    def fingerprint(self) -> str | None:
        """Tells both sets from others; None if that would take reading them."""
        parts = [of_dataset(part) for part in (self.train, self.test)]
        return None if None in parts else hashlib.sha256("".join(map(str, parts)).encode()).hexdigest()[:16]


def open_data(
    what: Any, overrides: Sequence[str] = (), labels: str | None = None, channels: int | None = None
) -> EvaluationData:
    """Return the sets that a user names.

    Parameters
    ----------
    what
        A folder: with the sub-folders `train` and `val` (or `test`), or of classes, of which a fifth of the images is
        held out; a file of `stable-ssl prepare`; a recipe of data, such as "cifar10"; or a pair of data sets.
    overrides
        Changes of a recipe's settings, such as "root=/data". A folder takes those of `OF_FOLDERS`.
    labels
        As for `stable_ssl.data.Images`. None: the folders are the classes.
    channels
        Of the images: 1 (grey) or 3. None: as they are.

    Raises
    ------
    ConfigError
        There is no such thing, or it has no labels.
    """
    if not isinstance(what, str | Path):
        if not isinstance(what, tuple | list) or len(what) != 2:
            count = f" of {len(what)}" if isinstance(what, tuple | list) else ""
            raise ConfigError(
                f"data: a {type(what).__name__}{count} is no pair of data sets (train, test), and no name."
            )
        return EvaluationData("the data given", *what)
    path, name = Path(what).expanduser(), str(what)
    if path.is_dir():
        return _of_folder(path, name, overrides, labels, channels)
    if path.is_file():
        return EvaluationData(name, _prepared(path, name, "train"), _prepared(path, name, "test"))
    if name not in recipe_names("data"):
        raise _unknown(name)
    data = compose("simclr", [f"data={name}", "num_classes=2", f"channels={channels or 3}", *overrides])["trainer"][
        "data"
    ]
    place = next((f" {text.removeprefix('root=')}" for text in overrides if text.startswith("root=")), "")
    return EvaluationData(name + place, *(build(data[part]["dataset"], f"data.{part}") for part in ("train", "test")))


def open_whole(
    what: Any, overrides: Sequence[str] = (), labels: str | None = None, channels: int | None = None
) -> Images | Prepared | None:
    """Return all images of a folder or file as one set; None of anything else, and of folders with two sets.

    Parameters
    ----------
    what, overrides, channels
        As for `open_data`.
    labels
        As for `stable_ssl.data.Images`. None: the folders are the classes if all images are in folders.
    """
    path = Path(what).expanduser() if isinstance(what, str | Path) else None
    if path is not None and path.is_file():
        return _prepared(path, str(what))
    if path is None or not path.is_dir():
        return None
    with _folder_named():
        if find_sets(path, labels).test is not None:
            return None
        if labels is None:
            labels = "folder" if all("/" in file for file in list_images(path).files) else "none"
        return Images(path, labels, channels=channels, **_for_folders(overrides))


def _prepared(path: Path, name: str, split: str | None = None) -> Prepared:
    with suppress(OSError), open(path, "rb") as file:  # `Prepared` tells why it can't be opened
        if file.read(len(MAGIC)) != MAGIC:
            raise _unknown(name)
    return Prepared(path, split)


def _unknown(name: str) -> ConfigError:
    known = recipe_names("data")
    return ConfigError(
        f"--data: '{printable(name)}' is no folder, no file of `stable-ssl prepare`, and no recipe of data. "
        f"Recipes are {', '.join(known)}.{nearest(name, known)}"
    )


def _of_folder(
    folder: Path, name: str, overrides: Sequence[str], labels: str | None, channels: int | None
) -> EvaluationData:
    with _folder_named():
        sets = find_sets(folder, labels or "folder")
        places = [(sets.train, None), (sets.test, None)] if sets.test else [(sets.train, "train"), (sets.train, "test")]
        train, test = (
            Images(place, sets.labels, split=split, channels=channels, **_for_folders(overrides))
            for place, split in places
            if place is not None
        )
    return EvaluationData(name, train, test)


@contextmanager
def _folder_named() -> Iterator[None]:
    """Have errors begin with the folder, and neither with another command nor with an argument of `Images`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([re.sub("^(pretrain|root): ", "", text) for text in error.problems]) from error


def settings_in(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the values of settings key=value, read as those of a recipe are."""
    parsed = [check_override(text, is_sweep=False) for text in overrides]
    return {one.key_or_group: one.value() for one in parsed}


def _for_folders(overrides: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in settings_in(overrides).items() if key in OF_FOLDERS}  # others are of recipes


def own_data(subject: Subject, config: Mapping[str, Any] | None) -> EvaluationData:
    """Return the sets that a run was trained and evaluated on, the training set without augmentation.

    Parameters
    ----------
    subject
        The run.
    config
        The content of its `config.yaml`. None: it is no run.

    Raises
    ------
    ConfigError
        It is no run, a script made its sets, or it has no set to evaluate on.
    """
    if config is None:
        raise ConfigError(f"--data is missing: '{subject.name}' is of no run, so it has no sets of its own.")
    data = config["trainer"].get("data") or {}
    test = test_name(data)
    if "train" not in data or test is None:
        raise ConfigError(
            f"--data is missing: '{subject.name}' has the sets {[*data]}, and an evaluation needs one to train and one "
            "to test on."
        )
    nodes = [_dataset_of(data[name]) for name in ("train", test)]
    if None in nodes:
        raise ConfigError(
            f"--data is missing: a script made the sets of '{subject.name}', which no file describes. In Python, "
            "data=(train, test) gives data sets."
        )
    of_train, of_test = nodes
    if "transform" in {**of_train, **of_test}:  # that of training may be an augmentation
        of_train = {**of_train, "transform": of_test.get("transform")}
    place = next((str(of_train[key]) for key in ("root", "path") if of_train.get(key)), "").rstrip("*/")
    title = " ".join(filter(None, ["its own", of_train["_target_"].rpartition(".")[2], Path(place).name]))
    return EvaluationData(title, build(of_train, "data.train"), build(of_test, f"data.{test}"), is_own=True)


def test_name(data: Iterable[str]) -> str | None:
    """Return which of a run's sets is the one to test on; None if there is none."""
    others = [name for name in data if name not in ("train", "bank") and not name.startswith("_")]
    return next((name for name in TESTS if name in others), others[0] if others else None)


def _dataset_of(loader: Any) -> Any:
    """Return the node of a loader's data set; None if no file describes it."""
    node = loader.get("dataset") if is_node(loader) else None
    return node if is_node(node) and not live_paths(node) else None


def labels_of(dataset: Any) -> Sequence[int] | None:
    """Return the labels that a data set lists, in the order of its samples; None if it lists none."""
    targets = next((getattr(dataset, name) for name in ("targets", "labels") if hasattr(dataset, name)), None)
    return None if targets is None or isinstance(targets, str) or len(targets) != len(dataset) else targets


def check_labels(data: EvaluationData, train: Any, test: Any) -> int:
    """Return the number of classes of two sets.

    Parameters
    ----------
    data
        The sets.
    train, test
        Their labels, (samples,), those below 0 left out.

    Raises
    ------
    DataError
        A set has no labels, or the test set has classes that the training set lacks.
    """
    for name, labels in (("training", train), ("test", test)):
        if not len(labels):
            raise DataError(
                f"'{data.name}': its {name} set has no labels, so that nothing can be measured. Give labels by "
                "--labels, or other sets by --data."
            )
    known, found = set(train.tolist()), set(test.tolist())
    if len(known) < 2:
        raise DataError(f"'{data.name}': its training set has one class, so that nothing can be measured.")
    of_train, of_test = (getattr(part, "classes", None) or [] for part in (data.train, data.test))
    if found - known or (of_train and of_test and [*of_train] != [*of_test]):
        raise DataError(
            f"'{data.name}': the training set has {len(known)} classes and the test set {len(found)}, and they are not "
            "the same. Both sets need the same classes."
        )
    return int(train.max()) + 1
