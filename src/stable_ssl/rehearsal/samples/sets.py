"""The data sets of a run: whether their samples can be read, and suit what is made of them."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...data import Loader, as_loader
from ...data.reading import Reader
from ...data.unreadable import NONE_READ, described
from ...data.views import find_shape
from ...engine.building import data_sets, other_classes
from ...exceptions import ConfigError, DataError
from ...runtime.batches import images_of, labels_in
from ...runtime.device import describe_batch
from ...runtime.seeding import preserved_generators
from ..configuration.building import build_data
from ..offline import needs_network, offline
from ..report import Report
from ..sections import section
from ..stage import Stage
from .batching import check_counts, check_order
from .classes import check_labels
from .labels import Labels, labels_of_batches, labels_of_set
from .looking import Look, Looker, chosen, look_at
from .odd import odd_ones
from .overlap import check_overlap
from .pixels import check_normalised_alike, check_pixels, check_views_of, facts_of
from .together import add_together

NUM_BATCHES = 2  # of a stream
NUM_TWICE = 3  # samples are read twice

_REMOTE = (
    "data.{}: its samples are not on this machine. A check reads none over the network, so it has not looked at them."
)


def check_first_samples(stage: Stage) -> None:
    """Read the first sample of each data set, and see whether its views can be made of it. Nothing is downloaded."""
    own = replace(stage, report=Report())
    if not any(key.startswith("data.") for key in stage.built):
        build_data(own)
    with offline(), preserved_generators():
        loaders = _loaders(own)
        for name, loader in loaders.items():
            with _told(own, name):
                if isinstance(loader, Loader):
                    looker, looks = _looks(own, loader, [0], is_all=False)
                    check_unreadable(own, loader, looks)
                    check_views_of(own, loader, looker, looks)
                else:
                    _look_at_stream(own, name, loader, 1)
    add_together(stage.report, own.report, loaders)


def check_samples(stage: Stage) -> None:
    """Look at 100 samples of each data set, or at all if `stage.all_data` is set, and at their labels.

    Nothing is downloaded. A data set that could not be built is left out, since that was reported.
    """
    own = replace(stage, report=Report())
    labels: dict[str, Labels] = {}
    seen: dict[str, tuple[str, Any]] = {}
    with offline(), preserved_generators():
        loaders = _loaders(own)
        for name, loader in loaders.items():
            with _told(own, name):
                if isinstance(loader, Loader):
                    labels[name] = _look_at_set(own, name, loader, seen)
                else:
                    labels[name] = _look_at_stream(own, name, loader, NUM_BATCHES)
    check_labels(own, labels)
    others = {name: loader for name, loader in loaders.items() if name != "train"}
    for sentence in other_classes(loaders.get("train"), others):
        own.report.warn("data", sentence)
    sets = {name: loader for name, loader in loaders.items() if isinstance(loader, Loader)}
    check_overlap(own, sets)
    check_normalised_alike(own, sets)
    add_together(stage.report, own.report, loaders)


def _loaders(stage: Stage) -> dict[str, Any]:
    """Return the loaders that could be built, by name, each bound to its name."""
    found: dict[str, Any] = {}
    for name in data_sets(section(stage, "data")):
        source = stage.built.get(f"data.{name}")
        if source is None:
            continue
        with _told(stage, name):
            is_twice = any(source is stage.built[f"data.{other}"] for other in found)
            loader = as_loader(copy.copy(source) if is_twice else source, name)
            loader.bind(_seed(stage), name)
            found[name] = loader
    return found


@contextlib.contextmanager
def _told(stage: Stage, name: str) -> Iterator[None]:
    """Report what the block raises about a data set."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if needs_network(error):
            stage.report.warn("data", _REMOTE.format(name))
        elif isinstance(error, ConfigError):
            stage.report.refuse("data", error)
        else:
            stage.report.error("data", str(error))


def _seed(stage: Stage) -> int:
    seed = section(stage, "hardware").get("seed")
    return seed if isinstance(seed, int) else 0


# Samples by number --------------------------------------------------------------------------------------------------


def _look_at_set(stage: Stage, name: str, loader: Loader, seen: dict[str, tuple[str, Any]]) -> Labels:
    """Look at samples of a data set, report what is wrong with them, and return their labels.

    Parameters
    ----------
    seen
        What was looked at already, and under which name. The same data set is read once for several sets.
    """
    check_counts(stage, name, loader)
    key = _identity(stage, name, loader)
    if key in seen:
        earlier, (looker, looks) = seen[key]
        stage.report.tell("data", **{name: {"images": len(loader.dataset), "as": earlier}})
    else:
        looker, looks = _looks(stage, loader, chosen(len(loader.dataset), stage.all_data), stage.all_data)
        seen[key] = name, (looker, looks)
        stage.report.tell("data", **{name: facts_of(loader, looks)})
        check_unreadable(stage, loader, looks)
        _check_twice(stage, name, looker, looks)
    check_pixels(stage, loader, looker, looks)
    labels = labels_of_set(loader, looks)
    check_order(stage, name, loader, labels)
    stage.report.facts["data"][name]["classes"] = labels.expected
    if name == "train":
        stage.odd.extend(odd_ones(looks, labels))
    return labels


