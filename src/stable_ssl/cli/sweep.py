"""`stable-ssl train --multirun`: a sweep, whose points are runs, each in a folder that says which point it is."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compose import RECIPES, composer, hydra_folder, is_hydras, register_resolvers, resolved, search_path_of
from ..exceptions import ConfigError
from ..overrides import check_watched_sets, quoted
from ..runtime.folder import is_free
from ..runtime.preemption import TIME_LIMIT_STATUS
from ..runtime.status import COMPLETE, read_status
from .run import Run

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_LONGEST_NAME = 150
_REFUSED = 2  # the exit status of a request that can't be carried out


@dataclass
class Point:
    """A point of a sweep.

    Attributes
    ----------
    name
        The settings that make it this point, as "hardware.seed=1,optim.epochs=3".
    overrides
        All overrides of its run.
    config
        The configuration of its run, `{"trainer": {...}}`.
    folder
        The folder of its run.
    """

    name: str
    overrides: list[str]
    config: dict[str, Any]
    folder: Path


class Sweep:
    """The points that overrides with several values describe.

    Without `hydra.sweep.dir`, the sweep's folder is `multirun/<name>_<digest>`. The digest is of the configuration
    without what varies, so the same command finds its points again, and more values add points to them.

    Parameters
    ----------
    folder, name
        What `find` returns.
    overrides
        Overrides; key=1,2 lists two values.

    Raises
    ------
    ConfigError
        An override can't be used, a point does not compose, or several points would share a folder.
    """

    def __init__(self, folder: Path, name: str, overrides: Iterable[str]):
        self._source, self._name = folder, name
        self._of_hydra = [text for text in overrides if is_hydras(text)]
        with composer(folder, name, is_sweep=True) as (composed, complete):
            complete(overrides)  # checks them
            given = [text for text in overrides if not is_hydras(text)]
            sweeper = composed(complete([*self._of_hydra, *_parsed(given)[1]])).hydra.sweeper
            varying, fixed = _parsed([*_of_file(sweeper, given), *given])
            base = composed(complete([*self._of_hydra, *fixed]))
            self._hydra = base.hydra
            self._folder, self._is_ours = self._choose_folder(base)
            self.points = []
            for number, choice in enumerate(itertools.product(*varying)):
                own, labels = [*fixed, *(text for text, _ in choice)], [label for _, label in choice]
                config = composed(complete([*self._of_hydra, *own]))
                self.points.append(Point(",".join(labels) or name, own, *self._placed(config, number, own, labels)))
        paths = [point.folder.absolute() for point in self.points]
        if shared := [point for point in self.points if paths.count(point.folder.absolute()) > 1]:
            raise ConfigError(_why_shared(shared))

    def _choose_folder(self, base: Any) -> tuple[str, bool]:
        """Return the sweep's folder, and whether the points in it are surely those of this configuration."""
        from omegaconf import OmegaConf

        given = hydra_folder(base, "sweep.dir")
        rest = OmegaConf.to_container(OmegaConf.masked_copy(base, [key for key in base if key != "hydra"]))
        chosen = f"multirun/{self._name}_{_digest(str([*_decisive(rest)]))}"
        return given or chosen, given is None and hydra_folder(base, "sweep.subdir") is None

    def _placed(self, config: Any, number: int, overrides: list[str], labels: list[str]) -> tuple[dict[str, Any], Path]:
        """Return the configuration of a point's run, and the folder of the run."""
        from omegaconf import open_dict, read_write

        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
            name = hydra_folder(config, "sweep.subdir") or _file_name(labels)
            config.hydra.run.dir = os.path.join(self._folder, name)
        run = resolved(config)
        check_watched_sets(overrides, run["trainer"])
        return run, Path((run["trainer"].get("logger") or {}).get("dump_path") or config.hydra.run.dir).expanduser()

    def left(self) -> list[Point]:
        """Return the points that are not finished, and name the others.

        A folder that somebody chose may hold the points of another configuration. Unless it is surely the same one,
        they are left to the run to compare.
        """
        left = []
        for point in self.points:
            status = read_status(point.folder).get("status")
            is_ours = self._is_ours and point.folder.is_relative_to(self._folder)
            if status in COMPLETE and (is_ours or _is_held(point)):
                print(f"{point.name}: {status} already, in '{point.folder}'.")
            else:
                left.append(point)
        if len(left) < len(self.points):
            print("To begin them anew, name another folder: hydra.sweep.dir=FOLDER.")
        return left

    def run(self, folders: Iterable[Path]) -> int:
        """Run the points here or by Hydra's launcher, and return the exit status of the sweep.

        Parameters
        ----------
        folders
            Folders whose modules a `_target_` may name.
        """
        left = self.left()
        is_here = self._hydra.launcher["_target_"].endswith(".BasicLauncher")
        statuses = self._run_here(left) if is_here else self._launch(left, folders)
        failed = [(point, status) for point, status in zip(left, statuses, strict=True) if status]
        print(f"sweep: {len(self.points) - len(failed)} of {len(self.points)} points are finished.")
        for point, status in failed:
            print(f"    {point.name}: {_told(point, status)}.")
        if any(status != _REFUSED for _, status in failed):
            print("The same command goes on with what is not finished.")
        ends = {status for _, status in failed}
        return TIME_LIMIT_STATUS if ends == {TIME_LIMIT_STATUS} else int(bool(ends))

    # Here -------------------------------------------------------------------------------------------------------------

    def _run_here(self, points: list[Point]) -> list[int]:
        """Run points one after the other, each in a process of its own: what one breaks does not reach the others."""
        source = self._name if self._source == RECIPES else str(self._source / f"{self._name}.yaml")
        statuses = []
        for number, point in enumerate(points, start=1):
            print(f"{point.name} ({number} of {len(points)}): the run is in '{point.folder}'.", flush=True)
            home, folder = Path.cwd(), point.folder.absolute()
            env = {**os.environ, **{str(key): str(value) for key, value in self._hydra.job.env_set.items()}}
            env["STABLE_SSL_POINT"] = str(number)
            if self._hydra.job.chdir:
                folder.mkdir(parents=True, exist_ok=True)
                env["PYTHONPATH"] = os.pathsep.join([str(home), *filter(None, [env.get("PYTHONPATH")])])
                home = folder
            command = [sys.executable, "-m", "stable_ssl", "train", source, *point.overrides]
            statuses.append(_run([*command, f"hydra.run.dir={quoted(str(folder))}"], home, env))
        return statuses

    # By a launcher of Hydra -------------------------------------------------------------------------------------------

    def _launch(self, points: list[Point], folders: Iterable[Path]) -> list[int]:
        """Have Hydra's launcher start jobs, wait for them, and return their statuses."""
        from hydra._internal.callbacks import Callbacks
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.plugins import Plugins
        from hydra.types import HydraContext, RunMode

        statuses: list[int] = []
        if not points:
            return statuses
        with composer(self._source, self._name, is_sweep=True) as (_, complete):
            hydra: Any = GlobalHydra.instance().hydra
            here = f"hydra.sweep.dir={quoted(self._folder)}"
            own = [*complete(self._of_hydra), here, "hydra.mode=MULTIRUN", search_path_of(self._source, self._name)]
            master = hydra.compose_config(self._name, own, RunMode.MULTIRUN, from_shell=False)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(master))
            task = functools.partial(_job, [*folders])
            launcher = Plugins.instance().instantiate_launcher(context, task, master)
            size = master.hydra.sweeper.get("max_batch_size") or len(points)
            if self._hydra.launcher["_target_"].endswith(".LocalLauncher"):
                _divide_threads(min(size, len(points)))
            for start in range(0, len(points), size):
                batch = points[start : start + size]
                for point in batch:
                    print(f"{point.name}: the run is in '{point.folder}'.", flush=True)
                names = [os.path.relpath(point.folder, self._folder) for point in batch]
                jobs = [
                    [*complete(point.overrides), f"hydra.sweep.subdir={quoted(name)}"]
                    for point, name in zip(batch, names, strict=True)
                ]
                statuses += _results(launcher, jobs, start)
        return statuses


