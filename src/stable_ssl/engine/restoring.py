"""From a checkpoint of the run's own folder to the objects that it was saved from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..exceptions import CheckpointError
from ..runtime.environment import environment, environment_changes
from ..runtime.sharded import fitted
from .parts import MAKE_IT_EARLIER, Model, Part
from .session import Session
from .trained import TrainedParameters

log = logging.getLogger("stable_ssl")


def take_own_state(run: Session, meta: Mapping[str, Any], state: dict[str, Any]) -> None:
    """Give each process its own state if their number is as before. Warn if results may differ in the last bits.

    Parameters
    ----------
    run
        The session.
    meta, state
        The checkpoint's `meta.json`, and its state, which is changed in place.
    """
    before = meta["world"]
    if before["size"] != run.ranks.size:
        log.warning(
            "Going on with %d processes instead of %d: the samples come in the same order, but results may differ in "
            "the last bits, and what each process had of its own is lost.",
            run.ranks.size,
            before["size"],
        )
    else:
        run.ranks.take_share(state)
    if before["size"] == run.ranks.size and before.get("strategy", "ddp") != run.ranks.sharding.strategy:
        log.warning(
            "Going on with hardware.strategy=%s instead of %s: results may differ in the last bits.",
            run.ranks.sharding.strategy,
            before.get("strategy", "ddp"),
        )
    for change in environment_changes(meta, environment(run.device)):
        log.warning("%s Results may differ in the last bits.", change)


def load_state(
    path: Path,
    state: Mapping[str, Any],
    model: Model,
    parts: Mapping[str, Part],
    unclaimed: dict[str, Any],
    trained: TrainedParameters | None,
) -> None:
    """Load a checkpoint's state into the modules and parts that it was saved from.

    Parameters
    ----------
    path
        The checkpoint's folder, for errors.
    state
        The state.
    model, parts
        The modules, and the parts by name.
    unclaimed
        The states of parts by name; those that are loaded are removed.
    trained
        The trained parameters; None if the run does not train.

    Raises
    ------
    CheckpointError
        The state does not fit.
    """
    try:
        model.load_state_dict(fitted_modules(state["modules"], model))
    except RuntimeError as error:
        advice = MAKE_IT_EARLIER if model.state_dict().keys() != state["modules"].keys() else ""
        raise CheckpointError(f"'{path}' does not fit this model: {error}\n{advice}".rstrip()) from error
    buffers, name = dict(model.named_buffers()), "trained"
    try:
        with trained.restoring(state.get("trained", {})) if trained else nullcontext():
            for name, value in state["buffers"].items():
                if name in buffers:  # others are made during training, and were so in the saved run
                    buffers[name].copy_(value)
            for name, part in parts.items():
                if name in unclaimed or not part.is_optional:
                    part.load(unclaimed.pop(name))
                elif part.object.state_dict() is not None:
                    log.info("%s begins here: the checkpoint is of a run without it.", name)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"'{path}' does not fit this run: {name}: {error!r}") from error


def fitted_modules(state: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Return the saved values of the modules, sharded as those of this run are."""
    own = model.state_dict()
    return {key: fitted(value, own[key]) if key in own else value for key, value in state.items()}
