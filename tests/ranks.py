"""Real processes, real gloo: a test's function runs on every rank."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import processes

RANK = """
import pickle, sys, traceback
from pathlib import Path
call, answer = map(Path, sys.argv[1:])
try:
    function, args = pickle.loads(call.read_bytes())
    result = function(*args)
except BaseException as error:
    answer.write_bytes(pickle.dumps(repr(error)))
    raise
answer.write_bytes(pickle.dumps(result))
"""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Ranks:
    """Processes that run a function together, as if they were on several machines."""

    def __init__(self, function, *args, world_size=2, machines=1):
        self._folder, port = Path(tempfile.mkdtemp(prefix="ranks_")), _free_port()
        call = self._folder / "call"
        call.write_bytes(pickle.dumps((function, args)))
        self.processes = []
        for rank in range(world_size):
            world = {"RANK": rank, "LOCAL_RANK": rank % (world_size // machines), "WORLD_SIZE": world_size}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": os.pathsep.join(sys.path)}
            env = {**os.environ, **{name: str(value) for name, value in {**world, **address}.items()}}
            command = [sys.executable, "-c", RANK, call, self._answer(rank)]
            self.processes.append(processes.start(command, env=env))

    def _answer(self, rank: int) -> Path:
        return self._folder / f"answer_{rank}"

    def join(self, timeout=60):
        """Return the exit statuses, by rank; those that are left hanging are killed, and have -9."""
        for process in self.processes:
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                continue
        for process in self.processes:
            process.kill()
            process.wait()
        return [process.returncode for process in self.processes]

    def results(self, timeout=60):
        """Return what the function returned, by rank, where all of them ended well."""
        statuses, answers = self.join(timeout), [self._answer(rank) for rank in range(len(self.processes))]
        found = [pickle.loads(answer.read_bytes()) if answer.exists() else None for answer in answers]
        assert statuses == [0] * len(self.processes), found
        return found
