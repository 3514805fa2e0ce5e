"""The fields of a configuration: how they are read, and the kinds of values that they take."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .exceptions import nearest

# The arguments of `wandb.init`.
WANDB_KEYS = (
    "entity", "project", "name", "group", "job_type", "tags", "notes", "id", "resume", "resume_from", "fork_from",
    "mode", "dir", "config", "config_include_keys", "config_exclude_keys", "settings", "allow_val_change", "force",
    "reinit", "save_code", "sync_tensorboard", "tensorboard", "monitor_gym",
)  # fmt: skip
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# The validators' errors have no text: `config` makes the sentence about one from the field's description.


class AsDict(MutableMapping[str, Any]):
    """Gives the attributes of an object as the items of a dict."""

    def __getitem__(self, name: str) -> Any:
        try:
            return self.__dict__[name]
        except KeyError:
            raise KeyError(f"{type(self).__name__} has no field '{name}'.{nearest(name, self.__dict__)}") from None

    def __setitem__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __delitem__(self, name: str) -> None:
        del self.__dict__[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)


def _not_bool(value: Any) -> Any:
    """Refuse true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError
    return value


def _max_steps(value: int | float) -> int | float:
    if isinstance(value, float) and 0 < value < 1:
        return value
    if value < 0:
        return -1
    if not math.isfinite(value) or float(value) != int(value) or value < 1:
        raise ValueError
    return int(value)


def _level(value: Any) -> int:
    names = logging.getLevelNamesMapping()
    if isinstance(value, str) and value.upper() in names:
        return names[value.upper()]
    if isinstance(value, bool) or not str(value).isdigit():
        raise ValueError
    return int(value)


def _folder(value: Any) -> Any:
    """Return a path as text, and an empty text, such as a variable that is not set, as None."""
    if isinstance(value, bool) or not isinstance(value, str | PurePath | int | float | None):
        raise ValueError
    return None if value is None else str(value) or None


def _wandb(value: Any) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if key not in WANDB_KEYS:
                raise PydanticCustomError("unknown_key", "unknown key", {"key": key, "valid": WANDB_KEYS})
        return dict(value) or True
    if value is not None and not isinstance(value, bool):
        raise ValueError
    return value or None


def _file_name(value: Any) -> Any:
    """Refuse a path: the file is written in the run's folder, at the end of the run."""
    if isinstance(value, str) and PurePath(value).name != value:
        raise ValueError
    return value


# A field's `description` completes the sentence "VALUE is not …"; its `examples` are suggested if they are alike.
Count = Annotated[int, BeforeValidator(_not_bool), Field(ge=1, description="a whole number of at least 1")]
CountOrZero = Annotated[int, BeforeValidator(_not_bool), Field(ge=0, description="a whole number of at least 0")]
Frequency = Annotated[Count | None, BeforeValidator(lambda value: value or None)]  # 0 and false: never
FileName = Annotated[
    bool | str,
    BeforeValidator(lambda value: value or False),
    AfterValidator(_file_name),
    Field(description="true, false or the name of a file, without a folder"),
]
Positive = Annotated[
    float, BeforeValidator(_not_bool), Field(gt=0, allow_inf_nan=False, description="a finite number above 0")
]
NotNegative = Annotated[
    float, BeforeValidator(_not_bool), Field(ge=0, allow_inf_nan=False, description="a finite number of at least 0")
]
Device = Annotated[
    str,
    Field(
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="'auto', 'cpu', 'mps', 'cuda' or 'cuda:N' for the GPU with number N",
        examples=["auto", "cpu", "mps", "cuda"],
    ),
]
Folder = Annotated[str | None, BeforeValidator(_folder), Field(description="a folder, or null")]
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
    Field(description=f"true, false, null or a dict of wandb.init's arguments: {', '.join(WANDB_KEYS)}"),
]
Groups = Annotated[dict[str, Any], Field(description="a dict with modules, or patterns of parameter names, as keys")]
Best = Annotated[dict[str, Any] | None, Field(description="a dict with the key metric, and perhaps mode and patience")]
Patterns = Annotated[list[str], Field(description="a list of names, or patterns of names")]
BySet = Annotated[dict[str, Any], Field(description="a dict with the names of data sets as keys")]
