"""What a trainer's modules, losses and gradients do in one step and one evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_hook

from ...lines import users_line


class Watch:
    """Watches a trainer that is set up.

    Parameters
    ----------
    trainer
        The trainer.

    Attributes
    ----------
    outputs
        The shape of the newest output of each module that gave a tensor, by its name. The newest comes last.
    batch
        The newest training batch, as hooks have left it. None: there was none.
    losses
        What `compute_loss` returned last. None: it did not return.
    gradients
        Of each trainable parameter, at the end of the first optimizer step: "none", "zero", "finite" or "not finite".
        Empty before that step.
    in_other_mode
        Names of batch normalisations that are trained, but were in evaluation mode in training ("training"); and of
        those, and dropout layers, that were in training mode in an evaluation ("evaluation"). The names are the keys.
    stopped
        Where a hook has ended training within its first epoch, such as " after 1 step, at train.py:12"; "" if none has.
    seconds
        Of the newest optimizer step, its backward pass included; without the update of the parameters. 0 before it.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self._names = {id(module): name for name, module in trainer.named_modules() if name}
        self._fixed = {id(norm) for norm in trainer.optim["frozen_norm"]}
        self.outputs: dict[str, tuple[int, ...]] = {}
        self.batch: Any = None
        self.losses: Any = None
        self.gradients: dict[str, str] = {}
        self.in_other_mode: dict[str, dict[str, None]] = {"training": {}, "evaluation": {}}
        self._is_evaluating = False
        self.stopped = ""
        self.seconds = self._begun = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what happens in the block."""
        steps, evaluation = vars(self._trainer).get("_steps"), self._trainer._evaluation
        wrapped = [(steps, "begin", self._begin), (steps, "backward", self._backward), (steps, "step", self._step)]
        ends = [(evaluation, "begin", self._begin_evaluation), (self._trainer._saver, "stop", self._stop)]
        wrapped = [*(wrapped if steps else []), *ends]
        hook = register_module_forward_hook(self._after_forward)
        for part, name, first in wrapped:
            setattr(part, name, _after(first, getattr(part, name)))
        try:
            yield
        finally:
            hook.remove()
            for part, name, _ in wrapped:
                delattr(part, name)

    def _begin_evaluation(self, hook: Callable[[], None]) -> None:
        self._is_evaluating = True

    def _begin(self, batch_idx: int) -> None:
        self._is_evaluating = False
        if batch_idx % self._trainer._steps.accumulation == 0:
            self._begun = time.perf_counter()

    def _backward(self, losses: Any, owner: str) -> None:
        self.batch, self.losses = self._trainer.batch, losses

    def _step(self, before: Callable[[], None]) -> None:
        if not self._trainer._steps._num_backward:  # a hook has broken off all mini-batches
            return
        self.seconds = time.perf_counter() - self._begun
        if not self.gradients:
            self.gradients = {n: _kind_of(p.grad) for n, p in self._trainer.named_parameters() if p.requires_grad}

    def _stop(self) -> None:
        progress, error = self._trainer._progress, sys.exception()  # what a hook has raised
        if (progress.epoch, progress.phase) == (0, "fit"):
            line = users_line(error) if error else ""
            count = progress.global_step
            self.stopped = f" after {count} step{'s' * (count != 1)}{f', at {line}' if line else ''}"

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        name = self._names.get(id(module))
        if name is None:
            return
        if isinstance(output, Tensor):
            self.outputs.pop(name, None)
            self.outputs[name] = tuple(output.shape)
        if isinstance(module, _BatchNorm | _DropoutNd) and self._is_in_other_mode(module):
            self.in_other_mode["evaluation" if self._is_evaluating else "training"][name] = None

    def _is_in_other_mode(self, module: nn.Module) -> bool:
        if self._is_evaluating:
            return module.training
        # A part that is frozen, such as a teacher, may well be in evaluation mode.
        is_trained = any(p.requires_grad for p in module.parameters()) and id(module) not in self._fixed
        return self._trainer.training and not module.training and is_trained


def _after(first: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls two functions with its arguments, and returns what the second one returns."""

    def both(*args: Any) -> Any:
        first(*args)
        return function(*args)

    return both


def _kind_of(gradient: Tensor | None) -> str:
    if gradient is None:
        return "none"
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    if not torch.isfinite(values).all():
        return "not finite"
    return "finite" if values.any() else "zero"


def folded(names: Collection[str], of: Collection[str]) -> list[str]:
    """Return names of parameters; instead of all of a module's, the module's name with ".*".

    Parameters
    ----------
    names
        The names.
    of
        The names of all parameters that count.

    Examples
    --------
    >>> folded(["module.head.0.weight", "module.head.0.bias"], ["module.head.0.weight", "module.head.0.bias", "loss.w"])
    ['module.head.*']
    """
    chosen, others = set(names), set(of) - set(names)
    shown: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        wholes = (".".join(parts[:depth]) + "." for depth in range(min(2, len(parts) - 1), len(parts)))
        whole = next((w for w in wholes if not any(other.startswith(w) for other in others)), None)
        shown[f"{whole}*" if whole and sum(one.startswith(whole) for one in chosen) > 1 else name] = None
    return list(shown)
