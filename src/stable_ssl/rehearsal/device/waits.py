"""What a training step on the `meta` device would do to a GPU: wait for it, or mix its tensors with those of the CPU.

Tensors on `meta` have no values. Where code asks for one, it gets a plausible one, so that one step finds everything.
CUDA is the reference: what it does without waiting is no finding, and what it refuses is an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .answers import Answers
from .lines import caller, is_called_by_user
from .stand_ins import autocast_for_meta, cuda_is_there, generators_for_meta, is_of_host

aten = torch.ops.aten
META = "meta"

READS = "reads a value of a tensor"
TO_HOST = "copies a tensor to host memory"
TO_DEVICE = "copies from host memory without non_blocking=True"
BY_HOST_INDEX = "indexes a tensor by numbers in host memory, which are copied to the device first"
SHAPE = "makes a tensor whose shape depends on values"
CHECKS = "calls a function that looks at its result"
SYNCHRONIZES = "waits for all work of the device"
MIXED = "mixes tensors of the device with tensors of the CPU"
AS_ARRAY = "gives a tensor of the device to NumPy, which reads host memory only"
BY_HOST_GENERATOR = "draws numbers on the device by a generator of the CPU"
ERRORS = frozenset({MIXED, AS_ARRAY, BY_HOST_GENERATOR})  # what CUDA refuses; all else are waits
_INHERITED = frozenset({MIXED, BY_HOST_INDEX, SHAPE})  # the backward pass does them again for the forward pass


@dataclass(frozen=True)
class Finding:
    """Something that a line of code does.

    Attributes
    ----------
    kind
        One of the constants of this file.
    place
        File and line: of the user's code, if it takes part.
    what
        The operation, and for `MIXED` the tensor on the CPU.
    """

    kind: str
    place: str
    what: str


class Findings:
    """What was found, each kind once per place.

    Attributes
    ----------
    answers
        What code is told that asks for a value.
    """

    def __init__(self) -> None:
        self.all: list[Finding] = []
        self._counts_waits = False
        self.answers = Answers()

    def note(self, kind: str, what: str) -> None:
        """Note something that the code does that has called torch."""
        if kind not in ERRORS and not self._counts_waits:
            return
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and kind in _INHERITED and any(finding.kind == kind for finding in self.all):
            return
        place = caller()
        if all((finding.kind, finding.place) != (kind, place) for finding in self.all):
            self.all.append(Finding(kind, place, what))

    @contextlib.contextmanager
    def counting_waits(self) -> Iterator[None]:
        """Note waits in the block too, and not only what CUDA refuses."""
        self._counts_waits = True
        try:
            yield
        finally:
            self._counts_waits = False

    def forget_waits(self) -> None:
        """Keep only what CUDA refuses."""
        self.all = self.errors()

    def errors(self) -> list[Finding]:
        """Return what CUDA refuses."""
        return [finding for finding in self.all if finding.kind in ERRORS]


@contextlib.contextmanager
def noticing(findings: Findings) -> Iterator[None]:
    """Note in the block what tensors on `meta` would do on CUDA."""
    there = cuda_is_there(is_called_by_user, lambda: findings.note(SYNCHRONIZES, "torch.cuda.synchronize()"))
    with there, autocast_for_meta(), generators_for_meta(), _Calls(findings), _Operations(findings):
        yield


# Calls in Python ---------------------------------------------------------------------------------------------------

_SHOWN = (Tensor.__repr__, Tensor.__format__)
_AS_ARRAY = (Tensor.numpy, Tensor.__array__)
_BY_KEY = (Tensor.__getitem__, Tensor.__setitem__)
_FROM_HOST = (torch.tensor, torch.as_tensor, Tensor.new_tensor)


class _Calls(TorchFunctionMode):
    """Sees what never becomes an operation: NumPy, text, tensors made of numbers. "cuda" means `meta` here."""

    def __init__(self, findings: Findings):
        super().__init__()
        self._findings = findings

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = without_cuda(args, kwargs, torch.device(META))
        first: Any = args[0] if args else None
        if func in _BY_KEY:
            args = self._by_key(args)
        is_meta = isinstance(first, Tensor) and first.device.type == META
        if is_meta and func in _AS_ARRAY:
            self._findings.note(AS_ARRAY, "numpy()")
            return func(torch.ones_like(first, device="cpu"), *args[1:], **kwargs)
        if is_meta and func in _SHOWN:
            self._findings.note(READS, "its text")
            return func(torch.ones_like(first, device="cpu"), *args[1:], **kwargs)
        if func is Tensor.cuda:
            return first.to(META)
        if func is torch.tensor or func is Tensor.new_tensor:
            args = tree_map(self._number, args) if func is torch.tensor else (first, *tree_map(self._number, args[1:]))
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and made.device.type == META:
            if func in _FROM_HOST and not (func is torch.as_tensor and is_meta):
                self._findings.note(TO_DEVICE, f"{func.__name__}()")
            if is_of_host(kwargs.get("generator")):
                self._findings.note(BY_HOST_GENERATOR, f"{func.__name__}()")
        return made

    def _by_key(self, args: Any) -> Any:
        """Note a list as an index of a tensor, and return arguments with the value that CUDA's tensors get."""
        tensor, key, *values = args
        is_list = any(isinstance(part, list) for part in (key if isinstance(key, tuple) else (key,)))
        if is_list and tensor.device.type == META:
            self._findings.note(BY_HOST_INDEX, "a list as index")
        # For CUDA, torch keeps a number in host memory. Then a fill by a mask needs no value of the mask.
        return tensor, key, *(torch.tensor(v, dtype=tensor.dtype) if isinstance(v, int | float) else v for v in values)

    def _number(self, value: Any) -> Any:
        """Return a number for a tensor without values."""
        is_meta = isinstance(value, Tensor) and value.device.type == META and value.numel() == 1
        return value.item() if is_meta else value


