"""What a checkpoint holds: the modules, and the parts beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


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


@dataclass(frozen=True)
class Model:
    """How the saver reaches the modules' state: the methods of an `nn.Module` of the same names."""

    state_dict: Callable[..., dict[str, Any]]
    load_state_dict: Callable[[Mapping[str, Any]], Any]
    named_parameters: Callable[[], Iterator[tuple[str, nn.Parameter]]]
    named_buffers: Callable[[], Iterator[tuple[str, Tensor]]]

    @classmethod
    def of(cls, module: nn.Module) -> Model:
        """Return the methods of a module."""
        return cls(module.state_dict, module.load_state_dict, module.named_parameters, module.named_buffers)
