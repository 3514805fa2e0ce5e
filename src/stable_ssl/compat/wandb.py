"""What early 2025 had of Weights & Biases in a trainer's settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass
class WandbConfig:
    """Arguments of `wandb.init`. `logger.wandb` takes them as a dict, as `dataclasses.asdict` makes it."""

    dir: str | None = None
    entity: str | None = None
    project: str | None = None
    name: str | None = None
    id: str | None = None
    tags: list[str] | None = None
    group: str | None = None


class WandbOptions(dict[str, Any]):
    """`logger.wandb` as hooks read it: what was configured, and the entity, project, name and id of the run of W&B.

    Parameters
    ----------
    options
        The arguments of `wandb.init` that were configured, or true.
    file
        The file that has what is known of the run of W&B, once it has begun.
    """

    def __init__(self, options: Mapping[str, Any] | bool, file: Path):
        super().__init__({**asdict(WandbConfig()), **(options if isinstance(options, Mapping) else {})})
        self._file = file

    def __getitem__(self, name: str) -> Any:
        if super().get(name) is None and self._file.exists():
            self.update(json.loads(self._file.read_text()))
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an option, or `default` if there is none of this name."""
        return self[name] if name in self else default  # noqa: SIM401
