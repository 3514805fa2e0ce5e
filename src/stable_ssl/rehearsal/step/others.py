"""Samples beside those of the first step: whether the loss is a finite number with each of them too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import torch

from ...data import Loader
from ...exceptions import BreakEpoch, BreakStep, DataError, NanError, some_of
from ..samples.looking import chosen, name_of
from ..sections import trainer_of
from ..stage import Stage
from ..stepping import begin_epoch, losses_of
from .explained import explain
from .few import Batch, batches_of, few_of, rows_of
from .observations import not_finite
from .places import Place
from .tries import SIZES, SmallRun

SECONDS = 5.0  # for all samples together
_ADVICE = "Mend the sample or leave it out, or have the loss be finite for it."


def check_other_samples(stage: Stage, run: SmallRun) -> None:
    """Compute the loss of other samples of `data.train`, some at a time, and report those with which it fails.

    They are the odd ones, then those that the check of the data looks at, as many as there is time for. Each time, the
    samples of the first step are among them, since a loss may need those. Nothing is learned.
    """
    loader, number = run.trainer.data.get("train"), max(SIZES[-1] - run.size, run.size)
    is_slow = run.watch.seconds / run.size * (run.size + number) > SECONDS
    if not isinstance(loader, Loader) or stage.batch is None or is_slow:
        return
    try:
        begin_epoch(run.trainer)
    except Exception:  # a hook that expects no epoch after the last one
        return
    first, end, count = list(few_of(stage.batch, run.size)[0]), time.monotonic() + SECONDS, run.size
    others = _others(stage, run, loader, first)
    wanted = [[*first, *others[at : at + number]] for at in range(0, len(others), number)]
    with suppress(DataError), closing(batches_of(loader, wanted)) as batches:  # what can't be read was told
        for found in batches:
            if (rows := _failing(run, found)) is not None:
                _tell(stage, run, loader, found, rows)
                break
            count += len(found[0]) - run.size
            if time.monotonic() > end:
                break
    stage.report.tell("step", samples=count)


def _others(stage: Stage, run: SmallRun, loader: Loader, first: list[Any]) -> list[int]:
    """Return the samples to try, of those that the first epoch has."""
    drawn = {index for indices in loader._index_batches(0)[: run.trainer._steps.num_batches] for index in indices}
    found = dict.fromkeys([*stage.odd, *chosen(len(loader.dataset), is_all=False)])
    return [index for index in found if index in drawn and index not in first]


def _failing(run: SmallRun, found: Batch) -> list[int] | None:
    """Return the places in a batch of the fewest samples with which the loss fails. None: it does not.

    It does not either if it fails as well with copies of a good sample in place of them.
    """
    first, rows = list(range(run.size)), list(range(run.size, len(found[0])))

    def is_to_blame(rows: list[int]) -> bool:
        with_them, without = (rows_of(found, [*first, *places]) for places in (rows, [0] * len(rows)))
        return _failure(run, with_them) is not None and _failure(run, without) is None

    if not is_to_blame(rows):
        return None
    while len(rows) > 1:
        middle = len(rows) // 2
        half = next((half for half in (rows[:middle], rows[middle:]) if is_to_blame(half)), None)
        if half is None:
            break
        rows = half
    return rows


def _failure(run: SmallRun, found: Batch) -> tuple[Exception, Place] | None:
    """Return the error that the loss of a batch ends with, and its place. None: it has a loss."""
    try:
        with _as_they_were(run):
            losses = losses_of(run.trainer, *found)
    except (BreakStep, BreakEpoch):
        return None
    except Exception as error:
        return error, Place(error, run.trainer, run.watch.outputs)
    if run.trainer.optim["nonfinite"] == "skip" or not (bad := not_finite(losses)):
        return None
    nan = NanError(f"compute_loss(): not finite: {some_of(bad)}. {_ADVICE}")
    return nan, Place(nan, run.trainer, run.watch.outputs)


@contextmanager
def _as_they_were(run: SmallRun) -> Iterator[None]:
    """Restore all buffers, such as running statistics and queues, after the block."""
    before = [(buffer, buffer.clone()) for buffer in run.trainer.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in before:
                if not torch.equal(buffer, values):
                    buffer.copy_(values)


def _tell(stage: Stage, run: SmallRun, loader: Loader, found: Batch, rows: list[int]) -> None:
    """Report the samples with which the loss fails. What one of them does alone is certain."""
    failure = _failure(run, rows_of(found, [*range(run.size), *rows]))
    if failure is None:  # by chance
        return
    indices = [found[0][row] for row in rows]
    names = some_of([name_of(loader.dataset, index) for index in indices], 3, " and ")
    for problem in explain(*failure, trainer_of(stage)):
        text = f"{problem} So it is with {names} of data.train, and not with those of the first step."
        (stage.report.error if len(indices) == 1 else stage.report.warn)("step", text)
