"""Transforms by their names, as configurations of early 2025 could list them: corruptions, and all of torchvision's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ..exceptions import nearest
from . import operations
from .corruptions import Corruption

_OWN: dict[str, Any] = {kind.__name__: kind for kind in Corruption.__subclasses__()}
_OWN["GaussianBlur"] = operations.GaussianBlur


class TransformConfig:
    """A transform by its name: `GaussianBlur`, a corruption, or one of `torchvision.transforms.v2`.

    Parameters
    ----------
    name
        Of the transform. None: the image stays as it is.
    args, kwargs
        Its arguments. An `interpolation` among them may be the name of a mode of torchvision.
    p
        Probability that it is applied.

    Raises
    ------
    ValueError
        There is no such transform, or it takes `p` itself.
    """

    def __init__(
        self,
        name: str | None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        p: float = 1,
    ):
        from torchvision.transforms import v2

        self.name, self.args, self.kwargs, self.p = name, list(args or []), dict(kwargs or {}), p
        if "interpolation" in self.kwargs:
            self.kwargs["interpolation"] = get_interpolation_mode(self.kwargs["interpolation"])
        kind: Any = v2.Identity if name is None else _OWN.get(name, getattr(v2, name, None))
        if kind is None:
            raise ValueError(f"TransformConfig: '{name}' is no transform.{nearest(name, [*_OWN, *dir(v2)])}")
        if p < 1 and name not in _OWN and "p" in inspect.signature(kind).parameters:
            raise ValueError(f"TransformConfig: p: {p} belongs into the kwargs of {name}, which takes it itself.")
        made = kind(*self.args, **self.kwargs)
        self._transform = v2.RandomApply([made], p) if p < 1 else made

    def __call__(self, image: Any) -> Any:
        """Return the image, transformed."""
        return self._transform(image)


class TransformsConfig:
    """Some transforms in turn, and then a float32 tensor of values from 0 to 1.

    Parameters
    ----------
    name
        Has no effect.
    transforms
        Arguments of a `TransformConfig` for each.
    """

    def __init__(self, name: str | None = None, transforms: Sequence[Mapping[str, Any]] | None = None):
        import torch
        from torchvision.transforms import v2

        self.name, self.transforms = name, [TransformConfig(**options) for options in transforms or []]
        self._transform = v2.Compose([*self.transforms, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def __call__(self, image: Any) -> Any:
        """Return the image, transformed."""
        return self._transform(image)


def get_interpolation_mode(mode_str: Any) -> Any:
    """Return torchvision's interpolation mode of this name."""
    from torchvision.transforms import InterpolationMode

    names = [mode.value for mode in InterpolationMode]
    if mode_str not in [*names, *InterpolationMode]:
        raise ValueError(f"'{mode_str}' is no interpolation mode: take one of {names}.{nearest(mode_str, names)}")
    return InterpolationMode(mode_str)
