"""How the processes of a run come to be, and find each other: by torchrun, submitit, srun, or one of their own."""

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

SECONDS_TO_JOIN = 600.0
SECONDS_TO_LEAVE = 30.0

FOLDER = os.getcwd()  # that the command line is meant for; a script may go elsewhere later
_PARENT = "STABLE_SSL_PARENT"
_store: dist.TCPStore | None = None
started: Place | None = None  # the place of this process, where it started the others
children: dict[int, subprocess.Popen] = {}


@dataclass(frozen=True)
class Place:
    """A process among those that were started together."""

    launcher: str
    rank: int
    local_rank: int
    size: int


def find_place() -> Place | None:
    """Return this process's place among those of torchrun, submitit or Slurm's srun; None where none started it."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return Place("torchrun", int(env["RANK"]), int(env.get("LOCAL_RANK", env["RANK"])), int(env["WORLD_SIZE"]))
    if "SUBMITIT_EXECUTOR" in env:
        import submitit

        job = submitit.JobEnvironment()
        return Place("submitit", job.global_rank, job.local_rank, job.num_tasks)
    # Not SLURM_NTASKS: a batch script has it too, and is one process however many tasks its job may start.
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Place("srun", int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), int(env["SLURM_STEP_NUM_TASKS"]))
    return None


def connect(place: Place) -> dist.TCPStore:
    """Return the store that all processes share; rank 0, or torchrun's agent, keeps it."""
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
    """Return where rank 0 can be reached: what the launcher says, or what the job's nodes and number give."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if host is None:
        import submitit

        job = submitit.JobEnvironment()
        host = job.hostnames[0]
        try:
            socket.getaddrinfo(host, None)
        except OSError:  # a node's name need not be a host's
            host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    if port is None:
        # Jobs on one machine get ports of their own, and a requeued one another than before.
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SUBMITIT_LOCAL_JOB_ID")
        key = " ".join(os.environ.get(name, "") for name in names)
        port = str(20000 + zlib.crc32(key.encode()) % 12000)  # below those that systems give out themselves
    return host, int(port)


def start_others(size: int) -> Place:
    """Start the other processes of this machine by the command line of this one, and keep their store."""
    global _store, started
    if hasattr(sys, "ps1") or "ipykernel" in sys.modules or sys.argv[0] in ("", "-"):
        raise ConfigError(
            f"hardware.world_size: {size} processes run one script, and there is none here (a notebook or a prompt). "
            "Put the code into a file and run that."
        )
    _store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    started = Place("this process", 0, 0, size)
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_store.port), "WORLD_SIZE": str(size)}
    env[_PARENT] = str(os.getpid())
    if "OMP_NUM_THREADS" not in env:
        threads = max(1, (os.cpu_count() or 1) // size)
        torch.set_num_threads(threads)
        env["OMP_NUM_THREADS"] = str(threads)
    for rank in range(1, size):
        own = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        children[rank] = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=own, cwd=FOLDER)
    return started


def _end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, whatever it waits for."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


@atexit.register
def _wait_for_others() -> None:
    deadline = time.monotonic() + SECONDS_TO_LEAVE
    for child in children.values():
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
