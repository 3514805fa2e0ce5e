"""The arguments of a trainer's constructor: which is which, and what is wrong with them."""

from __future__ import annotations

import builtins
import inspect
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import full_key
from .exceptions import ConfigError, nearest
from .nodes import check_nodes, describe, is_node, locate, plain
from .signatures import evaluated, wrong_kind
from .trials import try_nodes, try_optimization
from .weights.sources import parse_source

if TYPE_CHECKING:
    from .base import BaseTrainer

log = logging.getLogger("stable_ssl")

_OWN = ("data", "module", "hardware", "optim", "logger", "loss", "module_init", "branch_from")
# What the set-up of a trainer writes, and before it the constructor.
_BUILT = ("_evaluation", "_feed", "_monitors", "_run", "_saver", "_steps")
_WRITTEN = ("_attributes", "_captured", "_configured", "_dump_path", "_is_set_up", "_progress", "_registered", *_BUILT)
_TAKEN = "BaseTrainer uses this name itself; choose another."
_OTHER_NAMES = {"optimizer": "optim.optimizer", "dataset": "data"}
_INTERNAL = "It was internal and can no longer be overridden."
# Private methods of trainers that are gone: what to do instead, and the methods' names. An override of one of them
# would never be called.
_GONE = {
    "BaseTrainer": {
        "Define prepare_modules(modules) instead.": "_build_modules _seeded_build",
        "Define initialize_modules() for first values, or check_setup() for checks, instead.": "_build",
        "Define check_setup() instead.": "_build_data _compare_ranks _look_for_untrained _look_for_unused",
        "Define side_optimizers() instead.": "_build_optimization",
        "Define side_losses() or before_optimizer_step() instead.": "_backward _apply_gradients _clear_gradients",
        "Define before_optimizer_step() instead.": "_optimizer_step _sum_gradients",
        "Define compute_loss() instead.": "_total_loss _described _check_losses",
        "Define after_fit_step() instead.": "_finish_batch _end_group _at_boundary",
        "Define update_teacher() on a module instead.": "_follow",
        "Define after_fit_epoch() instead.": "_end_training_epoch _end_epoch",
        "Define after_fit() instead.": "_end_run _close _running",
        "Define before_eval_step() instead.": "_evaluation_batches",
        "Define get_extra_state() and set_extra_state() instead.": "_state _restore _progress",
        "Call self.log(name, value) in a hook instead.": "_log_values _flush _write_training_record",
        "Set optim.lr_batch_size instead.": "_scale_learning_rates",
        "Set optim.max_steps instead.": "_count_batches",
        _INTERNAL: "_let_go _console _claim_folder _together _meet _drop_group _save _data_facts _schedule_save "
        "_save_weights",
    },
    "SelfSupervisedTrainer": {
        "Define check_setup() instead.": "_check_loss _check_views",
        "Define side_losses() instead.": "_probe_loss",
        "Define side_optimizers() instead.": "_probe_parameters",
        _INTERNAL: "_labels",
    },
}


