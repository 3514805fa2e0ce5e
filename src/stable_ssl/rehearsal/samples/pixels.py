"""The images of a data set: their sizes, channels and values, and whether they suit the views."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...augmentations.operations import Normalize
from ...data import Loader
from ...data.reading import CollateSamples, Reader
from ...data.views import check_views
from ...exceptions import ConfigError, DataError
from ..stage import Stage
from .looking import Look, Looker, unwrapped

FACTOR = 3.0  # between a mean or deviation that is given and the one that is measured
SHARE = 0.05  # of images that are smaller than their views, from which that is said
HIGHEST = 20.0  # of floats that somebody has scaled

_GENERIC = {(0.0, 1.0), (0.5, 0.5)}  # means and deviations that are no statistics of images


def check_pixels(stage: Stage, loader: Loader, looker: Looker, looks: list[Look]) -> None:
    """Check the images of a data set against its views, or against each other if it has none that are declared."""
    good = [look for look in looks if not look.error]
    images = [look for look in good if look.shape]
    if loader.views is not None:
        if check_views_of(stage, loader, looker, looks) and images:
            _check_small(stage, loader, images)
            _check_normalisation(stage, loader, images)
    elif good and _makes_batch(stage, loader, looker, good):
        _check_values(stage, loader, good)
    flat = [look for look in images if look.lowest == look.highest]
    if len(images) > 1 and len(flat) > len(images) / 2:
        stage.report.warn(
            "data",
            f"data.{loader.name}: {len(flat)} of {len(images)} images that were read have one value everywhere "
            f"({flat[0].name}: {flat[0].highest:g}). See whether they are decoded rightly.",
        )


def facts_of(loader: Loader, looks: list[Look]) -> dict[str, Any]:
    """Return figures about a data set for the report."""
    good = [look for look in looks if not look.error]
    images = [look for look in good if look.shape]
    facts: dict[str, Any] = {"images": len(loader.dataset), "looked_at": len(looks)}
    if unreadable := len(looks) - len(good):
        facts["unreadable"] = unreadable
    if images:
        ordered = sorted(_sizes(loader, images), key=lambda size: size[0] * size[1])
        places = {"smallest": 0, "median": len(ordered) // 2, "largest": -1}
        facts.update((word, [int(side) for side in ordered[place]]) for word, place in places.items())
        texts = [f"{height} × {width}" for height, width in (ordered[0], ordered[-1])]
        facts["sizes"] = " to ".join(dict.fromkeys(texts))
        facts["channels"] = {
            str(number): count for number, count in Counter(one.shape[2] for one in images if one.shape).items()
        }
        mean, deviation = _statistics(images)
        facts["mean"], facts["std"] = [round(x, 4) for x in mean], [round(x, 4) for x in deviation]
    if good:
        kinds = Counter(look.kind for look in good)
        facts["dtypes"], facts["sample"] = sorted({look.dtype for look in good} - {""}), kinds.most_common(1)[0][0]
    return facts


def _sizes(loader: Loader, images: list[Look]) -> list[tuple[int, int]]:
    """Return (height, width) of all images if the data set knows them, else of those that were read."""
    dataset, indices = unwrapped(loader.dataset)
    known = getattr(dataset, "sizes", None)
    if isinstance(known, np.ndarray) and known.shape == (len(dataset), 2):
        return [(int(height), int(width)) for height, width in known[indices]]
    return [(look.shape[0], look.shape[1]) for look in images if look.shape]


def _statistics(images: list[Look]) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each channel; of the mean of channels if not all have as many."""
    pairs = [(look.mean, look.square) for look in images if look.mean is not None and look.square is not None]
    pairs = [pair for pair in pairs if np.isfinite(pair).all()]
    if not pairs:
        return [], []
    if len({len(mean) for mean, _ in pairs}) > 1:
        pairs = [(mean.mean(keepdims=True), square.mean(keepdims=True)) for mean, square in pairs]
    mean, square = (np.mean([pair[place] for pair in pairs], axis=0) for place in (0, 1))
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()


