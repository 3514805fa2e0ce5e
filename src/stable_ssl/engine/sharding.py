"""Sharding: the processes of a run divide the parameters of its modules, by torch's FSDP2."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard

from ..exceptions import ConfigError

# Methods that get no batch, so they need no whole parameters.
_OF_A_RUN = {"begin_epoch", "begin_step", "update_teacher", "update_ema_coefficient", "compile", "extra_repr"}


class Sharding:
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
        self.strategy, self._precision = strategy, precision
        self._roots: list[Any] = []
        self._is_last = self._is_reduced = True

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
        roots = {id(root): (name, root) for key, module in modules.items() for name, root in _roots(module, key)}
        if problems := _problems(self.strategy, list(roots.values())):
            raise ConfigError(problems)
        for name, root in roots.values():
            try:
                self._shard(root)
            except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
                raise ConfigError(f"hardware.strategy: {self.strategy} can't shard module.{name}: {error}") from error

    def _shard(self, root: nn.Module) -> None:
        for parameter in root.parameters():
            parameter.data = parameter.data.contiguous()  # channels_last is not: FSDP2 takes no other layout
        root.register_forward_hook(lambda module, args, output: _unviewed(output))
        for module in [*_unshared(_blocks(root), root), root]:
            fully_shard(module, mesh=self.mesh, mp_policy=self._policy(module))
        for name in ("_nothing", *_methods(root)):
            _register(root, name)
        self._roots.append(root)
        self._roots[-1]._nothing(torch.zeros((), device=self.mesh.device_type))  # now it is known as the root
        self._roots[-1].reshard()

    def _policy(self, module: nn.Module) -> MixedPrecisionPolicy:
        own = [part for part in _own_modules(module) if isinstance(part, nn.modules.batchnorm._NormBase)]
        if self._precision != "bf16" or own:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def layout(self, key: str, shape: torch.Size, dtype: torch.dtype) -> tuple[Any, tuple[Any, ...]]:
        """Return the mesh and the placements of each sharded tensor."""
        return self.mesh, (Replicate(), Shard(0))[-self.mesh.ndim :]

    def _all(self) -> Iterator[Any]:
        for root in self._roots:
            yield from (module for module in root.modules() if isinstance(module, FSDPModule))

    def check_optimizer(self, optimizer: Any) -> None:
        """Check that an optimizer trains the parameters that `shard` left.

        Raises
        ------
        ConfigError
            It was made before, or it can't update sharded and whole parameters together but gets both.
        """
        known = {id(p) for root in self._roots for p in root.parameters()}
        given = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if known and not known & given:
            raise ConfigError(
                f"optim.optimizer: it was made before strategy {self.strategy} divided the parameters, and has none of "
                "them. Give a node or a callable, such as functools.partial(torch.optim.AdamW, lr=1e-3)."
            )
        for group in optimizer.param_groups:
            kinds = {isinstance(p, DTensor) for p in group["params"]}
            options = [name for name in ("foreach", "fused") if group.get(name)]
            if options and len(kinds) > 1:
                raise ConfigError(
                    f"optim.optimizer: {options[0]}=True can't update sharded parameters together with those of the "
                    f"loss, which strategy {self.strategy} leaves whole. Leave {options[0]} out."
                )

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
                root._nothing(torch.zeros((), device=self.mesh.device_type, requires_grad=True)).backward()
        self.divide()

    # Whole parameters -------------------------------------------------------------------------------------------------

    def make_whole(self) -> None:
        """Give each process whole parameters until `divide`, so that forward passes exchange nothing."""
        for module in self._all():
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    def divide(self) -> None:
        """Divide all parameters between the processes, and give up whole ones."""
        roots = {id(root) for root in self._roots}
        for module in self._all():
            module.reshard()
            module.set_reshard_after_forward(id(module) not in roots, recurse=False)


def _roots(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield, by name, the networks of a module that are called as wholes."""
    if parts := getattr(module, "sharded_parts", ()):
        for part in parts:
            yield f"{name}.{part}", getattr(module, part)
    elif any(True for _ in module.parameters()):
        yield name, module


