"""`View` and `MultiView`: what is made of an image, and how to make it for a batch or for one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .draw import RESIZING, draw, output_size
from .masks import BlockMasks, RandomMask
from .operations import ColorJitter, Erasing, Grayscale, Normalize, Operation

Shape = tuple[int, int] | None


class MultiView:
    """Several views of an image, each with operations and a size of its own.

    Called on one image (PIL, a uint8 tensor (channels, height, width) or a uint8 array (height, width, channels)), it
    returns a list of float32 tensors (channels, height, width), and draws from the default torch generator: a transform
    for any data set. `make` does the same for a batch, and draws from nothing but its arguments.

    Parameters
    ----------
    views
        What to make.
    masks
        Which patches to hide, `RandomMask` or `BlockMasks`: what they make comes after the views.

    Raises
    ------
    ValueError
        There is no view, or one that is not a `View`; or a mask of another kind.
    """

    masks: tuple[RandomMask | BlockMasks, ...] = ()

    def __init__(self, views: Sequence[View], masks: Sequence[RandomMask | BlockMasks] = ()):
        self.views, self.masks = tuple(views), tuple(masks)
        if not all(isinstance(mask, RandomMask | BlockMasks) for mask in self.masks):
            raise ValueError(f"{type(self).__name__}: masks must be RandomMask or BlockMasks, not {masks!r}.")
        if not self.views or not all(isinstance(view, View) for view in self.views):
            raise ValueError(f"{type(self).__name__}: views must be a list of one View or more, not {views!r}.")

    def sizes(self) -> list[Shape]:
        """Return (height, width) of each view; None for one whose size is up to the image's."""
        return [_size_of(view.operations) for view in self.views]

    def check(self, channels: int) -> None:
        """See whether the views can be made of images of so many channels.

        Raises
        ------
        ValueError
            They can't; says which operation of which view needs what.
        """
        for number, view in enumerate(self.views):
            for operation in view.operations:
                possible = _possible_channels(operation)
                if possible and channels not in possible:
                    wanted = " or ".join(map(str, possible))
                    raise ValueError(
                        f"view {number}: {operation} needs images of {wanted} channels, not of {channels}."
                    )

    def make(self, images: Any, seed: int, epoch: int, indices: Sequence[int]) -> list[Tensor]:
        """Return each view of a batch, float32 (batch, channels, height, width), and masks: a function of these alone.

        Parameters
        ----------
        images
            A uint8 array (batch, height, width, channels), or a list of arrays (height, width, channels). A tensor of
            that shape on any device: the views are made there, by torch.
        seed, epoch
            Of the run.
        indices
            Of the samples in their data set.

        Raises
        ------
        ValueError
            An image is not as expected, too small, or of a wrong number of channels.
        """
        # With numba, which takes seconds to import, and with torch's compiler.
        if isinstance(images, Tensor):
            from .device import make_view
        else:
            from .cpu import make_view

        images, sizes, channels = _take(images, indices)
        self.check(channels)
        made = [
            make_view(view.operations, draw(view.operations, number, seed, epoch, indices, sizes), images)
            for number, view in enumerate(self.views)
        ]
        for number, mask in enumerate(self.masks, start=len(made)):
            made += [send(drawn, made[0].device) for drawn in mask.make(number, seed, epoch, indices)]
        return made

    def parameters(self, seed: int, epoch: int, indices: Sequence[int], shape: Any) -> list[dict[str, np.ndarray]]:
        """Return what `make` draws for each view: arrays (batch, …) by name, such as "0.RandomResizedCrop.top".

        `shape` is (height, width, …) of all images, or one row of that for each.
        """
        sizes = np.broadcast_to(np.asarray(shape)[..., :2], (len(indices), 2)).astype(np.int64)
        return [
            {
                f"{place}.{type(operation).__name__}.{name}": values
                for place, (operation, drawn) in enumerate(
                    zip(view.operations, draw(view.operations, number, seed, epoch, indices, sizes), strict=True)
                )
                for name, values in drawn.items()
            }
            for number, view in enumerate(self.views)
        ]

    def __call__(self, image: Any) -> Any:
        """Return the views of one image."""
        views = self.make([as_array(image)], *_any_key())
        return [view[0] for view in views]

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, MultiView) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> Any:
        return tuple(view.operations for view in self.views), self.masks

    def __repr__(self) -> str:
        return f"MultiView({list(self.views)!r}{f', {list(self.masks)!r}' if self.masks else ''})"