def without_cuda(args: Any, kwargs: Any, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of a call with a device in place of CUDA's. Text that is no device does not begin so."""

    def changed(value: Any) -> Any:
        is_text = isinstance(value, str) and value.split(":")[0] == "cuda"
        return device if is_text or (isinstance(value, torch.device) and value.type == "cuda") else value

    return tuple(map(changed, args)), {key: changed(value) for key, value in (kwargs or {}).items()}


# Operations --------------------------------------------------------------------------------------------------------


def _like(tensor: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return tensor.new_empty(shape, dtype=dtype or tensor.dtype)


def nonzero(tensor: Tensor) -> Tensor:
    """Return what `torch.nonzero` returns if no entry is zero, without values."""
    return _like(tensor, tensor.numel(), tensor.ndim, dtype=torch.long)


def _masked_select(tensor: Tensor, mask: Tensor) -> Tensor:
    return _like(tensor, torch.broadcast_shapes(tensor.shape, mask.shape).numel())


def _unique(tensor: Tensor, *options: Any, **others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """All values are equal. So there is one, which no check of the number of classes refuses."""
    return _like(tensor, 1), _like(tensor, *tensor.shape, dtype=torch.long), _like(tensor, 1, dtype=torch.long)


def _unique_dim(tensor: Tensor, dim: int, *options: Any, **others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (
        tensor.narrow(dim, 0, 1),
        _like(tensor, tensor.shape[dim], dtype=torch.long),
        _like(tensor, 1, dtype=torch.long),
    )


def _bincount(tensor: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    dtype = torch.long if weights is None else torch.float32 if weights.dtype == torch.float32 else torch.float64
    return _like(tensor, max(minlength, 1), dtype=dtype)


def _repeat_interleave(repeats: Tensor, output_size: int | None = None) -> Tensor:
    return _like(repeats, repeats.numel() if output_size is None else output_size, dtype=torch.long)


# What these return has a shape that depends on values. Here it is the largest possible, if that is known.
SHAPES: dict[Any, Callable] = {
    aten.nonzero.default: nonzero,
    aten.masked_select.default: _masked_select,
    aten._unique2.default: _unique,
    aten._unique.default: lambda *args, **options: _unique(*args, **options)[:2],
    aten.unique_consecutive.default: _unique,
    aten.unique_dim.default: _unique_dim,
    aten.bincount.default: _bincount,
    aten.repeat_interleave.Tensor: _repeat_interleave,
}
# CUDA's kernels of these read a value, or an error code, on the host.
_CHECKS = {
    aten._linalg_check_errors.default,
    aten._linalg_eigh.default,
    aten._linalg_svd.default,
    aten.linalg_eig.default,
    aten.linalg_lstsq.default,
    aten.linalg_matrix_exp.default,
    aten.multinomial.default,
    aten.histc.default,
    aten.embedding_renorm_.default,
}
_INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
_COPIES = {aten._to_copy.default, aten.copy_.default}
_ANY_DEVICE = {*_INDEXING, *_COPIES, aten._pack_padded_sequence.default, aten._ctc_loss.default, aten._ctc_loss.Tensor}
_JOINS = {aten.cat.default, aten.stack.default}  # for these, a tensor () on the CPU is one too many


class _Operations(TorchDispatchMode):
    """Sees each operation, and answers for those that can't do without values."""

    def __init__(self, findings: Findings):
        super().__init__()
        self._findings = findings

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _COPIES:
            return self._copy(func, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(tensor.device.type == META for tensor in tensors):
            return func(*args, **kwargs)
        if func in (aten._local_scalar_dense.default, aten.equal.default, aten.allclose.default):
            return self._read(func, args[0])
        if func in _INDEXING:
            args = self._indices(func, args)
        elif on_host := [tensor for tensor in tensors if tensor.device.type == "cpu"]:
            self._compare(func, args, on_host)
            args, kwargs = tree_map(_on_meta, (args, kwargs))
        if func in SHAPES and kwargs.get("output_size") is None:
            self._findings.note(SHAPE, _name(func))
            return SHAPES[func](*args, **kwargs)
        if func in _CHECKS:
            name = args[1] if func is aten._linalg_check_errors.default else _name(func)
            self._findings.note(CHECKS, name)
        return func(*args, **kwargs)

    def _read(self, func: Any, tensor: Tensor) -> bool | int | float | complex:
        is_one = func is aten._local_scalar_dense.default
        self._findings.note(READS, "item(), bool(), int() or float()" if is_one else f"{_name(func)}()")
        return self._findings.answers.number(tensor.dtype) if is_one else self._findings.answers.truth()

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Copy a tensor, if it has values to copy."""
        is_new = func is aten._to_copy.default
        source, target = (args[0], kwargs.get("device") or args[0].device) if is_new else (args[1], args[0].device)
        waits = not (kwargs.get("non_blocking") or (not is_new and len(args) > 2 and args[2]))
        if source.device.type == target.type or META not in (source.device.type, target.type):
            return func(*args, **kwargs)
        if target.type == META:
            if waits:
                self._findings.note(TO_DEVICE, "to()" if is_new else "copy_()")
            return func(*args, **kwargs)
        if waits:
            self._findings.note(TO_HOST, "to()" if is_new else "copy_()")
        value = self._findings.answers.number(source.dtype)
        if not is_new:
            return args[0].fill_(value)
        return torch.full(source.shape, value, dtype=kwargs.get("dtype") or source.dtype, device=target)

    def _indices(self, func: Any, args: Any) -> Any:
        """Note indices that make CUDA wait, and return arguments whose indices are numbers of entries on the device."""
        given = [index for index in args[1] if index is not None]
        masks = [index for index in given if index.dtype in (torch.bool, torch.uint8)]
        value = args[2] if len(args) > 2 else None
        is_fill = value is not None and value.numel() == 1 and value.device.type == "cpu" and len(masks) == len(given)
        if masks and not is_fill:  # CUDA fills where a mask is true without a look at it
            self._findings.note(SHAPE, "a mask as index")
        elif any(index.device.type == "cpu" for index in given) and args[0].device.type == META:
            self._findings.note(BY_HOST_INDEX, _name(func))
        on_host = [one for one in (args[0], value) if one is not None and one.device.type == "cpu" and one.ndim]
        if on_host or args[0].device.type == "cpu":
            self._findings.note(MIXED, f"{_name(func)}: {_described(on_host or [args[0]])}")
        indices: list[Tensor | None] = []
        for index in args[1]:
            is_mask = index is not None and index.dtype in (torch.bool, torch.uint8)
            found = nonzero(_on_meta(index)).unbind(1) if is_mask else [_on_meta(index)]
            indices += found
        return (_on_meta(args[0]), indices, *(_on_meta(arg) for arg in args[2:]))

    def _compare(self, func: Any, args: Any, on_host: list[Tensor]) -> None:
        """Note tensors on the CPU that CUDA would not take together with its own."""
        if func in _ANY_DEVICE:
            return
        written = [arg for arg, schema in zip(args, func._schema.arguments, strict=False) if _is_written(schema)]
        refused = [
            tensor
            for tensor in on_host
            if tensor.ndim or func in _JOINS or any(tensor is one for one in tree_leaves(written))
        ]
        if refused:
            self._findings.note(MIXED, f"{_name(func)}: {_described(refused)}")


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _on_meta(value: Any) -> Any:
    """Return a tensor of the CPU as one on `meta`, and anything else as it is."""
    return torch.empty_like(value, device=META) if isinstance(value, Tensor) and value.device.type == "cpu" else value


def _name(func: Any) -> str:
    return str(func._schema.name.removeprefix("aten::").strip("_").rstrip("2"))


def _described(tensors: Sequence[Tensor]) -> str:
    """Return type and shape of a tensor, the first of some."""
    return f"{str(tensors[0].dtype).removeprefix('torch.')} {tuple(tensors[0].shape)} is on the CPU"
