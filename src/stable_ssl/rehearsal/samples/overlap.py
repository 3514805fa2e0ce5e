"""Whether evaluation sets have samples that a run is trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ...data import Loader
from ...exceptions import some_of
from ...runtime.files import printable
from ..sections import section
from ..stage import Stage
from .looking import unwrapped


def check_overlap(stage: Stage, loaders: Mapping[str, Loader]) -> None:
    """Warn of evaluation sets that have files of the training set; a bank of neighbours has them on purpose."""
    if "train" not in loaders:
        return
    banks = {"bank", *_banks(section(stage, "logger").get("monitor"))}  # the recipes' own may have lost its monitor
    trained, own = files_of(loaders["train"].dataset), _node(stage, "train")
    for name, loader in loaders.items():
        if name == "train" or name in banks:
            continue
        both = sorted(trained & files_of(loader.dataset))
        if both:
            shown = some_of([f"'{printable(file)}'" for file in both], 2)
            what = f"{len(both)} {'file is' if len(both) == 1 else 'files are'} in data.train too: {shown}"
        elif own is not None and own == _node(stage, name):
            what = "it is the data set of data.train"
        else:
            continue
        stage.report.warn(
            "data",
            f"data.{name}: {what}. An evaluation of samples that were trained on says little: give it others, or a "
            "split (such as split: test of Images).",
        )


def _banks(value: Any) -> Iterator[str]:
    """Yield the names of the sets that monitors take as a bank."""
    if isinstance(value, Mapping):
        if isinstance(value.get("bank"), str):
            yield value["bank"]
        for inner in value.values():
            yield from _banks(inner)
    elif isinstance(getattr(value, "bank", None), str):
        yield value.bank


def _node(stage: Stage, name: str) -> str | None:
    """Return the configuration of a data set as text; None if it has none."""
    node = section(stage, "data").get(name)
    if not isinstance(node, Mapping) or not isinstance(node.get("dataset"), Mapping):
        return None
    try:
        return json.dumps(node["dataset"], sort_keys=True)
    except TypeError:  # live objects
        return None


def files_of(dataset: Any) -> set[str]:
    """Return the files, or the images in a file, that the samples of a data set come from; none if it does not tell."""
    dataset, indices = unwrapped(dataset)
    root = getattr(dataset, "root", None)
    files = getattr(dataset, "names", None) or getattr(dataset, "files", None)
    samples = getattr(dataset, "samples", None) or getattr(dataset, "imgs", None)
    if isinstance(files, list) and len(files) == len(dataset) and isinstance(root, str | os.PathLike):
        where = os.path.realpath(root)
        return {os.path.join(where, files[index]) for index in indices}
    if isinstance(files, list):  # shards
        return {os.path.realpath(file) for file in files if isinstance(file, str | os.PathLike)}
    if isinstance(samples, list) and len(samples) == len(dataset):
        first = (samples[index][0] for index in indices if isinstance(samples[index], tuple))
        return {os.path.abspath(path) for path in first if isinstance(path, str)}
    return set()
