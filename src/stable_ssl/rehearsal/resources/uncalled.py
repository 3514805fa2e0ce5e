"""Parameters that a loss uses without a call of their module, which strategies fsdp and hsdp can't gather in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ...engine.shardable import has_tensor, methods_of
from ..device.lines import caller
from ..division import Group


class Uncalled(TorchFunctionMode):
    """Notices in its `with` block where parameters that a run shards are used while they are not whole.

    The parameters of a network become whole when it is called, or a public method of it that gets a tensor, and stay
    so until the end of the step. Those of a block are whole while it is called. At other times a parameter is a
    DTensor, and so is what is computed of it. Operations refuse a DTensor together with a tensor, or their backward
    pass does; a single number without a gradient may go with both.

    Parameters
    ----------
    roots
        The networks that are sharded, by name. They are changed: their calls are noticed.
    groups
        The groups of their parameters.

    Attributes
    ----------
    found
        The line of code of each such use, and the parameter's name.
    """

    def __init__(self, roots: Mapping[str, nn.Module], groups: list[Group]):
        super().__init__()
        self.found: dict[str, str] = {}
        self._names = {
            id(p): f"module.{name}.{key}" for name, root in roots.items() for key, p in root.named_parameters()
        }
        self._whole: set[int] = set()
        for group in groups:
            self._notice(group)

    def _notice(self, group: Group) -> None:
        """Have calls of a group's module, and of methods of a network, make its parameters whole."""
        module, own = group.module, {id(parameter) for parameter in group.parameters}

        def noticed(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if has_tensor([*args, *kwargs.values()]):
                    self._whole |= own
                return method(*args, **kwargs)

            return call

        module.register_forward_pre_hook(lambda *given: self._whole.update(own))
        if not group.is_root:
            module.register_forward_hook(lambda *given: self._whole.difference_update(own))
            return
        for name in methods_of(module):
            setattr(module, name, noticed(getattr(module, name)))

    def begin_step(self) -> None:
        """Let all parameters be sharded again."""
        self._whole.clear()

    def watched(self, compute_loss: Callable[[], Any]) -> Callable[[], Any]:
        """Return a method of a trainer in which uses are noticed."""

        def method() -> Any:
            with self:
                return compute_loss()

        return method

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        apart = [name for name in map(self._apart, tensors) if name]
        if apart:
            others = [tensor for tensor in tensors if not self._apart(tensor)]
            if any(tensor.requires_grad or tensor.numel() > 1 for tensor in others):
                self.found.setdefault(caller(), apart[0])
            for leaf in tree_leaves(made):
                if isinstance(leaf, Tensor) and id(leaf) not in self._names:
                    leaf._of_sharded = apart[0]  # type: ignore[attr-defined]
        return made

    def _apart(self, tensor: Tensor) -> str:
        """Return the name of the sharded parameter that a tensor is, or is computed of alone; else ""."""
        if id(tensor) in self._whole:
            return ""
        return self._names.get(id(tensor)) or str(getattr(tensor, "_of_sharded", ""))
