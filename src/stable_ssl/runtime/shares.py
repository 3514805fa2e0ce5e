"""What each of several processes has of its own in a checkpoint: running statistics, streams, embeddings."""

from __future__ import annotations

from typing import Any

from .checkpoint import digest, on_host
from .world import World

_SECTIONS = ("modules", "buffers", "parts")

Share = dict[str, dict[str, Any]]


def gather_shares(world: World, state: dict[str, Any], common: set[str]) -> list[Share] | None:
    """Return on rank 0, for each rank, what it has of a state that rank 0 has not; None on the others.

    Parameters
    ----------
    state
        Has sections of values by name.
    common
        Names of what is the same on all ranks, and need not be looked at.
    """
    own = {
        section: {name: on_host(value) for name, value in state[section].items() if name not in common}
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
    """Put what a rank had of its own into the place of rank 0's."""
    for section, values in state["ranks"][rank].items():
        state[section].update(values)
