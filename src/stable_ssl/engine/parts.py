"""What a checkpoint holds: the modules, and the parts beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError
from ..runtime.sharded import fitted

log = logging.getLogger("stable_ssl")

MAKE_IT_EARLIER = "Make modules, parameters and buffers in prepare_modules(modules), or in the trainer's constructor."


@dataclass(frozen=True)
class Part:
    """An object beside the modules whose state a checkpoint holds.

    Parameters
    ----------
    name
        The key of its state.
    object
        Has `state_dict` and `load_state_dict`.
    is_shared
        Whether the state is the same on all processes. If not, the checkpoint holds each process's state.
    is_optional
        Whether a run may resume from a checkpoint that lacks this state. Its `state_dict` may return None for no state.
    """

    name: str
    object: Any
    is_shared: bool = False
    is_optional: bool = False

    def load(self, state: Any) -> None:
        """Restore the object. The moments of an optimizer are sharded as its parameters are."""
        self.object.load_state_dict(fitted_part(state, self.object))


class Parts(dict[str, Part]):
    """The parts of a checkpoint, by name.

    Attributes
    ----------
    unclaimed
        The states of a loaded checkpoint whose parts have not been added yet, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unclaimed: dict[str, Any] = {}

    def add(self, part: Part) -> None:
        """Save an object with each checkpoint. If a checkpoint was loaded before, restore the object now.

        Raises
        ------
        ConfigError
            The object can't be saved, or its name is taken.
        """
        if isinstance(part.object, type):
            raise ConfigError(f"{part.name}: a class, {part.object.__name__}; make an object of it.")
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(part.object, method, None)):
                raise ConfigError(
                    f"{part.name}: a {type(part.object).__name__} has no {method}(), so it can't be saved."
                )
        if part.name in self:
            raise ConfigError(f"{part.name}: a part of the checkpoint has this name already.")
        self[part.name] = part
        if part.name in self.unclaimed:
            part.load(self.unclaimed.pop(part.name))

    def add_all(self, parts: Iterable[Part]) -> None:
        """Save several objects with each checkpoint."""
        for part in parts:
            self.add(part)

    def states(self) -> dict[str, Any]:
        """Return the state of each part, without optional ones that have none now.

        A part that was not added again yet keeps the state that it had.
        """
        states = {name: part.object.state_dict() for name, part in self.items()}
        known = {name: s for name, s in states.items() if s is not None or not self[name].is_optional}
        return {**self.unclaimed, **known}


@dataclass(frozen=True)
class Model:
    """How the saver reaches the modules' state: the methods of an `nn.Module` of the same names."""

    state_dict: Callable[..., dict[str, Any]]
    load_state_dict: Callable[[Mapping[str, Any]], Any]
    named_parameters: Callable[..., Iterator[tuple[str, nn.Parameter]]]
    named_buffers: Callable[[], Iterator[tuple[str, Tensor]]]
    _keys: set[str] = field(default_factory=set)  # of the state at the set-up; empty if they were compared already

    @classmethod
    def of(cls, module: nn.Module) -> Model:
        """Return the methods of a module."""
        return cls(module.state_dict, module.load_state_dict, module.named_parameters, module.named_buffers)

    def other_buffers(self) -> dict[str, Tensor]:
        """Return the non-persistent buffers by name. They affect the result too, although `state_dict` lacks them."""
        persistent = {id(value) for value in self.state_dict(keep_vars=True).values()}
        return {name: buffer for name, buffer in self.named_buffers() if id(buffer) not in persistent}

    def end_set_up(self) -> None:
        """Remember which values there are, since a run that is resumed has these when it loads a checkpoint."""
        self._keys.update(self.state_dict())

    def warn_of_changes(self, state: Mapping[str, Any]) -> None:
        """Warn, once, if hooks have made values in the state that there were not at the set-up, or removed some."""
        changed = self._keys.symmetric_difference(state) if self._keys else set()
        if changed:
            self._keys.clear()
            log.warning(
                "Hooks made or removed %s after the set-up, so this run CAN'T BE RESUMED from its checkpoints: a "
                "resumed run loads its checkpoint before these hooks run. %s",
                ", ".join(sorted(changed)),
                MAKE_IT_EARLIER,
            )


def fitted_part(state: Any, owner: Any) -> Any:
    """Return the saved state of a part. The moments of an optimizer are sharded as its parameters are."""
    if not isinstance(owner, torch.optim.Optimizer):
        return state
    parameters = dict(enumerate(p for group in owner.param_groups for p in group["params"]))

    def fit(index: Any, value: Any) -> Any:
        like = parameters.get(index)
        is_moment = isinstance(value, Tensor) and like is not None and value.ndim > 0 and value.shape == like.shape
        return fitted(value, like) if is_moment else value

    moments = {
        index: {key: fit(index, value) for key, value in values.items()} for index, values in state["state"].items()
    }
    return {**state, "state": moments}
