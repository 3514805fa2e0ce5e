"""How many batches a data set makes, and in which order its samples come."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...data import Loader
from ...data.order import Share, count_cut, count_dealt, draw
from ...exceptions import DataError
from ..stage import Stage
from .labels import ENOUGH, Labels


def check_counts(stage: Stage, name: str, loader: Loader) -> None:
    """Check the size of batches against the number of samples."""
    if loader.sampler is not None or loader.batch_sampler is not None:
        _check_sampler(stage, name, loader)
        return
    number, world = len(loader.dataset), stage.world_size
    size = loader.batch_size or 1
    each = f" on each of {world} processes" if world > 1 else ""
    if count_cut(number, size, loader.drop_last, Share(world - 1, world, name == "train")) == 0 and name == "train":
        stage.report.error(
            "data",
            f"data.{name}.batch_size: {number} samples make no batch of {size}{each}"
            f"{' with drop_last' if loader.drop_last else ''}. Give a smaller one.",
        )
    elif name == "train" and size * world > number:
        stage.report.warn(
            "data",
            f"data.{name}.batch_size: {size}{each} is more than the {number} samples, so each epoch is one batch of "
            f"{number}. Give a smaller one.",
        )
    elif name == "train" and not loader.drop_last and number % size == 1 < size and world == 1:
        stage.report.warn(
            "data",
            f"data.{name}.drop_last: false, and {number} samples in batches of {size} leave 1 for the last one. Batch "
            "normalization of vectors fails with it, and a loss that compares images has no other one. Set it to true.",
        )
    elif name != "train" and loader.drop_last and number % (size * world):
        stage.report.warn(
            "data",
            f"data.{name}.drop_last: true leaves {number % (size * world)} of {number} samples out of each evaluation. "
            "Set it to false.",
        )


def _check_sampler(stage: Stage, name: str, loader: Loader) -> None:
    """Check the samples that a sampler of the user's gives."""
    key = "batch_sampler" if loader.batch_sampler is not None else "sampler"
    sampler = getattr(loader, key)
    try:
        drawn: list[Any] = draw(sampler, 0, 0)
        indices = np.array([index for batch in drawn for index in batch] if key == "batch_sampler" else drawn)
    except Exception as error:  # of the user's code
        raise DataError(f"data.{name}.{key}: it fails: {type(error).__name__}: {error}") from error
    number, share = len(loader.dataset), Share(stage.world_size - 1, stage.world_size, name == "train")
    if key == "batch_sampler":
        count = count_dealt(len(drawn), share)
    else:
        count = count_cut(len(drawn), loader.batch_size or 1, loader.drop_last, share)
    if not count:
        stage.report.error("data", f"data.{name}.{key}: it gives {len(drawn)}, which make no batch.")
    elif indices.dtype.kind in "iu" and not (-number <= indices.min() and indices.max() < number):
        odd = indices.max() if indices.max() >= number else indices.min()
        stage.report.error(
            "data",
            f"data.{name}.{key}: it gives the sample {odd}, but the data set has {number}, from 0 to {number - 1}.",
        )


def check_order(stage: Stage, name: str, loader: Loader, labels: Labels) -> None:
    """Warn of training samples that are not shuffled. If they are in the order of their classes, say so."""
    is_plain = loader.sampler is None and loader.batch_sampler is None and not loader.shuffle
    if name != "train" or not is_plain or len(loader.dataset) <= (loader.batch_size or 1) * stage.world_size:
        return
    is_known = labels.is_all or len(labels.numbers) >= ENOUGH
    is_sorted = len(labels.classes) > 1 and (np.diff(labels.numbers) >= 0).all()
    why = "each epoch has the order of the data set, and training usually shuffles"
    if is_known and is_sorted:
        why = "the samples are in the order of their classes, so most batches have samples of few classes only"
    stage.report.warn("data", f"data.{name}.shuffle: false, and {why}. Set it to true.")
