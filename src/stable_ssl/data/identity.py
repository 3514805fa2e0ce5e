"""Which samples a data set has: their number, and a digest of the first and the last one."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..runtime.checkpoint import digest
from ..runtime.seeding import preserved_generators
from .loader import Loader
from .reading import Reader

log = logging.getLogger("stable_ssl")


def identify(loader: Any) -> dict[str, Any] | None:
    """Return the number of samples, `samples`, and the digest of the first and the last one, `digest`.

    Texts, such as paths, do not count in the digest.

    Parameters
    ----------
    loader
        A set of a run. Only a `Loader` can tell.

    Returns
    -------
    dict or None
        None if the set can't tell. The digest is None if a sample can't be read.
    """
    if not isinstance(loader, Loader):
        return None
    num_samples = len(loader.dataset)
    # A data set may open a file when it is first read. Worker processes would share that file, so a copy opens it.
    found = None
    try:
        with preserved_generators():
            reader = Reader(_copied(loader.dataset), seed=0, name=loader.name)
            samples = [reader[(0, index)] for index in (0, num_samples - 1)]
        found = digest([_values(sample) for sample in samples]).hex()
    except Exception as error:
        log.info("data.%s: the samples can't be told from others: %s", loader.name, error)
    return {"samples": num_samples, "digest": found}


def _copied(dataset: Any) -> Any:
    """Return a shallow copy of a data set, and of the data sets that it is made of."""
    made = copy.copy(dataset)
    if hasattr(made, "dataset"):
        made.dataset = _copied(made.dataset)
    return made


def _values(sample: Any) -> Any:
    """Return what counts of a sample, as nested tensors and numbers."""
    if isinstance(sample, Image.Image):
        sample = np.array(sample)
    if isinstance(sample, dict):
        return {str(key): _values(value) for key, value in sample.items()}
    if isinstance(sample, list | tuple):
        return [_values(value) for value in sample]
    if isinstance(sample, np.ndarray) and sample.dtype.kind in "biuf":
        return torch.from_numpy(np.array(sample, order="C"))
    if isinstance(sample, torch.Tensor | int | float | np.number):
        return sample.item() if isinstance(sample, np.number) else sample
    return None
