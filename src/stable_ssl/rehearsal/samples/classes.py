"""The labels of data sets against the classes of heads and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ...base import BaseTrainer
from ...exceptions import ConfigError, some_of
from ...nodes import locate
from ...trainers import SelfSupervisedTrainer, SupervisedTrainer
from ..sections import trainer_of
from ..stage import Stage
from .labels import ENOUGH, Labels


@dataclass(frozen=True)
class ClassCount:
    """Something that has a number of classes, and gets the labels of a data set.

    Attributes
    ----------
    key
        Of it, such as "module.backbone_classifier" or "logger.metric.test.accuracy".
    set_name
        The data set.
    num_classes, argument
        The number of classes, and the argument that says it.
    is_certain
        Whether a label that does not fit ends the run.
    ignored
        The label that it leaves out; None: there is none.
    takes_missing
        Whether labels below 0 count as none.
    is_guess
        Whether the user's own code decides what it gets. Then only labels that it has no class for are told.
    """

    key: str
    set_name: str
    num_classes: int
    argument: str
    is_certain: bool
    ignored: int | None = None
    takes_missing: bool = False
    is_guess: bool = False


def check_labels(stage: Stage, labels: Mapping[str, Labels]) -> None:
    """Check the labels of all sets.

    Parameters
    ----------
    stage
        The stage.
    labels
        Those of each set that could be read, by its name.
    """
    counters = [counter for counter in (*_heads(stage), *_metrics(stage)) if counter.set_name in labels]
    for counter in counters:
        if not counter.is_guess:
            _check_kinds(stage, counter, labels[counter.set_name])
            _check_missing(stage, counter, labels[counter.set_name])
        _check_number(stage, counter, labels[counter.set_name])
    for name, found in labels.items():
        _check_classes(
            stage,
            found,
            is_used=bool(counters),
            is_told=any(_too_high(one, found) for one in counters if one.set_name == name),
        )
        if name != "train" and "train" in labels:
            _check_new_classes(stage, found, labels["train"])


# What counts classes ------------------------------------------------------------------------------------------------


def _heads(stage: Stage) -> Iterator[ClassCount]:
    """Yield the classifiers that learn the labels of `data.train`."""
    trainer = _trainer(stage)
    probes = issubclass(trainer, SelfSupervisedTrainer) and _keeps(
        trainer,
        SelfSupervisedTrainer,
        "side_losses",
        "compute_loss_classifiers",
        "format_views_labels",
        "before_fit_step",
    )
    scores = issubclass(trainer, SupervisedTrainer) and _keeps(trainer, SupervisedTrainer, "predict")
    learns = scores and _keeps(trainer, SupervisedTrainer, "compute_loss", "before_fit_step")
    loss = stage.built.get("loss", trainer_of(stage).get("loss"))
    is_entropy = loss is None or type(loss) is nn.CrossEntropyLoss
    for key, module in stage.built.items():
        number = _num_outputs(module) if key.startswith("module.") else None
        if number is None:
            continue
        if key.endswith("_classifier"):
            yield ClassCount(key, "train", number, "out_features", probes, takes_missing=True)
        elif key == "module.backbone" and scores and is_entropy and (learns or number > 1):
            ignored = getattr(loss, "ignore_index", -100)  # torch's sign for no label
            yield ClassCount(key, "train", number, "its last layer", learns, ignored, is_guess=not learns)


def _trainer(stage: Stage) -> type:
    """Return the trainer's class; that of all trainers if it can't be imported, which is said elsewhere."""
    try:
        found = locate(trainer_of(stage).get("_target_"), "trainer")
    except ConfigError:
        return BaseTrainer
    return found if isinstance(found, type) else BaseTrainer


def _keeps(trainer: Any, known: Any, *names: str) -> bool:
    """Return whether a trainer's class has these methods as one of this package does."""
    return all(getattr(trainer, name) is getattr(known, name) for name in names)


def _num_outputs(network: Any) -> int | None:
    """Return how many scores a network gives; None if its last layer is not known for sure."""
    while isinstance(network, nn.Module) and not isinstance(network, nn.Linear):
        if isinstance(network, nn.Sequential) and len(network):
            network = network[-1]
            continue
        named = [getattr(network, name, None) for name in ("fc", "head", "heads", "classifier")]
        network = next((part for part in named if isinstance(part, nn.Linear | nn.Sequential)), None)
    return network.out_features if isinstance(network, nn.Linear) else None


def _metrics(stage: Stage) -> Iterator[ClassCount]:
    """Yield the metrics of torchmetrics that count classes."""
    is_certain = _keeps(_trainer(stage), BaseTrainer, "_eval_step", "_evaluate", "before_eval_step")
    for key, built in stage.built.items():
        is_metric = key.startswith("logger.metric.") and key.count(".") == 3  # no part of one
        for part in built.modules() if is_metric and isinstance(built, nn.Module) else ():
            kind = type(part).__name__
            is_binary = kind.startswith("Binary")
            number = 2 if is_binary else getattr(part, "num_classes", None)
            if isinstance(number, int):
                is_strict = is_certain and bool(getattr(part, "validate_args", True))
                ignored = getattr(part, "ignore_index", None)
                yield ClassCount(
                    key, key.split(".")[2], number, kind if is_binary else "num_classes", is_strict, ignored
                )
                break


# What is said -------------------------------------------------------------------------------------------------------


