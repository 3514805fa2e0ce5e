"""The CPUs that a process was given, and the number of threads that torch uses."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

log = logging.getLogger("stable_ssl")

# Numbers of threads that a user asked for: torch follows them by itself.
_EXPLICIT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def cpus_here() -> int:
    """Return how many CPUs of this machine the job or container may use: at most those that this process may run on."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    of_job = int(os.environ.get("SLURM_CPUS_ON_NODE", affinity))
    return max(1, min(affinity, of_job, quota() or affinity))


def cpus_of_process() -> int:
    """Return how many CPUs this process was given: `cpus_here`, or its part if Slurm started several tasks here."""
    env = os.environ
    share = int(env.get("SLURM_CPUS_PER_TASK", 0))
    if not share and "SLURM_CPUS_ON_NODE" in env and "SLURM_STEP_TASKS_PER_NODE" in env:
        # "2(x3),1" is two tasks on each of three nodes, and one on the fourth.
        runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", env["SLURM_STEP_TASKS_PER_NODE"])
        tasks = [int(count) for count, times in runs for _ in range(int(times or 1))]
        share = int(env["SLURM_CPUS_ON_NODE"]) // tasks[int(env.get("SLURM_NODEID", 0))]
    return max(1, min(cpus_here(), share or cpus_here()))


def quota(mount: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the whole CPUs' worth of time that this process's cgroups allow it. None: there is no limit.

    Parameters
    ----------
    mount
        Where the cgroups are mounted.
    membership
        The file that names this process's cgroups.
    """
    limits = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers  # version 2 names no controllers
        own = root / path.lstrip("/")
        # A container may see its own cgroup as the root, and the limit may be that of a parent.
        for folder in (own, *own.parents):
            if folder.is_relative_to(root):
                limits.append(_limit(folder))
    found = [limit for limit in limits if limit]
    return min(found) if found else None


def _limit(cgroup: Path) -> int | None:
    """Return the limit of one cgroup, of version 2 or 1."""
    try:
        if (cgroup / "cpu.max").exists():
            time, period = (cgroup / "cpu.max").read_text().split()
        else:
            time, period = ((cgroup / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if time == "max" or int(time) < 0 else max(1, int(time) // int(period))
    except (OSError, ValueError):
        return None


def limit_threads() -> None:
    """Let torch and numba use as many threads as this process has CPUs, if torch would use more; the log says so.

    The last bits of results depend on the number of threads, so it is left alone if it is explicit or not too large.
    """
    import torch  # a sweep counts CPUs without it

    given, used = cpus_of_process(), torch.get_num_threads()
    if given < used and not any(name in os.environ for name in _EXPLICIT):
        torch.set_num_threads(given)
        os.environ.setdefault("NUMBA_NUM_THREADS", str(given))
        log.info(
            "This process was given %d of the CPUs, so torch uses as many threads and not %d; OMP_NUM_THREADS would "
            "set another number.",
            given,
            used,
        )
