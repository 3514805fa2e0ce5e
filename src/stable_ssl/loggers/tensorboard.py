"""Metrics in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import Status, Tracker, numbers


class TensorBoardTracker(Tracker):
    """Writes event files to `<dump_path>/tensorboard`.

    Parameters
    ----------
    dump_path
        The run's folder.
    step
        Global step from which the run goes on: TensorBoard forgets what an earlier process wrote for later steps.

    Raises
    ------
    ImportError
        The package `tensorboard` is missing.
    """

    def __init__(self, dump_path: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # Step `step` itself was done before the checkpoint; what is logged of it again is the same.
        self._writer = SummaryWriter(str(dump_path / "tensorboard"), purge_step=step + 1)

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Add one scalar for each number."""
        for name, value in numbers(record).items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write the events that are still in memory."""
        self._writer.flush()

    def close(self, status: Status) -> None:
        """Write the rest; event files don't say how a run ended."""
        self._writer.close()
