"""The base class of monitors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..base import BaseTrainer


class Monitor:
    """A quantity that is computed and logged beside training.

    It must not change the weights or draw from the run's random generators. A subclass sets `name`, under which its
    values are logged, and implements `compute`, and overrides the other methods if needed.
    """

    name: str = "monitor"

    def check(self, trainer: BaseTrainer, path: str) -> None:
        """Raise a ConfigError if this monitor can't be used with the trainer. Called once, before the first step.

        Parameters
        ----------
        trainer
            The trainer, after `setup` has built its data and modules.
        path
            The monitor's key in the configuration, `logger.monitor.<set>.<name>`.
        """

    def on_step(self, trainer: BaseTrainer) -> None:
        """Run after each optimizer step, for example to keep `trainer.latest_embeddings`.

        It must not wait for the device, as `.item()` does.
        """

    def on_eval(self, trainer: BaseTrainer) -> None:
        """Run after each batch of the evaluation set that this monitor belongs to."""

    def compute(self, trainer: BaseTrainer) -> Any:
        """Return the value to log: a number, a dict of values by name, or None for nothing.

        An array with more than one number goes to `snapshots/`.

        A monitor of `train` is asked at each logging step, a monitor of an evaluation set after each evaluation. If the
        parameter of a subclass has another name than `trainer`, it gets the predictions of each batch of an evaluation
        set instead, and the mean over the batches is logged.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement compute().")

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs to compute the same values, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
