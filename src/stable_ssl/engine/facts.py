"""The facts in a checkpoint's `meta.json`, which say whether a run may go on from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import with_defaults
from ..data import Loader
from ..data.identity import identify
from ..exceptions import ConfigError
from ..runtime.behaviour import behaviour, behaviour_problems
from ..runtime.checkpoint import CheckpointStore, digest
from ..runtime.environment import environment
from ..runtime.folder import (
    config_differences,
    differences,
    has_place,
    how_to_branch,
    in_words,
    moved_data,
    read_config,
)
from ..runtime.peers import Peers
from .parts import Model, Part

log = logging.getLogger("stable_ssl")

Difference = tuple[str, Any, Any]  # what differs, its value in the checkpoint, its value now


def what_is_held(store: CheckpointStore, run: Path) -> dict[str, Any] | None:
    """Return what a run's newest checkpoint says: `config`, `behaviours` and `progress`. None if there is none."""
    if store.is_empty():
        return None
    meta, written = store.newest_meta(), read_config(run) or {}
    return {
        "config": meta.get("config") or written.get("trainer"),  # early checkpoints do not hold it
        "behaviours": [meta.get("behaviour", 1), *([written["behaviour"]] if "behaviour" in written else [])],
        "progress": meta.get("progress", {}),
    }


def check_held(path: Path, held: Mapping[str, Any], config: dict[str, Any]) -> None:
    """Refuse a folder that holds a run of another behaviour or configuration.

    Parameters
    ----------
    path
        The folder.
    held
        What `what_is_held` returned.
    config
        The configuration of this run.
    """
    if problems := behaviour_problems(held["behaviours"]):
        what = f"'{path}' holds a run of another behaviour; nothing was done."
        raise ConfigError([what, *problems, how_to_branch(path)])
    if held["config"] and (differences := config_differences(with_defaults(held["config"]), config)):
        what = f"'{path}' holds a run with another configuration; nothing was done."
        raise ConfigError([what, *differences, how_to_branch(path)])


def machine_facts(device: torch.device, num_processes: int, strategy: str) -> dict[str, Any]:
    """Return the facts about the machine, which decide the last bits of results."""
    threads = torch.get_num_threads()
    world = {"size": num_processes, "strategy": strategy, "device": str(device), "threads": threads}
    return {"world": world, "environment": environment(device)}


