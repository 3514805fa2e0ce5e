"""`_target_` nodes: checked before anything runs, then built.

A node is a dict with `_target_`, the import path of a callable, and its arguments; `_args_` holds positional ones and
`_partial_: true` makes a `functools.partial`. It is what Hydra instantiates, and works without Hydra.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .exceptions import ConfigError

_KEYWORDS = {"_target_", "_args_", "_partial_", "_convert_", "_recursive_"}
_EXTRAS = {
    "timm": "timm",
    "datasets": "hf",
    "huggingface_hub": "hf",
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "pyarrow": "parquet",
}


def nearest(name: str, valid: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ". Did you mean …?" for the valid name most like `name`, or a full stop where none is."""
    found = difflib.get_close_matches(name, [str(option) for option in valid], n=1, cutoff=cutoff)
    return f". Did you mean '{found[0]}'?" if found else "."


def plain(value: Any) -> Any:
    """Return OmegaConf containers as dicts and lists, interpolations resolved; anything else as it is."""
    if "omegaconf" in sys.modules:
        from omegaconf import OmegaConf

        if OmegaConf.is_config(value):
            return OmegaConf.to_container(value, resolve=True)
    return value


def is_node(value: Any) -> bool:
    """Say whether `value` is a dict with a `_target_`."""
    return isinstance(value, Mapping) and "_target_" in value


def check_nodes(value: Any, path: str, problems: list[str], partial: bool = False) -> None:
    """Collect what would keep the nodes in `value` from being built, one sentence a problem.

    Parameters
    ----------
    path
        Key path of `value`, for the sentences.
    partial
        The node's first arguments come later (optimizers, schedules).
    """
    value = plain(value)
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_nodes(item, f"{path}[{index}]", problems)
    elif is_node(value):
        for key, item in value.items():
            if key not in _KEYWORDS:
                check_nodes(item, f"{path}.{key}", problems)
        for index, item in enumerate(value.get("_args_", ())):
            check_nodes(item, f"{path}._args_[{index}]", problems)
        try:
            target = locate(value["_target_"], path)
        except ConfigError as error:
            problems.extend(error.problems)
        else:
            _check_arguments(target, value, path, problems, partial or bool(value.get("_partial_")))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_nodes(item, f"{path}.{key}", problems)


def locate(target: Any, path: str) -> Callable:
    """Import what a `_target_` names.

    Raises
    ------
    ConfigError
        There is no such thing, or it can't be called.
    """
    where = f"{path}._target_"
    if callable(target):
        return target
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"{where}: {target!r} is not an import path.")
    parts = target.split(".")
    found: Any = None
    for depth in range(len(parts), 0, -1):
        module = ".".join(parts[:depth])
        try:
            found = import_module(module)
            break
        except ModuleNotFoundError as error:
            missing = error.name or module
            if missing != module and not module.startswith(f"{missing}."):
                raise ConfigError(f"{where}: '{target}' can't be imported: {_missing_package(missing)}") from error
        except Exception as error:
            raise ConfigError(f"{where}: importing '{module}' failed: {type(error).__name__}: {error}") from error
    else:
        raise ConfigError(f"{where}: '{target}' can't be found: {_missing_package(parts[0])}")
    for index, name in enumerate(parts[depth:], depth):
        parent = ".".join(parts[:index])
        try:
            found = getattr(found, name)
        except ImportError as error:
            raise ConfigError(f"{where}: '{target}' can't be imported: {error}") from error
        except AttributeError:
            hint = nearest(name, dir(found))
            raise ConfigError(f"{where}: '{target}' can't be found: {parent} has no '{name}'{hint}") from None
    if not callable(found):
        raise ConfigError(f"{where}: '{target}' is a {type(found).__name__} and can't be called.")
    return found


def _missing_package(name: str) -> str:
    root = name.split(".")[0]
    if root in _EXTRAS and find_spec(root) is None:
        return f"it needs `pip install 'stable-ssl[{_EXTRAS[root]}]'`."
    return f"no module named '{name}'."


def _check_arguments(target: Callable, node: Mapping, path: str, problems: list[str], partial: bool) -> None:
    try:
        signature = inspect.signature(target)
    except (ValueError, TypeError):  # some builtins have none
        return
    name = getattr(target, "__name__", str(target))
    parameters = signature.parameters
    keywords = {key for key in node if key not in _KEYWORDS}
    named = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = set() if takes_any else keywords - set(named)
    for key in sorted(unknown):
        problems.append(f"{path}.{key}: {name} has no such argument (value {node[key]!r}){nearest(key, named)}")
    if partial:
        return
    try:
        signature.bind(*node.get("_args_", ()), **{key: None for key in keywords - unknown})
    except TypeError as error:
        problems.append(f"{path}: {name} can't be called like this: {error}.")


def build(value: Any, path: str) -> Any:
    """Build every node in `value`; dicts and lists of them keep their shape, live objects are left as they are.

    Raises
    ------
    ConfigError
        A target can't be found, or raised an error: names the key path, the target and the error.
    """
    value = plain(value)
    if is_node(value):
        target = locate(value["_target_"], path)
        inner = build if value.get("_recursive_", True) else lambda item, path: item
        args = [inner(item, f"{path}._args_[{index}]") for index, item in enumerate(value.get("_args_", ()))]
        kwargs = {key: inner(item, f"{path}.{key}") for key, item in value.items() if key not in _KEYWORDS}
        if value.get("_partial_"):
            return functools.partial(target, *args, **kwargs)
        try:
            return target(*args, **kwargs)
        except ConfigError as error:
            raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error
        except Exception as error:
            raise ConfigError(f"{path}: {value['_target_']} failed: {type(error).__name__}: {error}") from error
    if type(value) is dict:
        return {key: build(item, f"{path}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(build(item, f"{path}[{index}]") for index, item in enumerate(value))
    return value


def describe(value: Any) -> Any:
    """Return `value` as plain containers, numbers and strings: a `functools.partial` as the node that would build it,
    and any other live object as its class name in angle brackets."""
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
    return f"<live {type(value).__name__}>"


def _import_path(target: Any) -> str:
    """Return what `locate` finds a callable by; its name in angle brackets where there is nothing like that."""
    name = getattr(target, "__qualname__", type(target).__name__)
    module = getattr(target, "__module__", "__main__")
    is_importable = module != "__main__" and getattr(sys.modules.get(module), name, None) is target
    return f"{module}.{name}" if is_importable else f"<live {name}>"


def live_paths(value: Any, path: str = "") -> list[str]:
    """Return the key paths under which a described configuration stands for live objects."""
    if isinstance(value, Mapping):
        return [p for key, item in value.items() for p in live_paths(item, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list | tuple):
        return [p for index, item in enumerate(value) for p in live_paths(item, f"{path}[{index}]")]
    return [path] if isinstance(value, str) and value.startswith("<live ") else []
