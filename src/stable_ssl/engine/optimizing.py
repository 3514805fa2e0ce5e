"""Optimizers and schedules: built from nodes, for groups of parameters."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import warnings
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..config import build
from ..exceptions import ConfigError, some_of
from ..nodes import sentences_of
from ..optimizers import freeze, frozen_norms, param_groups

log = logging.getLogger("stable_ssl")


def build_optimization(
    optim: Any, modules: Mapping[str, nn.Module], batch_size: int | None, schedule_begin: float
) -> None:
    """Build optimizer and schedule, and put them into the run's `OptimConfig`. Freeze what is to be frozen.

    The number of optimizer steps of the schedule is put there too, as `total_steps`.

    Parameters
    ----------
    optim
        The run's `OptimConfig`, with `num_batches`.
    modules
        The modules whose trainable parameters the optimizer gets.
    batch_size
        Samples per mini-batch over all processes; None if it is not known.
    schedule_begin
        Epochs before the schedule begins.

    Raises
    ------
    ConfigError
        There is nothing to optimize, or the optimizer or the schedule can't be built.
    """
    steps = math.ceil(optim["num_batches"] / optim["accumulation_steps"])
    optim["total_steps"] = optim["epochs"] * steps - round(schedule_begin * steps)
    optim["frozen"] = freeze(modules, optim["frozen"])
    optim["frozen_norm"] = frozen_norms(modules, optim["frozen_norm"])
    optimizer = _build_optimizer(optim["optimizer"], modules, optim["exclude_bias_norm"], optim["groups"])
    _scale_learning_rates(optimizer, optim, batch_size)
    optim["optimizer"] = optimizer
    if optim["scheduler"] is not None:
        with constant_rates(optimizer, unscheduled(optim["groups"])):
            optim["scheduler"] = _build_scheduler(optim["scheduler"], optimizer, optim["total_steps"])


def check_replaced(optim: Any, optimizer: Any, schedule: Any) -> None:
    """Check the optimizer and the schedule in `optim`, if `_instanciate` has replaced those that were built.

    Parameters
    ----------
    optim
        The run's `OptimConfig`.
    optimizer, schedule
        Those that `build_optimization` made.

    Raises
    ------
    ConfigError
        A run can't use what is there.
    """
    now, maker = optim["scheduler"], "_instanciate() made"
    if optim["optimizer"] is not optimizer:
        _check_optimizer(optim["optimizer"], optim["groups"], maker)
        if optim["lr_batch_size"]:
            raise ConfigError(
                "optim.lr_batch_size: it does not scale the rate of an optimizer that _instanciate() made. Leave it "
                "out, and scale the rate there."
            )
        if now is not None and (now is schedule or getattr(now, "optimizer", None) is optimizer):
            raise ConfigError(
                "optim.scheduler: it belongs to another optimizer than optim.optimizer. Make a schedule of the new "
                "one in _instanciate()."
            )
    if now is not None and now is not schedule:
        _check_schedule(now, optim["total_steps"], maker)


def _build_optimizer(
    node: Any, modules: Mapping[str, nn.Module], exclude_bias_norm: bool, groups: Mapping[str, Mapping[str, Any]]
) -> torch.optim.Optimizer:
    """Build the optimizer from a node or a callable. Return an existing optimizer unchanged."""
    made = build(_partial(node), "optim.optimizer")
    if isinstance(made, torch.optim.Optimizer) or hasattr(made, "param_groups"):
        _check_optimizer(made, groups)
        existing: torch.optim.Optimizer = made
        return existing
    parameters = param_groups(modules, exclude_bias_norm, groups)
    if not parameters:
        raise ConfigError(
            "module: no module has a trainable parameter. Does optim.frozen, or a module itself, freeze all?"
        )
    if all(_options(group, groups).get("frozen_epochs") for group in parameters):
        raise ConfigError(
            "optim.groups: all parameters are frozen in the first epoch (frozen_epochs), so there would be nothing to "
            "train. Leave some out."
        )
    function = made.func if isinstance(made, functools.partial) else made
    if not isinstance(function, type) and parameters[0].keys() == {"params"} and len(parameters) == 1:
        parameters = parameters[0]["params"]  # a function of the user's own divides them itself, as in early 2025
    optimizer: torch.optim.Optimizer = _called(made, "optim.optimizer", parameters)
    _check_optimizer(optimizer)
    return optimizer


def _check_optimizer(optimizer: Any, groups: Any = None, maker: str = "makes") -> None:
    """Raise a ConfigError if a run can't use an optimizer.

    Parameters
    ----------
    groups
        `optim.groups`, which an optimizer that was not made of them does not have.
    maker
        Who made it, for the error.
    """
    if not hasattr(optimizer, "param_groups"):
        raise ConfigError(f"optim.optimizer: {maker} a {type(optimizer).__name__}, not an optimizer.")
    if groups:
        raise ConfigError("optim.groups: optim.optimizer has its parameters already; give a node or a callable.")
    if needed := _needed(optimizer.step):
        raise ConfigError(
            f"optim.optimizer: {type(optimizer).__name__}.step() needs '{needed[0]}', but a run calls it without, when "
            "the gradients are there. Take another optimizer."
        )


def _build_scheduler(node: Any, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    """Build the schedule from a node or a callable. If it lacks `total_steps`, it gets the run's."""
    schedule = build(_partial(node), "optim.scheduler")
    if _lacks_total_steps(schedule):
        schedule = functools.partial(schedule, total_steps=total_steps)
    made = _called(schedule, "optim.scheduler", optimizer)
    _check_schedule(made, total_steps)
    return made


