"""What of a network is divided between processes, and what can't be. No process group is needed."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError

# Optimizers of torch that are wrong, or fail, if parameters are divided. Adafactor takes norms of a part for those of
# the whole, the result of Muon depends on how a matrix is divided, and Rprop changes single values in place.
_OF_WHOLE_PARAMETERS = ("Adafactor", "Muon", "Rprop")
# Methods that get no batch, so they need no whole parameters.
_WITHOUT_BATCH = {"begin_epoch", "begin_step", "update_teacher", "update_ema_coefficient", "compile", "extra_repr"}


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
            if is_own and not name.startswith(("_", "load_", "set_", "reset_", "init_")) and name not in _WITHOUT_BATCH:
                found.append(name)
    return [name for name in dict.fromkeys(found) if name != "forward"]


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
