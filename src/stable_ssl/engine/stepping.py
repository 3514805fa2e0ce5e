"""The optimizer step: the gradients of a group of mini-batches, and the update of the parameters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import BreakAllEpochs, BreakEpoch, BreakStep, ConfigError, NanError
from ..runtime.device import describe_batch
from ..runtime.precision import FiniteWatch, multiply_gradients, running_statistics
from ..runtime.seeding import Stream, derive_seed, seed_generators_in_turn
from .alone import is_idle
from .calls import PartCalls
from .optimizing import constant_rates, parameter_ids, set_trained, unscheduled, warn_of_unused
from .recording import Recorder
from .session import Session
from .trained import TrainedParameters

log = logging.getLogger("stable_ssl")


class Stepper:
    """Takes an optimizer step per group of `accumulation_steps` mini-batches.

    Parameters
    ----------
    run, recorder
        The session, and the recorder of losses and learning rates.
    options
        The run's `OptimConfig`, with optimizer and schedule built, `num_batches` and `total_steps`.
    seed
        The run's seed.
    modules
        The networks, by name. The log warns of those that get no gradient in the first step.
    parts
        All modules and the loss, for `PartCalls`.
    trained
        The trained parameters and all optimizers.

    Attributes
    ----------
    ends_group
        Whether the current mini-batch is the last of its group.
    """

    def __init__(
        self,
        run: Session,
        recorder: Recorder,
        options: Any,
        seed: int,
        modules: Mapping[str, nn.Module],
        parts: Iterable[Any],
        trained: TrainedParameters,
    ):
        self._run, self._recorder, self._precision, self._modules = run, recorder, run.precision, modules
        self._progress, self._ranks, self._options = run.progress, run.ranks, options
        self.num_batches: int = options["num_batches"]
        self.accumulation: int = options["accumulation_steps"]
        self._optimizer, self._scheduler = options["optimizer"], options["scheduler"]
        groups, self._constant = options["groups"], unscheduled(options["groups"])
        self._frozen = {name: group["frozen_epochs"] for name, group in groups.items() if group.get("frozen_epochs")}
        self._never_trained, self._fixed_norms = options["frozen"], options["frozen_norm"]
        self._parts = PartCalls(parts, options["epochs"])
        self._total_steps: int = options["total_steps"]
        self.trained, self._side = trained, list(trained.side.values())
        self._optimizers = [self._optimizer, *self._side]
        self._num_groups = len(self._optimizer.param_groups)
        self._without_rate: list[dict[str, Any]] | None = None
        self._skips_nonfinite, self._told_rates = options["nonfinite"] == "skip", False
        self._seed = derive_seed(seed, Stream.STEP, run.ranks.rank)
        self._losses = FiniteWatch()
        self._logged: Collection[str] = ()  # names of the parts of the loss that was logged last
        self._group_start: int | None = None  # None between two groups
        self.ends_group, self._group_size, self._num_backward = True, 1, 0
        self._is_bad = False  # whether a loss of the step is not finite
        self._is_bad_anywhere: Callable[[], bool] | None = None  # if the other processes were asked
        if self._skips_nonfinite or self._precision.scaler:
            why = "fp16" if self._precision.scaler else "optim.nonfinite=skip"
            log.info("The loop waits for the device once per step: %s needs it.", why)

    def begin_epoch(self, hook: Callable[[], None]) -> None:
        """Begin an epoch: call `begin_epoch` of all parts, freeze or thaw groups with `frozen_epochs`, run the hook.

        The hook runs again if a run goes on within the epoch.

        Raises
        ------
        ConfigError
            A hook has put another optimizer or schedule into `optim` since the set-up.
        """
        self._check_optim()
        epoch = self._progress.epoch
        self._ranks.sharding.reshard()  # a hook may have called modules since
        self.trained.begin_epoch(epoch)
        self._without_rate = [] if self._progress.batches else None  # None: all groups, before the first step
        set_trained(self._optimizer, self._frozen, True)
        self._parts.call("begin_epoch", epoch)  # a module may freeze parameters of these groups for longer
        set_trained(self._optimizer, {name for name, epochs in self._frozen.items() if epoch < epochs}, False)
        for parameter in self._never_trained:
            parameter.requires_grad_(False)
        for norm in self._fixed_norms:
            norm.eval()
        try:
            self._recorder.hook(hook, is_new=not self._progress.has_begun, runs_again=True, own_seed=False)
        finally:
            self._progress.has_begun = True

    def _check_optim(self) -> None:
        for name, own in {"optimizer": self._optimizer, "scheduler": self._scheduler}.items():
            if self._options[name] is not own:
                raise ConfigError(
                    f"optim.{name}: a hook replaced it after the set-up. Make it in _instanciate(), or configure it."
                )

    def begin(self, batch_idx: int) -> None:
        """Begin a mini-batch: find its place in its group, and seed the default generators."""
        place = batch_idx % self.accumulation
        if place == 0:
            self._ranks.sharding.reshard()
            self.trained.begin_group()
            self._recorder.begin_step()
            self._group_start = batch_idx
            self._group_size = min(self.accumulation, self.num_batches - batch_idx)
        self.ends_group = place + 1 == self._group_size
        seed_generators_in_turn(self._seed, self._progress.global_step * self.accumulation + place)
        if place == 0:
            self._parts.call("begin_step", self._progress.schedule_step / self._total_steps)

    def count(self) -> None:
        """Count an optimizer step, and update the teachers."""
        self._progress.global_step += 1
        self._group_start = None
        self._parts.call("update_teacher", (self._progress.schedule_step - 1) / self._total_steps)

    def backward(self, losses: Any, owner: str) -> None:
        """Add the gradients of a mini-batch's losses.

        Parameters
        ----------
        losses
            A scalar tensor, or a list or dict of numbers. At least one of them depends on trainable parameters.
        owner
            Name of the class that computed them, for errors.
        """
        loss = self._total(losses, owner)
        step = self._progress.global_step + 1
        self._losses.add(loss, step)
        if self._skips_nonfinite:
            if not torch.isfinite(loss):
                log.warning("Step %d is skipped: its loss is %s.", step, loss.item())
                self._is_bad = True
            if self.ends_group:
                self._is_bad_anywhere = self._ranks.ask(self._is_bad)
        self._ranks.begin_gradients(self._optimizers, self.ends_group)
        self._precision.backward(loss / self._group_size if self._group_size > 1 else loss)
        self._num_backward += 1

    def side_backward(self, losses: Mapping[str, Tensor]) -> None:
        """Log a mini-batch's side losses, and add the gradients of their sum, without autocast and loss scaling.

        One whose name is that of a part of the loss is not logged.
        """
        if not losses:
            return
        for name, loss in losses.items():
            if name not in self._logged:
                self._recorder.log(name, loss)
        (sum(losses.values()) / self._group_size).backward()  # type: ignore[union-attr]

    def _total(self, losses: Any, owner: str) -> Tensor:
        """Log the losses that `compute_loss` returned, and return their sum."""
        total: Any = None
        named: Mapping[str, Any] = {}
        if isinstance(losses, Tensor):
            total = losses
        elif isinstance(losses, Mapping | list | tuple) and losses:
            named = losses if isinstance(losses, Mapping) else {f"loss_{i}": loss for i, loss in enumerate(losses)}
            first, *others = named.values()
            with suppress(TypeError):  # one of them is no number: the error below says so
                total = sum(others, first)
        if not isinstance(total, Tensor) or total.numel() != 1 or not total.requires_grad:
            what = describe_batch(losses) if isinstance(losses, Tensor | Mapping | list | tuple) else repr(losses)
            raise TypeError(
                f"{owner}.compute_loss() returned {what}; expected a scalar tensor that depends on trainable "
                "parameters, or a list or dict of them."
            )
        if self._recorder.is_logging:
            self._logged = set(named)
            for name, value in named.items() if named.keys() != {"loss"} else ():
                self._recorder.log(name, value)
            self._recorder.log_own("loss", total)
        return total

    def step(self, before: Callable[[], None]) -> bool:
        """Update the parameters with the gradients of the group, and advance the schedule.

        Parameters
        ----------
        before
            The hook that runs after the gradients are averaged and unscaled, before they are clipped.

        Returns
        -------
        bool
            False if there are no gradients. Then nothing is done.
        """
        if not self._num_backward:  # the same on all processes, which leave out mini-batches together
            self._recorder.drop()
            return False
        self._ranks.average_gradients(self._optimizers)
        self.trained.warn()
        if self._progress.global_step == 0:
            warn_of_unused(self._modules, parameter_ids(self._side))
        if self._without_rate != []:
            groups = self._optimizer.param_groups if self._without_rate is None else self._without_rate
            self._without_rate = [group for group in groups if not group["lr"]]
        if self._recorder.is_logging:
            self._recorder.log_own("lr", self._optimizer.param_groups[0]["lr"])
        if self._may_update():
            # The losses were divided by the planned size of the group, but some of its mini-batches may be left out.
            self._update(self._group_size / self._num_backward, before)
        self._clear()
        if self._scheduler is not None:
            self._advance_schedule()
        return True

    def _may_update(self) -> bool:
        """Return whether the losses of the step are finite on all processes, if the run skips steps otherwise."""
        if not self._skips_nonfinite:
            return True
        answer = self._is_bad_anywhere or self._ranks.ask(self._is_bad)  # the last mini-batch may be left out
        if not answer():
            return True
        if not self._is_bad:
            log.warning(
                "Step %d is skipped: another process has a loss that is not finite.", self._progress.global_step + 1
            )
        return False

    def _advance_schedule(self) -> None:
        """Let the schedule step. A group that a hook added is not known to it, and keeps its rate."""
        groups, added = self._optimizer.param_groups, []
        if len(groups) > self._num_groups:
            known = max(self._num_groups, len(getattr(self._scheduler, "base_lrs", ())))
            added = groups[known:]
            del groups[known:]
        with constant_rates(self._optimizer, self._constant) if self._constant else nullcontext():
            self._scheduler.step()
        groups.extend(added)

    def _update(self, scale: float, before: Callable[[], None]) -> None:
        """Multiply the gradients by `scale`, run the hook, and let all optimizers step."""
        self._precision.unscale(self._optimizer)
        multiply_gradients(self._optimizers, scale)
        try:
            self._ranks.hook(before)
            self._ranks.sharding.reshard()
        except (BreakStep, BreakEpoch) as request:
            self._precision.leave_out()
            if isinstance(request, BreakEpoch):
                raise
            return
        if not self._precision.step(self._optimizer, tells=bool(self._side)):
            if self._skips_nonfinite:
                log.warning("Step %d is skipped: a gradient is not finite.", self._progress.global_step + 1)
            return
        for optimizer in self._side:
            optimizer.step()

    def _clear(self) -> None:
        # `Optimizer.zero_grad` does the same, but takes ten times as long.
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        self._num_backward, self._is_bad, self._is_bad_anywhere = 0, False, None

    def drop_group(self) -> None:
        """Forget the gradients and logged values of a group that was cut short."""
        self._ranks.drop_gradients()
        self._clear()
        self._recorder.drop()

    def break_off(self) -> None:
        """Return to the last boundary: a group that is not complete begins anew if the run goes on."""
        if self._group_start is not None:
            self._progress.batches = self._group_start
        self.drop_group()

    def finish(self, hook: Callable[[], None]) -> BreakEpoch | BreakAllEpochs | None:
        """Run the last hook of a mini-batch, and write the training record if an optimizer step has ended.

        Returns
        -------
        BreakEpoch, BreakAllEpochs or None
            The break that the hook raised. After a BreakEpoch, no mini-batch of the epoch is left.
        """
        request: BreakEpoch | BreakAllEpochs | None = None
        is_boundary = self.ends_group and not is_idle(hook)
        try:
            with self._recorder.between_steps(lambda: self._write_log(is_over=False)) if is_boundary else nullcontext():
                self._ranks.hook(hook)
        except BreakStep:
            pass  # nothing is left of the step
        except (BreakEpoch, BreakAllEpochs) as error:
            request = error
        if isinstance(request, BreakEpoch):
            self._progress.batches = self.num_batches
        if self.ends_group:
            self._write_log()
        self._recorder.is_in_step = not self.ends_group
        return request

    def _write_log(self, is_over: bool = True) -> None:
        """Write the training record of an optimizer step that has ended, if it is logged.

        With several processes, it is written when their values have come: at the next boundary.
        """
        if self._recorder.is_logging:
            own, write = self._recorder.take_step(is_over)

            def take(found: list[Any]) -> None:
                self._raise_if_bad(min((bad for bad, _ in found if bad), default=None))
                write([values for _, values in found])

            self._ranks.exchange_later((self._losses.first_bad(), own), take)

    def end_epoch(self, hook: Callable[[], None], trained: nn.Module) -> None:
        """Run the hook, and end an epoch's training, also if the hook raises `BreakEpoch` or `BreakAllEpochs`.

        Parameters
        ----------
        hook
            The hook after an epoch's training.
        trained
            All modules. Their running statistics are averaged over the processes, so that all have the same model.
        """
        self._check_optim()
        stop: BreakAllEpochs | None = None
        batches, self._group_start = self._progress.batches, None
        self._progress.end_training()  # a run that goes on from a checkpoint made in the hook does not run it again
        self.trained.end_epoch()
        try:
            self._recorder.hook(hook)
        except BreakEpoch:
            pass  # the epoch is over
        except BreakAllEpochs as request:
            stop = request
        self._run.log.console.end_epoch(batches)
        self.check_losses()
        self._warn_of_rates()
        fixed = {id(buffer) for norm in self._fixed_norms for buffer in norm.buffers()}
        self._ranks.average([values for values in running_statistics(trained) if id(values) not in fixed])
        if stop:
            raise stop

    def _warn_of_rates(self) -> None:
        """Warn, once, if the rate of a group was 0 in every step of the epoch."""
        if self._without_rate and not self._told_rates:
            self._told_rates = True
            log.warning(
                "The learning rate was 0 in every step of epoch %d, in %d of %d groups of parameters: they were not "
                "trained. If optim.scheduler ends too early, go on with another one by stable-ssl branch.",
                self._progress.epoch + 1,
                len(self._without_rate),
                len(self._optimizer.param_groups),
            )

    def check_losses(self) -> None:
        """Check the losses since the last call. This waits for the device.

        Raises
        ------
        NanError
            A loss is not finite, and `nonfinite` is "raise".
        """
        self._ranks.receive_all()
        self._raise_if_bad(self._ranks.earliest(self._losses.first_bad()))

    def _raise_if_bad(self, bad: tuple[int, float] | None) -> None:
        if bad and not self._skips_nonfinite:
            step, value = bad
            raise NanError(
                f"The loss of step {step} is {value}. A smaller rate, optim.grad_max_norm or optim.nonfinite=skip may "
                f"help. {self._run.how_to_change()}"
            )
