"""`_target_` nodes: checked before anything runs, then built.

A node is a dict with `_target_`, the import path of a callable, and the callable's arguments. `_args_` holds positional
arguments, and `_partial_: true` makes a `functools.partial`. Hydra's `instantiate` understands the same dicts.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .exceptions import ConfigError, DataError, nearest
from .lines import USER, owner, place_of
from .signatures import check_call, keywords_of, parameters_of

_KEYWORDS = {"_target_", "_args_", "_partial_", "_convert_", "_recursive_"}
_EXTRAS = {
    "timm": "timm",
    "datasets": "hf",
    "huggingface_hub": "hf",
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "pyarrow": "parquet",
}
# The keys of a run's own config.yaml that stand for no attribute of its trainer.
OF_A_RUN = ("trainer", "hydra", "working_folder", "import_from", "behaviour")


def plain(value: Any) -> Any:
    """Return OmegaConf containers as dicts and lists with interpolations resolved, and anything else unchanged."""
    if "omegaconf" in sys.modules:
        from omegaconf import OmegaConf

        if OmegaConf.is_config(value):
            return OmegaConf.to_container(value, resolve=True)
    return value


def is_node(value: Any) -> bool:
    """Say whether a value is a dict with a `_target_`."""
    return isinstance(value, Mapping) and "_target_" in value


def arguments_of(node: Mapping) -> tuple[list[Any], dict[str, Any]]:
    """Return a node's positional arguments, and its arguments by name."""
    return list(node.get("_args_", ())), {key: value for key, value in node.items() if key not in _KEYWORDS}


def argument_names(node: Any) -> list[str]:
    """Return the names of the arguments that the target of a node or of a `functools.partial` takes.

    The list is empty for anything else, and for a target that can't be imported.
    """
    try:
        target = locate(node["_target_"], "") if is_node(node) else getattr(node, "func", None)
    except ConfigError:
        return []
    return keywords_of(parameters_of(target) or {}) if callable(target) else []


def check_nodes(value: Any, path: str, problems: list[str], partial: bool = False) -> None:
    """Collect what would keep the nodes in a value from being built.

    Parameters
    ----------
    value
        A node, a dict or list that may contain nodes, or anything else.
    path
        The value's key, for the sentences.
    problems
        Gets one sentence per mistake.
    partial
        The node's first arguments come later, as for optimizers and schedules.
    """
    value = plain(value)
    if is_node(value):
        _check_node(value, path, problems, partial or bool(value.get("_partial_")))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_nodes(item, f"{path}.{key}", problems)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_nodes(item, f"{path}[{index}]", problems)


def _check_node(node: Mapping, path: str, problems: list[str], partial: bool) -> None:
    args, kwargs = arguments_of(node)
    for key, item in kwargs.items():
        check_nodes(item, f"{path}.{key}", problems)
    for index, item in enumerate(args):
        check_nodes(item, f"{path}._args_[{index}]", problems)
    try:
        target = locate(node["_target_"], path)
    except ConfigError as error:
        problems.extend(error.problems)
        return
    parameters = parameters_of(target)
    if parameters is not None:
        check_call(target, parameters, args, kwargs, path, problems, partial)


def locate(target: Any, path: str) -> Callable[..., Any]:
    """Import the callable that a `_target_` names.

    Parameters
    ----------
    target
        An import path, as "torch.optim.SGD", or a callable, which is returned as it is.
    path
        The node's key, for error messages.

    Raises
    ------
    ConfigError
        Nothing has this name, it can't be imported, or it can't be called.
    """
    where = f"{path}._target_"
    if callable(target):
        return target  # type: ignore[no-any-return]
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"{where}: {target!r} is not an import path.")
    found, names = _import_longest(target, where)
    parent = target.split(".")[: -len(names) or None]
    for name in names:
        found = _attribute(found, name, ".".join(parent), target, where)
        parent.append(name)
    if not callable(found):
        raise ConfigError(f"{where}: {target!r} is a {type(found).__name__} and can't be called.")
    return found  # type: ignore[no-any-return]


