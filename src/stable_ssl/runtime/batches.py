"""Images and labels of a batch `[images, labels]` or `[[view_1, view_2, …], labels]`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..exceptions import DataError
from .device import describe_batch


def images_of(batch: Any) -> Any:
    """Return the images of a batch, with labels or without. If it has several views, return the first.

    Raises
    ------
    DataError
        The batch is neither a tensor nor a list that begins with one.
    """
    images = batch
    while isinstance(images, list | tuple) and images:
        images = images[0]
    if not isinstance(images, Tensor):
        raise DataError(f"Expected a batch [images, labels], but it is {describe_batch(batch)}.")
    return images


def labels_of(batch: Any) -> Tensor | None:
    """Return the labels of a batch, whole numbers of shape (batch,), or None if it has none."""
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        return None
    labels = batch[1]
    return labels if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point() else None
