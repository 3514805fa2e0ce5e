"""A run that is set up without values, in the place of steps that this machine has no room for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..device.waits import Findings, noticing
from ..stage import META, Stage
from .few import Batch, first_batch
from .hearing import Heard, left_as_it_was
from .tries import close


@contextmanager
def set_up_on_meta(stage: Stage, name: str) -> Iterator[Any]:
    """Yield a throw-away trainer after its set-up on `meta`: it has real loaders, and tensors without values.

    Parameters
    ----------
    stage, name
        The stage, and the name of the trainer's folder.
    """
    with left_as_it_was(), Heard().listening(), ExitStack() as last:
        trainer = stage.throw_away(name, META)
        last.callback(close, trainer)
        with noticing(Findings()):
            trainer.setup()
        yield trainer


def batch_of_run(stage: Stage) -> Batch | None:
    """Return the first batch of `data.train`; None if there is none, or if the set-up fails without values."""
    try:
        with set_up_on_meta(stage, "batch") as trainer:
            return first_batch(trainer.data["train"]) if "train" in trainer.data else None
    except Exception:  # the parts of the check for which it is read say what they miss
        return None