class View(MultiView):
    """One view: operations, done in turn, that end in a float32 image.

    Its values are those of `Normalize` if that is among them, and else from 0 to 1. Called on one image it returns one
    tensor; `make` returns a list of one.

    Parameters
    ----------
    operations
        What to do.

    Raises
    ------
    ValueError
        There is something else among them; `Normalize` is there twice, or is followed by more than `Erasing`; or
        `Erasing` before it has a value that is no level.
    """

    def __init__(self, operations: Sequence[Operation]):
        self.operations = tuple(operations)
        for operation in self.operations:
            if not isinstance(operation, Operation):
                raise ValueError(f"View: operations must be those of this package; {operation!r} is not.")
        names = [type(operation).__name__ for operation in self.operations]
        after = names[names.index("Normalize") + 1 :] if "Normalize" in names else []
        if set(after) - {"Erasing"}:
            raise ValueError(f"View: only Erasing can follow Normalize, not {', '.join(after)}.")
        for operation in self.operations[: len(names) - len(after)]:
            if isinstance(operation, Erasing) and not set(operation.value) <= set(range(256)):  # type: ignore[arg-type]
                raise ValueError(f"View: before Normalize, {operation} must have levels, whole numbers from 0 to 255.")
        self.views = (self,)

    def __call__(self, image: Any) -> Tensor:
        """Return the view of one image."""
        return super().__call__(image)[0]

    def __repr__(self) -> str:
        return f"View({list(self.operations)!r})"


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, without waiting for it."""
    return tensor.to(device) if device.type != "cuda" else tensor.pin_memory().to(device, non_blocking=True)


def transform(operation: Operation, image: Any) -> Any:
    """Return a PIL image, uint8 tensor or uint8 array, changed by one operation; see `Operation`."""
    from .cpu import change

    if isinstance(operation, Normalize):
        return View([operation])(image)
    array, (seed, epoch, indices) = as_array(image), _any_key()
    images, sizes, channels = _take([array], indices)
    view = View([operation])
    view.check(channels)
    drawn = draw(view.operations, 0, seed, epoch, indices, sizes)
    planes = change(view.operations, drawn, images[0][None])[0]
    if isinstance(image, Tensor):
        return torch.from_numpy(planes)
    changed = np.ascontiguousarray(planes.transpose(1, 2, 0))
    if isinstance(image, np.ndarray):
        return changed.reshape(*changed.shape[: image.ndim])
    from PIL import Image

    return Image.fromarray(changed[:, :, 0] if channels == 1 else changed)


def _any_key() -> tuple[int, int, list[int]]:
    """Return seed, epoch and index from the default torch generator."""
    return int(torch.randint(1 << 62, ()).item()), 0, [0]


def as_array(image: Any) -> np.ndarray:
    """Return one image as (height, width, channels); a picture in bytes that is neither grey nor RGB becomes RGB."""
    if isinstance(image, Tensor):
        return image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
    mode = getattr(image, "mode", "RGB")
    if mode not in ("L", "RGB") and mode[0] not in "IF":
        image = image.convert("RGB")
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def _take(images: Any, indices: Sequence[int]) -> tuple[Any, np.ndarray, int]:
    """Return the images as an array or a list of them, their sizes (batch, 2), and how many channels they have."""
    if len(images) != len(indices) or len(images) == 0:
        raise ValueError(f"{len(images)} images and {len(indices)} indices: there must be as many, and at least one.")
    if not isinstance(images, list):
        if images.dtype not in (np.uint8, torch.uint8) or images.ndim != 4 or 0 in images.shape:
            raise ValueError(
                f"images must be a uint8 array (batch, height, width, channels), not {images.dtype} {images.shape}."
            )
        return images, np.tile(images.shape[1:3], (len(images), 1)), images.shape[3]
    images = [np.asarray(image) for image in images]
    channels = images[0].shape[-1] if images[0].ndim else 0
    for image, index in zip(images, indices, strict=True):
        if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
            raise ValueError(
                f"sample {index} must be a uint8 image (height, width, channels), not {image.dtype} {image.shape}."
            )
        if image.shape[2] != channels:
            raise ValueError(
                f"sample {index} has {image.shape[2]} channels, and sample {indices[0]} has {channels}: convert "
                "all images to one kind."
            )
    return images, np.array([image.shape[:2] for image in images]), channels


def _size_of(operations: Sequence[Operation]) -> Shape:
    """Return (height, width) after the operations, None if that is up to the image."""
    size: Shape = None
    for operation in operations:
        if isinstance(operation, RESIZING):
            if not isinstance(operation.size, int):
                size = tuple(operation.size)  # type: ignore[assignment]
            elif size is not None:
                size = tuple(map(int, output_size(operation, *size)))  # type: ignore[assignment]
    return size


def _possible_channels(operation: Operation) -> tuple[int, ...]:
    """Return the numbers of channels that an operation makes sense for, none for any."""
    if isinstance(operation, ColorJitter | Grayscale):
        return (1, 3)
    values = getattr(operation, {Normalize: "mean", Erasing: "value"}.get(type(operation), ""), ())
    return (len(values),) if len(values) > 1 else ()