def _check_schedule(schedule: Any, total_steps: int, maker: str = "makes") -> None:
    """Raise a ConfigError if a run can't call `step()` of a schedule after each of its optimizer steps."""
    name = type(schedule).__name__
    if not callable(getattr(schedule, "step", None)):
        raise ConfigError(f"optim.scheduler: {maker} a {name}, not a schedule.")
    for method in ("state_dict", "load_state_dict"):
        if not callable(getattr(schedule, method, None)):
            raise ConfigError(
                f"optim.scheduler: a {name} has no {method}(), so it can't be saved. Derive it from "
                "torch.optim.lr_scheduler.LRScheduler, or define the method."
            )
    if needed := _needed(schedule.step):
        raise ConfigError(
            f"optim.scheduler: {name}.step() needs '{needed[0]}', but a run calls it after each optimizer step, when "
            "there is no such value. Take another schedule; or make this one of self.optim['optimizer'] in "
            "before_fit, register() it, and call its step() in after_eval."
        )
    if isinstance(schedule, torch.optim.lr_scheduler.OneCycleLR) and schedule.total_steps < total_steps:
        raise ConfigError(
            f"optim.scheduler: {name} ends after {schedule.total_steps} steps, but the run has {total_steps}. Leave "
            "its total_steps out, and it gets the run's. If the run has a checkpoint, do so in a branch."
        )


def _needed(function: Callable) -> list[str]:
    """Return the names of the arguments that a method can't be called without."""
    # A schedule of torch wraps the optimizer's step(), whose signature then has `self`.
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _partial(node: Any) -> Any:
    """Mark a node as a partial, because its first argument comes later. Return anything else unchanged."""
    return {**node, "_partial_": True} if isinstance(node, Mapping) and "_target_" in node else node


def _called(function: Callable, path: str, argument: Any) -> Any:
    try:
        return function(argument)
    except ConfigError:
        raise
    except Exception as error:
        made = functools.partial(function.func, argument) if isinstance(function, functools.partial) else None
        raise ConfigError(sentences_of(error, function, path, made)) from error


def _lacks_total_steps(schedule: Callable) -> bool:
    """Return whether a schedule has a parameter `total_steps` without a value."""
    try:
        parameter = inspect.signature(schedule).parameters.get("total_steps")
    except ValueError:
        return False
    given = isinstance(schedule, functools.partial) and "total_steps" in schedule.keywords
    return parameter is not None and not given


def _scale_learning_rates(optimizer: torch.optim.Optimizer, optim: Any, batch_size: int | None) -> None:
    """Multiply the rates of groups by their `lr_scale`. With `lr_batch_size`, scale all rates with the global batch."""
    for group in optimizer.param_groups:
        group["lr"] *= _options(group, optim["groups"]).get("lr_scale") or 1.0
    if not optim["lr_batch_size"]:
        return
    if not batch_size:
        raise ConfigError("optim.lr_batch_size: data.train does not tell its batch_size, so leave it out.")
    whole = batch_size * optim["accumulation_steps"]
    for group in optimizer.param_groups:
        group["lr"] *= whole / optim["lr_batch_size"]
    lr = optimizer.param_groups[0]["lr"]
    log.info("The learning rate is %g, for a batch of %d over all processes.", lr, whole)


