"""Several views of one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class MultiViewSampler:
    """Applies each of `transforms` to an image.

    One transform returns its view, several a list of views.
    """

    def __init__(self, transforms: Sequence[Callable]):
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        """Return the views of one image."""
        views = [transform(image) for transform in self.transforms]
        return views[0] if len(views) == 1 else views
