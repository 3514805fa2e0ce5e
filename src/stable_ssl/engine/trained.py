"""The parameters that are trained, and the optimizers that have them, while hooks freeze, thaw and add parameters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..exceptions import CheckpointError
from .optimizing import check_optimized
from .parts import MAKE_IT_EARLIER

log = logging.getLogger("stable_ssl")

Flags = list[list[bool]]  # for each group of an optimizer: whether its parameters are trained


class TrainedParameters:
    """Watches which parameters are trained, and keeps on resume what hooks have changed.

    A hook may add groups to an optimizer (`add_param_group`), and freeze or thaw parameters. A checkpoint tells both.
    The log warns of each parameter that gets gradients although no optimizer has it.

    Parameters
    ----------
    method
        The method's optimizer.
    side
        The optimizers of `side_optimizers()`, by name.
    named_parameters
        Returns all parameters of the run, by name.

    Raises
    ------
    ConfigError
        A parameter has two optimizers, or the method's optimizer has no parameter.
    """

    def __init__(
        self,
        method: torch.optim.Optimizer,
        side: Mapping[str, torch.optim.Optimizer],
        named_parameters: Callable[[], Iterator[tuple[str, nn.Parameter]]],
    ):
        self.side, self._named = side, named_parameters
        self._told = set(check_optimized(method, side, named_parameters()))
        self._groups = {name: _Groups(optimizer) for name, optimizer in {"optimizer": method, **side}.items()}
        self._others: list[tuple[str, nn.Parameter]] = []
        self._is_first_group = True

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch, before its hooks. If the run was saved within it, the hooks find what they found then."""
        for groups in self._groups.values():
            groups.begin_epoch(epoch)
        self._is_first_group = True

    def begin_group(self) -> None:
        """Begin a group of mini-batches. The hooks at the beginning of the epoch have run."""
        if self._is_first_group:
            self._is_first_group = False
            for groups in self._groups.values():
                groups.complete()
            self._find_others()

    def _find_others(self) -> None:
        known = {id(p) for groups in self._groups.values() for group in groups.all for p in group["params"]}
        self._others = [(name, p) for name, p in self._named() if id(p) not in known and name not in self._told]

    def end_epoch(self) -> None:
        """End an epoch: a run that is saved from now on goes on without its hooks."""
        for groups in self._groups.values():
            groups.end_epoch()

    def warn(self) -> None:
        """Warn of parameters that have gradients and no optimizer, each once."""
        if any(parameter.grad is not None for _, parameter in self._others):
            self._find_others()
            found = [name for name, parameter in self._others if parameter.grad is not None]
            self._told.update(found)
            self._find_others()
            if found:
                log.warning(
                    "No optimizer of the run has %s, so that only your own code trains them: they were frozen, or not "
                    "there, when the optimizer was made. To train them later, freeze them by "
                    "optim.groups.<pattern>.frozen_epochs, or in before_fit_epoch; or give them to "
                    "self.optim['optimizer'] by add_param_group.",
                    ", ".join(found),
                )

    def state(self) -> dict[str, Any]:
        """Return what hooks have changed since the set-up, by optimizer; empty if nothing."""
        names = {id(parameter): name for name, parameter in self._named()}
        found = {name: groups.changes(names) for name, groups in self._groups.items()}
        return {name: changes for name, changes in found.items() if changes}

    @contextmanager
    def restoring(self, state: Mapping[str, Any]) -> Iterator[None]:
        """Restore what `state` returned, around the block that loads the optimizers' own states.

        Raises
        ------
        CheckpointError
            A group has a parameter that no module has.
        """
        parameters = dict(self._named())
        for name, changes in state.items():
            self._groups[name].restore(changes, parameters)
        yield
        for name in state:
            self._groups[name].set_aside()


class _Groups:
    """The groups of an optimizer: those of the set-up, then those that hooks added.

    The hooks at the beginning of an epoch run again if it is resumed. So a checkpoint has what they found (`begun`),
    which is put back before them, and what was there when it was written (`now`), which is put back after them, at the
    first mini-batch (`complete`).
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer, self._number = optimizer, len(optimizer.param_groups)
        self._at_setup = self._begun = self._flags()
        self._added: list[dict[str, Any]] = []
        self._epoch = -1
        self._restored: dict[str, Any] = {}

    @property
    def all(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def _flags(self) -> Flags:
        return [[parameter.requires_grad for parameter in group["params"]] for group in self.all]

    def changes(self, names: Mapping[int, str]) -> dict[str, Any]:
        self.complete()
        now = self._flags()
        if now == self._begun == self._at_setup:
            return {}
        added = [[names.get(id(p), "") for p in group["params"]] for group in self.all[self._number :]]
        return {"added": added, "epoch": self._epoch, "begun": self._begun, "now": now}

    def restore(self, changes: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> None:
        if any(name not in parameters for names in changes["added"] for name in names):
            raise CheckpointError(
                "A hook gave the optimizer a parameter that the trainer does not have after its set-up. "
                f"{MAKE_IT_EARLIER}"
            )
        for names in changes["added"]:
            self._optimizer.add_param_group({"params": [parameters[name] for name in names]})
        self._restored = dict(changes)

    def set_aside(self) -> None:
        """Set the added groups aside, since the hooks that run again may add some of them again."""
        self._added = self.all[self._number :]
        del self.all[self._number :]

    def begin_epoch(self, epoch: int) -> None:
        if self._restored and self._restored["epoch"] == epoch:
            self._take_up(self._restored["begun"])
        else:
            self.complete()
        self._epoch, self._begun = epoch, self._flags()

    def end_epoch(self) -> None:
        self._epoch, self._begun = -1, self._at_setup

    def complete(self) -> None:
        """Take up all that was restored."""
        if self._restored:
            self._take_up(self._restored["now"])
            self._restored = {}

    def _take_up(self, flags: Flags) -> None:
        """Put restored groups in place of those that a hook has added again, and freeze and thaw as they were."""
        restored = self._added[: len(flags) - self._number]
        known = {id(p) for group in restored for p in group["params"]}
        new = [group for group in self.all[self._number :] if not any(id(p) in known for p in group["params"])]
        self.all[self._number :] = [*restored, *new]
        for group, are_trained in zip(self.all, flags, strict=False):
            for parameter, is_trained in zip(group["params"], are_trained, strict=True):
                parameter.requires_grad_(is_trained)