def _import_longest(target: str, where: str) -> tuple[Any, list[str]]:
    """Import the longest part of an import path that is a module. Return the module and the names that are left."""
    parts = target.split(".")
    for depth in range(len(parts), 0, -1):
        module = ".".join(parts[:depth])
        try:
            return import_module(module), parts[depth:]
        except ModuleNotFoundError as error:
            missing = error.name or module
            if missing != module and not module.startswith(f"{missing}."):
                raise ConfigError(f"{where}: '{target}' can't be imported: {_missing_package(missing)}") from error
        except Exception as error:
            said = f"{where}: importing '{module}' failed: {type(error).__name__}: {error}"
            raise ConfigError(f"{said}{place_of(error)}") from error
    raise ConfigError(f"{where}: '{target}' can't be found: {_missing_package(parts[0])}")


def _attribute(parent: Any, name: str, parent_name: str, target: str, where: str) -> Any:
    try:
        return getattr(parent, name)
    except ImportError as error:
        raise ConfigError(f"{where}: '{target}' can't be imported: {error}") from error
    except AttributeError:
        hint = nearest(name, dir(parent))
        raise ConfigError(f"{where}: '{target}' can't be found: {parent_name} has no '{name}'.{hint}") from None


def _missing_package(name: str) -> str:
    root = name.split(".")[0]
    if root in _EXTRAS and find_spec(root) is None:
        return f"it needs `pip install 'stable-ssl[{_EXTRAS[root]}]'`."
    return f"no module named '{name}'."


