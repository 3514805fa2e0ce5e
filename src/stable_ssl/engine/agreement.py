"""Agreement between the processes of a run: `Alone` for one process, `Together` for several.

Both have the same methods, so the engine asks for what they can do, and not for their number. `Alone`, in a file of its
own, says what each method is for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..exceptions import BreakAllEpochs, BreakEpoch, BreakStep, ConfigError
from ..loggers.collector import Collector, pooled
from ..loggers.metrics import fill_empty_states
from ..runtime import launchers
from ..runtime.folder import differences
from ..runtime.gradients import GradientMean
from ..runtime.preemption import Request
from ..runtime.shares import gather_shares, take_share
from ..runtime.world import World
from .alone import Alone, Optimizers, is_idle
from .strategies import NoSharding, machines_of

log = logging.getLogger("stable_ssl")

SECONDS_BETWEEN_EXCHANGES = 0.5
_SAVE, _VALUES_ARE_DUE, _REQUEST = 1, 2, 4  # flags that go with gradients: two, and one per kind of request
_BREAKS = (BreakStep, BreakEpoch, BreakAllEpochs)  # by rising scope


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


class Together(World):
    """Several processes: they raise breaks, step, save, stop and fail together."""

    can_drop_a_wait = can_save_at_once = False  # the other processes would hang in their next exchange
    _agreed: Exception | None = None
    _sent: tuple[Any, Any] | None = None  # receives what was sent, and who takes it
    _last_exchange = _last_boundary = 0.0

    def __init__(self, place: launchers.Place):
        super().__init__(place)
        self._gradients = GradientMean(num_flags=2 + max(Request))
        self._pending: list[tuple[Any, Any]] = []  # since the last exchange: values, and who takes them
        self.sharding = NoSharding()

    def introduce(self, device: torch.device, hardware: Any) -> None:
        """Log the number of processes and their devices, and prepare what `hardware.strategy` needs."""
        log.info("%d processes train together, each on a %s of its own.", self.size, device.type)
        strategy = hardware["strategy"]
        if strategy == "ddp":
            return
        machines = machines_of(strategy, self.gather(self.local_rank), hardware["precision"])
        from .sharding import Sharding  # torch's FSDP takes a second to import

        self.sharding = Sharding(strategy, machines, self.size, device, hardware["precision"])

    def leave(self) -> None:
        """Leave the run together with the other processes."""
        self._gradients.close()
        super().leave()

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

    def begin_gradients(self, optimizers: Optimizers, is_last: bool) -> None:
        """Begin a backward pass. If it is the last of an optimizer step, the exchange of gradients begins in it."""
        if is_last:
            self._gradients.begin(optimizers)
        else:
            self._gradients.note(optimizers)
        self.sharding.begin(is_last)

    def average_gradients(self, optimizers: Optimizers) -> None:
        """Wait until each gradient of some optimizers is the mean over the processes."""
        self._gradients.finish(optimizers)
        self.sharding.finish()

    def drop_gradients(self) -> None:
        """Drop what was exchanged of a step that is not taken."""
        self._gradients.forget()
        self.sharding.finish()  # FSDP2 drops nothing, so they are averaged, and cleared like all others

    def exchange_later(self, value: Any, take: Callable[[list[Any]], None]) -> None:
        """Exchange a value of an optimizer step. `take` gets those of all processes within a second or a few steps."""
        self._pending.append((value, take))

    def at_boundary(self, asked: int, request: int, at_once: bool = True) -> tuple[int, int]:
        """Exchange requests with the gradients of the next step, and now and then the values of `exchange_later`."""
        flags = self._gradients.received_flags()
        self._receive()
        if at_once:
            self._gradients.set_flags(0)
            asked, request = self.largest(asked, request)
            return asked, request
        if flags & _VALUES_ARE_DUE and self._pending:
            self._begin_exchange()
        own = _REQUEST << request - 1 if request else 0
        if asked and not flags & _SAVE:  # else it is saved now
            own |= _SAVE
        before, self._last_boundary = self._last_boundary, time.monotonic()
        next_boundary = 2 * self._last_boundary - before
        if self.is_main and next_boundary >= self._last_exchange + SECONDS_BETWEEN_EXCHANGES:
            own |= _VALUES_ARE_DUE
        self._gradients.set_flags(own)
        return flags & _SAVE, (flags // _REQUEST).bit_length()

    def receive_all(self) -> None:
        """Receive all values of `exchange_later`."""
        self._receive()
        if self._pending:
            self._begin_exchange()
            self._receive()

    def _begin_exchange(self) -> None:
        """Begin to exchange the values that wait for it. All processes have as many."""
        values = [value for value, _ in self._pending]
        self._sent = self.send(values, 1024 + 256 * len(values)), [take for _, take in self._pending]
        self._pending, self._last_exchange = [], time.monotonic()

    def _receive(self) -> None:
        """Receive what was sent last, and hand it over in the order of the steps."""
        if self._sent is None:
            return
        (receive, takes), self._sent = self._sent, None
        for take, *values in zip(takes, *receive(), strict=True):
            take(values)

    def earliest(self, bad: tuple[int, float] | None) -> tuple[int, float] | None:
        """Return the (step, loss) of the earliest step that any process gives; None if all give None."""
        return min((found for found in self.gather(bad) if found), default=None)

    def means(self, collected: Collector) -> dict[str, float]:
        """Return the mean of each logged name over all processes, and forget the values."""
        self.receive_all()  # records are written in their order
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
