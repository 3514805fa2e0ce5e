"""The samples of a data set that a loss may fail with, if it fails with any."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .labels import Labels
from .looking import Look


def odd_ones(looks: list[Look], labels: Labels) -> list[int]:
    """Return samples with values that are not finite, one value everywhere, the largest values, and odd labels.

    Parameters
    ----------
    looks
        The look of samples.
    labels
        Those of the data set. The smallest and the largest one are odd.
    """
    return list(dict.fromkeys([*_odd_images([look for look in looks if look.dtype]), *_odd_labels(looks, labels)]))


def _odd_images(looks: list[Look]) -> Iterator[int]:
    def largest(look: Look) -> float:
        return max(-look.lowest, look.highest)

    finite = [look for look in looks if np.isfinite(largest(look))]
    yield from [look.index for look in looks if not np.isfinite(largest(look))][:1]
    yield from [look.index for look in finite if look.lowest == look.highest][:1]
    yield from [max(finite, key=largest).index] if finite else []


def _odd_labels(looks: list[Look], labels: Labels) -> Iterator[int]:
    if labels.is_all and len(labels.numbers):
        yield from (int(labels.numbers.argmax()), int(labels.numbers.argmin()))
        return
    seen = [(look.label, look.index) for look in looks if isinstance(look.label, int)]
    yield from (max(seen)[1], min(seen)[1]) if seen else ()
