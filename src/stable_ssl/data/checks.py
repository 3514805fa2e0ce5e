"""Checks of the arguments of loaders and data sets: each error names the argument, its value, and what is expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import IterableDataset

from ..exceptions import ConfigError


def is_count(value: Any, least: int = 0) -> bool:
    """Say whether a value is a whole number of at least `least`; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_function(value: Any) -> bool:
    """Say whether a value is None or can be called."""
    return value is None or callable(value)


def wrong(*checks: tuple[str, Any, bool, str]) -> list[str]:
    """Return a sentence for each check that fails.

    Parameters
    ----------
    *checks
        Each is (name of the argument, its value, whether the value is right, what it must be).
    """
    return [f"{name}: must be {expected}, not {value!r}." for name, value, is_right, expected in checks if not is_right]


def require(*checks: tuple[str, Any, bool, str]) -> None:
    """Raise one ConfigError with a sentence for each check that fails; see `wrong`."""
    if problems := wrong(*checks):
        raise ConfigError(problems)


def check_loader(given: Mapping[str, Any], is_declared: bool) -> None:
    """Check the arguments of a `Loader`.

    Parameters
    ----------
    given
        The arguments by name.
    is_declared
        Whether the views are declared views of this package.

    Raises
    ------
    ConfigError
        Has a sentence for each problem.
    """
    problems = [*_wrong_data(given["dataset"]), *_wrong_values(given), *_contradictions(given, is_declared)]
    problems += _shared_out_twice(given)
    if problems:
        raise ConfigError(problems)


def check_stream_loader(given: Mapping[str, Any], is_declared: bool) -> None:
    """Check the arguments of a `StreamLoader` that do not concern its stream, as `check_loader` does."""
    count, others = "a whole number of at least 1", {"dataset": None, "on": "auto", "unreadable": "raise"}
    whole = {**given, **others, "batch_size": 1, "sampler": None, "batch_sampler": None}
    own = wrong(*((name, given[name], is_count(given[name], 1), count) for name in ("batch_size", "buffer")))
    if problems := [*own, *_wrong_values(whole), *_contradictions(whole, is_declared)]:
        raise ConfigError(problems)


def _wrong_data(dataset: Any) -> list[str]:
    kind = type(dataset).__name__
    if isinstance(dataset, str):
        return [f"dataset: {dataset!r} is a text, and no data set."]
    if isinstance(dataset, IterableDataset):
        return [f"dataset: a {kind} is a stream, without samples by number; use torch's DataLoader for it."]
    if hasattr(dataset, "num_shards") and not hasattr(dataset, "__getitem__"):
        return [f"dataset: a {kind} is a stream, without samples by number; use a StreamLoader for it."]
    missing = [method for method in ("__len__", "__getitem__") if not hasattr(dataset, method)]
    if missing:
        return [f"dataset: a {kind} has no {' and no '.join(missing)}; if it is a stream, use it without a Loader."]
    return [f"dataset: this {kind} is empty."] if len(dataset) == 0 else []


def _wrong_values(given: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each argument that is wrong by itself."""
    flag, function, sampler = (is_flag, "true or false"), (is_function, "a function or none"), "a sampler or none"
    count_or_none = (lambda value: value is None or is_count(value, 1), "a whole number of at least 1, or none")
    methods = torch.multiprocessing.get_all_start_methods()
    expected = {
        "batch_size": count_or_none,
        "views": (is_transform, "a transform, a list of transforms, or none"),
        "on": (lambda value: value in ("auto", "cpu", "device"), "'auto', 'cpu' or 'device'"),
        "shuffle": (lambda value: value is None or is_flag(value), "true, false or none"),  # as torch has it
        "drop_last": flag,
        "sampler": (_is_iterable, sampler),
        "batch_sampler": (_is_iterable, sampler),
        "num_workers": (is_count, "a whole number of at least 0"),
        "collate_fn": function,
        "worker_init_fn": function,
        "pin_memory": flag,
        "prefetch_factor": count_or_none,
        "timeout": (_is_duration, "a number of seconds, at least 0"),
        "multiprocessing_context": (
            lambda value: value is None or isinstance(value, BaseContext) or value in methods,
            f"one of {methods}, a context of multiprocessing, or none",
        ),
        "persistent_workers": flag,
        "unreadable": (lambda value: value in ("raise", "skip"), "'raise' or 'skip'"),
    }
    return wrong(*((name, given[name], is_right(given[name]), what) for name, (is_right, what) in expected.items()))


def _shared_out_twice(given: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each sampler that gives a process its share of the samples, as a `Loader` does itself."""
    samplers = [(name, given[name]) for name in ("sampler", "batch_sampler")]
    samplers += [(name, getattr(sampler, "sampler", None)) for name, sampler in samplers]
    return [
        f"{name}: a {type(sampler).__name__} shares the samples out over {sampler.num_replicas} processes, and a "
        "Loader would share out that share again. Give the sampler inside it, or set shuffle."
        for name, sampler in samplers
        if is_count(getattr(sampler, "num_replicas", None), 2)
    ]


def is_flag(value: Any) -> bool:
    """Say whether a value is true or false."""
    return isinstance(value, bool)


def _is_iterable(value: Any) -> bool:
    return value is None or hasattr(value, "__iter__")


def is_transform(value: Any) -> bool:
    """Say whether a value is None, a function, or a list of functions."""
    is_list = isinstance(value, Sequence) and len(value) > 0 and all(map(callable, value))
    return is_function(value) or is_list


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _contradictions(given: Mapping[str, Any], is_declared: bool) -> list[str]:
    """Return a sentence for each argument that another one contradicts."""
    dataset, batch_size, on = given["dataset"], given["batch_size"], given["on"]
    shuffle, drop_last = given["shuffle"], given["drop_last"]
    sampler, batch_sampler = given["sampler"] is not None, given["batch_sampler"] is not None
    num_samples = len(dataset) if hasattr(dataset, "__len__") else 0
    is_too_large = num_samples > 0 and is_count(batch_size, num_samples + 1)
    workers_only = ["prefetch_factor", "persistent_workers", "timeout", "multiprocessing_context"]
    useless = [name for name in workers_only if given[name] and given["num_workers"] == 0]
    contradictions = [
        (
            shuffle and (sampler or batch_sampler),
            "shuffle: a sampler decides on the order already; give only one of them.",
        ),
        (
            sampler and batch_sampler,
            "sampler: a batch_sampler decides on the samples already; give only one of them.",
        ),
        (
            drop_last and batch_sampler,
            "drop_last: a batch_sampler decides on the batches already; give only one of them.",
        ),
        (
            drop_last and is_too_large and not sampler and not batch_sampler,
            f"batch_size: {batch_size} is more than the {num_samples} samples, and drop_last leaves nothing.",
        ),
        (
            given["unreadable"] == "skip" and (sampler or batch_sampler),
            "unreadable: a sampler decides on the samples already, so none can be skipped; set it to raise.",
        ),
        (
            useless,
            f"num_workers: must be at least 1 for {' and '.join(useless)}.",
        ),
        (
            on in ("cpu", "device") and not is_declared,
            f"on: must be 'auto' without declared views, those of stable_ssl.augmentations, not {on!r}.",
        ),
        (
            is_declared and given["collate_fn"] is not None,
            "collate_fn: declared views make the batch, and labels that make no tensor are lists; leave it out, or use "
            "transforms for views.",
        ),
        (
            is_declared and batch_size is None,
            "batch_size: must be a whole number with declared views; none is for items that are batches.",
        ),
    ]
    return [sentence for is_so, sentence in contradictions if is_so]
