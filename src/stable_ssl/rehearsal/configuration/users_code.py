"""The user's own code that a configuration leads to: which names it reads, and which line of it failed."""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from ...exceptions import ConfigError
from ...lines import USER, owner, place_of
from ...nodes import is_node, locate, plain


def is_users(part: Any) -> bool:
    """Return whether a class, function or module is the user's own, and not of this or an installed package."""
    file = getattr(_module_of(part), "__file__", None)
    return file is not None and owner(file) == USER


def _module_of(part: Any) -> ModuleType | None:
    return part if isinstance(part, ModuleType) else sys.modules.get(str(getattr(part, "__module__", None)))


def with_place(error: ConfigError) -> ConfigError:
    """Return the error with the user's line that it came from, if the problem is one and has such a line."""
    place = place_of(error) if error.__cause__ is not None and len(error.problems) == 1 else ""
    is_new = place and not error.problems[0].endswith(place)
    return ConfigError(f"{error.problems[0]}{place}") if is_new else error


def targets_in(value: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Yield (key, node, target) for each node in a value whose target can be imported."""
    value = plain(value)
    if is_node(value):
        with contextlib.suppress(ConfigError):  # the trainer's constructor reports it
            yield path, value, locate(value["_target_"], path)
    if isinstance(value, Mapping):
        items: Iterable[tuple[str, Any]] = ((f"{path}.{key}" if path else str(key), one) for key, one in value.items())
    else:
        items = ((f"{path}[{n}]", one) for n, one in enumerate(value)) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from targets_in(item, key)


class UsersCode:
    """The user's files that some classes and functions are in, and those that these files import.

    Parameters
    ----------
    parts
        The classes and functions.
    """

    def __init__(self, parts: Iterable[Any]):
        self._trees = [tree for module in _reached(parts) if (tree := _parsed(module)) is not None]
        self._names = Counter(name for tree in self._trees for name in _names_in(tree))

    def reads(self, name: str) -> bool:
        """Return whether the code has an attribute or a text of this name."""
        return name in self._names

    def calls(self, name: str) -> bool:
        """Return whether the code has an attribute or a text of this name outside of functions of that name."""
        inside = Counter(
            found
            for tree in self._trees
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name == name
            for found in _names_in(function)
        )
        return self._names[name] > inside[name]


def _reached(parts: Iterable[Any]) -> list[ModuleType]:
    """Return the user's modules that parts are in, and those that these import."""
    reached: dict[str, ModuleType] = {}
    waiting = [module for part in parts if (module := _module_of(part)) is not None]
    while waiting:
        module = waiting.pop()
        if module.__name__ not in reached and is_users(module):
            reached[module.__name__] = module
            waiting += [other for value in vars(module).values() if (other := _module_of(value)) is not None]
    return list(reached.values())


def _parsed(module: ModuleType) -> ast.Module | None:
    try:
        return ast.parse(inspect.getsource(module))
    except Exception:  # the file is gone, or changed since it was imported; or the module only looks like one
        return None


def _names_in(tree: ast.AST) -> Iterator[str]:
    """Yield the names of attributes, and the texts, in a piece of code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