def _blocks(root: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a network, such as those of a transformer: they get whole parameters in turn.

    They are the members of a `ModuleList` or `Sequential` that has several of one class, if these have parts.
    """
    found: list[nn.Module] = []
    for child in root.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        repeated = [m for m in members if sum(type(other) is type(m) for other in members) > 1 and [*m.children()]]
        repeated = [m for m in repeated if any(True for _ in m.parameters())]
        found += repeated or _blocks(child)
    return list(dict.fromkeys(found))


def _unshared(blocks: list[nn.Module], root: nn.Module) -> list[nn.Module]:
    """Return the blocks whose parameters are used nowhere else in a network. The others are sharded with its rest."""
    uses = _uses(root)
    return [block for block in blocks if all(uses[key] == number for key, number in _uses(block).items())]


def _uses(module: nn.Module) -> Counter[int]:
    return Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))


def _own_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and its parts, without those that are sharded by themselves."""
    yield module
    for child in module.children():
        if not isinstance(child, FSDPModule):
            yield from _own_modules(child)


def _methods(root: nn.Module) -> list[str]:
    """Return the names of the public methods of a network's own classes that take an argument."""
    found = []
    for cls in type(root).__mro__:
        if cls.__module__.startswith(("torch.nn.", "torch.distributed.")) or cls is object:
            continue
        for name, method in vars(cls).items():
            is_own = isinstance(method, types.FunctionType) and method.__code__.co_argcount > 1
            if is_own and not name.startswith(("_", "load_", "set_", "reset_", "init_")) and name not in _OF_A_RUN:
                found.append(name)
    return [name for name in dict.fromkeys(found) if name != "forward"]


def _register(root: Any, name: str) -> None:
    """Let a method of a network that gets a tensor have whole parameters, as `forward` has."""
    if name == "_nothing":
        root._nothing = types.MethodType(lambda self, x: x * 1, root)
    plain = getattr(root, name)
    setattr(root, name, types.MethodType(lambda self, *args, **kwargs: _unviewed(plain(*args, **kwargs)), root))
    register_fsdp_forward_method(root, name)
    gathering = getattr(root, name)

    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (gathering if _has_tensor([*args, *kwargs.values()]) else plain)(*args, **kwargs)

    setattr(root, name, types.MethodType(method, root))


def _unviewed(output: Any) -> Any:
    """Copy outputs that are views, since FSDP2's hook on one would be lost if an operation changed it in place."""
    if isinstance(output, list | tuple) and type(output) in (list, tuple):
        return type(output)(map(_unviewed, output))
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _has_tensor(values: Sequence[Any]) -> bool:
    return any(isinstance(v, Tensor) or (isinstance(v, list | tuple) and _has_tensor(v)) for v in values)


def _problems(strategy: str, roots: list[tuple[str, nn.Module]]) -> list[str]:
    """Return a sentence per parameter that FSDP2 can't shard."""
    found: list[str] = []
    owners: dict[int, str] = {}
    for name, root in roots:
        for key, parameter in root.named_parameters():
            if parameter.ndim == 0:
                found.append(
                    f"module.{name}.{key}: hardware.strategy={strategy} can't divide a parameter without dimensions. "
                    "Give it the shape (1,)."
                )
            other = owners.setdefault(id(parameter), name)
            if other != name:
                found.append(
                    f"module.{name}.{key}: it is a parameter of module.{other} too, which hardware.strategy={strategy} "
                    "can't divide. Take strategy ddp, or put both modules into one."
                )
        for key, kinds in {"dtypes": {p.dtype for p in root.parameters() if p.requires_grad}}.items():
            if len(kinds) > 1:
                found.append(f"module.{name}: its parameters have {key} {sorted(map(str, kinds))}; make them one.")
    return found
