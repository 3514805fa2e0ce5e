"""The cards that a run may be meant for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A graphics card.

    Attributes
    ----------
    name
        Such as "a100-40gb".
    memory_bytes
        Its memory.
    """

    name: str
    memory_bytes: int
