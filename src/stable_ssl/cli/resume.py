"""`stable-ssl resume`: go on with a run from its newest valid checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..compose import compose, importable
from ..exceptions import ConfigError
from ..runtime.status import read_status
from .run import Run


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Go on with the run in a folder, or with the newest unfinished run in `runs/`."""
    given, overrides = args.run, [*args.overrides, *rest]
    if given and "=" in given and not Path(given).exists():
        given, overrides = None, [given, *overrides]
    folder = Path(given) if given else newest_unfinished(Path("runs"))
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise ConfigError(f"resume: '{folder}' holds no run: it has no config.yaml.")
    with importable(Path.cwd()):
        config = compose(str(config_file), overrides)
        config["trainer"]["logger"]["dump_path"] = str(folder)
        Run(config, folders=())()
    return 0


def newest_unfinished(runs: Path) -> Path:
    """Return the folder of the unfinished run that was active last.

    A run is unfinished if its status is running, stale, preempted or failed.

    Raises
    ------
    ConfigError
        No run in the folder is unfinished.
    """
    found = []
    for path in runs.glob("*/status.json"):
        status = read_status(path.parent)
        if status.get("status") not in (None, "finished", "stopped"):
            found.append((status["heartbeat"], path.parent))
    if not found:
        raise ConfigError(f"resume: no unfinished run in '{runs}'; give a run's folder.")
    return max(found)[1]
