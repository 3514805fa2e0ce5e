"""The folder of a run: where it is, whose it is, what its status is, and whether a configuration goes on with it."""

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

# What may differ when a run goes on: it does not change what is learned. `*` stands for any name.
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
    """A run's folder, held by one process group at a time: by its rank 0, whose copies elsewhere write nothing.

    Parameters
    ----------
    path
        The folder; None chooses one (`choose_path`).
    name
        The run's name, for a chosen path.

    Raises
    ------
    ConfigError
        The folder can't be written, or another process holds it.
    """

    def __init__(self, path: str | Path | None, name: str):
        self.path = Path(path).expanduser() if path is not None else choose_path(name)
        self.is_chosen = path is None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A lock of fcntl's kind ends with its process; flock's would live on in forked workers.
            self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 (held as long as the run)
        except OSError as error:
            raise ConfigError(f"logger.dump_path: '{self.path}' can't be written: {error}") from error
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(f"logger.dump_path: another process is running in '{self.path}'.") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None}

    def release(self) -> None:
        """Let another process have the folder."""
        if self._lock:
            self._lock.close()

    @property
    def config(self) -> dict[str, Any] | None:
        """The configuration of the run that is here, or None."""
        from omegaconf import OmegaConf

        path = self.path / "config.yaml"
        if not path.exists():
            return None
        return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]

    def write_config(self, config: dict[str, Any]) -> None:
        """Write `config.yaml`."""
        from omegaconf import OmegaConf

        self._replace("config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))

    @property
    def status(self) -> dict[str, Any]:
        """The content of `status.json`; empty where there is none."""
        path = self.path / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write_status(self, status: str, progress: dict[str, Any]) -> None:
        """Write `status.json`: running, preempted, failed, stopped or finished."""
        if self._lock is None:
            return
        record = {
            "format": 1,
            "status": status,
            "progress": progress,
            "time": round(time.time(), 3),
            "pid": os.getpid(),
        }
        try:
            self._replace("status.json", json.dumps(record) + "\n")
        except OSError as error:  # a full disk is no reason to end a run
            log.error("status.json could not be written: %s", error)

    def _replace(self, name: str, text: str) -> None:
        part = self.path / f".{name}.part"
        part.write_text(text)
        os.replace(part, self.path / name)


def choose_path(name: str) -> Path:
    """Return where a run of this name goes when nobody said.

    Under a Hydra launcher its sweep folder; inside a Slurm job `runs/<name>_<jobid>[_<task>]`, which is the same
    after a requeue; else a new `runs/<name>_<date>_<time>`.
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
    """Return where a run goes inside a Slurm job; a job of an array is `<jobid>_<task>`."""
    return Path("runs", f"{name}_{job}")


def config_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List what keeps a run with configuration `old` from going on under `new`, one sentence a key.

    Workers, logging, paths and a larger `optim.epochs` may differ, as may the number of processes where their batches
    together are as large as before: then the samples come in the same order.
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
    """Return a trainer's configuration with each batch size multiplied by the number of processes."""
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
