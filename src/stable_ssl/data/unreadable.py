"""Samples that can't be read, such as corrupt files: all of them are named at once, or left out."""

from __future__ import annotations

import time
from typing import Any

from ..exceptions import DataError
from .reading import Reader, UnreadableError
from .workers import WorkerBatches

SECONDS = 60.0  # that a run which fails anyway may take to look at the other samples
MOST_NAMED = 100


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
        End after a minute, or once a hundred samples are found.

    Returns
    -------
    Why a sample can't be read, by its index; and how many samples were tried.
    """
    found: dict[int, str] = {}
    end, tried = time.monotonic() + SECONDS, 0
    wanted = [list(range(first, min(first + 64, len(dataset)))) for first in range(0, len(dataset), 64)]
    workers = WorkerBatches(_Trial(dataset, 0, name), list, options)
    try:
        for indices, results in workers.batches(0, wanted):
            found.update(result for result in results if result is not None)
            tried += len(indices)
            if is_brief and (time.monotonic() > end or len(found) >= MOST_NAMED):
                break
    finally:
        workers.close()
    return found, tried


def name_all(error: UnreadableError, dataset: Any, name: str, options: dict[str, Any]) -> DataError:
    """Return the error for a sample that can't be read, with the names of all others that can't be."""
    found, tried = find_unreadable(dataset, name, options, is_brief=True)
    if not found:
        return error
    looked_at = f"All {tried}" if tried == len(dataset) else f"The first {tried} of {len(dataset)}"
    advice = (
        f"Remove or replace them, or set unreadable: skip in the Loader of data.{name}, which leaves them out. A run "
        "that has a checkpoint goes on with such a change by `stable-ssl branch`, or branch_from in a script."
    )
    if len(found) == tried:
        advice = "Since none of them can be read, the data set's options or its transform are the likely cause."
    return DataError(f"{described(found)}\n{looked_at} samples were tried, and {len(found)} can't be read. {advice}")


def described(found: dict[int, str]) -> str:
    """Return a line for each sample that can't be read."""
    lines = list(found.values())
    more = [f"… and {len(lines) - MOST_NAMED} more."] if len(lines) > MOST_NAMED else []
    return "\n".join([*lines[:MOST_NAMED], *more])
