"""Sharding: the processes of a run divide the parameters of its modules, by torch's FSDP2."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from ..exceptions import ConfigError
from ..lines import users_line
from ..runtime.sharded import layout_of
from .shardable import (
    blocks_of,
    check_optimizer,
    has_batch_norm,
    has_tensor,
    made_too_early,
    methods_of,
    own_modules,
    roots_of,
    unshardable,
)
from .strategies import NoSharding, what_sharding_refuses


class Sharding(NoSharding):
    """Modules whose parameters, gradients and optimizer states are divided between processes.

    Each process keeps a part of each parameter, as a DTensor. While a block of a module computes, it has whole
    parameters. Gradients are averaged over all processes, and each keeps the part that belongs to its parameters.

    A module that is sharded stays the same object, but its class becomes a subclass of its own and of `FSDPModule`.
    Whole parameters come when the module is called, or a method of it that gets a tensor.

    Parameters
    ----------
    strategy
        "fsdp" divides each parameter between all processes. "hsdp" divides it between the processes of a machine, and
        the machines have copies of each other.
    machines
        Number of machines, each with the same number of processes.
    size
        Number of processes.
    device
        Where this process computes.
    precision
        "bf16": modules compute with parameters in bf16, except blocks with batch normalisation. Gradients are summed in
        fp32, and the parameters that are trained stay in fp32.
    """

    def __init__(self, strategy: str, machines: int, size: int, device: torch.device, precision: str):
        shape = (machines, size // machines) if strategy == "hsdp" else (size,)
        names = ("replicate", "shard")[-len(shape) :]
        self.mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        self.layout = layout_of(self.mesh)  # of the sharded tensors in checkpoints
        self.strategy, self._precision = strategy, precision
        self._roots: list[Any] = []
        self._modules: list[Any] = []  # all that are sharded: the roots, and the blocks in them
        self._is_last = self._is_reduced = True
        self._is_whole = False

    def shard(self, modules: Mapping[str, nn.Module]) -> None:
        """Divide the parameters of modules.

        Parameters
        ----------
        modules
            The modules by name. They have their first values, the same on all processes.

        Raises
        ------
        ConfigError
            A module can't be sharded.
        """
        roots = roots_of(modules)
        if problems := unshardable(self.strategy, roots):
            raise ConfigError(problems)
        for name, root in roots.items():
            try:
                self._shard(root)
            except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
                raise ConfigError(f"hardware.strategy: {self.strategy} can't shard module.{name}: {error}") from error

    def _shard(self, root: Any) -> None:
        for parameter in root.parameters():
            parameter.data = parameter.data.contiguous()  # channels_last is not: FSDP2 takes no other layout
        root.register_forward_hook(lambda module, args, output: _unviewed(output))
        blocks = blocks_of(root)
        for module in [*blocks, root]:
            fully_shard(module, mesh=self.mesh, mp_policy=self._policy(own_modules(module, blocks)))
        root._identity = types.MethodType(lambda self, x: x * 1, root)
        for name in ("_identity", *methods_of(root)):
            _register(root, name)
        root._identity(torch.zeros((), device=self.mesh.device_type))  # FSDP2 now knows it as the root of its blocks
        root.reshard()
        self._roots.append(root)
        self._modules += [module for module in root.modules() if isinstance(module, FSDPModule)]

    def _policy(self, modules: Iterable[nn.Module]) -> MixedPrecisionPolicy:
        if self._precision != "bf16" or has_batch_norm(modules):
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def check_optimizer(self, optimizer: Any) -> None:
        """Check that an optimizer trains the parameters that `shard` left, as `check_optimizer` does."""
        sharded = {id(parameter) for root in self._roots for parameter in root.parameters()}
        given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if sharded and not sharded & given:
            raise made_too_early(self.strategy)
        check_optimizer(optimizer, self.strategy, sharded)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise a ConfigError in place of an error in the `with` block that comes of divided parameters."""
        try:
            yield
        except (AssertionError, RuntimeError) as error:
            if why := what_sharding_refuses(self.strategy, error):
                line = users_line(error)
                raise ConfigError(f"{line}: {why}" if line else why) from error
            raise

    # Gradients --------------------------------------------------------------------------------------------------------

    def begin(self, is_last: bool) -> None:
        """Begin a backward pass; the last one of an optimizer step averages gradients over the processes."""
        if is_last != self._is_last:
            self._is_last = is_last
            for root in self._roots:
                root.set_requires_gradient_sync(is_last)
        self._is_reduced = is_last

    def finish(self) -> None:
        """Average gradients if the last backward pass did not, and divide all parameters again."""
        if not self._is_reduced:  # the last mini-batch of the group was left out
            self.begin(is_last=True)
            for root in self._roots:
                root._identity(torch.zeros((), device=self.mesh.device_type, requires_grad=True)).backward()
        self.reshard()

    # Whole parameters -------------------------------------------------------------------------------------------------

    def unshard(self) -> None:
        """Give each process whole parameters until `reshard`, so that forward passes exchange nothing."""
        for module in self._modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        self._is_whole = True

    def reshard(self) -> None:
        """Divide all parameters between the processes, and give up whole ones."""
        for module in self._modules:
            module.reshard()
        if self._is_whole:
            self._is_whole = False
            roots = {id(root) for root in self._roots}
            for module in self._modules:
                module.set_reshard_after_forward(id(module) not in roots, recurse=False)


def _register(root: Any, name: str) -> None:
    """Let a method of a network that gets a tensor have whole parameters, as `forward` has."""
    plain = getattr(root, name)
    setattr(root, name, types.MethodType(lambda self, *args, **kwargs: _unviewed(plain(*args, **kwargs)), root))
    register_fsdp_forward_method(root, name)
    gathering = getattr(root, name)

    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (gathering if has_tensor([*args, *kwargs.values()]) else plain)(*args, **kwargs)

    setattr(root, name, types.MethodType(method, root))


def _unviewed(output: Any) -> Any:
    """Copy outputs that are views, since FSDP2's hook on one would be lost if an operation changed it in place."""
    if isinstance(output, list | tuple) and type(output) in (list, tuple):
        return type(output)(map(_unviewed, output))
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output
