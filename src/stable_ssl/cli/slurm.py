"""`--slurm` of `stable-ssl train`, `resume`, `branch`: one Slurm job per run, requeued until the run is finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..compose import is_hydras
from ..exceptions import ConfigError, nearest
from .run import Run, say_once

PREFIX = "slurm."
SHORT = {
    "time": "timeout_min",
    "gpus": "gpus_per_node",
    "tasks": "tasks_per_node",
    "cpus": "cpus_per_task",
    "mem": "mem_gb",
}
# Settings whose names submitit shares among its kinds of clusters, and their least values. The others are Slurm's only.
_LEAST = {"timeout_min": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_task": 1, "nodes": 1, "mem_gb": 0.001}
# submitit counts a preemption as a time-out if the job is short or near its time limit.
MAX_TIMEOUTS = 1000


def split(overrides: list[str], is_slurm: bool, command: str) -> tuple[list[str], list[str]]:
    """Return the overrides that are settings of a Slurm job, and the others.

    Raises
    ------
    ConfigError
        There is no Slurm job (`is_slurm`), but settings of one, or settings of Hydra, which would have no effect on it.
    """
    settings = [text for text in overrides if text.startswith(PREFIX)]
    if settings and not is_slurm:
        raise ConfigError(f"{command}: '{settings[0]}' is a setting of a Slurm job; add --slurm, or leave it out.")
    others = [text for text in overrides if text not in settings]
    honoured = ("hydra.run.dir", "hydra.sweep.")
    hydras = [text for text in others if is_hydras(text) and not text.lstrip("+").startswith(honoured)]
    if is_slurm and hydras:
        raise ConfigError(f"{command}: '{hydras[0]}' has no effect with --slurm, which takes slurm.* instead.")
    return settings, others


def submit(
    named: dict[str, dict[str, Any]], name: str, settings: list[str], folders: Iterable[Path], is_checked: bool
) -> None:
    """Submit one job per configuration, several as a job array, and print where the runs will be.

    Parameters
    ----------
    named
        The configurations, `{"trainer": {...}}`, by what makes each of them this run of a sweep.
    name
        The job's name.
    settings
        Overrides that begin with `slurm.`.
    folders
        Folders whose modules a `_target_` may name.
    is_checked
        Whether the quick part of `stable-ssl check` looks at the runs before.

    Raises
    ------
    ConfigError
        A setting or a configuration is wrong, or Slurm refuses the job. Nothing was submitted.
    """
    import submitit
    from submitit.core.utils import FailedJobError

    from ..instantiate import instanciate_config
    from ..runtime.folder import job_path

    if shutil.which("sbatch") is None:
        raise ConfigError("--slurm: there is no sbatch on the PATH; submit from a machine of the cluster.")
    log_folder, parameters = read_settings(settings)
    configs = list(named.values())
    for config in configs:
        _set_world_size(config["trainer"], parameters["nodes"] * parameters["tasks_per_node"])
    if is_checked:
        from ..rehearsal.check import check_first

        check_first(configs[0], say_once, dict(list(named.items())[1:]))
    names = [type(instanciate_config(config)).__name__ for config in configs]
    given = [(config["trainer"].get("logger") or {}).get("dump_path") for config in configs]
    executor = submitit.AutoExecutor(log_folder, cluster="slurm", slurm_max_num_timeout=MAX_TIMEOUTS)
    runs = [Run(config, folders) for config in configs]
    try:
        executor.update_parameters(**{"slurm_job_name": name, **parameters})
        jobs = executor.submit_array(runs)
    except FailedJobError as error:
        raise ConfigError(f"--slurm: Slurm did not take the job: {error}") from error
    for job, path, trainer in zip(jobs, given, names, strict=True):
        print(f"job {job.job_id}: the run will be in '{path or job_path(trainer, job.job_id).absolute()}',")
        print(f"    its messages in '{job.paths.stdout}'.")
    print(f"To end {'them all' if len(jobs) > 1 else 'it'}: scancel {jobs[0].job_id.split('_')[0]}")


def read_settings(texts: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the folder for submitit's files and submitit's parameters, as `slurm.*` overrides ask for them."""
    from submitit import SlurmExecutor

    known = {*SHORT, *_LEAST, *SlurmExecutor._valid_parameters(), "folder"} - {"ntasks_per_node", "num_gpus"}
    folder, problems = "runs/slurm", []
    shared: dict[str, Any] = {"timeout_min": 60, "nodes": 1, "stderr_to_stdout": True}
    own: dict[str, Any] = {"srun_args": []}
    for text in texts:
        key = text.partition("=")[0]
        name = SHORT.get(key.removeprefix(PREFIX), key.removeprefix(PREFIX))
        value = _value(text)
        if name not in known:
            problems.append(f"{key}: unknown setting.{nearest(name, known)}")
        elif value in (None, ""):
            continue
        elif name in _LEAST:
            kinds = (int, float) if name == "mem_gb" else (int,)
            if type(value) not in kinds or value < _LEAST[name]:
                expected = "number" if name == "mem_gb" else "whole number"
                problems.append(f"{key}: {value!r} is not a {expected} of at least {_LEAST[name]}.")
            shared[name] = value
        elif name == "folder":
            folder = str(value)
        else:
            own[name] = value
    if problems:
        raise ConfigError(problems)
    shared.setdefault("tasks_per_node", max(1, shared.get("gpus_per_node", 1)))
    # A task that fails would leave the others waiting for it until the time limit.
    own["srun_args"] = [*_as_list(own["srun_args"]), "--kill-on-bad-exit=1"]
    own.update({name: _as_list(own[name]) for name in ("setup", "teardown") if name in own})
    return folder, {**shared, **{f"slurm_{name}": value for name, value in own.items()}}


def _value(text: str) -> Any:
    """Return the value of an override, or its text if it is in Slurm's own notation, as `low,high` or `n[1-4]`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return text.partition("=")[2]
    return text.partition("=")[2] if override.is_sweep_override() else override.value()


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _set_world_size(trainer: dict[str, Any], tasks: int) -> None:
    """Set the number of the run's processes to the number of the job's tasks.

    Raises
    ------
    ConfigError
        The configuration asks for another number.
    """
    hardware = trainer["hardware"] = dict(trainer.get("hardware") or {})
    wanted = hardware.get("world_size")
    if wanted is None and tasks > 1:
        hardware["world_size"] = tasks
    elif wanted not in (None, tasks):
        raise ConfigError(
            f"hardware.world_size: {wanted}, but slurm.nodes × slurm.tasks is {tasks}; make the two agree "
            "(slurm.tasks is slurm.gpus by default)."
        )
