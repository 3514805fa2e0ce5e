"""Sharding: the processes of a run divide the parameters of its modules, by torch's FSDP2."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from ..exceptions import ConfigError
from ..runtime.sharded import layout_of

# Optimizers of torch that are wrong, or fail, if parameters are divided. Adafactor takes norms of a part for those of
# the whole, the result of Muon depends on how a matrix is divided, and Rprop changes single values in place.
_OF_WHOLE_PARAMETERS = ("Adafactor", "Muon", "Rprop")
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
        root._nothing = types.MethodType(lambda self, x: x * 1, root)
        for name in ("_nothing", *methods_of(root)):
            _register(root, name)
        root._nothing(torch.zeros((), device=self.mesh.device_type))  # FSDP2 now knows it as the root of its blocks
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
        for module in self._modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        self._is_whole = True

    def divide(self) -> None:
        """Divide all parameters between the processes, and give up whole ones."""
        for module in self._modules:
            module.reshard()
        if self._is_whole:
            self._is_whole = False
            roots = {id(root) for root in self._roots}
            for module in self._modules:
                module.set_reshard_after_forward(id(module) not in roots, recurse=False)


def roots_of(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return, by name, the networks in some modules that are called as wholes, each once."""
    roots = {id(root): (name, root) for key, module in modules.items() for name, root in _roots(module, key)}
    return dict(roots.values())


def _roots(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if parts := getattr(module, "sharded_parts", ()):
        for part in parts:
            yield f"{name}.{part}", getattr(module, part)
    elif isinstance(module, nn.ModuleList | nn.ModuleDict):  # it is no network: its members are called
        for key, member in module.named_children():
            yield from _roots(member, f"{name}.{key}")
    elif any(True for _ in module.parameters()):
        yield name, module


def blocks_of(root: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a network, such as those of a transformer: they get whole parameters in turn.

    They are the members of a `ModuleList` or `Sequential` that has several of one class, if these have parts. Blocks
    whose parameters are used elsewhere in the network too are left out: they are sharded with its rest.
    """
    uses = _uses(root)
    return [block for block in _repeated(root) if all(uses[key] == number for key, number in _uses(block).items())]


def _repeated(root: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in root.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        repeated = [m for m in members if sum(type(other) is type(m) for other in members) > 1 and [*m.children()]]
        repeated = [m for m in repeated if any(True for _ in m.parameters())]
        found += repeated or _repeated(child)
    return list(dict.fromkeys(found))


def _uses(module: nn.Module) -> Counter[int]:
    return Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))


def own_modules(module: nn.Module, blocks: Collection[nn.Module]) -> Iterator[nn.Module]:
    """Yield a module and its parts, without the blocks in it, which are sharded by themselves."""
    yield module
    for child in module.children():
        if child not in blocks:
            yield from own_modules(child, blocks)


def has_batch_norm(modules: Iterable[nn.Module]) -> bool:
    """Return whether a module is a batch normalisation. Those that are sharded together with it compute in fp32."""
    return any(isinstance(module, nn.modules.batchnorm._NormBase) for module in modules)


def methods_of(root: nn.Module) -> list[str]:
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


def has_tensor(values: Sequence[Any]) -> bool:
    """Return whether a tensor is among some arguments, or in a list or tuple among them."""
    return any(isinstance(v, Tensor) or (isinstance(v, list | tuple) and has_tensor(v)) for v in values)


def unshardable(strategy: str, roots: Mapping[str, nn.Module]) -> list[str]:
    """Return a sentence per network, or per parameter, that FSDP2 can't shard."""
    found: list[str] = []
    owners: dict[int, str] = {}
    pairs: set[tuple[str, str]] = set()  # of networks that share parameters
    for name, root in roots.items():
        for key, parameter in root.named_parameters():
            if parameter.ndim == 0:
                found.append(
                    f"module.{name}.{key}: hardware.strategy={strategy} can't divide a parameter without dimensions. "
                    "Give it the shape (1,)."
                )
            other = owners.setdefault(id(parameter), name)
            if other != name and (name, other) not in pairs:
                pairs.add((name, other))
                found.append(
                    f"module.{name}.{key}: it is a parameter of module.{other} too, which hardware.strategy={strategy} "
                    "can't divide. Take strategy ddp, or put both modules into one."
                )
        dtypes = {str(p.dtype) for p in root.parameters() if p.requires_grad}
        if len(dtypes) > 1:
            found.append(
                f"module.{name}: its parameters have dtypes {sorted(dtypes)}, which hardware.strategy={strategy} can't "
                "divide together. Give all of them one dtype, or take strategy ddp."
            )
    return found


def made_too_early(strategy: str) -> ConfigError:
    """Return the error of an optimizer that has the parameters before they were sharded."""
    return ConfigError(
        f"optim.optimizer: it was made before strategy {strategy} divided the parameters, and has none of them. Give a "
        "node or a callable, such as functools.partial(torch.optim.AdamW, lr=1e-3)."
    )


def check_optimizer(optimizer: Any, strategy: str, sharded: Collection[int]) -> None:
    """Check that an optimizer can train what a strategy shards, together with what it leaves whole.

    Parameters
    ----------
    sharded
        The parameters that are sharded, by id.

    Raises
    ------
    ConfigError
        It can't update sharded parameters as it does whole ones, or both together, but gets them.
    """
    if sharded and isinstance(optimizer, tuple(getattr(torch.optim, name) for name in _OF_WHOLE_PARAMETERS)):
        raise ConfigError(
            f"optim.optimizer: {type(optimizer).__name__} needs whole parameters, but strategy {strategy} divides "
            "them. Take an optimizer that updates each value by itself, such as AdamW, or take strategy ddp."
        )
    for group in optimizer.param_groups:
        if sharded and group.get("fused") and isinstance(optimizer, torch.optim.SGD | torch.optim.Adagrad):
            raise ConfigError(
                f"optim.optimizer: fused=True needs whole parameters, but strategy {strategy} divides them. Take "
                "foreach=True, or strategy ddp."
            )
        options = [name for name in ("foreach", "fused") if group.get(name)]
        if options and len({id(parameter) in sharded for parameter in group["params"]}) > 1:
            raise ConfigError(
                f"optim.optimizer: {options[0]}=True can't update sharded parameters together with those of the loss, "
                f"which strategy {strategy} leaves whole. Leave {options[0]} out."
            )