# Declared views -----------------------------------------------------------------------------------------------------


def check_views_of(stage: Stage, loader: Loader, looker: Looker, looks: list[Look]) -> bool:
    """Report if declared views can't be made of an image; return whether they can of all."""
    images = [look for look in looks if look.shape and not look.error]
    views = loader.views
    if views is None or not images:
        return True
    shaped = [(look, (*look.shape[:2], _channels(look, looker))) for look in images if look.shape]
    numbers = {shape[2]: look for look, shape in reversed(shaped)}  # the first of each
    if len(numbers) > 1:
        kinds = " and ".join(f"{look.name} has {number}" for number, look in sorted(numbers.items())[:2])
        stage.report.error(
            "data",
            f"data.{loader.name}: images have different numbers of channels: {kinds}. Convert them all to one kind.",
        )
        return False
    sizes = {shape[:2]: look for look, shape in reversed(shaped)}
    if loader.on == "device" and len(sizes) > 1 and loader.batch_size != 1:
        (one, first), (other, second) = [*sizes.items()][:2]
        stage.report.error(
            "data",
            f"data.{loader.name}.on: 'device' needs images of one size, but {first.name} is {one[0]} × {one[1]} and "
            f"{second.name} is {other[0]} × {other[1]}. Set it to cpu, or resize them before.",
        )
    for look, shape in _extremes(shaped):
        try:
            check_views(views, shape, looker.seed, loader.name)
        except ConfigError as error:
            for problem in error.problems:
                stage.report.error("data", _naming(problem, look, shape))
            return False
    return True


def _channels(look: Look, looker: Looker) -> int:
    """Return how many channels views get of an image: grey ones become RGB if others are RGB."""
    assert look.shape is not None
    return 3 if look.shape[2] == 1 and looker.channels == 3 else look.shape[2]


def _naming(problem: str, look: Look, shape: tuple[int, ...]) -> str:
    """Return a problem of the views, with the sample that has it."""
    said = re.sub(r"\bsample 0\b", look.name, problem)
    return said if look.name in said else f"{said} ({look.name} is {_in_words(shape)}.)"


def _in_words(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} × {shape[1]}, with {shape[2]} channel{'s' * (shape[2] != 1)}"


def _extremes(shaped: list[tuple[Look, tuple[int, ...]]]) -> list[tuple[Look, tuple[int, ...]]]:
    """Return the images that views may fail on, if they fail on any: first the first, then the odd ones."""
    keys = (
        lambda one: one[1][0],  # the lowest
        lambda one: one[1][1],  # the narrowest
        lambda one: one[1][0] * one[1][1],
        lambda one: one[1][0] / one[1][1],
        lambda one: one[1][1] / one[1][0],
    )
    chosen = [shaped[0], *(min(shaped, key=key) for key in keys)]
    return [one for place, one in enumerate(chosen) if all(one is not other for other in chosen[:place])]


def _check_small(stage: Stage, loader: Loader, images: list[Look]) -> None:
    """Warn of images that are smaller than the views that are made of them."""
    known = [size for size in loader.views.sizes() if size is not None]  # type: ignore[union-attr]
    if not known:
        return
    height, width = max(known, key=lambda size: size[0] * size[1])
    sizes = np.array(_sizes(loader, images))
    small = np.any(sizes < (height, width), axis=1)
    example = next((i for i in images if i.shape and (i.shape[0] < height or i.shape[1] < width)), None)
    if small.mean() < SHARE:
        return
    such = f", such as {example.name} with {example.shape[0]} × {example.shape[1]}" if example and example.shape else ""
    stage.report.warn(
        "data",
        f"data.{loader.name}.views: {small.sum()} of {len(small)} images are smaller than the views of {height} × "
        f"{width} pixels{such}, so they are enlarged. If that is not meant, give the views a smaller size.",
    )


