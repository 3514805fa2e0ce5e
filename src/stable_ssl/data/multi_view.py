"""Several views of one image, by any transforms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..augmentations.images import as_array
from .checks import require
from .hidden import has


class MultiViewSampler:
    """Applies each of several transforms to an image. Returns a list of views; the bare view if there is one transform.

    Parameters
    ----------
    transforms
        Functions of an image, or pipelines of albumentations.

    Raises
    ------
    ConfigError
        It is not a list of functions, or an empty list.

    Examples
    --------
    >>> from stable_ssl.data import MultiViewSampler
    >>> sampler = MultiViewSampler([lambda image: image + 1, lambda image: -image])
    >>> sampler(3)
    [4, -3]
    """

    def __init__(self, transforms: Sequence[Callable]):
        is_list = isinstance(transforms, Sequence) and len(transforms) > 0 and all(map(callable, transforms))
        require(("transforms", transforms, is_list, "a list of functions of an image"))
        self.transforms = [as_function(transform) for transform in transforms]

    def __call__(self, image: Any) -> Any:
        """Return the views of one image."""
        views = [transform(image) for transform in self.transforms]
        return views[0] if len(views) == 1 else views


class Pipeline:
    """A pipeline of albumentations as a function of an image: it gets an array, (height, width, channels)."""

    def __init__(self, pipeline: Callable):
        self.pipeline = pipeline

    def __call__(self, image: Any) -> Any:
        """Return the pipeline's image."""
        return self.pipeline(image=np.array(as_array(image), order="C"))["image"]


def as_function(transform: Callable) -> Callable:
    """Return a transform as a function of an image. Pipelines of albumentations are called by keyword instead."""
    if not has(transform, "set_random_seed"):
        return transform
    parameters = list(inspect.signature(transform).parameters.values())
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p for p in parameters if p.kind is p.VAR_KEYWORD or p.name == "image"]
    return Pipeline(transform) if by_name and not by_place else transform