def _why_shared(points: list[Point]) -> str:
    """Say why points of a sweep would share a folder, and what to do."""
    name, folder, names = points[0].name, points[0].folder, [point.name for point in points]
    if names.count(name) > 1:
        return f"{name}: the sweep has this point {names.count(name)} times; list each value once."
    if (points[0].config["trainer"].get("logger") or {}).get("dump_path"):
        return (
            f"logger.dump_path: runs of the sweep would share '{folder}'; leave it out (logger.dump_path=null), "
            "and each run gets a folder of its own. hydra.sweep.dir=FOLDER says where these are."
        )
    return f"hydra.sweep.subdir: runs of the sweep would share '{folder}'; leave it out, and their settings name them."


def _told(point: Point, status: int) -> str:
    """Say how a point ended that is not finished, and where to look."""
    if status == _REFUSED:
        return f"was refused, with status {status}; its messages above say why"
    if not point.folder.exists():
        return f"failed with status {status} before its run began; its messages above say why"
    reached = "reached its time limit" if status == TIME_LIMIT_STATUS else f"failed with status {status}"
    return f"{reached}; look into '{point.folder}'"


def _is_held(point: Point) -> bool:
    """Return whether the run in a point's folder is surely that of the point: no setting that matters differs."""
    from ..config import with_defaults
    from ..instantiate import instanciate_config
    from ..nodes import plain
    from ..runtime.behaviour import behaviour
    from ..runtime.checkpoint import CheckpointStore
    from ..runtime.folder import decisive_differences, moved_data

    meta = CheckpointStore(point.folder / "checkpoints").newest_meta()
    if not meta.get("config") or meta.get("behaviour", 1) != behaviour():
        return False
    try:
        config = plain(instanciate_config(point.config).get_config())["trainer"]
        held = with_defaults(meta["config"])
    except Exception:  # the point's own process says what is wrong
        return False
    return not (decisive_differences(held, config) or moved_data(held, config))


