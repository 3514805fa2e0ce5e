"""The folder of a run: its place, lock and status, and whether a run with a changed configuration may resume in it."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import logging
import os
import re
import shlex
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..exceptions import ConfigError
from .behaviour import behaviour
from .files import whole_file
from .runs_of_2025 import run_of_2025
from .status import read_status

log = logging.getLogger("stable_ssl")

# The folders that this process has locked, by device and inode of their lock files. A lock of fcntl keeps other
# processes out, but not a second trainer of the same process.
_locked: weakref.WeakValueDictionary[tuple[int, int], RunFolder] = weakref.WeakValueDictionary()

_REMEDIES = {
    errno.ENOSPC: "Make room on its disk",
    errno.EDQUOT: "Make room within your quota of its disk",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f)",
}

# The keys that may change when a run is resumed, because they do not change what is learned. `*` is one name, `**` is
# one name or several.
_FREE = (
    "branch_from",
    "branch_from.**",
    "logger.**",
    "hardware.device",
    "hardware.world_size",
    "hardware.strategy",
    "hardware.time_limit",
    "data.*.num_workers",
    "data.*.prefetch_factor",
    "data.*.persistent_workers",
    "data.*.pin_memory",
    "data.*.timeout",
    "data.*.multiprocessing_context",
    "data.**.in_memory",
)
# An exception from these: `logger.best` decides where a run ends.
_DECISIVE = ("logger.best", "logger.best.**")
# The keys that may change if the same samples are at the new place.
_PLACES = ("data.**.root", "data.**.path")


class RunFolder:
    """A run's folder, created if needed and locked, so that one run at a time writes to it.

    Rank 0 holds the lock. The other ranks get pickled copies of this object, which have no lock.

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
        with written_at_start(self.path):
            self._is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_second_trainer()
            # A lock of fcntl ends with the process that took it. One of flock would last as long as forked workers.
            self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 (held as long as the run)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(
                f"logger.dump_path: another process is running in '{self.path}'. Wait for it, or choose another folder."
            ) from error
        found = os.fstat(self._lock.fileno())
        self._pid = os.getpid()
        _locked[found.st_dev, found.st_ino] = self

    def _refuse_second_trainer(self) -> None:
        """Raise a ConfigError if this process has locked the folder."""
        try:  # to open and close the file would end the lock
            found = os.stat(self.path / ".lock")
        except FileNotFoundError:
            return
        for look_again in (True, False):
            other = _locked.get((found.st_dev, found.st_ino))
            if other is None or other._lock.closed or other._pid != os.getpid():
                return
            del other
            if look_again:
                gc.collect()  # a trainer that is gone, but for circular references, holds its folder no longer
        raise ConfigError(
            f"logger.dump_path: another trainer of this process uses '{self.path}'. Run it to its end or delete it "
            "first, or choose another folder."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None}

    def release(self) -> None:
        """Release the lock, so that another process or trainer may use the folder. Remove it if nothing is in it."""
        if not self._lock:
            return
        with suppress(OSError):
            if self._is_new and os.listdir(self.path) == [".lock"]:
                # The lock is held until its file is gone, so no other process can have taken it.
                (self.path / ".lock").unlink()
                self.path.rmdir()
        self._lock.close()

    def write_config(self, config: dict[str, Any]) -> None:
        """Write a configuration to `config.yaml`, with the behaviour of this version.

        Raises
        ------
        ConfigError
            The folder has a `config.yaml` that no run wrote, or holds a run of early 2025.
        """
        from omegaconf import OmegaConf

        if holds_a_users_file(self.path):
            raise ConfigError(
                f"logger.dump_path: '{self.path / 'config.yaml'}' is not of a run, and would be overwritten. Choose "
                "another folder."
            )
        if not (self.path / "config.yaml").exists() and (old := run_of_2025(self.path)):
            raise ConfigError(f"logger.dump_path: {old}")
        self._write("config.yaml", OmegaConf.to_yaml(OmegaConf.create({**config, "behaviour": behaviour()})))

    def has_lost_config(self) -> bool:
        """Return whether there is no `config.yaml` any more. If so, log an error, and see that there is a folder."""
        if (self.path / "config.yaml").exists():
            return False
        log.error(
            "'%s' has no config.yaml any more: the folder was removed or moved, or the file was deleted. It is written "
            "again.",
            self.path,
        )
        self.path.mkdir(parents=True, exist_ok=True)
        return True

    @property
    def branch(self) -> dict[str, Any]:
        """The content of `branch.json`, which names the run that this one branched from. Empty if it is no branch."""
        path = self.path / "branch.json"
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return content

    def write_branch(self, record: dict[str, Any]) -> None:
        """Write `branch.json`."""
        self._write("branch.json", json.dumps({"format": 1, **record}, indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        with written_at_start(self.path / name), whole_file(self.path / name) as part:
            part.write_text(text)

    @property
    def status(self) -> dict[str, Any]:
        """The content of `status.json`, as `read_status` returns it."""
        return read_status(self.path)


@contextmanager
def written_at_start(path: Path) -> Iterator[None]:
    """Raise a ConfigError that says what to do if a file or folder of a run can't be written in the `with` block."""
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        in_the_way = error.errno in (errno.EEXIST, errno.ENOTDIR)
        if in_the_way and (at := next((place for place in (path, *path.parents) if place.is_file()), None)):
            what = f"'{at}' is a file" if at != path else "it is a file"
        remedy = _REMEDIES.get(error.errno or 0)
        then = f"{remedy}, or choose another folder" if remedy else "Choose another folder"
        raise ConfigError(f"logger.dump_path: '{path}' can't be written: {what}. {then}.") from error


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's `config.yaml`, or None if there is no such file."""
    from omegaconf import OmegaConf

    path = folder / "config.yaml"
    if not path.exists():
        return None
    return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]


def holds_a_users_file(folder: Path) -> bool:
    """Return whether a `config.yaml` is there that no run wrote. A run's names its behaviour, or has a status."""
    if not (folder / "config.yaml").exists() or (folder / "status.json").exists():
        return False
    try:
        return "behaviour" not in (read_config(folder) or {})
    except Exception:  # whatever is in it, no run wrote it
        return True


def choose_path(name: str) -> Path:
    """Return the folder of a run whose configuration names none.

    - In a multirun of Hydra, or if `hydra.run.dir` is set: the folder that Hydra gives this run.
    - In a Slurm job: `runs/<name>_<jobid>[_<task>]`, which is the same after a requeue.
    - Otherwise: `runs/<name>_<date>_<time>`, which does not exist yet.
    """
    if "hydra.core.hydra_config" in sys.modules:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        if HydraConfig.initialized():
            hydra = HydraConfig.get()
            run: Any = OmegaConf.to_container(hydra.run, resolve=False)  # type: ignore[arg-type]
            is_set = not run["dir"].startswith("outputs/${now:")  # Hydra's default
            if is_set or str(getattr(hydra.mode, "name", "")) == "MULTIRUN":
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


def how_to_resume(run: Path) -> str:
    """Return the sentence that says how to go on with a run as it is."""
    if _is_of_a_script(run):
        return "The script of this run goes on with it, if it is started again."
    return f"`stable-ssl resume {shlex.quote(str(run))}` goes on as before."


def how_to_branch(run: Path, overrides: str = " key=value") -> str:
    """Return the sentence that says how to go on with a run under another configuration, or with other data."""
    in_a_script = f"branch_from={str(run)!r} and another logger.dump_path"
    if _is_of_a_script(run):
        return (
            "To go on from the run's newest checkpoint with changes, begin a branch: start the script of the run with "
            f"the changes, {in_a_script}."
        )
    return (
        "To go on from the run's newest checkpoint with changes, begin a branch: `stable-ssl branch "
        f"{shlex.quote(str(run))}{overrides}`, or a script with {in_a_script}."
    )


def _is_of_a_script(run: Path) -> bool:
    """Return whether a run was given live objects, which only its script can make again."""
    try:
        return "<live " in (run / "config.yaml").read_text()
    except OSError:
        return False


def config_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return why a run with configuration `old` can't be resumed with configuration `new`: one sentence per key.

    Readers, logging and a larger `optim.epochs` may differ. The number of processes may differ if it makes the same
    batch size over all processes, because the samples then come in the same order. Whether the places of data may
    differ depends on the samples there: see `moved_data`.
    """
    return [
        in_words(path, before, now)
        for path, before, now in decisive_differences(old, new)
        if not (path == "optim.epochs" and _at_least(now, before))
    ]


def in_words(what: str, before: Any, now: Any) -> str:
    """Return the sentence about something that the run in a folder has otherwise than this one."""
    return f"{what}: the run in the folder has {before!r}, this one {now!r}."


def decisive_differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, old value, new value) for each difference that may change what is learned, places of data aside."""
    return [
        (path, before, now)
        for path, before, now in differences(_with_global_batches(old), _with_global_batches(new))
        if not is_free(path)
    ]


def moved_data(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, str, Any, Any]]:
    """Return (data set, key, old value, new value) for each place of data that differs."""
    return [
        (path.split(".")[1], path, before, now)
        for path, before, now in differences(old, new)
        if _matches(path, _PLACES)
    ]


def has_place(config: Any) -> bool:
    """Return whether the configuration of a data set says where its data are."""
    return isinstance(config, dict) and any(
        key in ("root", "path") or has_place(value) for key, value in config.items()
    )


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


def is_free(path: str) -> bool:
    """Return whether a key may change when a run is resumed. Places of data may, if the same samples are there."""
    return _matches(path, _PLACES) or (_matches(path, _FREE) and not _matches(path, _DECISIVE))


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(_PATTERNS[pattern].fullmatch(path) for pattern in patterns)


_PATTERNS = {
    pattern: re.compile(re.escape(pattern).replace(r"\*\*", ".+").replace(r"\*", "[^.]+"))
    for pattern in (*_FREE, *_DECISIVE, *_PLACES)
}
