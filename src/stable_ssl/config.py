"""The three configurations of a trainer, strict."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from importlib import import_module
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from .exceptions import nearest
from .fields import (
    AsDict,
    Best,
    BySet,
    Count,
    CountOrZero,
    Device,
    FileName,
    Folder,
    Frequency,
    Groups,
    Level,
    MaxSteps,
    NotNegative,
    Patterns,
    Positive,
    Wandb,
)
from .nodes import argument_names, build, check_nodes, describe, plain

__all__ = [
    "HardwareConfig", "LoggerConfig", "OptimConfig", "build", "check_nodes", "describe", "full_key", "nearest",
    "parse_config", "with_defaults",
]  # fmt: skip

# Other names for valid values, as other libraries have them.
_OTHER_NAMES = {
    "gpu": "cuda", "metal": "mps", "16": "fp16", "16-mixed": "fp16", "float16": "fp16", "half": "fp16",
    "bf16-mixed": "bf16", "bfloat16": "bf16", "32": "fp32", "float32": "fp32", "none": "null",
}  # fmt: skip
# Arguments that most optimizers take: known even if no optimizer is configured.
_OF_OPTIMIZERS = ("lr", "weight_decay", "momentum", "betas", "eps", "nesterov")


class _Config(BaseModel, AsDict):
    """A group of settings, which can be read as attributes and as items."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    __iter__ = AsDict.__iter__  # type: ignore[assignment]  # names, as of a dict; those of pydantic are pairs


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
        How the processes share a model. "ddp": each has a whole copy, and gradients are averaged. "fsdp": each has a
        part of each parameter, gradient and optimizer state, by torch's FSDP2. "hsdp": the processes of a machine
        divide the model like this, and the machines have copies of each other.
    compile
        Compile the modules: true, or a mode of `torch.compile`.
    channels_last
        Store images and the weights of their convolutions with channels last in memory. Volumes stay as they are.
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
    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    compile: bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = False
    channels_last: bool = False
    deterministic: bool = False
    time_limit: Positive | None = None

    @model_validator(mode="after")
    def _settle(self) -> HardwareConfig:
        if self.float16 and "precision" not in self.model_fields_set:
            self.precision = "fp16"
        return self