def _of_file(sweeper: Mapping[str, Any], overrides: list[str]) -> list[str]:
    """Return the overrides that a file lists as `hydra.sweeper.params`, except keys that the command gives."""
    if not sweeper["_target_"].endswith(".BasicSweeper"):
        raise ConfigError(
            f"hydra/sweeper: {sweeper['_target_']} can't be used: a sweep goes through lists of values. Leave it out."
        )
    given = {text.partition("=")[0].lstrip("+~").removeprefix("trainer.") for text in overrides}
    params = (sweeper.get("params") or {}).items()
    return [f"{key}={value}" for key, value in params if key.removeprefix("trainer.") not in given]


def _parsed(overrides: list[str]) -> tuple[list[list[tuple[str, str]]], list[str]]:
    """Return the choices of each override that has several, with their labels, and the other overrides."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    varying, fixed = [], []
    for override in parser.parse_overrides(overrides):
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
            continue
        if not override.is_discrete_sweep():
            raise ConfigError(f"'{override.input_line}': a sweep needs a list of values.")
        key, label = override.get_key_element(), override.key_or_group.removeprefix("trainer.")
        varying.append([(f"{key}={value}", f"{label}={value}") for value in override.sweep_string_iterator()])
    return varying, fixed


def _job(folders: list[Path], config: Any) -> None:
    """Run one point. A launcher may call this in a new process, where the resolvers are not registered yet."""
    register_resolvers()
    Run(resolved(config), folders)()


def _results(launcher: Any, jobs: list[list[str]], start: int) -> list[int]:
    """Launch jobs and return the status of each; 1 for all of them if one ended without a result."""
    try:
        done = launcher.launch(jobs, initial_job_idx=start)
    except Exception:
        traceback.print_exc()
        print("A job ended without a result. The others go on; the runs' folders say how they end.", file=sys.stderr)
        return [1] * len(jobs)
    for result in done:
        if result.status.name == "FAILED":
            traceback.print_exception(result._return_value)
    return [int(result.status.name == "FAILED") for result in done]


def _divide_threads(num_jobs: int) -> None:
    """Divide the CPUs between jobs that run at the same time, unless OMP_NUM_THREADS is set."""
    from ..runtime.cpus import cpus_here

    threads = max(1, cpus_here() // num_jobs)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        print(f"{num_jobs} points share the CPUs of this machine: OMP_NUM_THREADS={threads}.")


def _run(command: list[str], home: Path, env: dict[str, str]) -> int:
    """Run a command to its end and return its exit status. Signals are passed on to it; then the sweep ends, too."""
    asked: list[int] = []
    process: subprocess.Popen | None = None

    def pass_on(signum: int, _: object) -> None:
        asked.append(signum)
        if process:
            process.send_signal(signum)

    kept = {signum: signal.signal(signum, pass_on) for signum in _FORWARDED}
    try:
        # A group of its own: the terminal's Ctrl-C would reach it twice.
        process = subprocess.Popen(command, cwd=home, env=env, process_group=0, preexec_fn=_end_with_parent)
        for signum in [*asked]:
            process.send_signal(signum)
        status = process.wait()
    finally:
        for signum, handler in kept.items():
            signal.signal(signum, handler)
    if asked:
        sys.exit(status if status > 0 else 128 + asked[0])
    return status


def _end_with_parent() -> None:
    """Have this process get SIGTERM, and so save its state, if the one that started it is killed. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _decisive(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a configuration, without those that may change when a run is resumed."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _decisive(item, f"{path}.{key}" if path else str(key))
    elif not is_free(path.removeprefix("trainer.")):
        yield path, value


def _file_name(labels: list[str]) -> str:
    """Return the name of a point's folder: its settings, and a digest if the settings can't be told from the name."""
    name = re.sub(r"[^\w.+=,-]+", "_", ",".join(labels)) or "point"
    is_whole = not labels or (name == ",".join(labels) and len(name) <= _LONGEST_NAME)
    return name if is_whole else f"{name[:_LONGEST_NAME]}_{_digest(repr(labels))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
