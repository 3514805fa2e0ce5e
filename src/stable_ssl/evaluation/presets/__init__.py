"""The protocols by name."""

from __future__ import annotations

from ..augmented import PRESETS
from ..protocol import Protocol
from . import held_out, low_shot, published

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for file in (held_out, published, low_shot) for protocol in file.PROTOCOLS
} | PRESETS
