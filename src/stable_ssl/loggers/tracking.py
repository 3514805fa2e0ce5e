"""Experiment trackers: Weights & Biases, and TensorBoard."""

from __future__ import annotations

import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("stable_ssl")


class Tracker(Protocol):
    """Takes the numbers of a run somewhere else."""

    def log(self, record: dict[str, Any], step: int) -> None:
        """Take one record of a global step."""

    def flush(self) -> None:
        """Make what was taken outlive this process; called at each checkpoint."""

    def close(self, status: str) -> None:
        """End; `status` is finished, stopped, preempted or failed."""


def open_trackers(
    folder: Path, *, wandb: bool | dict[str, Any] | None, tensorboard: bool, config: dict[str, Any], step: int
) -> list[Tracker]:
    """Return the trackers that were asked for; one whose package is missing is left out, and a line says so.

    Parameters
    ----------
    folder
        The run's folder.
    wandb
        True, or arguments of `wandb.init`.
    config
        Shown as the run's configuration.
    step
        Global step from which the run goes on.
    """
    trackers: list[Tracker] = []
    if wandb:
        try:
            trackers.append(WandbTracker(folder, {} if wandb is True else dict(wandb), config))
        except ImportError:
            log.warning("logger.wandb: no package wandb (`pip install 'stable-ssl[wandb]'`): metrics.jsonl only.")
    if tensorboard:
        try:
            trackers.append(TensorBoardTracker(folder, step))
        except ImportError:
            log.warning("logger.tensorboard: no package (`pip install 'stable-ssl[tensorboard]'`): metrics.jsonl only.")
    return trackers


class WandbTracker:
    """Weights & Biases; offline where there is no login. A restarted run goes on under the same id."""

    def __init__(self, folder: Path, options: dict[str, Any], config: dict[str, Any]):
        import wandb

        remembered = folder / "wandb.json"
        if "id" not in options:
            known = json.loads(remembered.read_text()) if remembered.exists() else {"id": secrets.token_hex(4)}
            options["id"] = known["id"]
        remembered.write_text(json.dumps({"id": options["id"]}) + "\n")
        mode = os.environ.get("WANDB_MODE")
        if mode is None and wandb.api.api_key is None:
            mode = "offline"
            log.warning("logger.wandb: not logged in, so the run is kept offline; `wandb sync` sends it later.")
        options.setdefault("dir", str(folder))
        options.setdefault("name", folder.name)
        settings = wandb.Settings(console="off", silent=True)
        self._run = wandb.init(**options, mode=mode, resume="allow", config=config, settings=settings)  # type: ignore[arg-type]
        # W&B's own step only rises; after a resume, ours begins again at the checkpoint.
        self._run.define_metric("*", step_metric="global_step")

    def log(self, record: dict[str, Any], step: int) -> None:
        """Take one record of a global step."""
        self._run.log(record)

    def flush(self) -> None:
        """Do nothing: W&B's own process writes as records come."""

    def close(self, status: str) -> None:
        """End the run; one that failed is shown as failed, one that will go on as preempted."""
        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status in ("finished", "stopped") else 1)


class TensorBoardTracker:
    """TensorBoard events in the run's folder."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # What was written after the checkpoint is hidden, not repeated.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, record: dict[str, Any], step: int) -> None:
        """Take one record of a global step."""
        for name, value in record.items():
            if name != "global_step":
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write everything."""
        self._writer.flush()

    def close(self, status: str) -> None:
        """Write everything."""
        self._writer.close()