def _check_normalisation(stage: Stage, loader: Loader, images: list[Look]) -> None:
    """Warn if the mean or the deviation that views subtract or divide by is far from that of the images."""
    if len(images) < 2:
        return
    mean, deviation = map(np.array, _statistics(images))
    found = _normalisations(loader)
    for operation in found:
        given = np.array([operation.mean, operation.std])
        if any(np.allclose(given, np.array(pair)[:, None]) for pair in _GENERIC):
            continue
        for word, own, real in (("mean", given[0], mean), ("std", given[1], deviation)):
            if len(own) != len(real):
                own, real = own.mean(keepdims=True), real.mean(keepdims=True)
            ratio = np.maximum(own, 1e-6) / np.maximum(real, 1e-6)
            if (ratio > FACTOR).any() or (ratio < 1 / FACTOR).any():
                levels = " It is for values from 0 to 1, not for levels up to 255." if (own > 1).any() else ""
                stage.report.warn(
                    "data",
                    f"data.{loader.name}.views: the {word} of Normalize is {_listed(own)}, but that of {len(images)} "
                    f"images is {_listed(real)}.{levels} Give the {word} of these images.",
                )


def _normalisations(loader: Loader) -> list[Normalize]:
    """Return the different ways in which declared views normalise their values."""
    views = loader.views.views if loader.views is not None else ()
    return list(dict.fromkeys(one for view in views for one in view.operations if isinstance(one, Normalize)))


def check_normalised_alike(stage: Stage, loaders: Mapping[str, Loader]) -> None:
    """Warn of declared views of evaluation images that are not normalised as those of training images."""
    declared = {name: _normalisations(loader) for name, loader in loaders.items() if loader.views is not None}
    train = declared.get("train", [])
    for name, own in declared.items() if "train" in declared and len(train) < 2 else ():
        if own != train:
            how, other = (
                f"with mean {_listed(np.array(one[0].mean))} and std {_listed(np.array(one[0].std))}"
                if one
                else "by nothing"
                for one in (own, train)
            )
            stage.report.warn(
                "data",
                f"data.{name}.views: the values are normalised {how}, and those of data.train {other}. Normalise both "
                "alike, since a network learns from values of one scale.",
            )


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


# Other data sets ----------------------------------------------------------------------------------------------------


def _makes_batch(stage: Stage, loader: Loader, looker: Looker, looks: list[Look]) -> bool:
    """Report samples of different kinds that make no batch; return whether they do."""
    if loader.batch_sampler is not None or loader.batch_size is None or loader.batch_size < 2 or len(looks) < 2:
        return True
    first = {look.kind: look.index for look in looks}
    indices = list(dict.fromkeys([*first.values(), looks[0].index, looks[1].index]))[: loader.batch_size]
    reader = Reader(loader.dataset, looker.seed, loader.name)
    try:
        CollateSamples(loader._collate, loader.name, single=False)([reader[(0, index)] for index in indices])
    except DataError as error:
        stage.report.error("data", f"{error} (samples {', '.join(map(str, indices[:4]))})")
        return False
    return True


def _check_values(stage: Stage, loader: Loader, looks: list[Look]) -> None:
    """Warn of values that networks are not made for."""
    data = f"data.{loader.name}"
    odd = [
        (
            lambda look: not np.isfinite([look.lowest, look.highest]).all(),
            "has values that are not finite, so the loss would not be. Leave such samples out, or mend them",
        ),
        (
            lambda look: look.dtype == "float64",
            "is float64, and networks compute in float32. Convert it in the data set or its transform",
        ),
        (
            lambda look: look.dtype == "uint8",
            "is uint8, and networks take floats. Add a transform, or declare views (stable_ssl.augmentations)",
        ),
        (
            lambda look: look.dtype.startswith("float") and max(-look.lowest, look.highest) > HIGHEST,
            "has values from {0.lowest:g} to {0.highest:g}, as if they were not scaled. Scale them to about -1 to 1",
        ),
    ]
    for is_odd, what in odd:
        found = [look for look in looks if look.dtype and is_odd(look)]
        if found:
            stage.report.warn(
                "data",
                f"{data}: {found[0].name} {what.format(found[0])}. {len(found)} of the {len(looks)} samples that were "
                f"read {'has' if len(found) == 1 else 'have'} this fault.",
            )
