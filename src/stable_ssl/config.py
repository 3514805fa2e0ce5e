"""The three configurations of a trainer, strict."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import math
import re
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from .exceptions import ConfigError, nearest
from .nodes import argument_names, build, check_nodes, describe, plain

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
    "full_key",
    "nearest",
    "parse_config",
]

WANDB_KEYS = ("dir", "entity", "project", "name", "id", "tags", "group")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# Other names for valid values, as other libraries have them.
_OTHER_NAMES = {
    "gpu": "cuda", "metal": "mps", "16": "fp16", "16-mixed": "fp16", "float16": "fp16", "half": "fp16",
    "bf16-mixed": "bf16", "bfloat16": "bf16", "32": "fp32", "float32": "fp32", "none": "null",
}  # fmt: skip
# Arguments that most optimizers take: known even if no optimizer is configured.
_OF_OPTIMIZERS = ("lr", "weight_decay", "momentum", "betas", "eps", "nesterov")


# A validator's error has no text: the sentence about it is made from the field's description.
def _not_bool(value: Any) -> Any:
    """Refuse true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError
    return value


def _max_steps(value: int | float) -> int | float:
    if isinstance(value, float) and 0 < value < 1:
        return value
    if not math.isfinite(value) or float(value) != int(value) or (value < 1 and value != -1):
        raise ValueError
    return int(value)


def _level(value: Any) -> int:
    names = logging.getLevelNamesMapping()
    if isinstance(value, str) and value.upper() in names:
        return names[value.upper()]
    if isinstance(value, bool) or not str(value).isdigit():
        raise ValueError
    return int(value)


def _wandb(value: Any) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if key not in WANDB_KEYS:
                raise PydanticCustomError("unknown_key", "unknown key", {"key": key, "valid": WANDB_KEYS})
        return dict(value)
    if value is not None and not isinstance(value, bool):
        raise ValueError
    return value or None


# A field's `description` completes the sentence "VALUE is not …"; its `examples` are suggested if they are alike.
Count = Annotated[int, BeforeValidator(_not_bool), Field(ge=1, description="a whole number of at least 1")]
CountOrZero = Annotated[int, BeforeValidator(_not_bool), Field(ge=0, description="a whole number of at least 0")]
Positive = Annotated[
    float, BeforeValidator(_not_bool), Field(gt=0, allow_inf_nan=False, description="a finite number above 0")
]
Device = Annotated[
    str,
    Field(
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="'auto', 'cpu', 'mps', 'cuda' or 'cuda:N' for the GPU with number N",
        examples=["auto", "cpu", "mps", "cuda"],
    ),
]
MaxSteps = Annotated[
    int | float,
    BeforeValidator(_not_bool),
    AfterValidator(_max_steps),
    Field(description="-1, a whole number of at least 1, or a fraction between 0 and 1"),
]
Level = Annotated[
    int,
    BeforeValidator(_level),
    Field(description=f"a whole number or one of {', '.join(_LEVELS)}", examples=[*_LEVELS]),
]
Wandb = Annotated[
    Any,
    AfterValidator(_wandb),
    Field(description=f"true, false, null or a dict with any of the keys {', '.join(WANDB_KEYS)}"),
]
BySet = Annotated[dict[str, Any], Field(description="a dict with the names of data sets as keys")]


class _Config(BaseModel):
    """A group of settings, which can be read as attributes and as items."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def __getitem__(self, name: str) -> Any:
        try:
            return self.__dict__[name]
        except KeyError:
            raise KeyError(f"{type(self).__name__} has no field '{name}'.{nearest(name, self.__dict__)}") from None

    def __setitem__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field, or `default` if there is no such field."""
        return self.__dict__.get(name, default)