def check_arguments(
    base: type[BaseTrainer],
    trainer: BaseTrainer,
    data: Any,
    module: Any,
    loss: Any,
    module_init: Any,
    attributes: Mapping[str, Any],
    problems: list[str],
) -> None:
    """Collect what is wrong with a trainer's arguments, before anything is built.

    Parameters
    ----------
    base
        `BaseTrainer` itself, which this file can't import because `base` imports this file.
    trainer
        The trainer. Its `hardware`, `optim` and `logger` are parsed already, without the settings that have mistakes.
        One is None if it is no dict of settings.
    data, module, loss, module_init
        The arguments as given.
    attributes
        The arguments that `BaseTrainer` does not know. They become attributes of the trainer.
    problems
        Gets one sentence per mistake.
    """
    cls = type(trainer)
    problems += _gone_methods(base, cls)
    shapeless = [name for name, value in (("data", data), ("module", module)) if not isinstance(value, Mapping)]
    if shapeless:
        problems.extend(f"{name}: not a dict of names." for name in shapeless)
        return
    sets = [name for name in data if not name.startswith("_")]
    for name, value in (("data", data), ("module", module), ("loss", loss)):
        check_nodes(value, name, problems)
    if not sets:
        problems.append("data: no data set. `train` is trained on, any other name is evaluated on.")
    if trainer.optim is not None:
        for name in ("optimizer", "scheduler"):
            check_nodes(trainer.optim[name], f"optim.{name}", problems, partial=True)
    if "train" in sets:
        problems += list(_missing_for_training(base, trainer, problems))
    problems += [*_plain_parts(data, loss, sets), *_tried(data, trainer.optim, problems)]
    if isinstance(loss, type):
        problems.append(f"loss: a class, {loss.__name__}; make an object of it.")
    if trainer.logger is not None:
        _check_watched_sets(base, trainer, sets, problems)
    problems += [
        f"module.{name}: missing; {cls.__name__} needs it.{nearest(name, module)}"
        for name in trainer.required_modules
        if name not in module
    ]
    problems += list(_wrong_sources(module_init, module))
    nodes = {"data.train": data.get("train"), "loss": loss, **{f"module.{name}": node for name, node in module.items()}}
    if trainer.optim is not None:
        nodes |= {f"optim.{name}": trainer.optim[name] for name in ("optimizer", "scheduler")}
    _check_attributes(base, cls, attributes, nodes, problems)
    problems += list(_unknown_sets(trainer, sets, problems))


def _plain_parts(data: Mapping[str, Any], loss: Any, sets: list[str]) -> Iterator[str]:
    """Yield a sentence per data set that is a plain value, and if the loss is one."""
    for name in sets:
        if isinstance(data[name], str | int | float | None):
            yield f"data.{name}: {data[name]!r} is no loader. Give one, or leave the set out: ~data.{name}."
    if isinstance(loss, str | int | float):
        yield f"loss: {loss!r} is no loss. Give a node, such as {{_target_: stable_ssl.losses.NTXEntLoss}}."


def _tried(data: Any, optim: Any, problems: list[str]) -> Iterator[str]:
    """Yield what the constructors of parts that cost nothing say, if nothing was found in the sections before."""
    if not any(problem.startswith("data.") for problem in problems):
        yield from try_nodes(data, "data")
    if optim is not None and not any(problem.startswith("optim.") for problem in problems):
        yield from try_optimization(optim["optimizer"], optim["scheduler"])


def check_own_names(trainer: BaseTrainer) -> None:
    """Raise a ConfigError if a subclass's constructor has written what the set-up is to write."""
    cls = type(trainer)
    own = [name for name in _BUILT if hasattr(trainer, name) and _is_users(cls, type(getattr(trainer, name)))]
    if own:
        raise ConfigError([f"{cls.__name__}: its constructor sets {name}. {_TAKEN}" for name in own])


