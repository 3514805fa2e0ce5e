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
    """An experiment tracker: it gets every record of a run."""

    def log(self, record: dict[str, Any], step: int) -> None:
        """Add one record of a global step."""

    def flush(self) -> None:
        """Write all records, so that they are not lost if the process dies. Called at each checkpoint."""

    def close(self, status: str) -> None:
        """End the tracker's run. `status` is "finished", "stopped", "preempted" or "failed"."""


def open_trackers(
    folder: Path, *, wandb: bool | dict[str, Any] | None, tensorboard: bool, config: dict[str, Any], step: int
) -> list[Tracker]:
    """Return the trackers that the configuration asks for. If a tracker's package is missing, warn and leave it out.

    Parameters
    ----------
    folder
        The run's folder.
    wandb
        True, or a dict of arguments for `wandb.init`. False or None: no Weights & Biases.
    tensorboard
        Whether to write TensorBoard events.
    config
        The run's configuration, which trackers show.
    step
        The global step of the checkpoint that the run resumes from; 0 for a new run.
    """
    trackers: list[Tracker] = []
    if wandb:
        try:
            trackers.append(WandbTracker(folder, {} if wandb is True else dict(wandb), config))
        except ImportError:
            log.warning(
                "logger.wandb: there is no package wandb (`pip install 'stable-ssl[wandb]'`); using metrics.jsonl only."
            )
    if tensorboard:
        try:
            trackers.append(TensorBoardTracker(folder, step))
        except ImportError:
            log.warning(
                "logger.tensorboard: there is no package tensorboard (`pip install 'stable-ssl[tensorboard]'`); "
                "using metrics.jsonl only."
            )
    return trackers


class WandbTracker:
    """A run of Weights & Biases. It is offline if there is no login, and keeps its id when the run is resumed."""

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
            log.warning("logger.wandb: there is no login, so the run is logged offline. `wandb sync` uploads it later.")
        options.setdefault("dir", str(folder))
        options.setdefault("name", folder.name)
        settings = wandb.Settings(console="off", silent=True)
        self._run = wandb.init(**options, mode=mode, resume="allow", config=config, settings=settings)  # type: ignore[arg-type]
        # W&B's own step can't go back, but after a resume the global step goes back to the checkpoint's.
        self._run.define_metric("*", step_metric="global_step")

    def log(self, record: dict[str, Any], step: int) -> None:
        """Add one record of a global step."""
        self._run.log(record)

    def flush(self) -> None:
        """Do nothing: W&B writes each record from a process of its own."""

    def close(self, status: str) -> None:
        """End the run. W&B shows a preempted run as preempted, and a failed one as failed."""
        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status in ("finished", "stopped") else 1)


class TensorBoardTracker:
    """TensorBoard events in the folder `tensorboard` of the run's folder."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides the events after the checkpoint, because the resumed run writes them again.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, record: dict[str, Any], step: int) -> None:
        """Add one record of a global step."""
        for name, value in record.items():
            if name != "global_step":
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write all events to disk."""
        self._writer.flush()

    def close(self, status: str) -> None:
        """Write all events to disk and close the file."""
        self._writer.close()
