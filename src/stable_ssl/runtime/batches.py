"""The parts of samples and batches: `[images, labels, …]`, `[[view_1, view_2, …], labels, …]`, or dicts of these."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from ..exceptions import DataError
from .device import describe_batch

IMAGE_KEYS = ("image", "img", "images", "pixel_values")
LABEL_KEYS = ("label", "labels", "target", "targets", "fine_label")


def image_key(parts: Mapping[str, Any]) -> str:
    """Return the key of the image in a dict: of a sample, or of a batch.

    It is the first of `IMAGE_KEYS` that the dict has, else the key of the only value that is an image.

    Raises
    ------
    DataError
        No value is known to be the image, or several values may be it.
    """
    named = [key for key in IMAGE_KEYS if key in parts]
    found = named[:1] or [key for key, value in parts.items() if _is_image(value)]
    if len(found) == 1:
        return found[0]
    why = f"{found} may all be the image" if found else "none of them is known to be the image"
    raise DataError(
        f"a sample is a dict of {list(parts)}, and {why}. Have the data set call it 'image', or give (image, label)."
    )


def _is_image(value: Any) -> bool:
    """Return whether a value can only be an image, a batch of images, or a list of views of it."""
    if isinstance(value, list | tuple) and value:
        return _is_image(value[0])
    return type(value).__module__.startswith("PIL.") or (isinstance(value, Tensor | np.ndarray) and value.ndim >= 3)


def images_of(batch: Any) -> Any:
    """Return the images of a batch, with labels or without. If it has several views, return the first.

    Raises
    ------
    DataError
        The batch is neither a tensor, nor a list that begins with one, nor a dict that has one.
    """
    images = batch[image_key(batch)] if isinstance(batch, Mapping) else batch
    while isinstance(images, list | tuple) and images:
        images = images[0]
    if not isinstance(images, Tensor):
        raise DataError(f"Expected a batch [images, labels], but it is {describe_batch(batch)}.")
    return images


def views_of(batch: Any, num_masks: int = 0) -> list[Any]:
    """Return the views of a batch, and the masks that follow them, without labels and other parts.

    Parameters
    ----------
    batch
        `[[view_1, view_2, …], labels, …]`, `[view, labels, …]`, or the views alone.
    num_masks
        The number of masks that follow the views.
    """
    views = batch[image_key(batch)] if isinstance(batch, Mapping) else batch
    if isinstance(views, list | tuple) and views and isinstance(views[0], list | tuple):
        views = views[0]
    elif isinstance(views, list | tuple) and isinstance(views[0], Tensor) and not isinstance(batch, Mapping):
        # The views are alone, or labels of any kind follow them.
        first = views[0]
        count = len(list(itertools.takewhile(lambda part: _is_like(part, first), views)))
        masks = itertools.takewhile(_is_mask, views[count : count + num_masks])
        views = [*views[:count], *masks]
    return list(views) if isinstance(views, list | tuple) else [views]


def _is_like(part: Any, view: Tensor) -> bool:
    return isinstance(part, Tensor) and (part.dtype, part.ndim) == (view.dtype, view.ndim)


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype == torch.bool


def labels_in(batch: Any) -> Any:
    """Return the labels of a batch, whatever they are; None if it has none."""
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABEL_KEYS if key in batch), None)
    return batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None


def has_labels(batch: Any, num_masks: int = 0) -> bool:
    """Return whether a batch has labels, of whatever kind, beside its views and the masks that follow them."""
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], Tensor):
        return len(batch) > len(views_of(batch, num_masks))
    return labels_in(batch) is not None


def num_unlabelled(dataset: Any) -> int:
    """Return how many samples of a data set have the label -1, which means none; 0 if it does not tell."""
    if isinstance(dataset, Subset):
        targets = getattr(dataset.dataset, "targets", None)
        return sum(targets[index] == -1 for index in dataset.indices) if isinstance(targets, list) else 0
    targets = getattr(dataset, "targets", None)
    return targets.count(-1) if isinstance(targets, list) else 0


def labels_of(batch: Any) -> Tensor | None:
    """Return the class indices in a batch, (batch,), or None if its labels are anything else."""
    labels = labels_in(batch)
    return labels if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point() else None
