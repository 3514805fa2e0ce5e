"""The folder of a run: its place, lock and status, and whether a run with a changed configuration may resume in it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..exceptions import ConfigError

log = logging.getLogger("stable_ssl")

# The keys that may change when a run is resumed, because they do not change what is learned. `*` is one name, `**` is
# one name or several.
_FREE = (
    "logger.**",
    "hardware.device",
    "hardware.world_size",
    "hardware.time_limit",
    "data.*.num_workers",
    "data.*.prefetch_factor",
    "data.*.persistent_workers",
    "data.*.pin_memory",
    "data.*.timeout",
    "data.*.multiprocessing_context",
    "data.**.root",
    "data.**.path",
)


class RunFolder:
    """A run's folder, created if needed and locked, so that one run at a time writes to it.

    Rank 0 holds the lock. The other ranks get pickled copies of this object, which have no lock and write no status.

    Parameters
    ----------
    path
        The folder. None: `choose_path` chooses it.
    name
        The run's name, for a chosen path.

    Attributes
    ----------
    path : Path
        The folder.
    is_chosen : bool
        Whether `choose_path` chose it.

    Raises
    ------
    ConfigError
        The folder can't be written, or another process is running in it.
    """

    def __init__(self, path: str | Path | None, name: str):
        self.path = Path(path).expanduser() if path is not None else choose_path(name)
        self.is_chosen = path is None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A lock of fcntl ends with the process that took it. One of flock would last as long as forked workers.
            self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 (held as long as the run)
        except OSError as error:
            raise ConfigError(f"logger.dump_path: '{self.path}' can't be written: {error}") from error
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(
                f"logger.dump_path: another process is running in '{self.path}'. Wait for it, or choose another folder."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None}

    def release(self) -> None:
        """Release the lock, so that another process may use the folder."""
        if self._lock:
            self._lock.close()

    @property
    def config(self) -> dict[str, Any] | None:
        """The content of `config.yaml`, or None if there is no such file."""
        from omegaconf import OmegaConf

        path = self.path / "config.yaml"
        if not path.exists():
            return None
        return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]

    def write_config(self, config: dict[str, Any]) -> None:
        """Write a configuration to `config.yaml`."""
        from omegaconf import OmegaConf

        self._replace("config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))

    @property
    def status(self) -> dict[str, Any]:
        """The content of `status.json`. Empty if there is no such file."""
        path = self.path / "status.json"
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return content

    def write_status(self, status: str, progress: dict[str, Any], epochs: int) -> None:
        """Write `status.json`.

        Parameters
        ----------
        status
            "running", "preempted", "failed", "stopped" or "finished".
        progress
            How far the run is.
        epochs
            The number of epochs that the run was to have. A finished or stopped run goes on if it gets more.
        """
        if self._lock is None:
            return
        record = {
            "format": 1,
            "status": status,
            "progress": progress,
            "epochs": epochs,
            "time": round(time.time(), 3),
            "pid": os.getpid(),
        }
        try:
            self._replace("status.json", json.dumps(record) + "\n")
        except OSError as error:  # such as a full disk, which need not end the run
            log.error("status.json could not be written: %s", error)

    def _replace(self, name: str, text: str) -> None:
        """Write a file of the folder completely or not at all."""
        part = self.path / f".{name}.part"
        part.write_text(text)
        os.replace(part, self.path / name)


def choose_path(name: str) -> Path:
    """Return the folder of a run whose configuration names none.

    - In a multirun of Hydra: the folder that Hydra gives this run.
    - In a Slurm job: `runs/<name>_<jobid>[_<task>]`, which is the same after a requeue.
    - Otherwise: `runs/<name>_<date>_<time>`, which does not exist yet.
    """
    if "hydra.core.hydra_config" in sys.modules:
        from hydra.core.hydra_config import HydraConfig

        if HydraConfig.initialized():
            hydra = HydraConfig.get()
            if str(getattr(hydra.mode, "name", "")) == "MULTIRUN":
                return Path(hydra.runtime.output_dir)
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job:
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        return job_path(name, f"{job}_{task}" if task else job)
    stamp = time.strftime("%Y%m%d_%H%M%S")
    path, count = Path("runs", f"{name}_{stamp}"), 1
    while path.exists():
        count += 1
        path = Path("runs", f"{name}_{stamp}_{count}")
    return path


def job_path(name: str, job: str) -> Path:
    """Return the folder of a run in a Slurm job. `job` is the job's id, or `<id>_<task>` in an array."""
    return Path("runs", f"{name}_{job}")


def config_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return why a run with configuration `old` can't be resumed with configuration `new`: one sentence per key.

    Workers, logging, paths and a larger `optim.epochs` may differ. The number of processes may differ if it makes the
    same batch size over all processes, because the samples then come in the same order.
    """
    return [
        f"{path}: the run in the folder has {before!r}, this one {now!r}."
        for path, before, now in differences(_with_global_batches(old), _with_global_batches(new))
        if not _is_free(path) and not (path == "optim.epochs" and _at_least(now, before))
    ]


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old value, new value) for each difference between two nested configurations."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, old, new


def _with_global_batches(config: dict[str, Any]) -> dict[str, Any]:
    """Return a trainer's configuration with each loader's batch size multiplied by the number of processes."""
    world_size = config.get("hardware", {}).get("world_size", 1)
    data = {
        name: {
            **{key: value for key, value in loader.items() if key != "batch_size"},
            "batch_size x hardware.world_size": (loader.get("batch_size") or 1) * world_size,
        }
        if isinstance(loader, dict) and "_target_" in loader
        else loader
        for name, loader in config.get("data", {}).items()
    }
    return {**config, "data": data}


def _at_least(new: Any, old: Any) -> bool:
    return isinstance(new, int) and isinstance(old, int) and new >= old


def _is_free(path: str) -> bool:
    return any(_FREE_PATTERNS[pattern].fullmatch(path) for pattern in _FREE)


_FREE_PATTERNS = {
    pattern: re.compile(re.escape(pattern).replace(r"\*\*", ".+").replace(r"\*", "[^.]+")) for pattern in _FREE
}
