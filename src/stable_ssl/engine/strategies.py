"""What `hardware.strategy` needs of the processes of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ..exceptions import ConfigError


def machines_of(strategy: str, local_ranks: Sequence[int], precision: str) -> int:
    """Return the number of machines that the processes of a run are on.

    Parameters
    ----------
    strategy
        `hardware.strategy`.
    local_ranks
        The number of each process on its machine, in the order of the ranks.
    precision
        "fp32", "bf16" or "fp16".

    Raises
    ------
    ConfigError
        The strategy does not suit the number of processes or machines, or the precision.

    Examples
    --------
    >>> machines_of("hsdp", [0, 1, 0, 1], "bf16")
    2
    """
    size, machines = len(local_ranks), list(local_ranks).count(0)
    if strategy == "ddp":
        return machines
    if size == 1:
        raise ConfigError(
            f"hardware.strategy: {strategy} divides the model between several processes, but there is one. Leave it "
            "out, or start several (hardware.world_size, or torchrun)."
        )
    if precision == "fp16":
        raise ConfigError(
            f"hardware.precision: fp16 scales losses by what each process finds, which strategy {strategy} can't. Take "
            "bf16."
        )
    if strategy == "hsdp" and machines == 1:
        raise ConfigError(
            "hardware.strategy: hsdp divides the model within each machine, and there is only one. Take fsdp."
        )
    if strategy == "hsdp" and list(local_ranks) != [*range(size // machines)] * machines:
        raise ConfigError(
            f"hardware.strategy: hsdp needs the same number of processes per machine, machine by machine, but the "
            f"numbers of the processes on their machines are {list(local_ranks)}. Take fsdp."
        )
    return machines


class NoSharding:
    """Modules that each process has as wholes, as with strategy ddp. `Sharding` divides them."""

    strategy = "ddp"
    layout: Any = None  # for `CheckpointStore`: says how sharded tensors are divided now. None: they become whole

    def shard(self, modules: Mapping[str, nn.Module]) -> None:
        """Divide the parameters of modules between the processes."""

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ConfigError if an optimizer can't train what `shard` left."""

    def explained(self) -> AbstractContextManager[None]:
        """Raise a ConfigError in place of an error in the `with` block that comes of divided parameters."""
        return nullcontext()

    def begin(self, is_last: bool) -> None:
        """Begin a backward pass; the last one of an optimizer step averages gradients over the processes."""

    def finish(self) -> None:
        """Have all gradients averaged, and all parameters divided again."""

    def unshard(self) -> None:
        """Give each process whole parameters until `reshard`, so that forward passes exchange nothing."""

    def reshard(self) -> None:
        """Divide all parameters between the processes, and give up whole ones."""


def check_dense(modules: Mapping[str, nn.Module]) -> None:
    """Check that the gradients of modules are dense: those of several processes are averaged as such.

    Raises
    ------
    ConfigError
        An embedding that is trained has `sparse=True`.
    """
    found = [
        f"module.{name}{'.' if key else ''}{key}: gradients of sparse=True can't be averaged over processes. Leave "
        "sparse out, or use one process."
        for name, module in modules.items()
        for key, part in module.named_modules()
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse and part.weight.requires_grad
    ]
    if found:
        raise ConfigError(found)


def not_called(strategy: str) -> str:
    """Return what is wrong if a step uses parameters that are not whole, in words."""
    return (
        f"hardware.strategy: {strategy} makes the parameters of a module whole only while the module is called, or a "
        "public method of it that gets a tensor; here its layers or parameters are used without. Call the module, or "
        "take strategy ddp."
    )


def what_sharding_refuses(strategy: str, error: Exception) -> str | None:
    """Return a sentence on an error of torch that comes of divided parameters; None if it does not.

    Parameters
    ----------
    strategy
        `hardware.strategy`.
    error
        An error of the user's code in a run: of `compute_loss`, of a hook or of a backward pass.
    """
    text = str(error)
    if "does not support deepcopy" in text:
        return (
            f"hardware.strategy: {strategy} has divided this module, which can't be copied any more. Copy it in "
            "prepare_modules() or initialize_modules(), or keep what stable_ssl.full_state_dict(module) returns."
        )
    if "loading state_dict" in text and "DTensor" in text:
        return (
            f"hardware.strategy: {strategy} has divided this module, which takes no plain tensors any more. Load "
            "weights by module_init, or in initialize_modules()."
        )
    if "storage of size 0" in text:
        return (
            f"hardware.strategy: {strategy} frees the whole parameters after each pass, so a module has no second "
            "derivatives (create_graph=True), and its parameters are used only while it is called. Take strategy ddp."
        )
    if ".numpy() is not supported for tensor subclasses" in text:
        return (
            f"hardware.strategy: {strategy} makes the parameters of a module DTensors, which NumPy can't read. "
            "stable_ssl.full_state_dict(module) returns plain tensors."
        )
    return not_called(strategy) if "DTensor" in text else None
