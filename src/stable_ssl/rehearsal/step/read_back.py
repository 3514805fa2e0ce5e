"""A checkpoint, compared with the trainer that has read it."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

_LIBRARIES = ("stable_ssl", "torch", "torchvision", "timm", "builtins")
_STEPPING = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)
_OF_MODULES = frozenset(vars(nn.Module()))


def differences(trainer: Any) -> list[str]:
    """Return the keys of the newest checkpoint of a run whose values a trainer does not have.

    Parameters
    ----------
    trainer
        Its set-up has read this checkpoint.
    """
    _, state, _ = trainer._run.checkpoints.read()
    held = trainer._saver._state()
    # Buffers that hooks make during training are made again.
    saved = {**state, "buffers": {k: v for k, v in state["buffers"].items() if k in held["buffers"]}}
    return [path for key in held for path in _differing(saved.get(key, {}), held[key], key)]


def _differing(saved: Any, held: Any, path: str) -> Iterator[str]:
    """Yield the keys at which two nested states are not the same bits."""
    if isinstance(saved, Mapping) and isinstance(held, Mapping):
        for key in dict.fromkeys([*saved, *held]):
            if key in saved and key in held:
                yield from _differing(saved[key], held[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(saved, list | tuple) and isinstance(held, list | tuple) and len(saved) == len(held):
        for place, pair in enumerate(zip(saved, held, strict=True)):
            yield from _differing(*pair, f"{path}[{place}]")
    elif not _is_same(saved, held):
        yield path


def _is_same(saved: Any, held: Any) -> bool:
    if isinstance(saved, Tensor) and isinstance(held, Tensor):
        is_alike = (saved.shape, saved.dtype) == (held.shape, held.dtype)
        return is_alike and torch.equal(_bits(saved), _bits(held))
    # A number that is not a number is not equal to itself.
    return type(saved) is type(held) and (saved == held or repr(saved) == repr(held))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def unsavable(state: Any, path: str = "") -> list[str]:
    """Return the keys of a nested state whose values no checkpoint can hold, with their types."""
    if isinstance(state, Mapping):
        return [one for key, value in state.items() for one in unsavable(value, f"{path}.{key}" if path else str(key))]
    if isinstance(state, list | tuple):
        return [one for place, value in enumerate(state) for one in unsavable(value, f"{path}[{place}]")]
    is_plain = state is None or isinstance(state, Tensor | int | float | complex | str | bytes)
    return [] if is_plain else [f"{path} ({type(state).__name__})"]


def unsaved(trainer: Any) -> dict[str, Any]:
    """Return copies of the values that are plain attributes of a trainer, its modules and its loss, if a class is own.

    A class is own if it is the user's. Values are numbers, tensors, and lists and dicts of them; None for an attribute
    that has no value yet, although a method reads it before it sets it. No checkpoint holds them. They are returned by
    names such as "self.count" and "self.module.backbone.count".
    """
    found: dict[str, Any] = {}
    for name, part in _own_parts(trainer):
        kind: Any = type(part)
        bases = (cls for cls in kind.__mro__ if _is_of_library(cls))
        known = {*_OF_MODULES, *(key for cls in bases for key in vars(cls))}
        late = dict.fromkeys(sorted(_read_first(kind)))
        for key, value in {**late, **vars(part)}.items():
            if key not in known and (_is_plain(value) or (value is None and key in late)):
                kept = list(value) if isinstance(value, deque) else value
                found[f"{name}.{key}"] = tree_map(_copied, kept)
    return found


def own_optimizers(trainer: Any, is_unsaved: bool = False) -> dict[str, Any]:
    """Return the optimizers, schedules and gradient scalers that are plain attributes of what is of an own class.

    They have names such as "self.optimizer". Those of the configuration are left out.

    Parameters
    ----------
    is_unsaved
        Leave out what a checkpoint holds, or may hold, since its owner has a `get_extra_state`.
    """
    known = {id(trainer.optim["optimizer"]), id(trainer.optim["scheduler"])}
    known |= {id(part.object) for part in trainer._saver.parts.values()} if is_unsaved else set()
    owners = [
        (name, part)
        for name, part in _own_parts(trainer)
        if not is_unsaved or getattr(type(part), "get_extra_state", None) in (None, nn.Module.get_extra_state)
    ]
    found = {f"{name}.{key}": value for name, part in owners for key, value in vars(part).items()}
    return {name: one for name, one in found.items() if isinstance(one, _STEPPING) and id(one) not in known}


def _own_parts(trainer: Any) -> Iterator[tuple[str, Any]]:
    """Yield a trainer, its modules and its loss, each after its name such as "self.loss", if its class is own."""
    parts = [*trainer.named_modules(), *([] if isinstance(trainer.loss, nn.Module) else [("loss", trainer.loss)])]
    for name, part in parts:
        if not _is_of_library(type(part)) and hasattr(part, "__dict__"):
            yield f"self.{name}" if name else "self", part


def _is_of_library(cls: type) -> bool:
    return cls.__module__.split(".")[0] in _LIBRARIES


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, a tensor, or a list or dict of them."""
    if isinstance(value, list | tuple | deque | dict):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number or (isinstance(value, Tensor) and not isinstance(value, nn.Parameter))


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


@functools.cache
def _read_first(cls: type) -> set[str]:
    """Return the attributes that a method of a user's class reads before it sets them, as it does a running mean."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # its code is not there
        return set()
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {name for method in methods for name in _read_first_in(method)}


def _read_first_in(method: ast.FunctionDef) -> set[str]:
    read = {(node.lineno, node.col_offset, node.attr) for node in _of_self(method, ast.Load)}
    written: dict[str, tuple[int, int]] = {}
    for node in [node for node in ast.walk(method) if isinstance(node, ast.Assign)]:
        end = node.end_lineno or 0, node.end_col_offset or 0  # what is assigned is read before
        for one in [one for target in node.targets for one in _of_self(target, ast.Store)]:
            written[one.attr] = min(written.get(one.attr, end), end)
    return {name for *place, name in read if name in written and tuple(place) < written[name]}


def _of_self(code: ast.AST, context: type) -> Iterator[ast.Attribute]:
    """Yield the attributes of `self` that a piece of code reads, or sets."""
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, context) and ast.unparse(node.value) == "self":
            yield node


def lost(begun: Mapping[str, Any], ended: Mapping[str, Any], resumed: Mapping[str, Any]) -> list[str]:
    """Return the names of the values that a run has changed, and that a resumed run has as they were at first.

    Parameters
    ----------
    begun, ended, resumed
        What `unsaved` returned: after the set-up, after the run, and after the set-up that resumed it.
    """
    common = [name for name in begun if name in ended and name in resumed]
    return [n for n in common if not _is_alike(begun[n], ended[n]) and _is_alike(begun[n], resumed[n])]


def _is_alike(one: Any, other: Any) -> bool:
    return next(_differing(one, other, ""), None) is None
