"""The tables of settings in docs/configuration.md, written from the docstrings and defaults of the configurations.

python benchmarks/configuration.py
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

from tables import write_table

from stable_ssl import HardwareConfig, LoggerConfig, OptimConfig
from stable_ssl.config import BestConfig, GroupConfig

PAGE = Path(__file__).parent.parent / "docs/configuration.md"
TABLES = {
    "hardware": HardwareConfig,
    "optim": OptimConfig,
    "optim.groups": GroupConfig,
    "logger": LoggerConfig,
    "logger.best": BestConfig,
}


def rows(cls: type) -> list[str]:
    """Return a line per field: its name, its default, and what its class says of it."""
    parameters = inspect.getdoc(cls).partition("----------\n")[2]
    described = re.findall(r"^(\w[\w, ]*)\n((?:    .*\n?)+)", parameters, flags=re.MULTILINE)
    words = {name: " ".join(text.split()) for names, text in described for name in names.split(", ")}
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in cls.model_fields.items():
        default = "" if field.is_required() else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
        meaning = re.sub(r"\bNone\b", "null", words[name]).replace("|", "\\|")
        lines.append(f"| `{name}` | {default} | {meaning} |")
    return lines


if __name__ == "__main__":
    for name, cls in TABLES.items():
        write_table(PAGE, name, rows(cls))
