"""Runs as sources of weights: their configuration, and which of their networks is their backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..exceptions import CheckpointError, ConfigError, NoRunError
from ..runtime.folder import read_config
from ..runtime.runs_of_2025 import run_of_2025


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes
    ----------
    folder
        Its folder.
    config
        The content of its `config.yaml`.
    """

    folder: Path
    config: Mapping[str, Any]

    @property
    def trainer(self) -> Mapping[str, Any]:
        """The configuration of its trainer."""
        return self.config["trainer"]  # type: ignore[no-any-return]

    @property
    def import_from(self) -> list[Path]:
        """The folders of the user's own modules that its configuration names. Those that are gone are left out."""
        return [path for path in map(Path, self.config.get("import_from", ())) if path.is_dir()]


def read_run(place: str | Path) -> Run:
    """Return the run that a place is of: its folder, one of its files of weights, or the folder of a checkpoint.

    Raises
    ------
    NoRunError
        The place is not of a run.
    CheckpointError
        It is of a run of stable-ssl of early 2025, or its configuration has no trainer.
    """
    path = Path(place).expanduser()
    folder = path.parent.parent if path.is_file() or (path / "meta.json").is_file() else path
    config = read_config(folder)
    if config is None:
        if told := run_of_2025(folder):
            raise CheckpointError(told)
        raise NoRunError(f"'{place}' is not of a run: '{folder}' has no config.yaml.")
    if not isinstance(config.get("trainer"), Mapping):
        raise CheckpointError(f"'{folder}' is not the folder of a run: its config.yaml has no trainer.")
    return Run(folder, config)


def path_of_backbone(trainer: Mapping[str, Any], network: str | None = None, modules: Any = None) -> tuple[str, ...]:
    """Return where the backbone of a run is: the name of a module, and the attribute in it if it is a pair.

    The backbone is the network whose representations the run is evaluated by, as `evaluate_with` says.

    Parameters
    ----------
    trainer
        The configuration of the run's trainer.
    network
        "teacher" or "student", to have the other one. None: as the run is evaluated.
    modules
        The run's modules by name, if they are built. None: they are looked up in the configuration.

    Raises
    ------
    ConfigError
        The run has no module `backbone`, or a teacher or student is asked for and there is none.
    """
    modules = trainer["module"] if modules is None else modules
    which = network or trainer.get("evaluate_with") or "teacher"
    if "target_encoder" in modules:
        return ("context_encoder" if which == "student" else "target_encoder",)
    if "backbone" not in modules:
        raise ConfigError(
            f"The run has no module 'backbone'. Its modules are {', '.join(modules)}; stable_ssl.load returns them all."
        )
    backbone = modules["backbone"]
    if "student" in backbone if isinstance(backbone, Mapping) else hasattr(backbone, "student"):
        return "backbone", which
    if network:
        raise ConfigError(f"network: the run has no {network}, because its backbone is one network. Leave it out.")
    return ("backbone",)
