"""Training steps of a trainer that is set up, outside of its run."""

from __future__ import annotations

from typing import Any

from ..runtime.device import to_device


def take_steps(trainer: Any, indices: Any, batch: Any, count: int) -> None:
    """Take training steps, all with the same mini-batch, as an epoch of the run would take them.

    Parameters
    ----------
    trainer
        It is set up, and trains on `data.train`.
    indices
        Of the samples; None if they are not known.
    batch
        The mini-batch, on any device.
    count
        How many mini-batches. `optim.accumulation_steps` of them make an optimizer step.
    """
    begin_epoch(trainer)
    for batch_idx in range(count):
        take_batch(trainer, batch_idx, indices, batch)


def begin_epoch(trainer: Any) -> None:
    """Begin an epoch of training: modules are in training mode, and the trainer's hook has run."""
    trainer.train()
    trainer._steps.begin_epoch(trainer.before_fit_epoch)


def losses_of(trainer: Any, indices: Any, batch: Any) -> Any:
    """Return the losses of the first mini-batch of an epoch, before the backward pass."""
    _begin(trainer, 0, indices, batch)
    with trainer._run.precision.autocast:
        losses = trainer.compute_loss()
    trainer.side_losses()
    return losses


def take_batch(trainer: Any, batch_idx: int, indices: Any, batch: Any) -> None:
    """Train on one mini-batch, as `_fit_epoch` does. `batch_idx` is its place in the epoch; see `take_steps`."""
    _begin(trainer, batch_idx, indices, batch)
    trainer._fit_step()
    trainer._finish_batch()


def _begin(trainer: Any, batch_idx: int, indices: Any, batch: Any) -> None:
    placed = to_device(batch, trainer.device, trainer.hardware["channels_last"])
    vars(trainer).update(batch_idx=batch_idx, indices=indices, batch=placed, stepped=False)
    trainer._steps.begin(batch_idx)
    trainer.before_fit_step()
