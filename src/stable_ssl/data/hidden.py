"""Finds objects with a method such as `set_random_seed`, and random generators: in attributes, lists and functions."""

from __future__ import annotations

import dis
import functools
import itertools
import logging
import pickle
import random
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger("stable_ssl")

GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
# Seeded by `seed_generators`. Functions such as `random.random` are methods of them.
_SEEDED = (random._inst, np.random.mtrand._rand, torch.default_generator)  # type: ignore[attr-defined]

# Values that hold nothing, and objects of libraries that hold data only.
_LEAVES = (str, bytes, bytearray, int, float, complex, type, types.ModuleType, np.ndarray, np.generic, Tensor)
_OF_DATA = {*sys.stdlib_module_names, "numpy", "PIL", "cv2", "h5py", "lmdb", "pandas", "pyarrow", "scipy", "sklearn"}
MOST = 1000  # longer lists hold samples, not transforms
MOST_PARTS = 50_000


def has(part: Any, method: str) -> bool:
    """Return whether an object's class has a method."""
    return callable(getattr(type(part), method, None))


def search(root: Any, method: str, name: str = "dataset") -> Iterator[tuple[str, Any, bool]]:
    """Yield all that can be reached from an object and has a method, and all generators, outer ones first.

    Parameters
    ----------
    root, name
        Where the search begins, and its name.
    method
        The method's name.

    Yields
    ------
    tuple
        (dotted name, object, whether it is inside another object that has the method).
    """
    stack = [(name, root, False)]
    seen: dict[int, Any] = {}
    while stack:
        path, part, is_inner = stack.pop()
        if isinstance(part, _LEAVES) or part is None or id(part) in seen or any(part is known for known in _SEEDED):
            continue
        if len(seen) == MOST_PARTS:
            log.warning(
                "The %s of a loader holds more than %d objects, so %s is called only on those that were found first. "
                "Keep samples in arrays or long lists.",
                name,
                MOST_PARTS,
                method,
            )
            return
        seen[id(part)] = part  # kept, so that no other object gets its id
        is_found = has(part, method)
        if is_found or isinstance(part, GENERATORS):
            yield path, part, is_inner
        held = [] if isinstance(part, GENERATORS) else list(_held(part))
        stack += [(f"{path}.{key}", value, is_inner or is_found) for key, value in reversed(held)]


def _held(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, with a name for each."""
    if isinstance(part, functools.partial):
        yield from (("func", part.func), ("args", part.args), ("keywords", part.keywords))
    elif isinstance(part, types.FunctionType):
        yield from _used(part)
    elif isinstance(getattr(part, "__self__", None), GENERATORS) or isinstance(part, types.MethodType):
        yield from (("__self__", part.__self__), ("__func__", getattr(part, "__func__", None)))
    elif isinstance(part, dict | list | tuple | set | frozenset) and len(part) <= MOST:
        yield from ((str(key), value) for key, value in (part.items() if isinstance(part, dict) else enumerate(part)))
    if _root_of(type(part)) not in _OF_DATA or isinstance(part, types.SimpleNamespace | functools._lru_cache_wrapper):
        yield from _attributes(part)


def _root_of(thing: Any) -> str:
    return str(getattr(thing, "__module__", None) or "").partition(".")[0]


@functools.cache
def _is_users(root: str) -> bool:
    """Return whether a package or module is the user's: only there global variables are looked at."""
    module = sys.modules.get(root)
    path = str(getattr(module, "__file__", None) or list(getattr(module, "__path__", [])))
    is_installed = "site-packages" in path or "dist-packages" in path
    return root == "__main__" or not (is_installed or root in sys.stdlib_module_names or root == "stable_ssl")


def _attributes(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an object, without running code of its class; and those of a class of the user's."""
    yield from list(getattr(part, "__dict__", {}).items())
    for cls in type(part).__mro__:
        if not _is_users(_root_of(cls)):
            continue
        for key, value in list(vars(cls).items()):
            if isinstance(value, types.MemberDescriptorType):  # of __slots__
                value = getattr(part, key, None)
            if isinstance(value, property):
                value = value.fget
            yield key, getattr(value, "__func__", value)  # a static method's or class method's


def _used(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function may use: its closure, its defaults, and, of the user's functions, the global variables."""
    names = [*function.__code__.co_freevars]
    for name, cell in zip(names, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not set yet
            continue
    yield from (("__defaults__", function.__defaults__), ("__kwdefaults__", function.__kwdefaults__))
    yield from function.__dict__.items()
    if not _is_users(_root_of(function)):
        return
    names, loaded = _names(function.__code__), _loaded(function.__code__)
    for name in filter(loaded.__contains__, names):
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType) and _is_users(value.__name__.partition(".")[0]):
            attributes = [key for key in names if key in loaded[name] and key in vars(value)]
            yield from ((f"{name}.{key}", vars(value)[key]) for key in attributes)
        yield name, value


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield code, and that of functions and classes inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _names(code: types.CodeType) -> list[str]:
    """Return the names of global variables and attributes that code uses, and functions inside it."""
    return [name for one in _codes(code) for name in one.co_names]


def _loaded(code: types.CodeType) -> dict[str, set[str]]:
    """Return the names of the global variables that code reads, each with the names of its attributes.

    An attribute that is read at once, as in `module.name`, is known. If the variable is used in any other way, such as
    `m = module`, all names in the code may be its attributes.
    """
    loaded: dict[str, set[str]] = {}
    for one in _codes(code):
        for step, after in itertools.pairwise(dis.get_instructions(one)):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                is_read = after.opname in ("LOAD_ATTR", "LOAD_METHOD")
                loaded.setdefault(step.argval, set()).update([after.argval] if is_read else one.co_names)
    return loaded


def find_seedable(dataset: Any) -> tuple[list[Any], list[str]]:
    """Return the objects to call `set_random_seed` on, the last first, and the names of generators that it misses.

    A pipeline seeds what it holds. Only what it leaves out, such as a pipeline in a function, is seeded by itself.
    """
    found = list(search(dataset, "set_random_seed"))
    seedable = [part for _, part, is_inner in found if has(part, "set_random_seed") and not is_inner]
    left = _unseeded(dataset, seedable)
    for path, part, is_inner in found:
        own = [
            name for name, generator, _ in found if isinstance(generator, GENERATORS) and name.startswith(f"{path}.")
        ]
        if is_inner and has(part, "set_random_seed") and (not own or left.intersection(own)):
            seedable.append(part)
    left = _unseeded(dataset, seedable)
    return seedable, [f"{name} ({type(part).__name__})" for name, part, _ in found if name in left]


def _unseeded(dataset: Any, seedable: list[Any]) -> set[str]:
    """Return the names of the generators whose state does not depend on the seed."""
    states = []
    for seed in (1, 2):
        for part in reversed(seedable):
            part.set_random_seed(seed)
        generators = [
            (name, part) for name, part, _ in search(dataset, "set_random_seed") if isinstance(part, GENERATORS)
        ]
        states.append({(name, _state(part)) for name, part in generators})
    return {name for name, _ in states[0] & states[1]}


def _state(generator: Any) -> bytes:
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    return pickle.dumps(generator)
