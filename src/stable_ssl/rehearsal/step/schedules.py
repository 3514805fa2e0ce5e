"""What is odd about the schedule of a run: it moves on twice per step, or has another length than the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..configuration.usual import argument

EARLY = 0.2  # of the steps: a schedule that is over by then was meant for fewer
LATE = 2  # times the steps of the run


def odd_schedule(trainer: Any, groups: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a sentence or two for each thing that is odd about the schedule of a run.

    Parameters
    ----------
    trainer
        The trainer that has taken the steps.
    groups
        The table of groups.
    """
    optim, taken = trainer.optim, trainer._progress.schedule_step
    moved, total = getattr(optim["scheduler"], "last_epoch", 0), optim["total_steps"]
    if moved > taken > 0:
        yield (
            f"optim.scheduler: it has moved on {moved} times in {taken} step{'s' * (taken > 1)}. The run calls its "
            "step() after each optimizer step, so a hook must not call it too."
        )
    for name in ("T_max", "total_steps"):
        length = argument(trainer._configured["optim"]["scheduler"], name)
        if isinstance(length, int | float) and length >= LATE * total:
            yield (
                f"optim.scheduler.{name}: {length}, but the run has {total} optimizer steps, so it ends long before "
                "its schedule. Give the schedule the number of steps of the run."
            )
    for group in groups:
        (_, largest, last), settled = group["rates"], group["settled"]
        if settled is not None and 0 < settled < EARLY * total and last < largest / 2:
            yield (
                f"optim.scheduler: after {settled} of {total} steps the rate is "
                f"{'nearly 0' if last < 1e-6 * largest else f'{last:.3g}'} for good. The schedule moves on with each "
                "optimizer step: was it meant for epochs?"
            )
            return
