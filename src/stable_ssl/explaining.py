"""Why a configuration does not compose, in words that name the key, the value and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .exceptions import ConfigError, nearest


def refused(error: BaseException, name: str | None, recipes: Sequence[str]) -> ConfigError:
    """Return the error for a configuration that does not compose.

    If a value could not be computed because of what a user gave, as a backbone that is not there, that is all it says.

    Parameters
    ----------
    error
        What Hydra, OmegaConf or the YAML parser raised.
    name
        Of the user's file. None: it is a recipe, of which the user need not know.
    recipes
        The names of the recipes, of which the message may suggest one.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return ConfigError([problem.removeprefix("trainer.") for problem in cause.problems])
    why = explain(error, recipes)
    return ConfigError(why if name is None else f"'{name}' does not compose: {why}")


def explain(error: BaseException, recipes: Sequence[str]) -> str:
    """Say why a configuration does not compose: from the kind of the error and its fields, or else in its own words.

    Parameters
    ----------
    error
        What Hydra, OmegaConf or the YAML parser raised.
    recipes
        The names of the recipes, of which the message may suggest one.
    """
    from hydra.errors import MissingConfigException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import MarkedYAMLError

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, missing = str(error.missing_cfg_file).rpartition("/")
        options = error.options or (() if group else recipes)
        return f"there is no '{error.missing_cfg_file}'.{nearest(missing, options)}"
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"it is not YAML at line {mark.line + 1}, column {mark.column + 1} of '{mark.name}': {error.problem}."
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key.removeprefix('trainer.')}: {_explained_value(error)}"
    if isinstance(error.__cause__, OmegaConfBaseException) and error.__cause__.full_key:
        return explain(error.__cause__, recipes)
    return " ".join(str(error).split())


def _explained_value(error: Any) -> str:
    """Say why OmegaConf can't tell the value of a key."""
    from omegaconf import errors

    text = str(error.child_node)
    cause = error
    while isinstance(cause, errors.OmegaConfBaseException) and (inner := cause.__cause__ or cause.__context__):
        cause = inner
    if isinstance(error, errors.MissingMandatoryValue):
        return "'???' stands for a value that you must give."
    if isinstance(cause, errors.MissingMandatoryValue):
        missing = str(cause).split()[-1]  # OmegaConf tells the key in its message only
        return f"'{text}' refers to {missing}, which you must give, as in {missing}=VALUE."
    if isinstance(error, errors.ConfigKeyError | errors.ConfigAttributeError):
        return "there is no such key."
    if isinstance(error, errors.InterpolationKeyError):
        return f"'{text}' refers to a key that is not there."
    if isinstance(error, errors.UnsupportedInterpolationType):
        return f"'{text}' calls a resolver that is not there."
    if isinstance(error, errors.GrammarParseError):
        return "the value can't be read; a reference to another key is ${key}."
    if isinstance(cause, errors.OmegaConfBaseException):
        return f"'{text}' refers to itself, or to a value that is missing."
    return f"'{text}' has no value: {cause.args[0] if cause.args else type(cause).__name__}"
