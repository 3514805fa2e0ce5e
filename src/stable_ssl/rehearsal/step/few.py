"""The first samples of a data set, in place of all of them, so that a step on a CPU takes little time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, cast

from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import Subset

from ...data import Loader
from ...runtime.batches import labels_of
from ...runtime.device import count_images

Batch = tuple[Any, Any]  # sample indices, or None if they are not known; and the batch


def first_batch(loader: Any, most: int | None = None) -> Batch | None:
    """Return the first batch of epoch 0, as a loader that is bound to a run yields it; None if there is none.

    A `Loader` reads the samples of this batch and no others: it neither holds its data set in memory for that, nor
    reads ahead.

    Parameters
    ----------
    loader
        What stands in the `data` of a trainer that is set up.
    most
        The largest number of samples that a `Loader` reads. None: those of the whole batch.

    Raises
    ------
    DataError
        A sample can't be read, or the samples make no batch.
    """
    if not isinstance(loader, Loader):
        with closing(loader.batches(0)) as batches:
            return next(batches, None)
    wanted = [indices[:most] for indices in loader._index_batches(0)[:1]]
    with closing(batches_of(loader, wanted)) as batches:
        return next(batches, None)


def batches_of(loader: Loader, wanted: list[list[int]]) -> Generator[Batch]:
    """Yield the batch of each list of sample indices, as in epoch 0 of the run. No other samples are read."""
    with _not_held(loader), closing(cast(Generator, loader._batches(0, wanted))) as batches:
        yield from batches


@contextmanager
def _not_held(loader: Loader) -> Iterator[None]:
    """Have a loader read samples when they are needed in the block, and decide anew where they are kept after it."""
    dataset = loader.dataset
    while type(dataset) is Subset:
        dataset = dataset.dataset
    attributes = getattr(dataset, "__dict__", {})  # a list has none: it is in memory already
    before = {key: attributes[key] for key in ("in_memory",) if key in attributes}
    if loader.views is not None:
        attributes["in_memory"] = False
    try:
        yield
    finally:
        attributes.pop("in_memory", None)
        attributes.update(before)
        loader.close()
        loader._make = loader._held = loader._decoded = None


def few_of(found: Batch, count: int) -> Batch:
    """Return a batch with fewer of its samples: one of the largest label, one of the smallest, and the first ones.

    Parameters
    ----------
    found
        Sample indices, and the batch: nested lists, tuples and dicts. In it, each tensor and each list of values whose
        length is that of the batch has an entry per sample.
    count
        How many samples.
    """
    size, labels = count_images(None, found[1]), labels_of(found[1])
    if size <= count:
        return found
    odd = [int(labels.argmax()), int(labels.argmin())] if labels is not None and len(labels) == size else []
    return rows_of(found, sorted([*dict.fromkeys([*odd, *range(size)])][:count]))


def rows_of(found: Batch, rows: list[int]) -> Batch:
    """Return a batch with some of its samples, given by their places in it."""
    indices, batch = found
    size = count_images(None, batch)

    def chosen(part: Any) -> Any:
        if isinstance(part, list | tuple) and len(part) == size:
            return type(part)(part[row] for row in rows)
        return part[rows] if isinstance(part, Tensor) and part.ndim and len(part) == size else part

    return chosen(indices), tree_map(chosen, batch, is_leaf=_is_flat)


def _is_flat(part: Any) -> bool:
    """Return whether a part of a batch is a list of values, such as texts, and of nothing that may have rows itself."""
    return type(part) in (list, tuple) and not any(isinstance(item, Tensor | list | tuple | dict) for item in part)


class Few:
    """A loader that yields a few samples of another one; all else is as with the other one.

    Parameters
    ----------
    loader
        The other one.
    found
        Sample indices, and the batch. Each batch that is yielded is a copy, since a step may change its tensors.
    count
        Number of batches per epoch.
    """

    def __init__(self, loader: Any, found: Batch, count: int = 1):
        self._loader, self._found, self._count = loader, found, count

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the samples once per batch of an epoch from number `start` on."""
        indices, batch = self._found
        for _ in range(start, self._count):
            yield indices, tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, batch)

    def __iter__(self) -> Iterator[Any]:
        return (batch for _, batch in self.batches(0))

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # a hook may ask what it is
        return type(self._loader)
