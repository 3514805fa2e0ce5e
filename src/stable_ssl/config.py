"""The three configurations of a trainer, strict."""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from .exceptions import ConfigError
from .nodes import build, check_nodes, describe, nearest, plain

if TYPE_CHECKING:
    import torch

__all__ = [
    "HardwareConfig",
    "LoggerConfig",
    "OptimConfig",
    "build",
    "build_optimizer",
    "build_scheduler",
    "check_nodes",
    "describe",
    "nearest",
    "parse_config",
]

WANDB_KEYS = ("dir", "entity", "project", "name", "id", "tags", "group")


def _not_bool(value: Any) -> Any:
    """Python takes True for 1; a configuration that says so is mistaken."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not a yes or no")
    return value


def _max_steps(value: Any) -> Any:
    if isinstance(value, float) and 0 < value < 1:
        return value
    if not math.isfinite(value) or float(value) != int(value) or (value < 1 and value != -1):
        raise ValueError("expected -1, a count of at least 1, or a fraction in (0, 1)")
    return int(value)


def _level(value: Any) -> int:
    if isinstance(value, str) and not value.isdigit():
        names = logging.getLevelNamesMapping()
        if value.upper() not in names:
            raise ValueError(f"expected a number or one of {', '.join(names)}")
        return names[value.upper()]
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError("expected a number or a name such as INFO")
    return int(value)


def _wandb(value: Any) -> Any:
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in WANDB_KEYS]
        if unknown:
            raise ValueError(f"unknown key '{unknown[0]}'{nearest(unknown[0], WANDB_KEYS)}")
    elif value is not None and not isinstance(value, bool):
        raise ValueError("expected true, false, none or a dict")
    return value or None if not isinstance(value, Mapping) else dict(value)


Count = Annotated[int, BeforeValidator(_not_bool), Field(ge=1)]
CountOrZero = Annotated[int, BeforeValidator(_not_bool), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_not_bool), Field(gt=0, allow_inf_nan=False)]


class _Config(BaseModel):
    """Fields that can be read as attributes and as items."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def __getitem__(self, name: str) -> Any:
        try:
            return self.__dict__[name]
        except KeyError:
            raise KeyError(f"{type(self).__name__} has no field '{name}'{nearest(name, self.__dict__)}") from None

    def __setitem__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field, or `default` where there is none."""
        return self.__dict__.get(name, default)


class HardwareConfig(_Config):
    """Where and how a run computes.

    Parameters
    ----------
    seed
        What everything random is derived from; None draws one and records it.
    device
        "auto" (cuda, else mps, else cpu), "cpu", "mps", "cuda" or "cuda:N".
    precision
        "fp32", "bf16" or "fp16".
    float16
        Old name for precision "fp16"; a given `precision` wins.
    world_size
        Processes of the run, one a device; what torchrun or Slurm started, where it is not given. Where nothing
        started any, the others are started on this machine.
    strategy
        How they share a model: "ddp", each has all of it, and gradients are averaged.
    compile
        Compile the modules: true, or a mode of `torch.compile`.
    channels_last
        Memory layout of images and convolutions.
    deterministic
        Use only kernels that give the same bits each time; needed on a GPU for exact resume.
    time_limit
        Minutes after which the run saves and ends with status 75.
    """

    seed: CountOrZero | None = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    float16: bool = False
    world_size: Count = 1
    strategy: Literal["ddp"] = "ddp"
    compile: bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = False
    channels_last: bool = False
    deterministic: bool = False
    time_limit: Positive | None = None

    @model_validator(mode="after")
    def _settle(self) -> HardwareConfig:
        if self.float16 and "precision" not in self.model_fields_set:
            self.precision = "fp16"
        return self


class OptimConfig(_Config):
    """How parameters are optimized.

    Parameters
    ----------
    optimizer
        Called with the parameters: a node, a partial, any callable, or an optimizer that has them already.
    lr_batch_size
        The batch that the optimizer's learning rates are meant for: they are multiplied by the batch there is, over
        all processes and accumulated mini-batches, divided by this. None: they are taken as they are.
    scheduler
        Called with the optimizer; steps once an optimizer step. Gets `total_steps` where it asks for that.
    epochs
        How many in all.
    max_steps
        Mini-batches an epoch: -1 all of them, a count at most that many, a float in (0, 1) that fraction.
    accumulation_steps
        Mini-batches to an optimizer step.
    grad_max_norm
        Largest L2 norm of all gradients together; None: no clipping.
    exclude_bias_norm
        No weight decay, and no LARS scaling, on biases and normalisation.
    nonfinite
        What a loss that is not finite does: "raise" ends the run, "skip" leaves out the step.
    """

    optimizer: Any = None
    lr_batch_size: Count | None = None
    scheduler: Any = None
    epochs: Count = 1000
    max_steps: Annotated[int | float, BeforeValidator(_not_bool), AfterValidator(_max_steps)] = -1
    accumulation_steps: Count = 1
    grad_max_norm: Positive | None = None
    exclude_bias_norm: bool = False
    nonfinite: Literal["raise", "skip"] = "raise"


class LoggerConfig(_Config):
    """What is watched and kept.

    Parameters
    ----------
    level
        Least severe messages that are shown, as in `logging`.
    metric
        `{evaluation set: {name: torchmetrics metric}}`; each gets (predictions, labels).
    monitor
        `{data set: {name: Monitor}}`.
    eval_every_epoch
        Evaluate after every so many epochs, and at the end; 0 or None: only at the end.
    log_every_step
        Write training values every so many optimizer steps.
    checkpoint_every_minutes, checkpoint_every_step
        When resumable checkpoints are written.
    checkpoint_keep
        How many of them are kept.
    checkpoint_frequency
        Keep the weights every so many epochs, for reading.
    checkpoint_model_only
        False keeps that epoch's full state too.
    save_final_model
        Keep the final weights; a string names the file.
    dump_path
        The run's folder; None chooses one.
    wandb
        True, or a dict with keys dir, entity, project, name, id, tags, group.
    tensorboard
        Write TensorBoard events too.
    """

    level: Annotated[int, BeforeValidator(_level)] = 20
    metric: dict[str, Any] = {}
    monitor: dict[str, Any] = {}
    eval_every_epoch: CountOrZero | None = 1
    log_every_step: Count = 1
    checkpoint_every_minutes: Positive = 10
    checkpoint_every_step: Count | None = None
    checkpoint_keep: Count = 2
    checkpoint_frequency: Count | None = None
    checkpoint_model_only: bool = True
    save_final_model: bool | str = False
    dump_path: str | None = None
    wandb: Annotated[Any, AfterValidator(_wandb)] = None
    tensorboard: bool = False


def parse_config(cls: type[_Config], values: Any, path: str, problems: list[str]) -> Any:
    """Check and convert the fields of one configuration.

    Parameters
    ----------
    values
        A dict, or an object of `cls`.
    path
        Its key, for the problems' sentences, which are added to `problems`.

    Returns
    -------
    _Config or None
        None where there is a problem.
    """
    values = plain(values)
    if isinstance(values, cls):
        return values.model_copy()
    if not isinstance(values, Mapping):
        problems.append(f"{path}: {values!r} is not a dict.")
        return None
    values = {key: str(v) if key == "dump_path" and v is not None else v for key, v in values.items()}
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        seen = set()
        for item in error.errors():
            key = str(item["loc"][0]) if item["loc"] else ""
            if key in seen:  # one sentence a key, though pydantic says one for each type that did not fit
                continue
            seen.add(key)
            problems.append(_sentence(cls, path, key, values, item))
        return None


def _sentence(cls: type[_Config], path: str, key: str, values: Mapping, item: Mapping) -> str:
    if item["type"] == "extra_forbidden":
        return f"{path}.{key}: unknown key (value {values[key]!r}){nearest(key, cls.model_fields)}"
    reason = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not key:
        return f"{path}: {reason}."
    hint = ""
    if item["type"] == "literal_error":
        options = item["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        hint = nearest(str(values[key]), options).removeprefix(".")
    expected = reason if reason.startswith(("expected", "unknown")) else f"expected {reason}"
    return f"{path}.{key}: {values[key]!r} will not do: {expected}.{hint}"


def build_optimizer(node: Any, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimizer that a node, or something to be called with parameter groups, makes; one that is, as it is.

    Raises
    ------
    ConfigError
        There is nothing to optimize.
    """
    made = build(_partial(node), "optim.optimizer")
    if hasattr(made, "param_groups"):
        return made
    if not groups:
        raise ConfigError("module: no module has a trainable parameter.")
    made = _called(made, "optim.optimizer", groups)
    if not hasattr(made, "param_groups"):
        raise ConfigError(f"optim.optimizer: makes a {type(made).__name__}, not an optimizer.")
    return made


def build_scheduler(node: Any, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    """Return the schedule that a node, or something to be called with the optimizer, makes.

    One that needs `total_steps` and was not given it gets the run's.
    """
    schedule = build(_partial(node), "optim.scheduler")
    if _lacks_total_steps(schedule):
        schedule = functools.partial(schedule, total_steps=total_steps)
    return _called(schedule, "optim.scheduler", optimizer)


def _called(function: Callable, path: str, argument: Any) -> Any:
    try:
        return function(argument)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error


def _partial(node: Any) -> Any:
    """Return a node of an optimizer or schedule as one whose first arguments come later."""
    return {**node, "_partial_": True} if isinstance(node, Mapping) and "_target_" in node else node


def _lacks_total_steps(schedule: Callable) -> bool:
    """Say whether a schedule has a parameter `total_steps` that was not given."""
    try:
        parameter = inspect.signature(schedule).parameters.get("total_steps")
    except ValueError:
        return False
    given = isinstance(schedule, functools.partial) and "total_steps" in schedule.keywords
    return parameter is not None and not given