def build(value: Any, path: str) -> Any:
    """Build every node in a value. Dicts and lists keep their shape, and live objects are left unchanged.

    Parameters
    ----------
    value
        A node, a dict or list that may contain nodes, or anything else.
    path
        The value's key, for error messages.

    Raises
    ------
    ConfigError
        A target can't be found or raised an error. The message names the key, the target and the error.
    """
    value = plain(value)
    if is_node(value):
        target = locate(value["_target_"], path)
        inner = build if value.get("_recursive_", True) else lambda item, path: item
        args, kwargs = arguments_of(value)
        args = [inner(item, f"{path}._args_[{index}]") for index, item in enumerate(args)]
        kwargs = {key: inner(item, f"{path}.{key}") for key, item in kwargs.items()}
        if value.get("_partial_"):
            return functools.partial(target, *args, **kwargs)
        try:
            return target(*args, **kwargs)
        except Exception as error:
            raise ConfigError(sentences_of(error, value, path)) from error
    if type(value) is dict:
        return {key: build(item, f"{path}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(build(item, f"{path}[{index}]") for index, item in enumerate(value))
    return value


def sentences_of(error: Exception, made_by: Any, path: str, made: Callable[..., Any] | None = None) -> list[str]:
    """Return what the error of a constructor says, one sentence per problem. Each begins with a key.

    That is the key of the argument which the error names, or of the only one without which there is no error.

    Parameters
    ----------
    error
        What the constructor raised.
    made_by
        The node, or the `functools.partial`.
    path
        Its key.
    made
        Makes it of other arguments, at no cost. None: that is not tried.
    """
    given, failed = {}, ""
    if is_node(made_by):
        given, failed = arguments_of(made_by)[1], f"{made_by['_target_']} failed: "
    elif isinstance(made_by, functools.partial):
        given = made_by.keywords
    known = {*given, *argument_names(made_by)}
    unknown = re.match(r"(\w+)\S* got an unexpected keyword argument '(\w+)'", str(error))
    if isinstance(error, ConfigError):
        problems = error.problems
    elif isinstance(error, DataError) or (isinstance(error, ValueError) and str(error).partition(":")[0] in known):
        problems = [str(error)]  # which is written for people too
    elif isinstance(error, TypeError) and unknown and unknown[2] in given:  # the target has passed it on
        problems = [f"{unknown[2]}: {unknown[1]} has no such argument (value {given[unknown[2]]!r})."]
    elif made and (culprit := _culprit(given, made)):
        problems = [f"{culprit}: {given[culprit]!r} does not suit: {type(error).__name__}: {error}"]
    else:
        problems = [f"{failed}{type(error).__name__}: {error}"]
    begins = [re.match(r"(\w+)(\[\d+\])*:", problem) for problem in problems]
    return [
        f"{path}.{problem}" if begin and begin[1] in known else f"{path}: {problem}"
        for problem, begin in zip(problems, begins, strict=True)
    ]


def _culprit(given: Mapping[str, Any], made: Callable[..., Any]) -> str | None:
    """Return the only argument without which a constructor raises nothing; None if there is none, or more."""
    found = []
    for name in given:
        with suppress(Exception):
            made(**{key: value for key, value in given.items() if key != name})
            found.append(name)
    return found[0] if len(found) == 1 else None


def describe(value: Any) -> Any:
    """Return a value as plain containers, numbers and strings.

    A `functools.partial` becomes the node that would build it. Any other live object becomes its class name in angle
    brackets.
    """
    value = plain(value)
    if isinstance(value, functools.partial):
        args = {"_args_": describe(value.args)} if value.args else {}
        return {"_target_": _import_path(value.func), "_partial_": True, **args, **describe(value.keywords)}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [describe(item) for item in value]
        # A list of batches in memory is one live object, not thousands.
        return "<live list>" if live_paths(items) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type) or inspect.isfunction(value):
        return f"<live {value.__name__}>"
    cls = type(value)
    if cls.__bases__ and cls.__bases__[0].__name__ == "FSDPModule":
        cls = cls.__bases__[1]  # the class that it had before it was sharded
    return f"<live {cls.__name__}>"


def _import_path(target: Any) -> str:
    """Return the import path of a callable, or its name in angle brackets if it can't be imported."""
    name = getattr(target, "__qualname__", type(target).__name__)
    module = getattr(target, "__module__", "__main__")
    is_importable = module != "__main__" and getattr(sys.modules.get(module), name, None) is target
    return f"{module}.{name}" if is_importable else f"<live {name}>"


def live_paths(value: Any, path: str = "") -> list[str]:
    """Return the keys whose values are names of live objects in a configuration that `describe` made."""
    if isinstance(value, Mapping):
        return [p for key, item in value.items() for p in live_paths(item, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list | tuple):
        return [p for index, item in enumerate(value) for p in live_paths(item, f"{path}[{index}]")]
    return [path] if isinstance(value, str) and value.startswith("<live ") else []


def origin(config: Any) -> dict[str, Any]:
    """Return where a configuration finds what it names: the working folder, and the folders of the user's own modules.

    Parameters
    ----------
    config
        A configuration that `describe` made, whose targets have been imported.

    Returns
    -------
    dict
        `working_folder`, to which relative paths refer; `import_from`, the folders of the modules of targets that are
        not installed as packages.
    """
    modules = (sys.modules.get(target.split(".")[0]) for target in sorted(_targets(config)))
    places = [Path(place) for module in modules if module is not None for place in _places(module)]
    folders = [str(place.absolute().parent) for place in places if owner(str(place)) == USER]
    return {"working_folder": os.getcwd(), "import_from": list(dict.fromkeys(folders))}


def _targets(config: Any) -> set[str]:
    """Return the targets of all nodes in a configuration."""
    if isinstance(config, Mapping):
        own = {config["_target_"]} if isinstance(config.get("_target_"), str) else set()
        return own.union(*map(_targets, config.values()))
    return set().union(*map(_targets, config)) if isinstance(config, list) else set()


def _places(module: Any) -> list[str]:
    """Return the file of a module, or the folders of a package."""
    file = getattr(module, "__file__", None)
    return [*getattr(module, "__path__", [file] if file else [])]
