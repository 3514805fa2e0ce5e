"""`View` and `MultiView`: what is made of an image, and how to make it for a batch or for one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .cpu import BatchOnCpu
from .device import make_view as make_on_device
from .device import send
from .draw import Drawn, any_key, draw
from .images import as_array, look_over
from .masks import Mask
from .operations import Operation
from .operations.base import ToFloats

Shape = tuple[int, int] | None


class Views:
    """What `View` and `MultiView` share: making views of a batch, and telling beforehand what comes out.

    Attributes
    ----------
    views
        The views of each image.
    masks
        Masks of the patches to hide. A batch has them after its views.
    """

    views: tuple[View, ...]
    masks: tuple[Mask, ...] = ()

    def sizes(self) -> list[Shape]:
        """Return (height, width) of each view; None for a view whose size depends on the image."""
        return [_size_of(view.operations) for view in self.views]

    def check(self, channels: int) -> None:
        """Raise a ValueError if the views can't be made of images of so many channels.

        It says which operation of which view needs which number.
        """
        for number, view in enumerate(self.views):
            for operation in view.operations:
                try:
                    operation.check_channels(channels)
                except ValueError as error:
                    raise ValueError(f"view {number}: {error}") from None

    def make(self, images: Any, seed: int, epoch: int, indices: Sequence[int]) -> list[Tensor]:
        """Return the views of a batch, float32 (batch, channels, height, width) each, and then the masks.

        They are a function of the arguments alone.

        Parameters
        ----------
        images
            A uint8 array (batch, height, width, channels), or a list of arrays (height, width, channels). If they are a
            tensor of that shape, torch makes the views, on the tensor's device.
        seed, epoch
            The run's seed, and the epoch.
        indices
            The samples' places in their data set.

        Raises
        ------
        ValueError
            An image has another type or shape, is too small, or has a wrong number of channels.
        """
        images, sizes, channels = look_over(images, indices)
        self.check(channels)
        if isinstance(images, Tensor):
            drawn = self._drawn(seed, epoch, indices, sizes)
            made = [make_on_device(view.operations, own, images) for view, own in zip(self.views, drawn, strict=True)]
        else:
            batch = self.begin(seed, epoch, indices, sizes)
            batch.fill_all(images)
            made = batch.tensors()
        return made + [send(mask, made[0].device) for mask in self.make_masks(seed, epoch, indices)]

    def begin(self, seed: int, epoch: int, indices: Sequence[int], sizes: np.ndarray) -> BatchOnCpu:
        """Return a batch that gets its images piece by piece, and makes the views that `make` makes, without masks.

        Parameters
        ----------
        seed, epoch, indices
            As for `make`.
        sizes
            (batch, 2): height and width of each image.

        Raises
        ------
        ValueError
            An image is too small.
        """
        drawn = self._drawn(seed, epoch, indices, sizes)
        return BatchOnCpu([view.operations for view in self.views], drawn, len(indices))

    def make_masks(self, seed: int, epoch: int, indices: Sequence[int]) -> list[Any]:
        """Return the masks that follow the views of `make`."""
        numbered = enumerate(self.masks, start=len(self.views))
        return [drawn for number, mask in numbered for drawn in mask.make(number, seed, epoch, indices)]

    def _drawn(self, seed: int, epoch: int, indices: Sequence[int], sizes: np.ndarray) -> list[list[Drawn]]:
        """Return what is drawn for each view: the parameters of each of its operations."""
        return [draw(view.operations, number, seed, epoch, indices, sizes) for number, view in enumerate(self.views)]

    def parameters(self, seed: int, epoch: int, indices: Sequence[int], shape: Any) -> list[dict[str, np.ndarray]]:
        """Return what `make` draws for each view: arrays (batch, …) by names such as "0.RandomResizedCrop.top".

        `shape` is (height, width, …) of all images, or has one such row per image.
        """
        sizes = np.broadcast_to(np.asarray(shape)[..., :2], (len(indices), 2)).astype(np.int64)
        return [
            {
                f"{place}.{type(operation).__name__}.{name}": values
                for place, (operation, drawn) in enumerate(zip(view.operations, own, strict=True))
                for name, values in drawn.items()
            }
            for view, own in zip(self.views, self._drawn(seed, epoch, indices, sizes), strict=True)
        ]


class MultiView(Views):
    """Several views of an image, each with its own operations and size.

    A MultiView is a transform for any data set. It takes a PIL image, a uint8 tensor (channels, height, width) or a
    uint8 array (height, width, channels), draws from the default torch generator, and returns a list of float32 tensors
    (channels, height, width). `make` does the same for a batch, and is a function of its arguments alone.

    Parameters
    ----------
    views
        The views of each image, one `View` or more.
    masks
        Masks of the patches to hide, such as `RandomMask` or `BlockMasks`. A batch has them after its views.

    Raises
    ------
    ValueError
        There is no view, an item is no `View`, or a mask is no `Mask`.

    >>> import torch
    >>> from stable_ssl.augmentations import CenterCrop, HorizontalFlip, RandomResizedCrop, Resize
    >>> views = MultiView([View([RandomResizedCrop(24), HorizontalFlip()]), View([Resize(8), CenterCrop(8)])])
    >>> images = torch.randint(0, 256, (2, 32, 40, 3), dtype=torch.uint8)
    >>> [view.shape for view in views.make(images, seed=0, epoch=0, indices=[0, 1])]
    [torch.Size([2, 3, 24, 24]), torch.Size([2, 3, 8, 8])]
    """

    def __init__(self, views: Sequence[View], masks: Sequence[Mask] = ()):
        self.views, self.masks = tuple(views), tuple(masks)
        if not all(isinstance(mask, Mask) for mask in self.masks):
            raise ValueError(f"{type(self).__name__}: masks must be a list of masks such as RandomMask, not {masks!r}.")
        if not self.views or not all(isinstance(view, View) for view in self.views):
            raise ValueError(f"{type(self).__name__}: views must be a list of one View or more, not {views!r}.")

    def __call__(self, image: Any) -> list[Tensor]:
        """Return the views of one image."""
        views = self.make([as_array(image)], *any_key())
        return [view[0] for view in views]

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, MultiView) and (self.views, self.masks) == (other.views, other.masks)

    def __hash__(self) -> int:
        return hash((self.views, self.masks))

    def __repr__(self) -> str:
        return f"MultiView({list(self.views)!r}{f', {list(self.masks)!r}' if self.masks else ''})"


class View(Views):
    """One view of an image: operations that are done in turn, and end in a float32 image.

    Its values are those that `Normalize` gives if that is one of the operations, and from 0 to 1 if not. A View is a
    transform, as a `MultiView` is, but returns one tensor. `make` returns a list of one.

    Parameters
    ----------
    operations
        What to do, in this order.

    Raises
    ------
    ValueError
        An item is no `Operation`, or one can't stand where it does. Only `Erasing` can follow `Normalize`, and only
        there may its value be anything but a level from 0 to 255.

    >>> from stable_ssl.augmentations import HorizontalFlip, RandomResizedCrop
    >>> view = View([RandomResizedCrop(24), HorizontalFlip()])
    >>> view.sizes()
    [(24, 24)]
    """

    def __init__(self, operations: Sequence[Operation]):
        self.operations = tuple(operations)
        for operation in self.operations:
            if not isinstance(operation, Operation):
                raise ValueError(f"View: operations must be instances of Operation; {operation!r} is not.")
        after: ToFloats | None = None
        for operation in self.operations:
            try:
                operation.check_place(after)
            except ValueError as error:
                raise ValueError(f"View: {error}") from None
            after = operation if isinstance(operation, ToFloats) else after

    @property
    def views(self) -> tuple[View, ...]:  # type: ignore[override]
        """The view alone."""
        return (self,)

    def __call__(self, image: Any) -> Tensor:
        """Return the view of one image."""
        (view,) = self.make([as_array(image)], *any_key())
        return view[0]

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, View) and self.operations == other.operations

    def __hash__(self) -> int:
        return hash(self.operations)

    def __repr__(self) -> str:
        return f"View({list(self.operations)!r})"


def _size_of(operations: Sequence[Operation]) -> Shape:
    """Return (height, width) after the operations, None if that depends on the image."""
    size: Shape = None
    for operation in operations:
        if operation.fixed_size:
            size = operation.fixed_size
        elif size is not None:
            height, width = operation.output_size(*size)
            size = int(height), int(width)
    return size
