"""How a Loader makes views: declared views per batch, any other transform per sample."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets.folder import default_loader

from ..augmentations import MultiView, View
from ..augmentations.cpu import BatchOnCpu
from ..augmentations.operations import Operation
from ..augmentations.views import as_array, send
from ..exceptions import ConfigError, DataError
from .collating import collate_rests, join, split
from .datasets import to_float_tensor
from .images import NUM_LOOKED_AT, ImageDecoder, spread
from .multi_view import MultiViewSampler, Pipeline, as_function


class WithViews(Dataset):
    """A data set whose images are replaced by views of them, each drawn from the default generators.

    Parameters
    ----------
    dataset
        Its samples are images, or begin with one.
    views
        A transform, or a list of transforms.
    """

    def __init__(self, dataset: Any, views: Callable | Sequence[Callable]):
        self.transform = as_function(views) if callable(views) else MultiViewSampler(views)
        transforms = self.transform.transforms if isinstance(self.transform, MultiViewSampler) else [self.transform]
        # Pipelines of albumentations need the uint8 pixels, as declared views do.
        self.dataset = as_read(dataset) if all(isinstance(one, Pipeline) for one in transforms) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image, rest = split(self.dataset[index])
        made = join(self.transform(image), rest)
        return tuple(made) if isinstance(rest, list) else made


class SingleView(MultiView):
    """The `MultiView` of a `View` that was declared alone: its batches hold a tensor, not a list of one.

    It is written as its `View`, so that a checkpoint tells them apart from a list of one view.
    """

    def __init__(self, view: View):
        super().__init__([view])

    def __repr__(self) -> str:
        return repr(self.views[0])


def as_declared(views: Any) -> MultiView | None:
    """Return declared views as a `MultiView`, and None for anything else.

    A `View`, and an operation, which is a `View` of it alone, become a `SingleView`. A list of these becomes a
    `MultiView`.
    """
    if isinstance(views, View | Operation):
        return SingleView(_as_view(views))
    if isinstance(views, MultiView):
        return views
    if isinstance(views, Sequence) and views and all(isinstance(view, View | Operation) for view in views):
        return MultiView([_as_view(view) for view in views])
    return None


def _as_view(view: View | Operation) -> View:
    return View([view]) if isinstance(view, Operation) else view


class BatchViews:
    """Makes a batch by declared views.

    Parameters
    ----------
    views
        The views to make of each image.
    device
        Where torch makes the views. None: the loops of this package make them on the CPU.
    channels
        Of the images, as `find_shape` tells.
    """

    def __init__(self, views: MultiView, device: torch.device | None = None, channels: int | None = None):
        self.views, self.device, self.channels = views, device, channels

    def __call__(self, samples: Sequence[Any], seed: int, epoch: int, indices: Sequence[int]) -> Any:
        """Return the batch of samples that were read.

        It is `[views, labels, …]`; a dict if samples are dicts; the views if samples are only images.
        """
        images, rests = self.take_apart(samples, indices)
        return self.batch(images, collate_rests(rests), seed, epoch, indices)

    def take_apart(self, samples: Sequence[Any], indices: Sequence[int]) -> tuple[list[np.ndarray], Sequence[Any]]:
        """Return the images of samples, and the rest of each sample."""
        images, rests = zip(*map(split, samples), strict=True)
        return [to_array(image, index, self.channels) for image, index in zip(images, indices, strict=True)], rests

    def batch(self, images: Any, rest: Any, seed: int, epoch: int, indices: Sequence[int]) -> Any:
        """Return the batch of images, as arrays or a tensor, and of what `collate_rests` returned."""
        if self.device is not None:
            images = send(images if isinstance(images, Tensor) else stack(images, indices), self.device)
        return self._join(self.views.make(images, seed, epoch, indices), rest)

    def begin(self, seed: int, epoch: int, indices: Sequence[int], sizes: np.ndarray) -> BatchOnCpu:
        """Return a batch that gets its images piece by piece, of which `end` makes what `batch` returns.

        `sizes` is (batch, 2): height and width of each image.
        """
        return self.views.begin(seed, epoch, indices, sizes)

    def end(self, batch: BatchOnCpu, rest: Any, seed: int, epoch: int, indices: Sequence[int]) -> Any:
        """Return the batch, once it has all images."""
        masks = self.views.make_masks(seed, epoch, indices)
        return self._join([*batch.tensors(), *masks], rest)

    def _join(self, made: list[Tensor], rest: Any) -> Any:
        return join(made[0] if isinstance(self.views, SingleView) else made, rest)


def stack(images: Any, indices: Sequence[int]) -> Tensor:
    """Return images as a tensor.

    Raises
    ------
    DataError
        They are not of one size.
    """
    for image, index in zip(images, indices, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"sample {index} is {image.shape} and sample {indices[0]} is {images[0].shape}, (height, width, "
                "channels): views on a device need images of one size. Set on='cpu', or resize them before."
            )
    return torch.from_numpy(np.stack(images) if isinstance(images, list) else images)


def as_read(dataset: Any) -> Any:
    """Let a data set give the uint8 pixels that declared views need.

    A data set of this package does not convert them to float then. Torchvision's folders, whose own loader makes white
    of 16-bit images, decode as this package's do. The data set is left as it is; a changed copy is returned.
    """
    if isinstance(dataset, Subset):
        return Subset(as_read(dataset.dataset), dataset.indices)
    changes: dict[str, Any] = {}
    if getattr(dataset, "transform", None) is to_float_tensor:
        changes["transform"] = np.asarray
    if getattr(dataset, "loader", None) is default_loader and type(dataset).__module__.startswith("torchvision."):
        changes["loader"] = ImageDecoder(channels=3)
    if changes:
        dataset = copy.copy(dataset)
        vars(dataset).update(changes)
    return dataset


def find_shape(read: Callable[[int], Any], num_samples: int) -> tuple[int, ...]:
    """Return (height, width, channels) of the first image. If it is grey and others are not, it has 3 channels.

    Parameters
    ----------
    read
        Returns the sample of an index. A few samples decide, if the first one is grey.
    num_samples
        How many samples there are.
    """
    first, *others = spread(num_samples)
    height, width, channels = to_array(split(read(first))[0], first).shape
    for index in others if channels == 1 else []:
        with contextlib.suppress(DataError):  # the error comes when the sample is read for a batch
            if to_array(split(read(index))[0], index).shape[2] == 3:
                return height, width, 3
    return height, width, channels


def check_views(views: MultiView, shape: tuple[int, ...], seed: int, name: str) -> None:
    """Raise a ConfigError if views can't be made of an image of this shape; `name` is that of the data set."""
    try:
        views.check(shape[2])
        views.parameters(seed, 0, [0], shape)
    except ValueError as error:
        raise ConfigError(f"data.{name}.views: {error}") from error


def to_array(image: Any, index: int, channels: int | None = None) -> np.ndarray:
    """Return an image as uint8 (height, width, channels).

    Parameters
    ----------
    image
        A PIL image, a tensor (channels, height, width) or an array (height, width, channels).
    index
        Of the sample, for the error.
    channels
        3: a grey image becomes RGB.

    Raises
    ------
    DataError
        It is something else, or `channels` is 1 and the image is RGB.
    """
    array = as_array(image)
    if array.dtype != np.uint8 or array.ndim != 3:
        shape = tuple(getattr(image, "shape", array.shape))
        kind = f"a {type(image).__name__}" if array.dtype == object else f"{array.dtype} {shape}"
        raise DataError(
            f"sample {index} is {kind}; declared views are made of PIL images, uint8 tensors "
            "(channels, height, width) or uint8 arrays (height, width, channels). Leave out the data set's transform, "
            "or convert the images to uint8 levels."
        )
    if channels == 1 and array.shape[2] == 3:
        raise DataError(
            f"sample {index} is RGB, but {NUM_LOOKED_AT} others are grey. Give the data set channels=3 or channels=1, "
            "or convert its images to one kind."
        )
    return np.repeat(array, 3, axis=2) if channels == 3 and array.shape[2] == 1 else array
