"""The values that the agent of a W&B sweep gives to a run: they replace what the run's configuration says.

The agent writes them to a file, and names the file in the environment. `wandb.init` reads it for `wandb.config`.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..config import SECTIONS, full_key, nearest
from ..exceptions import ConfigError
from ..nodes import argument_names, is_node, plain

log = logging.getLogger("stable_ssl")

FILE = "WANDB_SWEEP_PARAM_PATH"  # the variable of the environment that names the agent's file


def with_sweep_values(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap the constructor of a trainer: it gets the values of a sweep, if `logger.wandb` is on.

    The trainer keeps sentences about them in `_notes`, for `tell`.

    Raises
    ------
    ConfigError
        Lists the values that are for nothing in the configuration.
    """

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if not os.environ.get(FILE):
            return init(self, *args, **kwargs)
        arguments = inspect.signature(init).bind(self, *args, **kwargs).arguments
        given = {**arguments, **arguments.get("kwargs", {})}
        for name in ("self", "kwargs"):
            given.pop(name, None)
        options = _as_dict(given["logger"])
        if not isinstance(options, Mapping) or options.get("wandb") in (None, False):
            init(self, **given)
            self._notes = ("The values of the W&B sweep have no effect, because logger.wandb is off.",)
            return None
        values = _read(os.environ[FILE])
        swept = _swept(type(self), given, values)
        init(self, **swept)
        self._configured.update(
            {name: swept[name] for name in {_parts(key)[0] for key in values} if name not in SECTIONS}
        )
        self._notes = tuple(f"The W&B sweep sets {key} to {value!r}." for key, value in values.items())
        return None

    return wrapped


def tell(notes: Iterable[str]) -> None:
    """Log what was found before there was a log."""
    for note in notes:
        log.info(note)


def _read(path: str) -> dict[str, Any]:
    """Return the values in the agent's file, by key."""
    from yaml import YAMLError, safe_load

    try:
        with open(path) as file:
            content = safe_load(file) or {}
        values = {str(key): item["value"] for key, item in content.items() if key != "wandb_version"}
    except (OSError, YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{FILE}: '{path}' can't be read as the values of a W&B sweep: {error}") from error
    below = values.pop("trainer", {})
    return {**values, **{f"trainer.{key}": value for key, value in below.items()}}


def _swept(cls: type, given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a trainer with the values of a sweep."""
    swept, problems = dict(given), []
    optim = _as_dict(given["optim"])
    nodes = {"optim.optimizer": optim.get("optimizer")} if isinstance(optim, Mapping) else {}
    for key, value in values.items():
        first, *rest = _parts(key)
        try:
            if first not in swept and not hasattr(cls, first):
                meant = full_key(first, nodes)
                hint = f" Did you mean '{meant}'?" if meant else nearest(first, swept)
                raise ConfigError(f"there is no such setting.{hint}")
            swept[first] = _put(swept.get(first), rest, value, first)
        except ConfigError as error:
            problems.append(f"The W&B sweep sets {key} to {value!r}, but {error}")
    if problems:
        raise ConfigError(problems)
    return swept


def _put(node: Any, parts: list[str], value: Any, path: str) -> Any:
    """Return a copy of a part of the configuration with another value at the keys `parts` below it.

    Keys that are not there yet are taken where the trainer's constructor checks them: in the sections of settings, and
    in nodes. A dict is merged into a dict, as with overrides.
    """
    node = plain(node)
    if isinstance(node, functools.partial):
        if not parts and not isinstance(value, Mapping):
            return value
        keywords = _put({"_target_": node.func, **node.keywords}, parts, value, path)
        if unknown := [name for name in keywords if name != "_target_" and name not in argument_names(node)]:
            raise ConfigError(f"{path} has no argument '{unknown[0]}'.{nearest(unknown[0], argument_names(node))}")
        return functools.partial(keywords.pop("_target_"), *node.args, **keywords)
    fields = _as_dict(node)
    if not parts:
        if not (isinstance(value, Mapping) and isinstance(fields, Mapping)):
            return value
        for key, item in value.items():
            fields = _put(fields, [str(key)], item, path)
        return fields
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{path} is a {type(node).__name__}, of which a sweep can't set parts.")
    key, *rest = parts
    if key not in fields and (rest or not (path in SECTIONS or is_node(fields))):
        raise ConfigError(f"{path} has no '{key}'.{nearest(key, fields)}")
    return {**fields, key: _put(fields.get(key), rest, value, f"{path}.{key}")}


def _as_dict(value: Any) -> Any:
    """Return an object of a configuration class as a dict of what was set in it, and anything else unchanged."""
    value = plain(value)
    return {key: value[key] for key in value.model_fields_set} if hasattr(value, "model_fields_set") else value


def _parts(key: str) -> list[str]:
    """Return the parts of a dotted key, without `trainer`."""
    return key.removeprefix("trainer.").split(".")
