"""How the processes of a run are started, and how they find each other.

torchrun, submitit or srun may start them. Without one of these, the first process starts the others.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ..exceptions import ConfigError
from .cpus import cpus_here, cpus_of_process

SECONDS_TO_JOIN = 600.0
SECONDS_TO_LEAVE = 30.0

FOLDER = os.getcwd()  # the command line starts from here, even if the script changes its working folder later
_PARENT = "STABLE_SSL_PARENT"
_store: dist.TCPStore | None = None
started: Place | None = None  # the place of this process, if it started the others
children: dict[int, subprocess.Popen] = {}  # the processes that this one started, by rank


@dataclass(frozen=True)
class Place:
    """The place of a process among those that a launcher started together.

    Attributes
    ----------
    launcher
        Name of the launcher, for messages.
    rank, local_rank
        Number of the process, and its number on its machine, from 0.
    size
        Number of processes.
    """

    launcher: str
    rank: int
    local_rank: int
    size: int


def find_place() -> Place | None:
    """Return this process's place if torchrun, submitit or Slurm's srun started it, else None."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return Place("torchrun", int(env["RANK"]), int(env.get("LOCAL_RANK", env["RANK"])), int(env["WORLD_SIZE"]))
    if "SUBMITIT_EXECUTOR" in env:
        import submitit

        job = submitit.JobEnvironment()
        return Place("submitit", job.global_rank, job.local_rank, job.num_tasks)
    # SLURM_NTASKS would not do: a batch script has it too, and is one process whatever number its job may start.
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Place("srun", int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), int(env["SLURM_STEP_NUM_TASKS"]))
    return None


def connect(place: Place) -> dist.TCPStore:
    """Return the key-value store that all processes share. It lives in rank 0, or in torchrun's agent."""
    global _store
    if _store is None:
        if _PARENT in os.environ:
            threading.Thread(target=_end_with_parent, args=(int(os.environ[_PARENT]),), daemon=True).start()
        host, port = _address()
        timeout = timedelta(seconds=SECONDS_TO_JOIN)
        keeps = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        _store = dist.TCPStore(host, port, place.size, is_master=keeps, timeout=timeout, wait_for_workers=False)
    return _store


def _address() -> tuple[str, int]:
    """Return host and port of rank 0: those that the launcher gives, else the job's first node and a port by its id."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if host is None:
        import submitit

        job = submitit.JobEnvironment()
        host = job.hostnames[0]
        try:
            socket.getaddrinfo(host, None)
        except OSError:  # the name of a Slurm node need not be the name of a host
            host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    if port is None:
        # Different jobs on one machine need different ports, and so does a job that was requeued.
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SUBMITIT_LOCAL_JOB_ID")
        key = " ".join(os.environ.get(name, "") for name in names)
        port = str(20000 + zlib.crc32(key.encode()) % 12000)  # below the ports that systems assign by themselves
    return host, int(port)


def start_others(size: int) -> Place:
    """Start the other processes on this machine, and return the place of this one. It keeps the store of all.

    Each process runs the command line of this one. The CPUs that this one was given are divided between them, unless
    OMP_NUM_THREADS is set.

    Raises
    ------
    ConfigError
        There is no script that the others could run.
    """
    global _store, started
    if hasattr(sys, "ps1") or "ipykernel" in sys.modules or sys.argv[0] in ("", "-"):
        raise ConfigError(
            f"hardware.world_size: {size} processes run one script, and there is none here (a notebook or a prompt). "
            "Put the code into a file and run it with Python."
        )
    _store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    started = Place("this process", 0, 0, size)
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_store.port), "WORLD_SIZE": str(size)}
    env[_PARENT] = str(os.getpid())
    if "OMP_NUM_THREADS" not in env:
        threads = max(1, min(cpus_here() // size, cpus_of_process()))
        torch.set_num_threads(threads)
        env["OMP_NUM_THREADS"] = str(threads)
    for rank in range(1, size):
        own = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        children[rank] = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=own, cwd=FOLDER)
    return started


def threads_of_process(world_size: int) -> int:
    """Return how many CPUs this process has for itself, if all processes of its run on this machine share evenly.

    Parameters
    ----------
    world_size
        How many processes the run has.
    """
    is_shared = _PARENT in os.environ or children  # this process started the others, or one of them this one
    here = world_size if is_shared else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(cpus_here() // here, cpus_of_process()))


def _end_with_parent(parent: int) -> None:
    """End this process as soon as the one that started it has ended, even if the main thread waits for something."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


@atexit.register
def _wait_for_others() -> None:
    """Wait for the processes that this one started, and kill those that do not end in time."""
    deadline = time.monotonic() + SECONDS_TO_LEAVE
    for child in children.values():
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
