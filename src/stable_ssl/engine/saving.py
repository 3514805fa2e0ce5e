"""Checkpoints and weights: when they are saved, what they hold, and how a run resumes from them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import CheckpointError, ConfigError, NanError
from ..runtime.environment import environment, environment_changes
from ..runtime.precision import all_finite, learned_values
from ..runtime.weights import read_header, save_weights
from .parts import DataFacts, Model, Part
from .schedule import Schedule
from .session import Session
from .stepping import Stepper

log = logging.getLogger("stable_ssl")

SECONDS_BETWEEN_EPOCH_SAVES = 60.0


class Saver:
    """Saves the state of a run, and restores it.

    Parameters
    ----------
    run
        The session.
    options
        The run's `LoggerConfig`.
    model
        Access to the state of all modules.
    learned
        Returns the modules, by name, whose values must be finite.
    config
        Returns the run's configuration, for the header of weights.

    Attributes
    ----------
    is_new
        Whether the folder has no checkpoint yet.
    log_position
        The length in bytes that `metrics.jsonl` had at the restored checkpoint. None: it need not be cut back.
    """

    def __init__(
        self,
        run: Session,
        options: Any,
        model: Model,
        learned: Callable[[], Mapping[str, nn.Module]],
        config: Callable[[], Mapping[str, Any]],
    ):
        self._run, self._ranks, self._progress = run, run.ranks, run.progress
        self._options, self._model, self._learned, self._config = options, model, learned, config
        self._store = run.checkpoints
        self._seconds = 60 * options["checkpoint_every_minutes"]
        self._every_step = options["checkpoint_every_step"] or sys.maxsize
        self.is_new: bool = self._ranks.from_main(self._store.is_empty)
        self.log_position: int | None = 0
        self._parts: dict[str, Part] = {}
        self._unclaimed: dict[str, Any] = {}  # restored states whose parts have not been added yet
        self._data_facts: DataFacts | None = None
        self._steps: Stepper | None = None
        self._schedule: Schedule | None = None
        self._saved: dict[str, Any] | None = None
        self._last_save = time.monotonic()
        self._is_over = False
        self._unwritten: list[str] = []  # final weights that are lost

    def add(self, part: Part) -> None:
        """Save an object with each checkpoint. If a checkpoint was loaded before, restore the object now.

        Raises
        ------
        ConfigError
            The object can't be saved, or its name is taken.
        """
        if isinstance(part.object, type):
            raise ConfigError(f"{part.name}: a class, {part.object.__name__}; make an object of it.")
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(part.object, method, None)):
                raise ConfigError(
                    f"{part.name}: a {type(part.object).__name__} has no {method}(), so it can't be saved."
                )
        if part.name in self._parts:
            raise ConfigError(f"{part.name}: a part of the checkpoint has this name already.")
        self._parts[part.name] = part
        if part.name in self._unclaimed:
            part.object.load_state_dict(self._unclaimed.pop(part.name))

    def add_all(self, parts: Iterable[Part]) -> None:
        """Save several objects with each checkpoint."""
        for part in parts:
            self.add(part)

    def register(self, objects: Iterable[tuple[str, Any]]) -> None:
        """Make the objects that a trainer registered, with their names, part of each checkpoint."""
        for name, registered in objects:
            self.add(Part(f"registered.{name}", registered))

    def add_training(self, steps: Stepper, optim: Any, loader: Any) -> None:
        """Save with each checkpoint the optimizers, the schedule, the loss scaling and the place in a stream of data.

        Parameters
        ----------
        steps
            The run's `Stepper`, which has the side optimizers.
        optim
            The run's `OptimConfig`, with optimizer and schedule built.
        loader
            The loader of the training set. It is saved if it has a `state_dict`.
        """
        self.add(Part("optimizer", optim["optimizer"], is_shared=True))
        if optim["scheduler"] is not None:
            self._schedule = Schedule(optim)
            self.add(Part("scheduler", optim["scheduler"], is_shared=True))
        if self._run.precision.scaler:
            self.add(Part("scaler", self._run.precision.scaler, is_shared=True, is_optional=True))
        for name, optimizer in steps.trained.side.items():
            self.add(Part(name, optimizer, is_shared=True))
        if hasattr(loader, "state_dict"):
            self.add(Part("data", loader))
        batch_size, views = getattr(loader, "batch_size", None), getattr(loader, "views", None)
        whole = batch_size and batch_size * self._ranks.size
        self._data_facts = DataFacts(steps.num_batches, whole, views and repr(views))
        self._steps = steps

    # When -------------------------------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Return whether a checkpoint is due between two steps."""
        is_old = time.monotonic() >= self._last_save + self._seconds
        return is_old or self._progress.global_step % self._every_step == 0

    def is_due_after_epoch(self) -> bool:
        """Return whether a checkpoint is due at the end of an epoch's training."""
        return self._saved is None or time.monotonic() - self._last_save >= SECONDS_BETWEEN_EPOCH_SAVES

    def at_boundary(self, save_is_due: bool) -> None:
        """Save if due, and end the run if asked to. If one process must, all do so at the same step."""
        save_is_due, request = self._ranks.largest(save_is_due, self._run.stop.request)  # type: ignore[assignment]
        if save_is_due or request:
            self.save()
        self._run.end_when_asked(request, f"at step {self._progress.global_step}")

    # Saving -----------------------------------------------------------------------------------------------------------

    def save(self, kept: bool = False) -> None:
        """Save the current step, unless it is saved already.

        Parameters
        ----------
        kept
            Never delete this checkpoint.

        Raises
        ------
        NanError
            A loss or a learned value is not finite.
        """
        progress = self._progress.as_dict()
        if not self._store.wait():
            self._saved = None
        # Only rank 0 knows whether the last checkpoint reached the disk.
        if not self._ranks.any(progress != self._saved):
            return
        self._check_finite()
        self._last_save = time.monotonic()
        log_position = self._ranks.from_main(self._log_position)
        if log_position is None:
            return
        state = {"progress": progress, **self._state(), "log_position": log_position}
        shared = {name for name, part in self._parts.items() if part.is_shared}
        self._ranks.add_shares(state, shared.union(name for name, _ in self._model.named_parameters()))
        if self._ranks.is_main:
            self._store.save(self._progress.global_step, state, self._facts(progress), kept)
            self._run.status.beat()
        self._saved = progress

    def _check_finite(self) -> None:
        if self._steps:
            self._steps.check_losses()
        learned = [value for module in self._learned().values() for value in learned_values(module)]
        if self._ranks.any(not all_finite(learned)):
            raise NanError(
                f"A weight or running statistic is not finite at step {self._progress.global_step}; "
                "the checkpoint before it stands."
            )

    def _log_position(self) -> int | None:
        try:
            return self._run.log.position()
        except OSError as error:
            step = self._progress.global_step
            log.error("No checkpoint of step %d, since metrics.jsonl can't be written: %s", step, error)
            return None

    def _state(self) -> dict[str, Any]:
        """Return everything a resumed run needs that the configuration does not determine."""
        persistent = {id(value) for value in self._model.state_dict(keep_vars=True).values()}
        buffers = self._model.named_buffers()
        trained = self._steps.trained.state() if self._steps else {}
        return {
            "modules": self._model.state_dict(),
            # Non-persistent buffers affect the result too, although state_dict() leaves them out.
            "buffers": {name: buffer for name, buffer in buffers if id(buffer) not in persistent},
            # A part that was not registered again yet keeps the state that it had.
            "parts": {**self._unclaimed, **self._states_of_parts()},
            **({"trained": trained} if trained else {}),
        }

    def _states_of_parts(self) -> dict[str, Any]:
        """Return the state of each part, without optional ones that have none now."""
        states = {name: part.object.state_dict() for name, part in self._parts.items()}
        return {name: s for name, s in states.items() if s is not None or not self._parts[name].is_optional}

    def _facts(self, progress: dict[str, Any]) -> dict[str, Any]:
        device = self._run.device
        return {
            "progress": progress,
            "world": {"size": self._ranks.size, "device": str(device), "threads": torch.get_num_threads()},
            "environment": environment(device),
            "data": self._data_facts and asdict(self._data_facts),
            "total_steps": self._schedule and self._schedule.total_steps,
        }

    # Restoring --------------------------------------------------------------------------------------------------------

    def restore(self, num_epochs: int) -> None:
        """Restore the newest valid checkpoint of the run's folder, if there is one.

        Parameters
        ----------
        num_epochs
            `optim.epochs`. A finished or stopped run goes on if it is larger than before.

        Raises
        ------
        ConfigError
            The checkpoint was made with other data.
        CheckpointError
            The checkpoints can't be read, or do not fit this run.
        """
        self._last_save = time.monotonic()
        found = self._ranks.from_main(self._store.load_newest)
        if found is None:
            return
        path, state, meta = found
        self._run.owns_folder = False  # until the checkpoint is known to be of this run
        if self._data_facts and (changes := self._data_facts.changes(meta.get("data") or {})):
            raise ConfigError([f"'{path}' is of a run with other data; nothing was done.", *changes])
        self._compare_world(meta, state)
        self._progress.go_to(state["progress"])
        self._load(path, state)
        if self._schedule:
            self._schedule.fit(meta.get("total_steps"), state["parts"]["scheduler"], self._progress.global_step)
        self._ranks.from_main(self._run.own_folder)
        self.log_position, self._saved = state["log_position"], state["progress"]
        status = self._ranks.from_main(lambda: self._run.folder.status)
        if status.get("status") in ("finished", "stopped") and status["progress"] == state["progress"]:
            self._run.is_finished = num_epochs <= status.get("epochs", self._progress.epoch)
            self.log_position = None
        if not self._run.is_finished:
            log.info("Going on from '%s': step %d, epoch %d.", path, self._progress.global_step, self._progress.epoch)

    def _compare_world(self, meta: Mapping[str, Any], state: dict[str, Any]) -> None:
        """Warn if results may differ in the last bits. Restore each process's own state if their number is the same."""
        before = meta["world"]
        if before["size"] != self._ranks.size:
            log.warning(
                "Going on with %d processes instead of %d: the samples come in the same order, but results may differ "
                "in the last bits, and what each process had of its own is lost.",
                self._ranks.size,
                before["size"],
            )
        else:
            self._ranks.take_share(state)
        for change in environment_changes(meta, environment(self._run.device)):
            log.warning("%s Results may differ in the last bits.", change)

    def _load(self, path: Path, state: dict[str, Any]) -> None:
        try:
            self._model.load_state_dict(state["modules"])
        except RuntimeError as error:
            raise CheckpointError(f"'{path}' does not fit this model: {error}") from error
        buffers = dict(self._model.named_buffers())
        self._unclaimed = dict(state["parts"])
        name = "trained"
        try:
            with self._steps.trained.restoring(state.get("trained", {})) if self._steps else nullcontext():
                for name, value in state["buffers"].items():
                    if name in buffers:  # others are made during training, and were so in the saved run
                        buffers[name].copy_(value)
                for name, part in self._parts.items():
                    if name in self._unclaimed or not part.is_optional:
                        part.object.load_state_dict(self._unclaimed.pop(name))
                    elif part.object.state_dict() is not None:
                        log.info("%s begins here: the checkpoint is of a run without it.", name)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"'{path}' does not fit this run: {name}: {error!r}") from error

    # Weights ----------------------------------------------------------------------------------------------------------

    def end_epoch(self) -> None:
        """Write the weights if due, move to the next epoch, and end the run if asked to."""
        self._move_on()
        self.at_boundary(False)

    def _move_on(self) -> None:
        every, number = self._options["checkpoint_frequency"], self._progress.epoch + 1
        is_kept = bool(every) and number % every == 0
        if is_kept:
            self.save_weights(f"epoch_{number:04d}")
        self._progress.end_epoch()
        if is_kept and not self._options["checkpoint_model_only"]:
            self.save(kept=True)

    def finish(self) -> None:
        """Save the final state, and the final weights if `save_final_model` is set."""
        self.save()
        self._is_over = True
        name = self._options["save_final_model"]
        if name and not self.save_weights(name if isinstance(name, str) else "final"):
            self._unwritten = ["the final weights"]

    def stop(self) -> None:
        """End the run before its last epoch: save the state of the last optimizer step, and the final weights.

        A run that goes on later begins behind what it has done: with the next group of mini-batches, or with the next
        epoch if this one's training is over.
        """
        if self._steps is None:
            return
        self._steps.break_off()
        if self._progress.phase == "evaluate":
            self._move_on()
        self.finish()

    def save_weights(self, name: str, **facts: Any) -> bool:
        """Write the weights of all modules to `weights/<name>.safetensors`, with further facts in its header.

        Returns
        -------
        bool
            Whether they are on disk. If not, an error is logged.
        """
        if not self._ranks.is_main:
            return True
        tensors = {
            key.removeprefix("module."): value
            for key, value in self._model.state_dict().items()
            if key.startswith("module.") and isinstance(value, Tensor)
        }
        header = {
            "module": self._config()["trainer"].get("module"),
            "global_step": self._progress.global_step,
            "epoch": self._progress.epoch,
            **facts,
        }
        path = self._run.folder.path / "weights" / f"{name}.safetensors"
        try:
            save_weights(path, tensors, header)
        except OSError as error:
            log.error("'%s' could not be written: %s", path, error)
            return False
        return True

    def header_of(self, name: str) -> dict[str, Any]:
        """Return the header of the weights of this name, or an empty dict if there are none."""
        path = self._run.folder.path / "weights" / f"{name}.safetensors"
        header: dict[str, Any] = self._ranks.from_main(lambda: read_header(path))
        return header

    def close(self) -> None:
        """Wait until the checkpoint that is being written is on disk.

        Raises
        ------
        CheckpointError
            The run did all its epochs, but its last state or its final weights could not be written.
        """
        is_saved = self._store.close() and self._saved == self._progress.as_dict()
        lost = [*self._unwritten, *([] if is_saved else ["the last checkpoint"])]
        if lost and self._is_over and self._ranks.is_main:
            raise CheckpointError(
                f"{' and '.join(lost).capitalize()} could not be written, as the errors above say. When the disk has "
                "room, start the run again: it does only what is missing."
            )
