"""`stable-ssl resume`: go on with a run from its newest valid checkpoint."""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..compose import compose, importable, origin_of
from ..exceptions import ConfigError
from ..runtime.folder import read_config
from ..runtime.runs_of_2025 import run_of_2025
from ..runtime.status import COMPLETE, read_status
from . import slurm
from .run import Run, say_once


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Go on with the run in a folder, or with the newest unfinished run in `runs/`, here or as a Slurm job."""
    given, overrides = args.run, [*args.overrides, *rest]
    if given and "=" in given and not Path(given).expanduser().exists():
        given, overrides = None, [given, *overrides]
    folder = (Path(given).expanduser() if given else newest_unfinished(Path("runs"))).resolve()
    if not (folder / "config.yaml").is_file() and not _held_settings(folder):
        empty = f"'{folder}' holds no run: it has no config.yaml, and no checkpoint with settings."
        raise ConfigError(f"resume: {run_of_2025(folder) or empty}")
    settings, overrides = slurm.split(overrides, args.slurm, "resume")
    home, own = origin_of(folder, "config")
    _announce(folder, home)
    if home:
        from ..runtime import launchers  # noqa: F401 (notes where this command line began, before the folder changes)

        os.chdir(home)  # relative paths in the configuration, such as those of data, begin there
    folders = [*own, Path.cwd()]
    with importable(*folders):
        config = _configuration(folder, overrides)
        if "logger" not in config["trainer"]:
            raise ConfigError(
                f"resume: the trainer of '{folder}' takes no logger.dump_path; start it as you did before."
            )
        given = config["trainer"]["logger"].get("dump_path")
        if given and Path(given).expanduser().absolute() != folder:
            say_once(f"resume: the folder '{given}' has no effect, since the run stays in its own.")
        config["trainer"]["logger"]["dump_path"] = str(folder)
        if not args.slurm:
            Run(config, folders=())()
        elif is_going_on(folder):
            raise ConfigError(f"resume: '{folder}' is going on in another process; a second job would only fail.")
        else:
            slurm.submit(
                {"": config}, config["trainer"]["_target_"].split(".")[-1], settings, folders, not args.no_check
            )
    return 0


def _announce(folder: Path, home: Path | None) -> None:
    """Say which run goes on."""
    from ..runtime.checkpoint import CheckpointStore

    status = read_status(folder)
    progress = status.get("progress", {})
    so_far = f"{status.get('status', 'no status yet')}, step {progress.get('global_step', 0)}"
    place = f", in its working folder '{home}'" if home and home != Path.cwd() else ""
    anew = " It has no checkpoint, so it begins anew." if CheckpointStore(folder / "checkpoints").is_empty() else ""
    say_once(f"resume: going on with '{folder}' ({so_far}){place}.{anew}")


def _held_settings(folder: Path) -> dict[str, Any]:
    """Return the settings in a run's newest checkpoint; empty if there is none, or an early one without them."""
    from ..runtime.checkpoint import CheckpointStore

    return CheckpointStore(folder / "checkpoints").newest_meta().get("config") or {}


def _configuration(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Return a run's configuration: that of its `config.yaml`, or of its newest checkpoint if there is no such file.

    Raises
    ------
    ConfigError
        The file is damaged, or an override can't be used.
    """
    from omegaconf import OmegaConf

    file = folder / "config.yaml"
    if not file.is_file():
        say_once(
            "resume: there is no config.yaml, so the settings are those of the newest checkpoint. Relative paths begin "
            f"in '{Path.cwd()}'. Classes of your own are looked for there and in the folders of PYTHONPATH."
        )
        with TemporaryDirectory() as place:
            copy = Path(place, "config.yaml")
            copy.write_text(OmegaConf.to_yaml(OmegaConf.create({"trainer": _held_settings(folder)})))
            return compose(str(copy), overrides)
    try:
        return compose(str(file), overrides)
    except ConfigError as error:
        if _is_whole(folder) or not _held_settings(folder):
            raise
        advice = f"Mend '{file}', or delete it: without it, `resume` takes the settings of the newest checkpoint."
        raise ConfigError([*error.problems, advice]) from error


def _is_whole(folder: Path) -> bool:
    """Return whether a run's `config.yaml` has settings of a trainer, and not the remains of them."""
    from yaml import YAMLError

    try:
        config: Any = read_config(folder)
    except (OSError, ValueError, YAMLError):
        return False
    return isinstance(config, dict) and isinstance(config.get("trainer"), dict)


def newest_unfinished(runs: Path) -> Path:
    """Return the folder of the unfinished run that was active last, and that no process is going on with now.

    A run is unfinished if its status is running, stale, preempted or failed. One without a checkpoint is chosen only if
    none has any: it may have failed in its set-up, and would do so again.

    Raises
    ------
    ConfigError
        There is no such run in the folder.
    """
    found, going_on = [], []
    for path in runs.glob("*/status.json"):
        status = read_status(path.parent)
        if status.get("status") in (None, *COMPLETE):
            continue
        if is_going_on(path.parent):
            going_on.append(path.parent)
        else:
            has_checkpoint = any(path.parent.glob("checkpoints/step_*"))
            found.append((has_checkpoint, status["heartbeat"], path.parent))
    if not found:
        but = f" ('{going_on[0]}' is going on in another process)" if going_on else ""
        raise ConfigError(f"resume: no unfinished run in '{runs}'{but}; give a run's folder.")
    return max(found)[-1]


def is_going_on(folder: Path) -> bool:
    """Return whether a process is going on with the run in a folder: it holds the lock, or lives on another machine."""
    status = read_status(folder)
    if status.get("status") == "running" and status.get("host", socket.gethostname()) != socket.gethostname():
        return True  # it has a heartbeat
    try:
        with open(folder / ".lock", "r+") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