class HardwareConfig(_Config):
    """Where and how a run computes.

    Parameters
    ----------
    seed
        Seed of everything random. None: draw one and record it.
    device
        "auto" (the first of cuda, mps and cpu that is available), "cpu", "mps", "cuda" or "cuda:N".
    precision
        "fp32", "bf16" or "fp16".
    float16
        Old name for precision "fp16". If `precision` is given too, `precision` wins.
    world_size
        Number of processes, one per device. By default the number that torchrun or Slurm started, else 1. If neither
        started any, the run starts the others on this machine.
    strategy
        How the processes share a model. "ddp": each has a whole copy, and gradients are averaged.
    compile
        Compile the modules: true, or a mode of `torch.compile`.
    channels_last
        Store images and the weights of convolutions with channels last in memory.
    deterministic
        Use only kernels that give the same bits each time. Exact resume on a GPU needs it.
    time_limit
        Minutes after which the run saves its state and ends with status 75. None: no limit.
    """

    seed: CountOrZero | None = 0
    device: Device = "auto"
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
        A node, a partial or any other callable that gets the parameters, or an optimizer that has them already.
    lr_batch_size
        Batch size that the optimizer's learning rates are meant for. They are multiplied by the real batch size (over
        all processes and accumulated mini-batches) divided by this one. None: they are used as they are.
    scheduler
        A node or callable that gets the optimizer. It steps once per optimizer step. If it has a parameter
        `total_steps` that was not given, it gets the run's. None: constant learning rates.
    epochs
        Number of epochs.
    max_steps
        Mini-batches per epoch: -1 for all of them, a whole number for at most that many, a number between 0 and 1 for
        that fraction of them.
    accumulation_steps
        Mini-batches per optimizer step.
    grad_max_norm
        Largest L2 norm of all gradients together. None: no clipping.
    exclude_bias_norm
        Apply neither weight decay nor LARS scaling to biases and normalisation layers.
    nonfinite
        Reaction to a loss that is not finite: "raise" ends the run, "skip" skips the step.
    """

    optimizer: Any = None
    lr_batch_size: Count | None = None
    scheduler: Any = None
    epochs: Count = 1000
    max_steps: MaxSteps = -1
    accumulation_steps: Count = 1
    grad_max_norm: Positive | None = None
    exclude_bias_norm: bool = False
    nonfinite: Literal["raise", "skip"] = "raise"


class LoggerConfig(_Config):
    """What a run watches, logs and saves, and how often.

    Parameters
    ----------
    level
        Least severe messages that are shown, as in `logging`.
    metric
        `{evaluation set: {name: torchmetrics metric}}`. Each metric gets (predictions, labels).
    monitor
        `{data set: {name: Monitor}}`.
    eval_every_epoch
        Epochs from one evaluation to the next; there is one at the end too. 0 or None: only at the end.
    log_every_step
        Optimizer steps from one record of training values to the next.
    checkpoint_every_minutes, checkpoint_every_step
        Minutes, and optimizer steps, from one resumable checkpoint to the next.
    checkpoint_keep
        Number of resumable checkpoints that are kept.
    checkpoint_frequency
        Epochs from one file of weights, kept for reading, to the next. None: no such files.
    checkpoint_model_only
        False: keep the full state of those epochs too.
    save_final_model
        Keep the final weights. A text names their file.
    dump_path
        The run's folder. None: choose one.
    wandb
        True, or a dict with any of the keys dir, entity, project, name, id, tags, group.
    tensorboard
        Write TensorBoard events too.
    """

    level: Level = 20
    metric: BySet = {}
    monitor: BySet = {}
    eval_every_epoch: CountOrZero | None = 1
    log_every_step: Count = 1
    checkpoint_every_minutes: Positive = 10
    checkpoint_every_step: Count | None = None
    checkpoint_keep: Count = 2
    checkpoint_frequency: Count | None = None
    checkpoint_model_only: bool = True
    save_final_model: bool | str = False
    dump_path: str | None = None
    wandb: Wandb = None
    tensorboard: bool = False


SECTIONS: dict[str, type[_Config]] = {"hardware": HardwareConfig, "optim": OptimConfig, "logger": LoggerConfig}


def parse_config(cls: type[_Config], values: Any, path: str, problems: list[str]) -> Any:
    """Check and convert the fields of one configuration.

    Parameters
    ----------
    cls
        The configuration's class.
    values
        A dict, or an object of `cls`.
    path
        The configuration's key, for the sentences about problems.
    problems
        Gets one sentence per mistake.

    Returns
    -------
    _Config or None
        None if there is a mistake.
    """
    values = plain(values)
    if isinstance(values, cls):
        return values.model_copy()
    if not isinstance(values, Mapping):
        problems.append(f"{path}: {values!r} is not a dict of settings.")
        return None
    values = {str(key): str(v) if key == "dump_path" and v is not None else v for key, v in values.items()}
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        # Pydantic reports each type of a union that did not fit; one sentence per key is enough.
        by_key = {item["loc"][0]: item for item in reversed(error.errors())}
        problems += [_sentence(cls, path, values, by_key[key]) for key in values if key in by_key]
        return None


def _sentence(cls: type[_Config], path: str, values: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """Say what is wrong with the value of a key: made from the kind of pydantic's error, never from its text."""
    key = str(item["loc"][0])
    value = values[key]
    if item["type"] == "extra_forbidden":
        nodes = {f"optim.{name}": values.get(name) for name in ("optimizer", "scheduler")}
        meant = full_key(key, nodes)
        hint = f" Did you mean '{meant}'?" if meant else nearest(key, cls.model_fields)
        return f"{path}.{key}: unknown key (value {value!r}).{hint}"
    if item["type"] == "unknown_key":
        inner = item["ctx"]["key"]
        return f"{path}.{key}.{inner}: unknown key (value {value[inner]!r}).{nearest(inner, item['ctx']['valid'])}"
    field = cls.model_fields[key]
    words = field.description or _listed(_in_words(field.annotation))
    return f"{path}.{key}: {value!r} is not {words}.{_nearest_value(value, field)}"


