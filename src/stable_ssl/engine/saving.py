"""Checkpoints and weights: when they are saved, what they hold, and how a run resumes from them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from torch import nn

from ..data.identity import identify
from ..exceptions import CheckpointError, ConfigError, NanError
from ..runtime.checkpoint import digest, on_host
from ..runtime.precision import all_finite, learned_values
from ..runtime.status import COMPLETE
from .branching import Branch, find_branch
from .facts import DataFacts, check_facts, constant_facts, machine_facts, what_is_held
from .parts import Model, Part, Parts
from .restoring import load_state, take_own_state
from .schedule import Schedule
from .session import Session
from .stepping import Stepper
from .trained import TrainedParameters
from .weight_files import WeightFiles

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
        Returns the run's configuration, which checkpoints and weights hold too.
    branch_from
        The run's `branch_from`: a dict with `run`, `step` and `restart_schedule`.

    Attributes
    ----------
    held
        What the folder's newest checkpoint says: `config`, `behaviours` and `progress`. None if there is none.
    earlier
        The configuration of the run that goes on, or of the one that this run branches from; None in a new run.
    parts
        The objects beside the modules that are saved with each checkpoint.
    log_position
        The length in bytes that `metrics.jsonl` had at the restored checkpoint. None: it need not be cut back.
    weights
        The run's files of weights.
    """

    def __init__(
        self,
        run: Session,
        options: Any,
        model: Model,
        learned: Callable[[], Mapping[str, nn.Module]],
        config: Callable[[], Mapping[str, Any]],
        branch_from: Any,
    ):
        self._run, self._ranks, self._progress = run, run.ranks, run.progress
        self._options, self._model, self._learned, self._config = options, model, learned, config
        self._store, self.weights = run.checkpoints, WeightFiles(run, model, config)
        self._seconds = 60 * options["checkpoint_every_minutes"]
        self._every_step = options["checkpoint_every_step"] or sys.maxsize
        self.held: dict[str, Any] | None = self._ranks.from_main(lambda: what_is_held(self._store, run.folder.path))
        self._branch = find_branch(branch_from, run, self.held is None)
        self.earlier = self._branch.config if self._branch else self.held and self.held["config"]
        self.log_position: int | None = 0
        self.parts = Parts()
        self._data_facts: DataFacts | None = None
        self._constant_facts: dict[str, Any] = {}
        self._steps: Stepper | None = None
        self._trained: TrainedParameters | None = None
        self._schedule: Schedule | None = None
        self._saved: dict[str, Any] | None = None
        self._last_save = time.monotonic()
        self._is_kept = self._is_over = False  # of the last checkpoint; of the run
        self._unwritten: list[str] = []  # final weights that are lost
        self._is_asked = False  # for a checkpoint at the next step boundary
        self._at_end: tuple[bytes, bytes] | None = None  # checksums of what `after_fit` may change

    def lacks_values(self) -> bool:
        """Return whether the modules need first values, because no checkpoint has all of them."""
        return not self._branch.has_all(self._model) if self._branch else self.held is None

    def schedule_begin(self, optim: Any, loader: Any) -> float:
        """Return the number of epochs before the schedule begins. A branch decides now where its training begins."""
        self._data_facts = DataFacts.of(loader, optim["num_batches"], self._ranks.size)
        if self._branch:
            found = self._ranks.from_main(lambda: identify(loader))
            self._branch.begin(self._config()["trainer"], self._data_facts, found, optim)
        record = self._branch.progress.as_dict() if self._branch else self.held["progress"] if self.held else {}
        return float(record.get("schedule_begin", 0.0))

    def register(self, objects: Iterable[tuple[str, Any]]) -> None:
        """Make the objects that a trainer registered, with their names, part of each checkpoint."""
        for name, registered in objects:
            self.parts.add(Part(f"registered.{name}", registered))

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
        self.parts.add(Part("optimizer", optim["optimizer"], is_shared=True))
        if optim["scheduler"] is not None:
            self._schedule = Schedule(optim)
            self.parts.add(Part("scheduler", optim["scheduler"], is_shared=True))
        if self._run.precision.scaler:
            self.parts.add(Part("scaler", self._run.precision.scaler, is_shared=True, is_optional=True))
        for name, optimizer in steps.trained.side.items():
            self.parts.add(Part(name, optimizer, is_shared=True))
        if hasattr(loader, "state_dict"):
            self.parts.add(Part("data", loader))
        self._steps, self._trained = steps, steps.trained

    # When -------------------------------------------------------------------------------------------------------------

    def is_due_after_epoch(self) -> bool:
        """Return whether a checkpoint is due at the end of an epoch's training."""
        return self._saved is None or time.monotonic() - self._last_save >= SECONDS_BETWEEN_EPOCH_SAVES

    def after_step(self) -> None:
        """Save if due or asked for, and end the run if asked to, after an optimizer step.

        All processes do so at the same step. What only one of them asks for is done one step later.
        """
        is_certain = self._progress.global_step % self._every_step == 0
        self.at_boundary(is_certain or time.monotonic() >= self._last_save + self._seconds, at_once=is_certain)

    def at_boundary(self, save_is_due: bool, at_once: bool = True) -> None:
        """Save if due or asked for, and end the run if asked to; `at_once` is explained by `Alone.at_boundary`."""
        asked, request = self._ranks.at_boundary(save_is_due or self._is_asked, self._run.stop.request, at_once)
        if asked or request:
            self.save()
            self._is_asked = False
        self._run.end_when_asked(request, f"at step {self._progress.global_step}")

    def save_by_hand(self, write_log: Callable[[], None] | None) -> None:
        """Save because a user asks for it: now, if a hook between two steps does; else at the next step boundary.

        Parameters
        ----------
        write_log
            Writes what the hook has logged so far. None: no such hook asks.
        """
        if write_log is None:
            self._is_asked = True
            return
        write_log()
        self.save()
        self._store.wait()  # the process may end at once

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
        if progress == self._saved:
            return
        self._check_finite()
        if self._ranks.is_main:
            with suppress(OSError, ConfigError):  # the error comes when the checkpoint is written
                if self._run.folder.has_lost_config():
                    self._run.own_folder()
        self._last_save = time.monotonic()
        log_position = self._ranks.from_main(self._log_position)
        if log_position is None:
            return
        self._write(progress, log_position, kept)
        if self._ranks.is_main:
            self._run.status.beat()

    def _write(self, progress: dict[str, Any], log_position: int, kept: bool = False, **more: Any) -> None:
        state = {"progress": progress, **self._state(), "log_position": log_position, **more}
        shared = {name for name, part in self.parts.items() if part.is_shared}
        names = (name for name, _ in self._model.named_parameters(remove_duplicate=False))
        self._ranks.add_shares(state, shared.union(names))
        machine = machine_facts(self._run.device, self._ranks.size, self._ranks.sharding.strategy)
        facts = {"progress": progress, **machine, **self._constant_facts}
        self._store.save(self._progress.global_step, state, facts, kept)
        self._saved, self._is_kept = progress, kept

    def _check_finite(self) -> None:
        if self._steps:
            self._steps.check_losses()
        learned = [value for module in self._learned().values() for value in learned_values(module)]
        if self._ranks.any(not all_finite(learned)):
            raise NanError(
                f"A weight or running statistic is not finite at step {self._progress.global_step}. "
                f"A smaller rate or optim.grad_max_norm may help. {self._run.how_to_change()}"
            )

    def _log_position(self) -> int | None:
        try:
            return self._run.log.position()
        except OSError as error:
            step, stands = self._progress.global_step, self._store.what_stands()
            log.error("No checkpoint of step %d, since metrics.jsonl can't be written: %s. %s", step, error, stands)
            return None

    def _state(self) -> dict[str, Any]:
        """Return everything a resumed run needs that the configuration does not determine."""
        modules = self._model.state_dict()
        self._model.warn_of_changes(modules)
        trained = self._trained.state() if self._trained else {}
        return {
            "modules": modules,
            "buffers": self._model.other_buffers(),
            "parts": self.parts.states(),
            **({"trained": trained} if trained else {}),
        }

    # Restoring --------------------------------------------------------------------------------------------------------

    def restore(self, num_epochs: int, loaders: Mapping[str, Any]) -> None:
        """Restore the newest valid checkpoint of the run's folder, or that of the parent if the run is a new branch.

        Parameters
        ----------
        num_epochs
            `optim.epochs`. A finished or stopped run goes on if it is larger than before.
        loaders
            The run's data sets, by name.

        Raises
        ------
        ConfigError
            The checkpoint was made with other data, or another optimizer.
        CheckpointError
            The checkpoints can't be read, or do not fit this run.
        """
        self._last_save = time.monotonic()
        self._model.end_set_up()
        about = self._config()["trainer"], self.parts, self._model, loaders
        self._constant_facts = {
            "data": self._data_facts and asdict(self._data_facts),
            "total_steps": self._schedule and self._schedule.total_steps,
            **self._ranks.from_main(lambda: constant_facts(*about)),
        }
        if self._branch:
            self._begin_branch(self._branch)
            return
        found = self._store.load_newest(layout=self._ranks.sharding.layout)
        if found is None:
            return
        path, state, meta = found
        self._run.owns_folder = False  # until the checkpoint is known to be of this run
        check_facts(path, {**(self.held or {}), **meta}, self._constant_facts, self._data_facts, self._run.folder.path)
        take_own_state(self._run, meta, state)
        self._progress.go_to(state["progress"])
        self.parts.unclaimed = dict(state["parts"])
        load_state(path, state, self._model, self.parts, self.parts.unclaimed, self._trained)
        if self._schedule:
            self._schedule.fit(meta.get("total_steps"), state["parts"]["scheduler"], self._progress.schedule_step)
        self._ranks.from_main(self._run.own_folder)
        self.log_position, self._saved, self._is_kept = (
            state["log_position"],
            state["progress"],
            meta.get("kept", False),
        )
        status = self._ranks.from_main(lambda: self._run.folder.status)
        if status.get("status") in COMPLETE and status["progress"] == state["progress"]:
            self._run.is_finished = num_epochs <= status.get("epochs", self._progress.epoch)
            self.log_position = None
        elif state.get("is_evaluated"):
            self._run.is_finished = num_epochs <= self._progress.epoch
        if not self._run.is_finished:
            step, epoch = self._progress.global_step, self._run.shown_epoch + 1
            log.info("Going on from '%s': step %d, epoch %d.", path, step, epoch)

    def _begin_branch(self, branch: Branch) -> None:
        """Take over what fits of the parent's checkpoint, and write the first checkpoint of this run."""
        branch.read(self._ranks.sharding.layout)
        take_own_state(self._run, branch.meta, branch.state)
        self.parts.unclaimed = branch.take_over(self._model, self.parts, self._constant_facts, self._trained)
        self._progress.go_to(branch.progress.as_dict())
        branch.tell()
        self._ranks.from_main(lambda: self._run.folder.write_branch(branch.record()))
        # From here on, the branch needs its parent no more.
        self._write(self._progress.as_dict(), log_position=0)
        self._branch = None

    # Weights ----------------------------------------------------------------------------------------------------------

    def end_epoch(self) -> None:
        """Write the weights if due, move to the next epoch, and end the run if asked to."""
        self._move_on()
        self.at_boundary(False)

    def _move_on(self) -> None:
        every, number = self._options["checkpoint_frequency"], self._progress.epoch + 1
        is_kept = bool(every) and number % every == 0
        if is_kept:
            self.weights.save(f"epoch_{number:04d}")
        self._progress.end_epoch()
        if is_kept and not self._options["checkpoint_model_only"]:
            self.save(kept=True)

    def finish(self) -> None:
        """Save the final state, and the final weights if `save_final_model` is set."""
        self.save()
        self._is_over = True
        name = self._options["save_final_model"]
        if name and not self.weights.save(name if isinstance(name, str) else "final"):
            self._unwritten = ["the final weights"]
        if self._ranks.any(bool(self._of_evaluations())):
            self._at_end = self._checksums()

    def _of_evaluations(self) -> dict[str, Part]:
        """Return the parts that evaluations and the hooks around them change."""
        kinds, but = ("best", "registered.", "monitor."), "monitor.train."
        return {name: part for name, part in self.parts.items() if name.startswith(kinds) and not name.startswith(but)}

    def _checksums(self) -> tuple[bytes, bytes]:
        """Return the checksums of the modules and of what evaluations change."""
        states = {name: part.object.state_dict() for name, part in self._of_evaluations().items()}
        return digest(on_host(self._model.state_dict())), digest(on_host(states))

    def save_evaluated(self) -> None:
        """Save the last step again if `after_fit`, by its evaluation, has changed what a longer run goes on with.

        That is what hooks registered, the best value, and the monitors. If `after_fit` has changed the modules too, for
        example by loading the best weights, the first save stands: its modules are those that training ended with.
        """
        if not self._at_end or self._unwritten:
            return
        modules, parts = self._checksums()
        is_written = self._store.wait()
        log_position = self._ranks.from_main(self._log_position)
        must_stand = self._ranks.any(modules != self._at_end[0] or not is_written)
        if self._ranks.any(parts != self._at_end[1]) and not must_stand and log_position is not None:
            self._write(self._progress.as_dict(), log_position, self._is_kept, is_evaluated=True)

    def stop(self) -> None:
        """End the run before its last epoch: save the state of the last optimizer step, and what `finish` writes.

        A run that goes on later begins behind what it has done: with the next group of mini-batches, or with the next
        epoch if this one's training is over.
        """
        if self._steps is None:
            return
        self._steps.break_off()
        if self._progress.phase == "evaluate":
            self._move_on()
        self.finish()

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
            what = " and ".join(lost).capitalize()
            raise CheckpointError(
                f"{what} could not be written, as the errors above say. {self.weights.what_is_left()}"
            )
