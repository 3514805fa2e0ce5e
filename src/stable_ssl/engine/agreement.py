"""Agreement between the processes of a run: `Alone` for one process, `Together` for several.

Both have the same methods, so nothing else in the engine asks how many processes there are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import BreakAllEpochs, BreakEpoch, BreakStep, ConfigError
from ..loggers.collector import Collector, pooled
from ..loggers.metrics import fill_empty_states
from ..runtime import launchers
from ..runtime.folder import differences
from ..runtime.peers import Peers
from ..runtime.shares import gather_shares, take_share
from ..runtime.world import World

log = logging.getLogger("stable_ssl")

Optimizers = Sequence[torch.optim.Optimizer]

_BREAKS = (BreakStep, BreakEpoch, BreakAllEpochs)  # by rising scope


def _does_nothing(self: Any) -> None:
    """Have no effect, as most hooks of `BaseTrainer`."""


def is_idle(hook: Callable[[], None]) -> bool:
    """Return whether a hook has no effect: its body is a docstring and nothing else."""
    code = getattr(getattr(hook, "__func__", None), "__code__", None)
    return code is not None and code.co_code == _does_nothing.__code__.co_code


def join(wanted: int | None) -> Alone | Together:
    """Find the processes of this run, and wait until all of them have joined.

    Parameters
    ----------
    wanted
        `hardware.world_size`. None takes the number that the launcher started. Without a launcher, the missing
        processes are started on this machine, with the command line of this process.

    Raises
    ------
    ConfigError
        The launcher started another number, or the processes can't be started.
    PeerError
        Some processes did not join in time.
    """
    place = launchers.started or launchers.find_place()
    if place is None:
        place = launchers.start_others(wanted) if wanted is not None and wanted > 1 else None
    elif wanted not in (None, place.size):
        raise ConfigError(
            f"hardware.world_size: {wanted}, but {place.launcher} started {place.size} "
            f"process{'es' if place.size > 1 else ''}. Make the two agree, or leave hardware.world_size out."
        )
    return Alone() if place is None or place.size == 1 else Together(place)


class Alone:
    """One process: it agrees with itself, and exchanges nothing."""

    rank = local_rank = 0
    size = 1
    is_main = True
    can_drop_a_wait = True  # a signal may interrupt the wait for a batch
    can_save_at_once = True  # in the middle of a hook
    peers = Peers()
    on_lost: Callable[[str], None] = staticmethod(lambda why: None)

    def introduce(self, device: torch.device) -> None:
        """Log the number of processes and their devices, if there are several."""

    def hook(self, hook: Callable[[], None]) -> None:
        """Run a hook."""
        hook()

    def broke_off(self, request: Exception) -> None:
        """Check that a break was raised on every process."""

    def total(self, *numbers: int) -> list[int]:
        """Return each whole number's sum over the processes."""
        return list(numbers)

    def largest(self, *numbers: int) -> list[int]:
        """Return each whole number's largest value over the processes."""
        return list(numbers)

    def smallest(self, number: int) -> int:
        """Return a whole number's smallest value over the processes."""
        return number

    def any(self, is_true: bool) -> bool:
        """Return whether something is true on any process."""
        return is_true

    def from_main(self, function: Callable[[], Any]) -> Any:
        """Call a function on rank 0 only, and return its result on every process."""
        return function()

    def compare(self, config: Mapping[str, Any]) -> None:
        """Refuse to train if a process has another configuration."""

    def copy_from_main(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that they have on rank 0."""

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over the processes."""

    def synchronize_statistics(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Return the module with batch normalisation over the batches of all processes, if the device is CUDA."""
        return module

    def combine_gradients(self, optimizers: Optimizers, num_backward: int, is_bad: bool) -> tuple[int, bool]:
        """Average the gradients of an optimizer step over the processes.

        Parameters
        ----------
        optimizers
            All optimizers that step.
        num_backward
            Backward passes of this process since the last step.
        is_bad
            Whether a loss of this process was not finite since the last step. If one was on any process, nothing is
            averaged and all processes skip the step.

        Returns
        -------
        num_backward
            Backward passes of all processes together.
        is_bad
            Whether a loss of any process was not finite.
        """
        return num_backward, is_bad

    def earliest(self, bad: tuple[int, float] | None) -> tuple[int, float] | None:
        """Return the (step, loss) of the earliest step that any process gives; None if all give None."""
        return bad

    def means(self, collected: Collector) -> dict[str, float]:
        """Return the mean of each logged name over all processes, and forget the values."""
        return collected.flush()

    def fill_empty_states(self, metrics: Mapping[str, Any]) -> None:
        """Make metrics that saw no sample on this process fit to be combined with those of the others."""

    def add_shares(self, state: dict[str, Any], common: set[str]) -> None:
        """Add to rank 0's state the entries of the other processes that differ from its own."""

    def take_share(self, state: dict[str, Any]) -> None:
        """Replace entries of a loaded state by those that this process had when it was saved."""

    def fail(self, error: BaseException) -> None:
        """Tell the other processes that this one failed."""

    def leave(self) -> None:
        """Leave the run together with the other processes."""


class Together(World):
    """Several processes: they raise breaks, step, save, stop and fail together."""

    can_drop_a_wait = can_save_at_once = False  # the other processes would hang in their next exchange
    _agreed: Exception | None = None

    def introduce(self, device: torch.device) -> None:
        """Log the number of processes and their devices."""
        log.info("%d processes train together, each on a %s of its own.", self.size, device.type)

    def hook(self, hook: Callable[[], None]) -> None:
        """Run a hook; if it raises a break on any process, raise the break of the widest scope on all.

        Nothing is exchanged for a hook that does nothing.
        """
        if is_idle(hook):
            return
        own: Exception | None = None
        try:
            hook()
        except _BREAKS as request:
            own = request
        number = next((number for number, kind in enumerate(_BREAKS, 1) if isinstance(own, kind)), 0)
        (widest,) = self.largest(number)
        if widest:
            self._agreed = own if own and number == widest else _BREAKS[widest - 1]("Another process asked for it.")
            raise self._agreed

    def broke_off(self, request: Exception) -> None:
        """Check that a break raised outside a hook was raised on every process.

        `hook` has raised its breaks on all already. Any other break must be raised by each process itself, because a
        process without it would hang.
        """
        if request is not self._agreed:
            self.meet(f"{type(request).__name__} was raised in compute_loss or in an evaluation")

    def compare(self, config: Mapping[str, Any]) -> None:
        """Refuse to train if a process has another configuration, for example that of another trainer of the script."""
        configs = self.gather(config)
        for rank, other in enumerate(configs):
            found = [
                f"{path}: {ours!r} on rank 0, {theirs!r} there."
                for path, ours, theirs in differences(configs[0], other)
            ]
            if found:
                what = f"Rank {rank} has another configuration than rank 0, or is at another trainer of its script."
                raise ConfigError([what, *found])

    def synchronize_statistics(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Return the module with batch normalisation over the batches of all processes, if the device is CUDA.

        torch offers it only for CUDA. On other devices, each process normalises its own batch, and the running
        statistics are averaged at the end of each epoch.
        """
        return nn.SyncBatchNorm.convert_sync_batchnorm(module) if device.type == "cuda" else module

    def combine_gradients(self, optimizers: Optimizers, num_backward: int, is_bad: bool) -> tuple[int, bool]:
        """Average the gradients over the processes. If any has a loss that is not finite, all skip the step."""
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        own = [num_backward, is_bad, *(p.grad is not None for p in parameters)]
        num_backward, num_bad, *num_gradients = self.total(*own)
        if num_backward and not num_bad:
            self.average_gradients(parameters, [count > 0 for count in num_gradients])
        return num_backward, num_bad > 0

    def earliest(self, bad: tuple[int, float] | None) -> tuple[int, float] | None:
        """Return the (step, loss) of the earliest step that any process gives; None if all give None."""
        return min((found for found in self.gather(bad) if found), default=None)

    def means(self, collected: Collector) -> dict[str, float]:
        """Return the mean of each logged name over all processes, and forget the values."""
        counts = collected.counts
        return pooled(self.gather((collected.flush(), counts)))

    def fill_empty_states(self, metrics: Mapping[str, Any]) -> None:
        """Make metrics that saw no sample on this process fit to be combined with those of the others."""
        fill_empty_states(metrics, self.gather)

    def add_shares(self, state: dict[str, Any], common: set[str]) -> None:
        """Add to rank 0's state the entries of the other processes that differ from its own."""
        state["ranks"] = gather_shares(self, state, common)

    def take_share(self, state: dict[str, Any]) -> None:
        """Replace entries of a loaded state by those that this process had when it was saved."""
        take_share(state, self.rank)
