"""The record of how far a run is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class Progress:
    """Where a run stands: in `phase` of epoch `epoch`, after `batches` mini-batches of this epoch.

    Parameters
    ----------
    global_step
        Optimizer steps attempted; a skipped one counts.
    epoch
        Epochs finished.
    batches
        Mini-batches of the current epoch that are finished.
    phase
        "fit": the epoch's training comes next, or goes on. "evaluate": its training is over, its evaluation is not.
    schedule_begin
        Epochs before the schedule begins: above 0 in a branch that began it anew.
    has_begun
        Whether the hooks at the beginning of the epoch have run; noted until its first mini-batch is finished.
    schedule_shift
        Steps of the schedule minus `global_step`. A branch with another number of steps per epoch has one.
    """

    global_step: int = 0
    epoch: int = 0
    batches: int = 0
    phase: str = "fit"
    schedule_begin: float = 0.0
    schedule_shift: int = 0
    has_begun: bool = False

    @property
    def schedule_step(self) -> int:
        """The place in the schedule: the steps of it that are over."""
        return self.global_step + self.schedule_shift

    @property
    def trained_epochs(self) -> int:
        """Epochs whose training is over."""
        return self.epoch + (self.phase == "evaluate")

    def end_training(self) -> None:
        """End the epoch's training: its evaluation is next."""
        self.batches, self.phase, self.has_begun = 0, "evaluate", False

    def end_epoch(self) -> None:
        """End the epoch: the next one's training is next."""
        self.epoch, self.phase = self.epoch + 1, "fit"

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a checkpoint and `status.json` hold it."""
        record = asdict(self)  # only branches have a begin and a shift of the schedule
        if not (self.schedule_begin or self.schedule_shift):
            del record["schedule_begin"], record["schedule_shift"]
        if self.batches or not self.has_begun:
            del record["has_begun"]
        return record

    def go_to(self, record: dict[str, Any]) -> None:
        """Take over a record that `as_dict` returned."""
        self.global_step, self.epoch = record["global_step"], record["epoch"]
        self.batches, self.phase = record["batches"], record["phase"]
        self.schedule_begin, self.schedule_shift = record.get("schedule_begin", 0.0), record.get("schedule_shift", 0)
        self.has_begun = record.get("has_begun", False) or self.batches > 0
