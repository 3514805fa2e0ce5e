"""What a training step takes: the memory at its peak, split into parts, and its work. Tensors need no values."""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

_ROUNDED = 512  # bytes: CUDA's allocator gives multiples of it
_COPY = torch.ops.aten._to_copy.default
_NO_DATA = ("empty", "new_empty", "detach", "alias")  # operations that read and write nothing

# torch.autocast computes these in fp32 on CUDA, but not all of them on the CPU ("Autocast Op Reference" of torch's
# documentation). Those that keep tensors for the backward pass matter here.
_IN_FP32_ON_CUDA = {
    "layer_norm", "group_norm", "softmax", "log_softmax", "softplus", "norm", "normalize", "cosine_similarity",
    "cdist", "cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss",
    "smooth_l1_loss", "kl_div", "exp", "log", "log1p", "pow", "__pow__", "rsqrt", "reciprocal", "sum", "prod",
    "cumsum",
}  # fmt: skip


class Accounting(TorchDispatchMode):
    """Keeps account of each tensor's memory during the `with` block, from its first operation to its end.

    An own one, since torch's `MemTracker` refuses a network that is called twice in a step, as for two views.

    Attributes
    ----------
    now
        Bytes by part. A tensor that is not assigned to a part by `assign` is one of the "activations" if it was made in
        a forward pass with gradients, else one of the "temporaries".
    at_peak
        The same, when their sum was the largest so far.
    peak
        That sum.
    flops
        FLOPs of matrix products, by whether they are "convolutions" or "products": a multiplication and an addition
        count as two. The formulas are those of torch's `FlopCounterMode`.
    traffic
        Bytes that all operations together read and write, each for itself.
    share
        What is made from now on counts as this part of its memory.
    free_copies
        Storages by id, of which a copy in another type takes no memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self.flops: Counter[str] = Counter()
        self.traffic = self.peak = self._total = 0
        self.share = 1.0
        self.free_copies: set[int] = set()
        self._known: dict[int, tuple[weakref.ref, str, int]] = {}  # by id of the storage

    def assign(self, tensors: Iterable[Tensor], part: str, shards: int = 1) -> None:
        """Count the memory of tensors to a part: that of the first of so many shards, which divide their rows."""
        for tensor in tensors:
            storage, share = tensor.untyped_storage(), share_of(tensor, shards)
            if (known := self._known.get(id(storage))) is not None:
                _, old, size = known
                self.hold(old, -size)
            self._add(storage, part, share)

    def hold(self, part: str, num_bytes: int) -> None:
        """Count memory to a part, besides that of tensors, until it is held no more, by a negative number."""
        self.now[part] += num_bytes
        self._total += num_bytes
        if self._total > self.peak:
            self.peak, self.at_peak = self._total, dict(self.now)

    def _add(self, storage: torch.UntypedStorage, part: str, share: float) -> None:
        key, size = id(storage), -(-int(storage.nbytes() * share) // _ROUNDED) * _ROUNDED
        self._known[key] = weakref.ref(storage, functools.partial(self._forget, key)), part, size
        self.hold(part, size)

    def _forget(self, key: int, reference: Any) -> None:
        _, part, size = self._known.pop(key)
        self.hold(part, -size)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        is_backward = torch._C._current_graph_task_id() != -1
        part = "activations" if torch.is_grad_enabled() and not is_backward else "temporaries"
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self._known:
                is_free = func is _COPY and id(args[0].untyped_storage()) in self.free_copies
                self._add(storage, part, 0.0 if is_free else self.share)
        self._count_work(func, args, kwargs or {}, made, tensors)
        return made

    def _count_work(self, func: Any, args: Any, kwargs: Any, made: Any, tensors: list[Tensor]) -> None:
        kind = func._overloadpacket
        if kind in flop_registry:
            name = "convolutions" if "conv" in kind.__name__ else "products"
            self.flops[name] += int(flop_registry[kind](*args, **kwargs, out_val=made))
        if not func.is_view and not kind.__name__.startswith(_NO_DATA):
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.traffic += sum(tensor.numel() * tensor.element_size() for tensor in [*read, *tensors])


def share_of(tensor: Tensor, shards: int) -> float:
    """Return the share of a tensor's memory that each process has if so many processes divide its rows.

    FSDP2 gives all processes the memory of the first one, which may have more rows than the last ones.
    """
    return -(-len(tensor) // shards) / len(tensor) if shards > 1 and tensor.ndim and len(tensor) else 1.0


class CudaAutocast(TorchFunctionMode):
    """Lets autocast on the CPU compute those operations in fp32 that it computes in fp32 on CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_autocast_enabled("cpu") and getattr(func, "__name__", "") in _IN_FP32_ON_CUDA:
            args, kwargs = tree_map_only(Tensor, _to_fp32, (args, kwargs))
        return func(*args, **(kwargs or {}))


def _to_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
