"""Sharded tensors in a state: each process has a part of them, as FSDP divides them (`DTensor` of torch).

torch's module of them takes half a second to import, so it is imported where there are such tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement

    Form = tuple[torch.Size, torch.dtype, int | None]  # and the dimension that is divided; None if each has the whole
    # For the dimension that is divided: the mesh and the placements to read a sharded tensor for.
    Layout = Callable[[int | None], tuple[DeviceMesh, Sequence[Placement]]]

_KEY = "sharded tensor"


def is_sharded(value: Any) -> bool:
    """Return whether a value is a `DTensor`."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def split(state: Any, shards: dict[str, DTensor], path: str = "") -> Any:
    """Return a nested state with a placeholder in place of each sharded tensor.

    If the processes have sums of which each has a part, these are added up. So all processes call this.

    Parameters
    ----------
    state
        Tensors, numbers, strings, and dicts, lists and tuples of them.
    shards
        A dict that gets the sharded tensors, by their path in the state, such as "parts/optimizer/state/0/exp_avg".
    path
        Where `state` is in the whole state, with "/" at the end.
    """
    if is_sharded(state):
        key = path[:-1]
        shards[key] = tensor = _summed(state)
        return {_KEY: key, "shape": tuple(tensor.shape), "dtype": tensor.dtype, "dim": divided_dim(tensor)}
    if isinstance(state, dict):
        return {key: split(value, shards, f"{path}{key}/") for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(split(value, shards, f"{path}{index}/") for index, value in enumerate(state))
    return state


def _summed(tensor: DTensor) -> DTensor:
    if not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    from torch.distributed.tensor import Replicate

    return tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])


def divided_dim(tensor: DTensor) -> int | None:
    """Return the dimension of a sharded tensor that is divided between processes; None if each has the whole."""
    from torch.distributed.tensor import Shard

    return next((placement.dim for placement in tensor.placements if isinstance(placement, Shard)), None)


def layout_of(mesh: DeviceMesh) -> Layout:
    """Return the layout of tensors that the last dimension of a mesh divides."""
    from torch.distributed.tensor import Replicate, Shard

    def layout(dim: int | None) -> tuple[DeviceMesh, Sequence[Placement]]:
        return mesh, [*[Replicate()] * (mesh.ndim - 1), Replicate() if dim is None else Shard(dim)]

    return layout


def placeholders(state: Any) -> dict[str, Form]:
    """Return (shape, dtype, divided dimension) of each sharded tensor that `split` took out of a state, by its path."""
    if isinstance(state, dict) and _KEY in state:
        return {state[_KEY]: (torch.Size(state["shape"]), state["dtype"], state.get("dim", 0))}
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return {key: form for value in values for key, form in placeholders(value).items()}


def outlined(state: Any) -> Any:
    """Return a state of `split` with tensors without memory (on the device `meta`) in place of the placeholders."""
    forms = placeholders(state).items()
    return joined(state, {key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype, _) in forms})


def joined(state: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return a state of `split` with tensors in place of the placeholders."""
    if isinstance(state, dict):
        if _KEY in state:
            return tensors[state[_KEY]]
        return {key: joined(value, tensors) for key, value in state.items()}
    return type(state)(joined(value, tensors) for value in state) if isinstance(state, list | tuple) else state


def on_host(tensor: DTensor, earlier: Any, copy: Callable[[Tensor, Any], Tensor]) -> DTensor:
    """Return a sharded tensor whose part of this process is a copy in host memory. Nothing is exchanged.

    Parameters
    ----------
    tensor
        The sharded tensor.
    earlier
        A copy that is not needed any more, whose memory is used again if it suits.
    copy
        Copies a plain tensor to host memory: `copy(tensor, earlier)`.
    """
    from torch.distributed.tensor import DTensor

    before = earlier if isinstance(earlier, DTensor) else None
    with torch.no_grad():
        part = copy(tensor.to_local(), None if before is None else before.to_local())
        mesh = _on_cpu(tensor.device_mesh) if before is None else before.device_mesh
        stride = tensor.stride()
        return DTensor.from_local(part, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=stride)


def _on_cpu(mesh: DeviceMesh) -> DeviceMesh:
    """Return the mesh of the same processes for tensors in host memory."""
    from torch.distributed.device_mesh import DeviceMesh

    if mesh.device_type == "cpu":
        return mesh
    names = mesh.mesh_dim_names or tuple(map(str, range(mesh.ndim)))
    return DeviceMesh.from_group(mesh.get_all_groups(), "cpu", mesh.mesh.cpu(), mesh_dim_names=names)


def fitted(value: Any, like: Any) -> Any:
    """Return a saved value sharded as the one that takes its place.

    Parameters
    ----------
    value
        A tensor, the same on all processes, or a sharded tensor of the present mesh, as a layout has it. Anything else
        is returned as it is.
    like
        The value of the present run. If it is sharded, each process takes its part of a plain `value`, on the device of
        the mesh, and nothing is exchanged. If only `value` is sharded, the processes put it together, so all have to
        call this.
    """
    if not is_sharded(like):
        return value.full_tensor() if is_sharded(value) else value
    if is_sharded(value) or not isinstance(value, Tensor):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.detach(), like.device_mesh, like.placements, src_data_rank=None)