def constant_facts(
    config: dict[str, Any], parts: Mapping[str, Part], model: Model, loaders: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the facts that are the same in every checkpoint of a run.

    Parameters
    ----------
    config
        The configuration.
    parts, model
        What a checkpoint holds, as it was built.
    loaders
        The data sets, by name.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizers = {name: part.object for name, part in parts.items() if isinstance(part.object, torch.optim.Optimizer)}
    return {
        "config": config,
        "behaviour": behaviour(),
        "sets": {name: identify(loaders[name]) for name, set_ in config.get("data", {}).items() if has_place(set_)},
        "optimizers": {name: describe_optimizer(optimizer, names) for name, optimizer in optimizers.items()},
    }


@dataclass(frozen=True)
class DataFacts:
    """The facts about the training data that a resumed run must share.

    The configuration does not show them if the loader is a live object.

    Parameters
    ----------
    batches_per_epoch
        Mini-batches per epoch, on each process.
    global_batch
        Samples per mini-batch over all processes; None if the loader has no `batch_size`.
    views
        The declared views, as text; None if there are none.
    samples
        Number of samples of the data set; None if the loader has no data set of samples.
    left_out
        The samples that can't be read and are left out, as text; None if there are none.
    shards
        The names and checksums of the files of a data set that tells them; None for others.
    layout
        What the order of a stream depends on, as text; None for others.
    fingerprint
        A digest of the files, labels and sizes of a data set that tells it; None for others.
    """

    batches_per_epoch: int
    global_batch: int | None
    views: str | None
    samples: int | None
    left_out: str | None
    shards: list[str] | None = None
    layout: str | None = None
    fingerprint: str | None = None

    @classmethod
    def of(cls, loader: Any, num_batches: int, num_processes: int) -> DataFacts:
        """Return the facts about a loader that gives a process so many mini-batches per epoch."""
        batch_size, views = getattr(loader, "batch_size", None), getattr(loader, "views", None)
        samples, left_out, shards, fingerprint = None, "", None, None
        if isinstance(loader, Loader):
            shards, fingerprint = _told(loader.dataset, "shards", list), _told(loader.dataset, "fingerprint", str)
            samples = len(loader.dataset) if hasattr(loader.dataset, "__len__") else None
            left_out = ", ".join(map(str, loader.left_out))
        if len(left_out) > 100:
            left_out = f"{len(loader.left_out)} with digest {digest(left_out).hex()[:8]}"
        layout = getattr(loader, "layout", None)
        global_batch = batch_size and batch_size * num_processes
        texts = views and repr(views), samples, left_out or None
        return cls(num_batches, global_batch, *texts, shards, layout, fingerprint)

    def known(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return the facts in a checkpoint, `before`; those that it lacks are as here."""
        # Checkpoints of the first versions have words as keys.
        now = asdict(self)
        return {key: before.get(key, before.get(word, now[key])) for key, word in _WORDS.items()}

    def differences(self, before: Mapping[str, Any]) -> list[Difference]:
        """Return the facts that differ from `before`, the facts in a checkpoint."""
        known, now = self.known(before), asdict(self)
        shards = zip_longest(known.pop("shards") or (), now.pop("shards") or ())
        return [
            *((f"data.train: {_WORDS[key]}", known[key], value) for key, value in now.items() if known[key] != value),
            *((f"data.train: shard {n}", old, new) for n, (old, new) in enumerate(shards) if old != new),
        ]


_WORDS = {
    "batches_per_epoch": "mini-batches an epoch",
    "global_batch": "samples a mini-batch, over all processes",
    "views": "views",
    "samples": "samples",
    "left_out": "samples that are left out",
    "shards": "shards",
    "layout": "order of the stream",
    "fingerprint": "files, labels and sizes of the images, as a digest",
}


def _told(dataset: Any, name: str, kind: type) -> Any:
    """Return an attribute of a data set, or of the one that it is made of; None if none has it, of this kind."""
    while not hasattr(dataset, name) and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    found = getattr(dataset, name, None)
    return found if isinstance(found, kind) else None


def check_same_data(loaders: Mapping[str, Any], peers: Peers) -> None:
    """Check that all processes have the same data sets, since each takes its share of one order of samples.

    Parameters
    ----------
    loaders
        The data sets, by name.
    peers
        The processes, which call this together.

    Raises
    ------
    ConfigError
        A set has another number of samples or other files on a process. All processes raise it. If only the values of
        the first or the last sample differ, the log warns, since a data set may draw them at random.
    """
    if peers.size == 1:
        return
    sets = {
        name: {
            **(identify(loader) or {}),
            "digest of its files": isinstance(loader, Loader) and _told(loader.dataset, "fingerprint", str),
            "shards": isinstance(loader, Loader) and _told(loader.dataset, "shards", list),
        }
        for name, loader in loaders.items()
    }
    problems = []
    first, *others = peers.gather(sets)
    for rank, other in enumerate(others, 1):
        for path, ours, theirs in differences(first, other):
            name, what = path.rsplit(".", 1)
            if what == "digest":
                log.warning(
                    "data.%s: rank %d reads other samples than rank 0. The run goes on, since a data set may draw its "
                    "values at random. If this one does not, both need the same data.",
                    name,
                    rank,
                )
            else:
                problems.append(
                    f"data.{name}: rank {rank} has other data than rank 0 ({what}: {theirs!r} instead of {ours!r}). "
                    "Each process takes its share of one data set, so all need the same."
                )
    if problems:
        raise ConfigError(problems)


def check_facts(path: Path, meta: Mapping[str, Any], now: Mapping[str, Any], data: DataFacts | None, run: Path) -> None:
    """Check that a run may go on from a checkpoint of its folder, as far as its configuration can't tell.

    Parameters
    ----------
    path, meta
        The checkpoint's folder, and its `meta.json` with the `config` of the run.
    now
        What `constant_facts` returned in this run.
    data
        The facts about the training data; None if the run does not train.
    run
        The run's folder.

    Raises
    ------
    ConfigError
        The checkpoint is of other data, or of another optimizer.
    """
    found = data.differences(meta.get("data") or {}) if data else []
    found += optimizer_differences(meta, now)
    changes = [in_words(*difference) for difference in found]
    changes += _moved_changes(meta, now)
    _warn_of_other_results(meta, now)
    if changes:
        what = f"'{path}' is of a run with other data or another optimizer; nothing was done."
        undone = "Once that is undone, the run goes on as before."
        raise ConfigError([what, *changes, undone, how_to_branch(run, overrides="")])


def _moved_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each place of data that changed, unless the same samples are at the new place."""
    for name, path, old, new in moved_data(before["config"] or {}, now["config"]):
        known, found = before.get("sets", {}).get(name), now["sets"].get(name)
        if "sets" not in before:
            log.warning(
                "%s Its checkpoint is an early one and can't tell the samples: see that they are the same.",
                in_words(path, old, new),
            )
        elif not (known and known == found and known["digest"]):
            yield (
                f"{in_words(path, old, new)} The samples are not known to be the same: there were {_samples(known)}, "
                f"and are {_samples(found)}."
            )


def _warn_of_other_results(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn of evaluation sets with another number of samples, as far as it is known."""
    for name, found in now["sets"].items():
        known = before.get("sets", {}).get(name)
        if name != "train" and known and found and known["samples"] != found["samples"]:
            log.warning(
                "data.%s: the run in the folder had %d samples, this one has %d. Its results are not to be compared "
                "with the earlier ones.",
                name,
                known["samples"],
                found["samples"],
            )


def _samples(known: Mapping[str, Any] | None) -> str:
    return f"{known['samples']} with digest {str(known['digest'])[:8]}" if known else "an unknown number"


def describe_optimizer(optimizer: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the facts about an optimizer that was just built, for `meta.json`.

    Parameters
    ----------
    optimizer
        The optimizer.
    names
        The names of parameters, by their `id`.

    Returns
    -------
    dict
        `class`, and `groups`: for each group the names of its `parameters`, and its `options`. The rate is the one
        before any schedule.
    """
    groups = []
    for group in optimizer.param_groups:
        options = {key: _as_json(value) for key, value in group.items() if key not in ("params", "initial_lr")}
        if "initial_lr" in group:
            options["lr"] = _as_json(group["initial_lr"])
        known = {key: value for key, value in options.items() if value is not _UNKNOWN}
        groups.append({"parameters": [names.get(id(p), "") for p in group["params"]], "options": known})
    return {"class": type(optimizer).__qualname__, "groups": groups}


def optimizer_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return the differences between the optimizers of a checkpoint and of this run.

    Options that only one of them has are left out, because another version of torch may have more.

    Parameters
    ----------
    before, now
        The `meta.json` of a checkpoint, and the facts of this run: both may have `optimizers`.
    """
    found: list[Difference] = []
    for name, new in now["optimizers"].items():
        old = (before.get("optimizers") or {}).get(name, new)
        if old["class"] != new["class"]:
            found.append((f"{name}: its class", old["class"], new["class"]))
            continue
        for number, groups in enumerate(zip(old["groups"], new["groups"], strict=False)):
            known, options = (group["options"] for group in groups)
            found += [
                (f"{name}: {key} of group {number}", known[key], value)
                for key, value in options.items()
                if key in known and known[key] != value
            ]
    return found


_UNKNOWN = object()


def _as_json(value: Any) -> Any:
    """Return a number, text or tuple of them as JSON holds it; `_UNKNOWN` for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, tuple | list) and all(isinstance(item, bool | int | float) for item in value):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float | str) else _UNKNOWN