def _options(group: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the options in `optim.groups` of an optimizer's group; empty if it has none."""
    return groups.get(group.get("name", ""), {})


def unscheduled(groups: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the names of `optim.groups` that no schedule changes (`schedule: none`)."""
    return {name for name, options in groups.items() if options.get("schedule", "run") in (None, "none")}


@contextmanager
def constant_rates(optimizer: torch.optim.Optimizer, names: Container[str]) -> Iterator[None]:
    """Undo at its end what the block did to the rates of the optimizer's groups of these names."""
    groups = [group for group in optimizer.param_groups if group.get("name", "") in names]
    rates = [group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"] for group in groups]
    yield
    for group, rate in zip(groups, rates, strict=True):
        if isinstance(rate, Tensor):
            group["lr"].copy_(rate)
        else:
            group["lr"] = rate


def replay(schedule: Any, optimizer: torch.optim.Optimizer, steps: int, constant: Container[str]) -> None:
    """Move a schedule that was just built on by some steps; the groups in `constant` keep their rates.

    Raises
    ------
    ConfigError
        It is shorter than that.
    """
    calls = steps
    if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR) and steps:
        schedule.last_epoch, calls = steps - 1, 1  # the last step alone decides on the rates
    with warnings.catch_warnings(), constant_rates(optimizer, constant):
        warnings.simplefilter("ignore")  # torch expects a step of the optimizer before each one of the schedule
        try:
            for _ in range(calls):
                schedule.step()
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"optim.scheduler: it can't be moved to step {steps}: {error}. Take another schedule, or begin it anew "
                "in a branch (--restart-schedule)."
            ) from error


def set_trained(optimizer: torch.optim.Optimizer, names: Container[str], is_trained: bool) -> None:
    """Turn the gradients of the optimizer's groups of these names on or off."""
    for group in optimizer.param_groups:
        if group.get("name", "") in names:
            for parameter in group["params"]:
                parameter.requires_grad_(is_trained)


def check_optimized(
    optimizer: torch.optim.Optimizer,
    side: Mapping[str, torch.optim.Optimizer],
    parameters: Iterable[tuple[str, nn.Parameter]],
) -> list[str]:
    """Warn of trainable parameters that no optimizer has, and return their names.

    Parameters
    ----------
    optimizer
        The method's optimizer.
    side
        Optimizers of `side_optimizers()`, by name.
    parameters
        All parameters of the run, by name.

    Raises
    ------
    ConfigError
        A side optimizer is not an optimizer, or the method's optimizer has no trainable parameter of its own.
    """
    for name, other in side.items():
        if not isinstance(other, torch.optim.Optimizer):
            raise ConfigError(f"side_optimizers(): '{name}' is a {type(other).__name__}, not an optimizer.")
    trainable = {name: id(p) for name, p in parameters if p.requires_grad}
    own, others = parameter_ids([optimizer]), parameter_ids(side.values())
    if not (own - others) & set(trainable.values()):
        raise ConfigError("optim.optimizer: has none of the parameters of module and loss.")
    if twice := [name for name, key in trainable.items() if key in own & others]:
        raise ConfigError(
            f"side_optimizers(): optim.optimizer has {twice} too, and would train them twice. Leave their modules out "
            "of optimized_modules(). If you make the optimizer yourself, give it only "
            "[p for module in self.optimized_modules().values() for p in module.parameters()]."
        )
    left_out = [name for name, key in trainable.items() if key not in own | others]
    in_reach = [name for name in left_out if name.startswith(("module.", "loss."))]
    if alone := [name for name in left_out if name not in in_reach]:
        log.warning("No optimizer has %s: only those of module and loss are trained.", ", ".join(alone))
    if in_reach:
        log.warning(
            "optim.optimizer: it lacks %s, so nothing trains them. Add them, or name them in optim.frozen.",
            some_of(_by_module(in_reach, trainable)),
        )
    return left_out


def _by_module(names: Iterable[str], of: Iterable[str]) -> list[str]:
    """Return names of parameters; instead of all that a module has in `of`, the module's name."""
    parts = {name: ".".join(name.split(".")[:2]) for name in of}
    chosen = {*names}
    not_whole = {part for name, part in parts.items() if name not in chosen}
    return list(dict.fromkeys(name if parts[name] in not_whole else parts[name] for name in parts if name in chosen))


def parameter_ids(optimizers: Iterable[torch.optim.Optimizer]) -> set[int]:
    """Return the ids of the parameters of some optimizers."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def warn_of_unused(modules: Mapping[str, nn.Module], aside: Collection[int]) -> None:
    """Warn of modules that no gradient has reached. Those whose ids are `aside` have an optimizer of their own."""
    for name, module in modules.items():
        trainable = [p for p in module.parameters() if p.requires_grad and id(p) not in aside]
        if trainable and all(p.grad is None for p in trainable):
            log.warning("module.%s: no gradient reaches it in the first step. Does compute_loss use it?", name)
