"""Samples that can't be read, such as corrupt files: all of them are named at once, or left out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from ..exceptions import DataError, some_of
from .images import spread
from .reading import Reader, UnreadableError
from .workers import WorkerBatches

SECONDS = 60.0  # that a run which fails anyway may take to look at the other samples
MOST_NAMED = 100
FEW = 3  # lines are enough if every sample has the same kind of error

NONE_READ = "Since none of them can be read, the data set's options or its transform are the likely cause."


class _Trial(Reader):
    """Returns the index of a sample that can't be read, and why; None for any other."""

    def __getitem__(self, entry: tuple[int, int]) -> Any:
        try:
            super().__getitem__(entry)
        except UnreadableError as error:
            return entry[1], str(error)
        return None


def find_unreadable(dataset: Any, name: str, options: dict[str, Any], is_brief: bool) -> tuple[dict[int, str], int]:
    """Try to read the samples of a data set.

    Parameters
    ----------
    dataset, name
        The data set, and its name in messages.
    options
        Of the torch loader that reads.
    is_brief
        End after a minute, or once a hundred samples are found, or if none of those can be read that are tried first,
        all for the same kind of reason. These are spread over the data set.

    Returns
    -------
    Why a sample can't be read, by its index; and how many samples were tried.
    """
    found: dict[int, str] = {}
    end, tried = time.monotonic() + SECONDS, 0
    first = spread(len(dataset))
    others = sorted(set(range(len(dataset))).difference(first))
    wanted = [first, *(others[at : at + 64] for at in range(0, len(others), 64))]
    workers = WorkerBatches(_Trial(dataset, 0, name), list, options)
    try:
        for indices, results in workers.batches(0, wanted):
            found.update(result for result in results if result is not None)
            tried += len(indices)
            is_enough = time.monotonic() > end or len(found) >= MOST_NAMED or _is_one_kind(found, tried)
            if is_brief and is_enough:
                break
    finally:
        workers.close()
    return dict(sorted(found.items())), tried


def name_all(
    error: UnreadableError, dataset: Any, name: str, options: dict[str, Any], others: Iterable[str] = ()
) -> DataError:
    """Return the error for a sample that can't be read, with the names of all others that can't be.

    Parameters
    ----------
    error
        The error.
    dataset, name, options
        As for `find_unreadable`.
    others
        The names of further data sets that read the same files.
    """
    found, tried = find_unreadable(dataset, name, options, is_brief=True)
    if not found:
        return error
    looked_at = f"All {tried}" if tried == len(dataset) else f"{tried} of {len(dataset)}"
    settings = " ".join(f"data.{one}.unreadable=skip" for one in (name, *others))
    advice = (
        "Mend them or put them back, and a run that has a checkpoint goes on as before. Or remove them, or leave them "
        f"out by {settings} (in a script: unreadable='skip' of the Loader). These are other data, with which such a "
        "run goes on by `stable-ssl branch RUN`, or by branch_from in a script."
    )
    if len(found) == tried:
        advice = NONE_READ
    lines = described(found, tried)
    return DataError(f"{lines}\n{looked_at} samples were tried, and {len(found)} can't be read. {advice}")


def place_of(dataset: Any) -> str | None:
    """Return the folder or file that a data set reads; None if it does not tell."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    root = getattr(dataset, "root", None)
    return os.path.abspath(root) if isinstance(root, str | os.PathLike) else None


def described(found: dict[int, str], tried: int) -> str:
    """Return a line for each sample that can't be read; a few lines if that is so for all, for one kind of reason."""
    lines, most = list(found.values()), FEW if _is_one_kind(found, tried) else MOST_NAMED
    return some_of(lines, most, "\n")


def _is_one_kind(found: dict[int, str], tried: int) -> bool:
    """Return whether no sample that was tried can be read, all for the same kind of error."""
    kinds = {reason.partition("can't be read: ")[2].partition(":")[0] for reason in found.values()}
    return len(found) == tried and len(kinds) == 1