def full_key(name: str, nodes: Mapping[str, Any]) -> str:
    """Return the full key of a setting that is known by its last part, as "optim.epochs" for "epochs".

    Parameters
    ----------
    name
        The last part.
    nodes
        Nodes by their keys, which count as settings too, as do the arguments of the nodes.

    Returns
    -------
    str
        Empty if no section and no node has such a setting.
    """
    sections = (f"{section}.{name}" for section, cls in SECTIONS.items() if name in cls.model_fields)
    parts = (path for path in nodes if path.endswith(f".{name}"))
    arguments = (f"{path}.{name}" for path, node in nodes.items() if name in argument_names(node))
    if not argument_names(nodes.get("optim.optimizer")) and name in _OF_OPTIMIZERS:
        return f"optim.optimizer.{name}"
    return next(itertools.chain(sections, parts, arguments), "")


def _in_words(kind: Any) -> list[str]:
    """Return what an annotation allows, one phrase per alternative."""
    if get_origin(kind) in (Union, UnionType):
        return [words for member in get_args(kind) for words in _in_words(member)]
    if get_origin(kind) is Annotated:
        return [part.description for part in get_args(kind) if isinstance(part, FieldInfo) and part.description]
    if get_origin(kind) is Literal:
        return [repr(option) for option in get_args(kind)]
    return {bool: ["true", "false"], str: ["a text"], NoneType: ["null"]}.get(kind, [])


def _listed(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _nearest_value(value: Any, field: FieldInfo) -> str:
    """Suggest the valid value of a field that is most like a mistaken one, or is another name for it."""
    words = [word.strip("'") for word in _in_words(field.annotation)]
    options = [*(field.examples or ()), *(word for word in words if " " not in word)]
    number = re.fullmatch(r"(?:gpu|cuda)?\W?(\d+)", str(value).lower())
    if "cuda" in options and number:
        return f" Did you mean 'cuda:{number[1]}'?"
    other = _OTHER_NAMES.get(str(value).lower())
    return f" Did you mean '{other}'?" if other in options else nearest(value, options, cutoff=0.7)


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
