"""How the processes of a run divide its parameters, as far as a check knows of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..engine.shardable import (
    blocks_of,
    check_optimizer,
    has_batch_norm,
    made_too_early,
    own_modules,
    roots_of,
    unshardable,
)
from ..engine.strategies import machines_of
from ..exceptions import ConfigError
from .stage import Stage


@dataclass(frozen=True)
class Division:
    """The processes of a run, and how many of them divide a parameter between them.

    Attributes
    ----------
    strategy
        `hardware.strategy`.
    processes, machines
        Their numbers.
    shards
        Into how many parts a parameter is divided: 1 with strategy "ddp".
    """

    strategy: str
    processes: int
    machines: int
    shards: int


def places_of(stage: Stage) -> tuple[list[int], bool]:
    """Return the number of each process on its machine, and whether the machines are known.

    They are those of the Slurm job. Without a job, it is the smallest number of several machines that all have the same
    number of processes.
    """
    size = stage.world_size
    if stage.slurm is not None:
        per_machine = int(stage.slurm.get("tasks_per_node", 1))
    else:
        per_machine = size // next((number for number in range(2, size + 1) if size % number == 0), 1)
    return [rank % per_machine for rank in range(size)], stage.slurm is not None


def division_of(stage: Stage, strategy: str) -> Division:
    """Return how a strategy divides parameters. One that does not suit the run divides them between all processes."""
    ranks, _ = places_of(stage)
    size, machines = len(ranks), ranks.count(0)
    shards = {"ddp": 1, "fsdp": size, "hsdp": max(1, size // machines)}[strategy]
    return Division(strategy, size, machines, shards)


def strategy_problems(stage: Stage, strategy: str, precision: str) -> tuple[list[str], list[str]]:
    """Return why a strategy does not suit the processes of a run, or its precision; and what is assumed of them."""
    ranks, are_known = places_of(stage)
    try:
        machines = machines_of(strategy, ranks, precision)
    except ConfigError as error:
        more = " The number of processes that torchrun starts is told by --world-size." if len(ranks) == 1 else ""
        return [f"{problem}{more}" for problem in error.problems], []
    if strategy != "hsdp" or are_known:
        return [], []
    return [], [
        f"hardware.strategy: hsdp needs several machines, and nothing says how many the run has. The check takes "
        f"{machines}, with {len(ranks) // machines} of the {len(ranks)} processes each. A Slurm job has slurm.nodes."
    ]


def roots_of_run(trainer: Any) -> dict[str, nn.Module]:
    """Return, by name, the networks of a trainer that fsdp and hsdp shard. The loss and probes stay whole."""
    return roots_of({name: module for name, module in trainer.optimized_modules().items() if name in trainer.module})


def check_sharding(trainer: Any, strategy: str, optimizer: Any, is_early: bool) -> None:
    """Check that a strategy can shard the modules of a trainer, and that the optimizer, if there is one, trains them.

    Parameters
    ----------
    is_early
        Whether the optimizer was made before the run.

    Raises
    ------
    ConfigError
        It can't. The error has the sentences of the run's own.
    """
    roots = roots_of_run(trainer)
    problems = unshardable(strategy, roots)
    sharded = {id(parameter) for root in roots.values() for parameter in root.parameters()}
    if optimizer is not None:
        try:
            if is_early and sharded:
                raise made_too_early(strategy)
            check_optimizer(optimizer, strategy, sharded)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


@dataclass(frozen=True)
class Group:
    """Parameters that are gathered together: those of a block, or those of a network that are in no block.

    Attributes
    ----------
    module
        The block, or the network.
    parameters
        They are whole, as in a run without a strategy.
    in_bf16
        Whether they are gathered in bf16.
    is_root
        Whether they are those of a network, which stay whole until the end of a step.
    """

    module: nn.Module
    parameters: tuple[Tensor, ...]
    in_bf16: bool
    is_root: bool

    @property
    def whole_bytes(self) -> int:
        """Bytes of the whole parameters while they are gathered."""
        return sum(p.numel() * (2 if self.in_bf16 else p.element_size()) for p in self.parameters)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the whole gradients, and of their copy in fp32, which is summed over the processes."""
        trained = [p for p in self.parameters if p.requires_grad]
        return sum(p.numel() * (4 + (2 if self.in_bf16 else p.element_size())) for p in trained)


def groups_of(roots: Iterable[nn.Module], precision: str) -> list[Group]:
    """Return the groups of parameters of networks that are sharded."""
    groups = []
    for root in roots:
        blocks = blocks_of(root)
        for module in (*blocks, root):
            own = list(own_modules(module, blocks))
            parameters = {id(p): p for part in own for p in part.parameters(recurse=False)}
            in_bf16 = precision == "bf16" and not has_batch_norm(own)
            groups.append(Group(module, tuple(parameters.values()), in_bf16, module is root))
    return groups
