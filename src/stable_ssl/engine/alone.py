"""`Alone`: what the engine asks of the processes of a run, and what one process answers.

`Together` in `agreement.py` has the same methods for several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..loggers.collector import Collector
from ..runtime.peers import Peers
from .strategies import NoSharding, machines_of

Optimizers = Sequence[torch.optim.Optimizer]


def _does_nothing(self: Any) -> None:
    """Have no effect, as most hooks of `BaseTrainer`."""


def is_idle(hook: Callable[[], None]) -> bool:
    """Return whether a hook has no effect: its body is a docstring and nothing else."""
    code = getattr(getattr(hook, "__func__", None), "__code__", None)
    return code is not None and code.co_code == _does_nothing.__code__.co_code


class Alone:
    """One process: it agrees with itself, and exchanges nothing."""

    rank = local_rank = 0
    size = 1
    is_main = True
    can_drop_a_wait = True  # a signal may interrupt the wait for a batch
    can_save_at_once = True  # in the middle of a hook
    peers = Peers()
    sharding = NoSharding()
    on_lost: Callable[[str, str | None], None] = staticmethod(lambda status, error: None)
    unanswered: Callable[[], Any] = dict  # this and `stuck`: as in `World`; nothing waits for other processes here
    stuck = ""

    def introduce(self, device: torch.device, hardware: Any) -> None:
        """Log the number of processes and their devices, if there are several.

        Raises
        ------
        ConfigError
            `hardware.strategy` does not suit the number of processes or machines, or the precision.
        """
        machines_of(hardware["strategy"], [0], hardware["precision"])

    def hook(self, hook: Callable[[], None]) -> None:
        """Run a hook."""
        hook()

    def broke_off(self, request: Exception) -> None:
        """Check that a break was raised on every process."""

    def largest(self, *numbers: int) -> list[int]:
        """Return each whole number's largest value over the processes."""
        return list(numbers)

    def smallest(self, number: int) -> int:
        """Return a whole number's smallest value over the processes."""
        return number

    def any(self, is_true: bool) -> bool:
        """Return whether something is true on any process."""
        return is_true

    def ask(self, is_true: bool) -> Callable[[], bool]:
        """Begin to ask whether something is true on any process. The function that is returned waits for the answer."""
        return lambda: is_true

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

    def begin_gradients(self, optimizers: Optimizers, is_last: bool) -> None:
        """Begin a backward pass. If it is the last of an optimizer step, the exchange of gradients begins in it."""

    def average_gradients(self, optimizers: Optimizers) -> None:
        """Wait until each gradient of some optimizers is the mean over the processes."""

    def drop_gradients(self) -> None:
        """Drop what was exchanged of a step that is not taken."""

    def exchange_later(self, value: Any, take: Callable[[list[Any]], None]) -> None:
        """Exchange a value of an optimizer step that is logged.

        Parameters
        ----------
        value
            This process's value.
        take
            Gets the values of all processes, by rank. One process gets its value at once. Several exchange what they
            have every half second, or in each step if steps are slower, and in `receive_all`.
        """
        take([value])

    def at_boundary(self, asked: int, request: int, at_once: bool = True) -> tuple[int, int]:
        """Exchange what is asked for between two optimizer steps, and values of `exchange_later` if they are due.

        Parameters
        ----------
        asked, request
            Whether this process wants a checkpoint, and why it wants to stop.
        at_once
            Whether the answer has to have what is asked for now. If not, it comes at the next boundary, so that no
            process waits for another one.

        Returns
        -------
        asked, request
            The largest of all processes, the same on all of them.
        """
        return asked, request

    def receive_all(self) -> None:
        """Receive all values of `exchange_later`."""

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