class GroupConfig(_Config):
    """How some of the parameters are optimized, where that differs from the others.

    Parameters
    ----------
    lr
        Their learning rate.
    lr_scale
        A factor on the optimizer's learning rate, instead of `lr`.
    weight_decay
        Their weight decay. `exclude_bias_norm` still applies.
    schedule
        "run": they follow `optim.scheduler`. None, or "none": their rate stays as it is.
    frozen_epochs
        Number of epochs, from the first, in which they are not trained.
    """

    lr: Positive | None = None
    lr_scale: Positive | None = None
    weight_decay: NotNegative | None = None
    schedule: Literal["run", "none"] | None = "run"
    frozen_epochs: CountOrZero = 0


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
        Mini-batches per epoch: -1, or any negative number, for all of them; a whole number for at most that many; a
        number between 0 and 1 for that fraction of them. If it leaves some out, the console counts the steps of the run
        instead of epochs.
    accumulation_steps
        Mini-batches per optimizer step.
    groups
        Settings of some parameters: `{module, or pattern of parameter names: GroupConfig}`. If several match a
        parameter, the last one counts.
    frozen
        Patterns of the names of parameters that are never trained, or names of modules.
    frozen_norm
        Patterns of the names of batch normalisations, or of modules that hold some: they use their running statistics
        in training too, and these stay as they are.
    grad_max_norm
        Largest L2 norm of all gradients together. None: no clipping.
    exclude_bias_norm
        Apply neither weight decay nor LARS scaling to biases and normalisation layers.
    nonfinite
        Reaction to a loss that is not finite: "raise" ends the run, "skip" skips the step.
    """

    optimizer: Any = None
    groups: Groups = {}
    frozen: Patterns = []
    frozen_norm: Patterns = []
    lr_batch_size: Count | None = None
    scheduler: Any = None
    epochs: Count = 1000
    max_steps: MaxSteps = -1
    accumulation_steps: Count = 1
    grad_max_norm: Positive | None = None
    exclude_bias_norm: bool = False
    nonfinite: Literal["raise", "skip"] = "raise"


class BestConfig(_Config):
    """The value by which the evaluations of a run are compared.

    Parameters
    ----------
    metric
        "<set>/<name>", as in `metrics.jsonl`.
    mode
        "max" or "min": the better values. None: the metric itself says it, as those of torchmetrics do.
    patience
        Number of evaluations in a row without a better value after which training stops. None: it does not.
    """

    metric: str
    mode: Literal["max", "min"] | None = None
    patience: Count | None = None


class LoggerConfig(_Config):
    """What a run watches, logs and saves, and how often.

    Parameters
    ----------
    level
        Least severe messages that are shown, as in `logging`.
    metric
        `{evaluation set: {name: torchmetrics metric}}`. Each metric gets (predictions, labels). A result that is no
        number, such as a confusion matrix, goes to `snapshots/`.
    monitor
        `{data set: {name: Monitor}}`.
    eval_every_epoch
        Epochs from one evaluation to the next; there is one at the end too. 0 or None: only at the end.
    eval_at_start
        Evaluate before training too, and keep the weights of then as `weights/initial.safetensors`.
    best
        Keep the weights of the best evaluation as `weights/best.safetensors`, and end training if no better one comes:
        a `BestConfig`.
    log_every_step
        Optimizer steps from one record of training values to the next.
    checkpoint_every_minutes
        Minutes from one resumable checkpoint to the next.
    checkpoint_every_step
        Optimizer steps from one resumable checkpoint to the next, beside those by the clock. None: no others.
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
        True, or a dict of arguments for `wandb.init`, such as project, name, group, mode and settings.
    tensorboard
        Write TensorBoard events too.
    """

    level: Level = 20
    metric: BySet = {}
    monitor: BySet = {}
    eval_every_epoch: CountOrZero | None = 1
    eval_at_start: bool = False
    best: Best = None
    log_every_step: Count = 1
    checkpoint_every_minutes: Positive = 10
    checkpoint_every_step: Count | None = None
    checkpoint_keep: Count = 2
    checkpoint_frequency: Frequency = None
    checkpoint_model_only: bool = True
    save_final_model: FileName = False
    dump_path: Folder = None
    wandb: Wandb = None
    tensorboard: bool = False


SECTIONS: dict[str, type[_Config]] = {"hardware": HardwareConfig, "optim": OptimConfig, "logger": LoggerConfig}


def __getattr__(name: str) -> Any:
    """Return what was in this file in early 2025."""
    homes = {
        "instanciate_config": "instantiate", "collapse_nested_dict": "utils.utils", "WandbConfig": "compat.wandb"
    }  # fmt: skip
    if name in homes:
        return getattr(import_module(f"{__package__}.{homes[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
        The settings without mistakes, so that what is in them can be checked too. None if there are no such settings.
    """
    values = plain(values)
    if isinstance(values, cls):
        return values.model_copy()
    if not isinstance(values, Mapping):
        problems.append(f"{path}: {values!r} is not a dict of settings.")
        return None
    values = {str(key): value for key, value in values.items()}
    try:
        config = cls.model_validate(values)
    except ValidationError as error:
        # Pydantic reports each type of a union that did not fit; one sentence per key is enough.
        by_key = {item["loc"][0]: item for item in reversed(error.errors())}
        problems += [_sentence(cls, path, values, by_key[key]) for key in values if key in by_key]
        problems += (missing := [f"{path}.{k}: missing." for k, item in by_key.items() if item["type"] == "missing"])
        right = {key: value for key, value in values.items() if key not in by_key}
        return None if missing else parse_config(cls, right, path, problems)
    if isinstance(config, OptimConfig):
        _check_groups(config.groups, f"{path}.groups", problems)
    if isinstance(config, LoggerConfig) and config.best is not None:
        best = parse_config(BestConfig, config.best, f"{path}.best", problems)
        config.best = best and best.model_dump()
        if best and best.patience and not config.eval_every_epoch:
            problems.append(f"{path}.best.patience: there is one evaluation only, at the end; set eval_every_epoch.")
    return config


def _check_groups(groups: dict[str, Any], path: str, problems: list[str]) -> None:
    """Check and convert the settings of each group of parameters."""
    for name, options in groups.items():
        group = parse_config(GroupConfig, options, f"{path}.{name}", problems)
        if group and group.lr is not None and group.lr_scale is not None:
            problems.append(f"{path}.{name}: lr and lr_scale contradict each other; give only one of them.")
        if group:
            groups[name] = group.model_dump(exclude_unset=True)


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


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trainer's configuration with the defaults of settings that there were not when it was written."""
    complete = dict(config)
    for name, cls in SECTIONS.items():
        defaults = {key: field.get_default(call_default_factory=True) for key, field in cls.model_fields.items()}
        if name in config:  # a trainer with a constructor of its own may have no such argument
            complete[name] = {**defaults, **(config[name] or {})}
    return complete
