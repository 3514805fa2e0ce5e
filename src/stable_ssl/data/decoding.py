"""Batches of views whose images are decoded in threads of this process, once for all views."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import numpy as np

from ..augmentations.cpu import PIECE_BYTES, pieces
from ..exceptions import DataError
from ..runtime.preemption import StopWaiting
from .collating import collate_rests
from .encoded import EncodedImages, OtherSizeError
from .prepared import PreparedImages
from .threads import Threads
from .views import BatchViews

_AHEAD = 1  # further batches that are in work while one is waited for


class DecodedBatches:
    """Decodes the images of a data set and makes views of them, in threads.

    A thread decodes as many images as fit into the caches together, and makes all their views before it goes on. So
    no image is decoded twice, and none is copied. Batches are the same for any number of threads.

    Parameters
    ----------
    images
        The images of the data set.
    make
        Makes the views.
    explained
        Returns the error that is raised instead of one that the sample of an index had.
    num_threads
        How many threads there are.
    """

    def __init__(
        self,
        images: EncodedImages | PreparedImages,
        make: BatchViews,
        explained: Callable[[Exception, int], Exception],
        num_threads: int,
    ):
        self.images, self.make, self._explained, self.num_threads = images, make, explained, num_threads
        self._local = threading.local()

    def batches(self, seed: int, epoch: int, wanted: list[list[int]]) -> Iterator[tuple[list[int], Any]]:
        """Yield (sample indices, batch) for each list of sample indices.

        Raises
        ------
        DataError
            A sample can't be read.
        """
        threads = Threads(self.num_threads, "decode")
        coming: deque[_Batch] = deque()
        try:
            for indices in wanted:
                coming.append(_Batch(self, threads, seed, epoch, indices))
                if len(coming) > _AHEAD:
                    batch = coming.popleft()
                    yield batch.indices, batch.result()
            while coming:
                batch = coming.popleft()
                yield batch.indices, batch.result()
        finally:
            # If the run was asked to stop, it saves first, because a thread may hang.
            threads.close(wait=not isinstance(sys.exception(), StopWaiting))

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an image."""
        try:
            return self.images.size(index)
        except Exception as error:
            raise self._explained(error, index) from error

    def decode(self, indices: list[int], sizes: np.ndarray) -> list[np.ndarray] | np.ndarray:
        """Return images in memory that is this thread's, and holds until it decodes others.

        Images of one size are one array (images, height, width, channels), others a list of arrays.
        """
        counts = sizes.prod(axis=1) * self.images.channels
        memory = self._memory(int(counts.sum()))
        images, first = [], 0
        for index, size, count in zip(indices, sizes, counts, strict=True):
            image = memory[first : first + count].reshape(*size, -1)
            try:
                self.images.decode(index, image)
            except OtherSizeError:
                raise
            except Exception as error:
                raise self._explained(error, index) from error
            images.append(image)
            first += count
        return images if (sizes != sizes[0]).any() else memory[:first].reshape(len(images), *images[0].shape)

    def _memory(self, num_bytes: int) -> np.ndarray:
        known = getattr(self._local, "memory", None)
        if known is None or len(known) < num_bytes:
            self._local.memory = known = np.empty(max(num_bytes, PIECE_BYTES), np.uint8)
        return known


class _Batch:
    """A batch that threads are making."""

    def __init__(self, source: DecodedBatches, threads: Threads, seed: int, epoch: int, indices: list[int]):
        self.indices = indices
        self._source, self._threads, self._key = source, threads, (seed, epoch, indices)
        self._target: Any = None  # what gets the decoded images
        self._pieces: list[Future] = []
        self._beginning = threads.submit(self._begin)  # a thread may begin at once

    def _begin(self) -> None:
        """Draw the parameters of the views, which depend on the images' sizes, and give out the work."""
        sizes = np.array([self._source.size(index) for index in self.indices])
        make, channels = self._source.make, self._source.images.channels
        self._target = make.begin(*self._key, sizes) if make.device is None else _Kept()
        num_bytes = sizes.prod(axis=1) * channels
        most = min(PIECE_BYTES, int(num_bytes.sum()) // self._source.num_threads)  # so that no thread is without work
        for first, end in pieces(num_bytes.tolist(), most):
            self._pieces.append(self._threads.submit(self._fill, first, self.indices[first:end], sizes[first:end]))

    def _fill(self, first: int, indices: list[int], sizes: np.ndarray) -> None:
        self._target.fill(first, self._source.decode(indices, sizes))

    def result(self) -> Any:
        """Return the batch."""
        for _ in range(len(self.indices) + 1):
            self._beginning.result()
            try:
                for piece in self._pieces:
                    piece.result()
                break
            except OtherSizeError:  # what was drawn does not suit the image: it begins again, with the right size
                wait(self._pieces)
                self._pieces = []
                self._beginning = self._threads.submit(self._begin)
        else:
            raise DataError(f"images of this batch change while they are read: samples {self.indices[:8]}.")
        rest = collate_rests([self._source.images.rest(index) for index in self.indices])
        make = self._source.make
        if make.device is None:
            return make.end(self._target, rest, *self._key)
        return make.batch(self._target.images(), rest, *self._key)


class _Kept:
    """Copies of decoded images, for views that are made on a device."""

    def __init__(self) -> None:
        self._images: dict[int, np.ndarray] = {}

    def fill(self, first: int, images: Any) -> None:
        self._images.update({first + number: image.copy() for number, image in enumerate(images)})

    def images(self) -> list[np.ndarray]:
        return [self._images[number] for number in sorted(self._images)]
