"""The arguments of a trainer's constructor: what is wrong with them, and which is which."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .nodes import check_nodes, describe, nearest

if TYPE_CHECKING:
    from .base import BaseTrainer


_MEANT = {"optimizer": ". Did you mean 'optim'?", "dataset": ". Did you mean 'data'?"}


def check_arguments(
    base: type[BaseTrainer],
    trainer: BaseTrainer,
    data: Any,
    module: Any,
    loss: Any,
    module_init: Any,
    attributes: Any,
    problems: list[str],
) -> None:
    """Collect what is wrong with a trainer's arguments, before anything is built.

    Parameters
    ----------
    base
        `BaseTrainer`, which imports this file.
    trainer
        Whose `hardware`, `optim` and `logger` are parsed already, or None where they could not be.
    data, module, loss, module_init, attributes
        As given; `attributes` are the arguments that BaseTrainer does not know.
    problems
        Gets one sentence for each.
    """
    shapeless = [name for name, value in (("data", data), ("module", module)) if not isinstance(value, Mapping)]
    if shapeless:
        problems.extend(f"{name}: expected a dict of names." for name in shapeless)
        return
    for name, value in (("data", data), ("module", module), ("loss", loss)):
        check_nodes(value, name, problems)
    sets = [name for name in data if not name.startswith("_")]
    if trainer.optim is not None:
        for name in ("optimizer", "scheduler"):
            check_nodes(trainer.optim[name], f"optim.{name}", problems, partial=True)
        if "train" in sets and trainer.optim["optimizer"] is None:
            problems.append("optim.optimizer: missing; a run that trains needs one.")
    if "train" in sets and type(trainer).compute_loss is base.compute_loss:
        problems.append(f"{type(trainer).__name__} does not implement compute_loss(), which training needs.")
    if isinstance(loss, type):
        problems.append(f"loss: a class, {loss.__name__}; make an object of it.")
    if trainer.logger is not None:
        _check_watched_sets(base, trainer, sets, problems)
    if not sets:
        problems.append("data: no data set. `train` is trained on, any other name is evaluated on.")
    problems += [
        f"module.{name}: missing; {type(trainer).__name__} needs it{nearest(name, list(module))}"
        for name in trainer.required_modules
        if name not in module
    ]
    problems += [
        f"module_init.{name}: no such module{nearest(name, list(module))}" for name in module_init if name not in module
    ]
    own = ["data", "module", "hardware", "optim", "logger", "loss", "module_init"]
    parameters = [name for cls in type(trainer).__mro__ for name in vars(cls).get("__annotations__", ())]
    known = [*own, *(name for name in parameters if not name.startswith("_"))]
    for name, value in attributes.items():
        if hasattr(base, name) or name in own:
            problems.append(f"{name}: BaseTrainer uses this name itself; choose another.")
        elif (meant := _MEANT.get(name) or nearest(name, known, 0.8)) != "." and not hasattr(type(trainer), name):
            problems.append(f"{name}: unknown argument{meant}")
        else:
            check_nodes(value, name, problems)


def _check_watched_sets(base: type[BaseTrainer], trainer: BaseTrainer, sets: list[str], problems: list[str]) -> None:
    """Collect what is wrong with the metrics and monitors, which are configured by data set."""
    logger = trainer.logger
    for field, valid in (("metric", [name for name in sets if name != "train"]), ("monitor", sets)):
        check_nodes(logger[field], f"logger.{field}", problems)
        for name, watched in logger[field].items():
            if field == "metric" and watched and type(trainer).predict is base.predict:
                problems.append(f"{type(trainer).__name__} does not implement predict(), which logger.metric needs.")
            if name not in valid:
                problems.append(f"logger.{field}.{name}: no such set in data{nearest(name, valid)}")
            elif not isinstance(watched, Mapping) or "_target_" in watched:
                problems.append(f"logger.{field}.{name}: {watched!r} is not a dict of names.")


def arguments_by_name(base: type, cls: type, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments by name; those that it only passes on have BaseTrainer's names."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    arguments = dict(signature.bind(None, *args, **kwargs).arguments)
    del arguments[next(iter(signature.parameters))]  # self
    passed_on = list(inspect.signature(base.__init__).parameters)[1:]
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name, {}))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            arguments.update(zip(passed_on, arguments.pop(name, ()), strict=False))
    return arguments


def resolved_config(
    base: type, cls: type, captured: tuple[tuple, dict[str, Any]], configured: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a trainer's configuration, as `config.yaml` has it, with all defaults and without `dump_path`.

    Parameters
    ----------
    base, cls
        `BaseTrainer`, and the trainer's class.
    captured
        The positional and the named arguments of its constructor.
    configured
        The fields of `hardware`, `optim` and `logger`.
    """
    arguments = arguments_by_name(base, cls, *captured)
    arguments.update({name: fields for name, fields in configured.items() if name in arguments})
    if "logger" in arguments:
        arguments["logger"] = {key: value for key, value in arguments["logger"].items() if key != "dump_path"}
    target = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ == "__main__" or "<locals>" in target:
        target = f"<live {cls.__name__}>"
    return {"trainer": {"_target_": target, **describe(arguments)}}
