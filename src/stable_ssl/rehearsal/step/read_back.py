"""A checkpoint, compared with the trainer that has read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_LIBRARIES = ("stable_ssl", "torch", "torchvision", "timm", "builtins")


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


def numbers_of(trainer: Any) -> dict[str, Any]:
    """Return copies of the numbers that are plain attributes of a trainer and its modules, of the user's own classes.

    No checkpoint holds them. They are returned by names such as "self.count" and "self.module.backbone.count".
    """
    found: dict[str, Any] = {}
    for name, part in trainer.named_modules():
        classes = [cls.__module__.split(".")[0] for cls in type(part).__mro__]
        if classes[0] in _LIBRARIES:
            continue
        given = (vars(cls) for cls, room in zip(type(part).__mro__, classes, strict=True) if room in _LIBRARIES)
        known = {key for attributes in given for key in attributes}
        for key, value in vars(part).items():
            if key not in known and isinstance(value, int | float | Tensor) and not isinstance(value, bool):
                path = ".".join(["self", *([name] if name else []), key])
                found[path] = value.clone() if isinstance(value, Tensor) else value
    return found


def lost(begun: Mapping[str, Any], ended: Mapping[str, Any], resumed: Mapping[str, Any]) -> list[str]:
    """Return the names of the numbers that a run has changed, and that a resumed run has at their first values again.

    Parameters
    ----------
    begun, ended, resumed
        What `numbers_of` returned: after the set-up, after the run, and after the set-up that resumed it.
    """
    common = [name for name in begun if name in ended and name in resumed]
    return [name for name in common if not _is_same(begun[name], ended[name]) and _is_same(begun[name], resumed[name])]