def _say(stage: Stage, counter: ClassCount, labels: Labels) -> Callable[[str, str], None]:
    return stage.report.error if counter.is_certain and labels.is_final else stage.report.warn


def _samples(count: int) -> str:
    return f"{count} sample{'s' * (count != 1)}"


def _or_remove(counter: ClassCount) -> str:
    return "" if counter.key == "module.backbone" else f", or remove {counter.key}"  # no run does without it


def _check_kinds(stage: Stage, counter: ClassCount, labels: Labels) -> None:
    """Say if labels are no whole numbers."""
    # The cross-entropy takes a probability for each class, too.
    probabilities = f"({counter.num_classes},)" if counter.key == "module.backbone" else "none"
    others = {kind: found for kind, found in labels.others.items() if not kind.endswith(probabilities)}
    if not others:
        return
    shown = [
        f"{kind}{f', such as {first},' if first != kind else ''} in {_samples(count)}"
        for kind, (count, first) in others.items()
    ]
    _say(stage, counter, labels)(
        "data",
        f"data.{labels.name}: {counter.key} needs labels that are whole numbers, -1 for none, and there are "
        f"{some_of(shown, 3, ' and ')}. Number the classes in the data set{_or_remove(counter)}.",
    )


def _check_missing(stage: Stage, counter: ClassCount, labels: Labels) -> None:
    """Say if samples have no label."""
    data, has_none = f"data.{labels.name}", not len(labels.classes) and not labels.others
    if counter.takes_missing:
        if has_none:
            stage.report.warn(
                "data",
                f"{counter.key}: it has nothing to learn from, since no sample of {data} has a label. Give the data "
                f"set labels, or leave it out: `~{counter.key}` on the command line.",
            )
        return
    needs, negative = f"{counter.key}: it needs labels, but {data} has", labels.numbers[labels.numbers < 0]
    negative = negative if counter.ignored is None else negative[negative != counter.ignored]
    if len(negative):
        first, is_metric = int(negative[0]), counter.key.startswith("logger.")
        remedy = "set its ignore_index to -1" if is_metric else "give a loss with ignore_index=-1"
        _say(stage, counter, labels)(
            "data",
            f"{needs} {_samples(len(negative))} with the label {first}, which is no class ({labels.first(first)}). "
            f"Leave them out, or {remedy}.",
        )
    if labels.absent:
        _say(stage, counter, labels)(
            "data",
            f"{needs} {_samples(labels.absent)} without one. Have the data set give (image, label)"
            f"{_or_remove(counter)}.",
        )


def _check_number(stage: Stage, counter: ClassCount, labels: Labels) -> None:
    """Compare the number of classes with the labels."""
    number, data = counter.num_classes, f"data.{labels.name}"
    has = f"{counter.key}: it has {number} class{'es' * (number != 1)} ({counter.argument})"
    if too_high := _too_high(counter, labels):
        remedy = f"It needs {labels.expected or too_high[-1] + 1}."
        if labels.is_one_based and too_high == [number]:
            remedy = f"The classes seem to be counted from 1: count them from 0 to {number - 1}."
        _say(stage, counter, labels)(
            "data",
            f"{has}, from 0 to {number - 1}, but {data} has the label {too_high[-1]} ({labels.first(too_high[-1])}). "
            f"{remedy}",
        )
    elif labels.expected and labels.expected < number and not counter.is_guess:
        stage.report.warn("data", f"{has}, but {data} has {labels.expected} only. If these are all, it needs no more.")


def _too_high(counter: ClassCount, labels: Labels) -> list[int]:
    return [int(label) for label in labels.classes if label >= counter.num_classes and label != counter.ignored]


def _check_classes(stage: Stage, labels: Labels, is_used: bool, is_told: bool) -> None:
    """Say if classes have no sample, or if there is one class only.

    Parameters
    ----------
    is_used
        Whether anything learns or counts labels.
    is_told
        Whether a number of classes was found to be too small for these labels.
    """
    data, classes = f"data.{labels.name}", labels.classes
    empty = np.setdiff1d(np.arange(labels.expected or 0), classes).tolist() if labels.is_all and len(classes) else []
    if labels.is_one_based:
        if not is_told:
            text = f"the labels run from 1 to {classes[-1]}, so they seem to be counted from 1. Count them from 0."
            stage.report.warn("data", f"{data}: {text}")
    elif len(classes) == 1 and len(labels.numbers) >= ENOUGH and is_used:
        which = "all samples" if labels.is_all else f"all {len(labels.numbers)} samples that were read"
        text = f"{which} have the class {classes[0]}, so there is nothing to tell apart. See how it is labelled."
        stage.report.warn("data", f"{data}: {text}")
    elif empty and is_used:
        which = f"{len(empty)} of {labels.expected} classes have no sample: {some_of(empty)}."
        stage.report.warn(
            "data", f"{data}: {which} See whether samples are missing, or classes are numbered with gaps."
        )


def _check_new_classes(stage: Stage, labels: Labels, train: Labels) -> None:
    """Say if an evaluation set has classes that the training set lacks."""
    new = np.setdiff1d(labels.classes, train.classes).tolist()
    if new and train.is_all and len(train.classes):
        stage.report.warn(
            "data",
            f"data.{labels.name}: data.train has no sample of {len(new)} of its classes: {some_of(new)}. See that both "
            "sets number their classes alike.",
        )
