"""Views made on the CPU: those of torchvision's v2 functions on uint8 tensors, bit by bit.

(A blur differs by one level in less than 1 of 1,000 values; so does an affine map.)
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from .draw import Drawn
from .operations.base import Operation, ToFloats
from .operations.cropping import Cropping

# All operations are done to as many images as fit into the caches together.
PIECE_BYTES = 8 << 20
LINE = 64  # bytes of a line of a cache


def pieces(num_bytes: Iterable[int], most: int = PIECE_BYTES) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of images that have at most so many bytes together, or are one; from the bytes of each."""
    first = total = end = 0
    for number, size in enumerate(num_bytes):
        if number > first and total + size > most:
            yield first, number
            first, total = number, 0
        total, end = total + size, number + 1
    yield first, end


class BatchOnCpu:
    """The views of a batch, made of some of its images at a time. Several threads may do that at once.

    Parameters
    ----------
    views
        The operations of each view.
    drawn
        What was drawn for each operation of each view, for all images.
    num_images
        Size of the batch.
    """

    def __init__(self, views: Sequence[Sequence[Operation]], drawn: Sequence[Sequence[Drawn]], num_images: int):
        self._views = [_OnCpu(operations, own, num_images) for operations, own in zip(views, drawn, strict=True)]

    def fill_all(self, images: np.ndarray | list[np.ndarray]) -> None:
        """Make the views of all images, a piece at a time."""
        for first, end in pieces(image.nbytes for image in images):
            self.fill(first, images[first:end])

    def fill(self, first: int, images: np.ndarray | list[np.ndarray]) -> None:
        """Make the views of some images.

        Parameters
        ----------
        first
            The place of the first of them in the batch; the others follow it.
        images
            uint8 (images, height, width, channels), or a list of images (height, width, channels).

        Raises
        ------
        ValueError
            The views of the images are not of the size that those before have.
        """
        for view in self._views:
            view.fill(first, images)

    def tensors(self) -> list[torch.Tensor]:
        """Return the views, float32 (batch, channels, height, width) each, once all images are filled in."""
        return [view.tensor() for view in self._views]


class _OnCpu:
    """One view of a batch."""

    def __init__(self, operations: Sequence[Operation], drawn: Sequence[Drawn], num_images: int):
        place = next((i for i, operation in enumerate(operations) if isinstance(operation, ToFloats)), len(operations))
        self._on_levels = operations[:place]
        self._to_floats, *self._on_floats = operations[place:] or [ToFloats()]
        self._drawn, self._place, self._num_images = drawn, place, num_images
        self._batch: np.ndarray | None = None
        self._lock = threading.Lock()

    def fill(self, first: int, images: np.ndarray | list[np.ndarray]) -> None:
        last = first + len(images)
        parts = [{name: values[first:last] for name, values in parameters.items()} for parameters in self._drawn]
        pixels = _change(self._on_levels, parts[: self._place], images)
        floats = self._memory(pixels)[first:last]
        self._to_floats.write(pixels, floats)  # type: ignore[attr-defined]
        for operation, part in zip(self._on_floats, parts[self._place + 1 :], strict=True):
            changed = operation.on_cpu(part, floats)
            if changed is not floats:
                floats[:] = changed

    def _memory(self, pixels: np.ndarray) -> np.ndarray:
        """Return the memory of the batch; its shape is known once the first images are."""
        with self._lock:
            if self._batch is None:
                self._batch = _buffer((self._num_images, *pixels.shape[1:]))
        _check_alike(self._batch, pixels)
        return self._batch

    def tensor(self) -> torch.Tensor:
        assert self._batch is not None
        return torch.from_numpy(self._batch)


def _change(
    operations: Sequence[Operation], drawn: Sequence[Drawn], images: np.ndarray | list[np.ndarray]
) -> np.ndarray:
    """Return uint8 images (batch, channels, height, width) of those (batch, height, width, channels), changed."""
    place, first = 0, operations[0] if operations else None
    # A subclass that does something else on the CPU takes the images as other operations do.
    if (
        isinstance(first, Cropping)
        and type(first).on_cpu is Cropping.on_cpu
        and (first.fixed_size or not isinstance(images, list))
    ):
        pixels, place = first.on_images(drawn[0], images), 1
    elif isinstance(images, list):
        # Images of different sizes are changed one by one, until an operation gives them one.
        fixed = (number for number, operation in enumerate(operations, start=1) if operation.fixed_size)
        place = next(fixed, len(operations))
        alone = [
            _change(
                operations[:place],
                [{name: values[i : i + 1] for name, values in parameters.items()} for parameters in drawn[:place]],
                image[None],
            )
            for i, image in enumerate(images)
        ]
        for other in alone[1:]:
            _check_alike(alone[0], other)
        pixels = np.concatenate(alone) if len(alone) > 1 else alone[0]
    else:
        pixels = images.transpose(0, 3, 1, 2).copy()  # operations may work in place
    for operation, parameters in zip(operations[place:], drawn[place:], strict=True):
        pixels = operation.on_cpu(parameters, pixels)
    return pixels


def _check_alike(one: np.ndarray, other: np.ndarray) -> None:
    if one.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"views of {_size(one)} and of {_size(other)} pixels make no batch: images of different sizes need "
            "an operation that gives them one, such as RandomResizedCrop or CenterCrop."
        )


_known: list[tuple[np.ndarray, weakref.ref]] = []
_lock = threading.Lock()
# A process may be forked while another thread of its parent holds the lock.
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock()))


def _buffer(shape: tuple[int, ...]) -> np.ndarray:
    """Return memory for a view: that of an earlier one which nobody uses any more, if there is one.

    Touching new pages of memory would take as long as the work. If there is none, free memory of other shapes is let
    go, such as that of an evaluation.
    """
    with _lock:
        free = [i for i, (memory, user) in enumerate(_known) if memory.shape == shape and user() is None]
        if free:
            memory = _known.pop(free[0])[0]
        else:
            _known[:] = [(memory, user) for memory, user in _known if user() is not None]
            memory = _at_a_line(shape)
        batch = memory.view()  # a tensor of it, and all that is made of that tensor, keep this object alive
        _known.append((memory, weakref.ref(batch)))
        return batch


def _at_a_line(shape: tuple[int, ...]) -> np.ndarray:
    """Return new memory that begins where a line of the caches does, so that vectors can be written past them."""
    num_values, line = math.prod(shape), LINE // 4
    memory = np.empty(num_values + line, np.float32)
    start = -memory.ctypes.data // 4 % line
    return memory[start : start + num_values].reshape(shape)


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]} × {pixels.shape[3]}"
