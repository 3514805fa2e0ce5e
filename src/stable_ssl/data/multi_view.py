"""Several views of one image, by any transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .checks import require


class MultiViewSampler:
    """Applies each of several transforms to an image. Returns a list of views; the bare view if there is one transform.

    Parameters
    ----------
    transforms
        Functions of an image.

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
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        """Return the views of one image."""
        views = [transform(image) for transform in self.transforms]
        return views[0] if len(views) == 1 else views
