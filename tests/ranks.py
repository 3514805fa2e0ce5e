"""Real processes, real gloo: a test's function runs on every rank."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["stable_ssl.trainers", "torchmetrics.classification"])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(function, args, rank, world_size, port, results):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["LOCAL_RANK"] = str(rank)
    import torch

    torch.set_num_threads(1)
    try:
        results.put((rank, pickle.dumps(function(*args))))  # not torch's way, which needs this process to live on
    except BaseException as error:
        traceback.print_exc()
        results.put((rank, pickle.dumps(repr(error))))
        raise


class Ranks:
    """Processes that run a function together."""

    def __init__(self, function, *args, world_size=2):
        self._results, port = CONTEXT.SimpleQueue(), _free_port()
        self.processes = [
            CONTEXT.Process(target=_run, args=(function, args, rank, world_size, port, self._results))
            for rank in range(world_size)
        ]
        for process in self.processes:
            process.start()

    def join(self, timeout=60):
        """Return the exit statuses, by rank; those that are left hanging are killed, and have -9."""
        for process in self.processes:
            process.join(timeout)
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def results(self, timeout=60):
        """Return what the function returned, by rank, where all of them ended well."""
        statuses, found = self.join(timeout), {}
        while not self._results.empty():
            rank, result = self._results.get()
            found[rank] = pickle.loads(result)
        assert statuses == [0] * len(self.processes), found
        return [found[rank] for rank in range(len(self.processes))]
