"""Images that are held out of training: a function of their paths, the same in every run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np

SHARE, MOST = 0.2, 5000  # of the images; and how many of all at most


def held_out(files: Sequence[str], targets: Sequence[int]) -> np.ndarray:
    """Return for each image whether it is held out, (images,).

    A fifth of each class is held out, rounded; at least one image of a class that has two. Images without a label, -1,
    are held out only if none has one: they are a class then. Of more than 25,000 images, about 5,000 are held out. The
    images with the smallest digests of their paths are taken, so that few change if images are added.

    Examples
    --------
    >>> files = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)]
    >>> held_out(files, [0] * 10 + [1] * 10).reshape(2, 10).sum(1)
    array([2, 2])
    """
    labels, digests = np.asarray(targets), np.array([hashlib.sha256(os.fsencode(file)).digest() for file in files])
    known = labels[labels >= 0] if (labels >= 0).any() else labels
    share = min(SHARE, MOST / max(len(known), 1))
    is_held_out = np.zeros(len(files), bool)
    for label in np.unique(known):
        own = np.flatnonzero(labels == label)
        number = min(max(round(share * len(own)), 1), len(own) - 1)
        is_held_out[own[np.argsort(digests[own])[:number]]] = True
    return is_held_out