def _identity(stage: Stage, name: str, loader: Loader) -> str:
    """Return a text that is the same for sets that read the same samples in the same way."""
    node = section(stage, "data")[name]
    if not isinstance(node, dict) or "dataset" not in node:
        return name
    views = "declared" if loader.views is not None else node.get("views")
    try:
        return json.dumps([node["dataset"], views, loader.unreadable], sort_keys=True)
    except TypeError:  # live objects
        return name


def _looks(stage: Stage, loader: Loader, indices: list[int], is_all: bool) -> tuple[Looker, list[Look]]:
    """Return the look of samples, and what gave it."""
    looker = Looker(loader.dataset, loader.name, _seed(stage), loader.views is not None)
    if loader.views is not None:
        looker.channels = _channels(Reader(loader.dataset, _seed(stage), loader.name))
    return looker, list(look_at(looker, loader, indices, is_all))


def _channels(reader: Reader) -> int | None:
    """Return how many channels declared views get: as a run decides it, by the first image, and others if it's grey."""
    with contextlib.suppress(DataError):
        return find_shape(lambda index: reader[(0, index)], len(reader))[2]
    return None


def check_unreadable(stage: Stage, loader: Loader, looks: list[Look]) -> None:
    """Report the samples that can't be used."""
    report, name = stage.report, loader.name
    if any(look.is_remote for look in looks):
        report.warn("data", _REMOTE.format(name))
    unsuited = [look.error for look in looks if look.error and not (look.is_unreadable or look.is_remote)]
    if unsuited:
        count = f" ({len(unsuited)} of {len(looks)} samples that were tried)" if len(looks) > 1 else ""
        report.error("data", f"{unsuited[0]}{count}")
    found = {look.index: look.error for look in looks if look.error and look.is_unreadable}
    if not found:
        return
    is_left_out = loader.unreadable == "skip"
    looked_at = f"{len(found)} of {len(looks)} samples that were tried"
    if len(found) == len(looks) and len(looks) > 1:
        advice = NONE_READ
    elif is_left_out:
        advice = f"data.{name}.unreadable=skip leaves them out."
    else:
        advice = f"Mend or remove them, or leave them out by data.{name}.unreadable=skip."
        if len(looks) < len(loader.dataset):
            advice += " `--all-data` reads all samples, and names them all."
    (report.warn if is_left_out else report.error)(
        "data",
        f"{'; '.join(described(found, len(looks)).splitlines()).rstrip('.')}. {looked_at} can't be read. {advice}",
    )


def _check_twice(stage: Stage, name: str, looker: Looker, looks: list[Look]) -> None:
    """Warn if a sample has other values when it is read again under the same seed."""
    for look in [look for look in looks if not look.error][:NUM_TWICE]:
        again = looker[(0, look.index)]
        if (again.checksum, again.label) != (look.checksum, look.label):
            drawn = ", ".join(looker.unseedable) or "a generator of its own, the time, or the order of reading"
            stage.report.warn(
                "data",
                f"data.{name}: {look.name} has other values when it is read again under the same seed, so a resumed "
                f"run does not go on with the same images. It may depend on {drawn}. Have it draw from the default "
                "generators of Python, NumPy or torch.",
            )
            return


# Streams ------------------------------------------------------------------------------------------------------------


def _look_at_stream(stage: Stage, name: str, loader: Any, count: int) -> Labels:
    """Look at the first batches of a stream, and return the labels in them."""
    try:
        with contextlib.closing(loader.batches(0)) as coming:
            batches = [batch for _, batch in itertools.islice(coming, count)]
    except (ConfigError, DataError):
        raise
    except Exception as error:  # of the user's code
        raise DataError(f"data.{name}: its batches can't be read: {type(error).__name__}: {error}") from error
    finally:
        loader.close()
    if not batches:
        raise DataError(f"data.{name}: it gives no batch.")
    stage.report.tell("data", **{name: {"batches_read": len(batches), "batch": describe_batch(batches[0])}})
    for batch in batches:
        with contextlib.suppress(DataError):  # a batch of another kind, which may suit the trainer
            images = images_of(batch)
            if images.is_floating_point() and not images.isfinite().all():
                stage.report.warn("data", f"data.{name}: its first batches have values that are not finite.")
    return labels_of_batches(name, [_rows(labels_in(batch)) for batch in batches])


def _rows(labels: Any) -> Any:
    """Return the labels of a batch one by one; None if it has none."""
    if isinstance(labels, Tensor):
        return labels if labels.ndim else [labels]
    return labels if isinstance(labels, list | tuple) else None
