"""The images to evaluate on: a training set and a test set with labels, of a run, a folder, a file or a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from ..compose import compose, recipe_names
from ..data import Images, Prepared
from ..exceptions import ConfigError, DataError, nearest
from ..nodes import build, is_node, live_paths
from ..pretraining.sets import find_sets
from ..runtime.batches import labels_in
from ..runtime.files import printable
from .fingerprints import of_dataset
from .subject import Subject

TESTS = ("test", "val", "valid", "validation")


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
    """

    name: str
    train: Any
    test: Any
    is_own: bool = False

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
        Changes of a recipe's settings, such as "root=/data".
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
        train, test = what
        return EvaluationData("the data given", train, test)
    path, name = Path(what).expanduser(), str(what)
    if path.is_dir():
        return _of_folder(path, name, labels, channels)
    if path.is_file():
        return EvaluationData(name, Prepared(path, "train"), Prepared(path, "test"))
    if name not in (known := recipe_names("data")):
        raise ConfigError(
            f"--data: '{printable(name)}' is no folder, no file of `stable-ssl prepare`, and no recipe of data. "
            f"Recipes are {', '.join(known)}.{nearest(name, known)}"
        )
    data = compose("simclr", [f"data={name}", "num_classes=2", f"channels={channels or 3}", *overrides])["trainer"][
        "data"
    ]
    place = next((f" {text.removeprefix('root=')}" for text in overrides if text.startswith("root=")), "")
    return EvaluationData(name + place, *(build(data[part]["dataset"], f"data.{part}") for part in ("train", "test")))


def _of_folder(folder: Path, name: str, labels: str | None, channels: int | None) -> EvaluationData:
    try:
        sets = find_sets(folder, labels or "folder")
        places = [(sets.train, None), (sets.test, None)] if sets.test else [(sets.train, "train"), (sets.train, "test")]
        train, test = (
            Images(place, sets.labels, split=split, channels=channels) for place, split in places if place is not None
        )
    except ConfigError as error:
        raise ConfigError([text.replace("pretrain:", "eval:") for text in error.problems]) from error
    return EvaluationData(name, train, test)


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