def _wrong_sources(module_init: Any, module: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with `module_init`, before the sources are read."""
    if not isinstance(module_init, Mapping):
        yield f"module_init: {module_init!r} is no dict of sources by module. Write {{backbone: {module_init!r}}}."
        return
    for name, source in module_init.items():
        if name not in module:
            yield f"module_init.{name}: no such module.{nearest(name, module)}"
        try:
            parse_source(source, f"module_init.{name}")
        except ConfigError as error:
            yield from error.problems


def parse_branch(source: Any, problems: list[str]) -> dict[str, Any]:
    """Check `branch_from`, and return it as a dict.

    Parameters
    ----------
    source
        None; the folder of a run, or of one of its checkpoints; or a dict with some of the keys of the result.
    problems
        Gets one sentence per mistake.

    Returns
    -------
    dict
        `run`, the folder of the run to branch from (None: this run is no branch); `step` of its checkpoint (None: the
        newest valid one); `restart_schedule`, whether the schedule begins anew.
    """
    source = plain(source)
    branch = {"run": None, "step": None, "restart_schedule": False}
    branch.update(source if isinstance(source, Mapping) else {"run": source})
    run, step = branch["run"], branch["step"]
    if isinstance(run, str | Path):
        path = Path(run).expanduser().absolute()
        if number := re.fullmatch(r"step_(\d+)", path.name):
            path, branch["step"] = path.parent.parent, int(number[1])
        branch["run"] = str(path)
    elif run is not None:
        problems.append(f"branch_from.run: {run!r} is not the folder of a run.")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
        problems.append(f"branch_from.step: {step!r} is not the step of a checkpoint, a whole number.")
    if not isinstance(branch["restart_schedule"], bool):
        problems.append(f"branch_from.restart_schedule: {branch['restart_schedule']!r} is neither true nor false.")
    known = ("run", "step", "restart_schedule")
    problems += [f"branch_from.{key}: unknown key.{nearest(key, known)}" for key in branch if key not in known]
    return branch


def _gone_methods(base: type, cls: type) -> Iterator[str]:
    """Yield a sentence per name in a user's classes that is a run's, or of a private method which is gone."""
    families = {ancestor.__name__ for ancestor in cls.__mro__ if not _is_users(base, ancestor)}
    instead = {
        name: advice
        for family in families & _GONE.keys()
        for advice, names in _GONE[family].items()
        for name in names.split()
    }
    for ancestor in cls.__mro__:
        for name, value in vars(ancestor).items() if _is_users(base, ancestor) else ():
            is_method = callable(value) or isinstance(value, property | classmethod | staticmethod)
            if is_method and name in instead:
                yield f"{ancestor.__name__}.{name}: this method of a base class is gone. {instead[name]}"
            elif name in (*_WRITTEN, "_notes", "_recorder"):
                yield f"{ancestor.__name__}.{name}: {_TAKEN}"


def _is_users(base: type, cls: type) -> bool:
    """Say whether a class among a trainer's ancestors is neither of this package nor an ancestor of `BaseTrainer`."""
    return cls not in base.__mro__ and cls.__module__.split(".")[0] != __package__


def _missing_for_training(base: type[BaseTrainer], trainer: BaseTrainer, problems: list[str]) -> Iterator[str]:
    is_known = trainer.optim is not None and not any(problem.startswith("optim.") for problem in problems)
    if is_known and trainer.optim["optimizer"] is None:
        yield "optim.optimizer: missing; a run that trains needs one."
    if type(trainer).compute_loss is base.compute_loss:
        yield f"{type(trainer).__name__} does not implement compute_loss(), which training needs."


def _check_watched_sets(base: type[BaseTrainer], trainer: BaseTrainer, sets: list[str], problems: list[str]) -> None:
    """Collect what is wrong with the metrics and monitors, which are configured by data set.

    Those of a set that is not in `data` are no mistake, because files share them: the set-up leaves them out and warns.
    """
    logger = trainer.logger
    for field, valid in (("metric", [name for name in sets if name != "train"]), ("monitor", sets)):
        wrong: list[str] = []
        check_nodes(logger[field], f"logger.{field}", wrong)
        problems += wrong or try_nodes(logger[field], f"logger.{field}")
        for name, watched in logger[field].items():
            if field == "metric" and watched and name in valid and type(trainer).predict is base.predict:
                problems.append(f"{type(trainer).__name__} does not implement predict(), which logger.metric needs.")
            if field == "metric" and name == "train":
                problems.append(
                    "logger.metric.train: metrics are for evaluation sets, which are all sets of data but train. Give "
                    "the training images to data under a second name, and metrics under that name; "
                    "self.log(name, value) in compute_loss() logs a value of training."
                )
            elif name in valid and not _has_names(watched):
                problems.append(f"logger.{field}.{name}: {watched!r} is not a dict of names.")


def _has_names(watched: Any) -> bool:
    """Return whether metrics or monitors are a dict of names, or a node that makes one, as of a MetricCollection."""
    try:
        return hasattr(locate(watched["_target_"], "") if is_node(watched) else watched, "items")
    except ConfigError:  # which `check_nodes` reports
        return True


def _unknown_sets(trainer: BaseTrainer, sets: list[str], problems: list[str]) -> Iterator[str]:
    """Yield a sentence per metric or monitor of a set that is not in `data`, if there are mistakes to stand beside."""
    for field in ("metric", "monitor") if problems and trainer.logger is not None else ():
        for name in trainer.logger[field].keys() - sets:
            yield f"logger.{field}.{name}: no such set in data.{nearest(name, sets)}"


def _check_attributes(
    base: type, cls: type, attributes: Mapping[str, Any], nodes: Mapping[str, Any], problems: list[str]
) -> None:
    """Collect what is wrong with the arguments that become attributes.

    A class declares such an argument by an annotation, a class attribute or a parameter of its constructor. One that
    is not declared may still be meant: it is refused only if it is like a known name, or if a trainer of this package,
    which has no use for it, gets the name of a setting.
    """
    declared = declared_by(base, cls)
    known = [*_OWN, *declared, *(name for name in inspect.get_annotations(base) if not name.startswith("_"))]
    for name, value in attributes.items():
        if hasattr(base, name) or name in (*_OWN, *_WRITTEN, "start_time"):
            problems.append(f"{name}: {_TAKEN}")
            continue
        check_nodes(value, name, problems)
        if name in declared:
            problems += _wrong_attribute(value, name, declared[name], cls)
        elif not hasattr(cls, name):
            meant = _OTHER_NAMES.get(name) or full_key(name, nodes)
            hint = f" Did you mean '{meant}'?" if meant else ""
            near = nearest(name, known, cutoff=0.8)
            if near or name in _OTHER_NAMES or (meant and not _is_users(base, cls)):
                problems.append(f"{name}: unknown argument.{hint or near}")
            elif meant:
                log.warning("%s: becomes an attribute of %s and is no setting.%s", name, cls.__name__, hint)


def declared_by(base: type, cls: type) -> dict[str, Any]:
    """Return the annotations of the arguments that a class and its ancestors below `BaseTrainer` declare, by name."""
    declared: dict[str, Any] = {}
    for ancestor in cls.__mro__:
        if ancestor not in base.__mro__:
            annotations = inspect.get_annotations(ancestor)
            scope = vars(sys.modules.get(ancestor.__module__, builtins))
            constructor = (
                inspect.signature(vars(ancestor)["__init__"]).parameters if "__init__" in vars(ancestor) else ()
            )
            for name in (*annotations, *constructor):
                if not name.startswith("_"):
                    declared.setdefault(name, evaluated(annotations.get(name, Parameter.empty), scope))
    return declared


def _wrong_attribute(value: Any, name: str, kind: Any, cls: type) -> Iterator[str]:
    """Yield a sentence if a value can't be meant for an attribute that is annotated."""
    owner = next((ancestor for ancestor in cls.__mro__ if name in inspect.get_annotations(ancestor)), cls)
    if kind is int and owner.__module__.split(".")[0] == __package__:
        # The whole numbers that trainers of this package take are counts.
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            yield f"{name}: {value!r} is not a count, a whole number of at least 0."
        return
    parameter = Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(cls, name, None), annotation=kind)
    yield from wrong_kind(value, parameter, name, cls, cls.__name__)


def arguments_by_name(base: type, cls: type, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a trainer's constructor by name.

    Parameters
    ----------
    base
        `BaseTrainer` itself. Arguments that the constructor of `cls` only passes on have the names of its parameters.
    cls
        The trainer's class.
    args, kwargs
        What its constructor was called with.
    """
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    arguments = dict(signature.bind(None, *args, **kwargs).arguments)
    del arguments[next(iter(signature.parameters))]  # self
    passed_on = list(inspect.signature(base.__init__).parameters)[1:]  # type: ignore[misc]
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
