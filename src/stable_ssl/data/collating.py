"""Samples taken apart into an image and its other parts, put together again, and collated to batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data.dataloader import default_collate

from ..exceptions import DataError
from ..runtime.batches import image_key
from .faults import is_of_worker, is_out_of_memory


def split(sample: Any) -> tuple[Any, Any]:
    """Return a sample's image, and its other parts.

    These are a list; a dict that has `...` in the image's place; or None if the sample is only an image.
    """
    if isinstance(sample, Mapping):
        key = image_key(sample)
        return sample[key], {name: ... if name == key else value for name, value in sample.items()}
    if not isinstance(sample, tuple | list):
        return sample, None
    image, *rest = sample
    return image, rest


def join(image: Any, rest: Any) -> Any:
    """Return what `split` took apart, as a list, a dict or the image alone."""
    if isinstance(rest, Mapping):
        return {name: image if value is ... else value for name, value in rest.items()}
    return image if rest is None else [image, *rest]


def collate_rests(rests: Sequence[Any]) -> Any:
    """Return a batch of the parts of samples that are not their images, in the form that `split` gives them."""
    if rests[0] is None:
        return None
    if isinstance(rests[0], Mapping):
        return {
            name: ... if value is ... else _column([rest[name] for rest in rests]) for name, value in rests[0].items()
        }
    return [_column(list(parts)) for parts in zip(*rests, strict=True)]


def _column(values: list[Any]) -> Any:
    """Return what torch makes of one part of all samples; if it makes no tensor of it, a list.

    A method that needs no labels must not fail because of them. One that does says which it got.
    """
    try:
        return default_collate(values)
    except Exception as error:
        if is_out_of_memory(error) or is_of_worker(error):
            raise
        if isinstance(values[0], Mapping) and all(
            isinstance(v, Mapping) and v.keys() == values[0].keys() for v in values
        ):
            return {key: _column([value[key] for value in values]) for key in values[0]}
        return values


def collate(samples: list[Any]) -> Any:
    """Return torch's default batch of samples, but let labels and other parts be what makes no tensor.

    The images must make one.
    """
    if type(samples[0]) not in (tuple, list, dict) or len(samples[0]) == 0:
        return default_collate(samples)
    try:
        images, rests = zip(*map(split, samples), strict=True)
    except DataError:  # a dict without an image
        return default_collate(samples)
    return join(default_collate(list(images)), collate_rests(rests))
