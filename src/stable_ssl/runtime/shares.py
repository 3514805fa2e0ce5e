"""Checkpoints of several processes: the state that differs between them, such as running statistics and streams."""

from __future__ import annotations

from typing import Any

from .checkpoint import digest, on_host
from .sharded import split
from .world import World

_SECTIONS = ("modules", "buffers", "parts")

Share = dict[str, dict[str, Any]]


def gather_shares(world: World, state: dict[str, Any], common: set[str]) -> list[Share] | None:
    """Collect on rank 0 the entries of each rank's state that differ from rank 0's. Other ranks get None.

    Sharded tensors are not part of them, since a checkpoint has the parts of all ranks: `split` takes them out.

    Parameters
    ----------
    world
        The processes of the run.
    state
        This rank's state: the sections `modules`, `buffers` and `parts`, each with values by name.
    common
        Names of values that are the same on all ranks. They are not compared.
    """
    own = {
        section: {
            name: on_host(split(value, {}, f"{section}/{name}/"))
            for name, value in state[section].items()
            if name not in common
        }
        for section in _SECTIONS
    }
    digests = {(section, name): digest(value) for section in _SECTIONS for name, value in own[section].items()}
    those_of_main = world.from_main(lambda: digests)
    share = {
        section: {
            name: value
            for name, value in own[section].items()
            if digests[section, name] != those_of_main.get((section, name))
        }
        for section in _SECTIONS
    }
    return world.gather_on_main(share)


def take_share(state: dict[str, Any], rank: int) -> None:
    """Replace rank 0's entries of a loaded state by those that another rank had, in place.

    Parameters
    ----------
    state
        A state that holds the result of `gather_shares` as `ranks`.
    rank
        The rank that goes on with the state.
    """
    for section, values in state["ranks"][rank].items():
        state[section].update(values)
