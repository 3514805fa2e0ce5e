"""What the tests share: a run in a folder of its own, ranks, and one thread per process."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import processes
import pytest

# More would wait for each other, and the last bits of a result depend on their number.
os.environ["OMP_NUM_THREADS"] = "1"
# A shell without job control has what it starts in the background ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["cpu_time"]

# The longest files begin first, so that no process has much to do when the others are done.
FIRST = ("test_demo.py", "test_preemption.py", "test_readme.py", "test_methods.py", "test_launchers.py", "test_cli.py")


def pytest_addoption(parser):
    parser.addoption("--deadline", type=float, help="begin no test after this time, in seconds since 1970")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    deadline = item.config.option.deadline
    if deadline and time.time() > deadline:
        pytest.skip("the time is over: `make test` runs the rest")


def pytest_configure(config):
    if getattr(config.option, "numprocesses", None):
        processes.address()  # the server of all workers


@pytest.fixture
def make_toy(tmp_path):
    """Return a function that makes a trainer: `make_toy(cls, data=…, epochs=2, dump_path=…)`."""
    import functools

    import torch
    from toys import Toy, toy_backbone, toy_dataset

    from stable_ssl.data import Loader

    def make(cls=Toy, data=None, module=None, hardware=None, loss=None, logger=None, **optim):
        data = data or {"train": Loader(toy_dataset(), 8, shuffle=True)}
        optim = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), "epochs": 2, **optim}
        logger = {"dump_path": tmp_path / "run", "level": 50, **(logger or {})}
        module = module or {"backbone": toy_backbone()}
        return cls(data, module, {"device": "cpu", **(hardware or {})}, optim, logger, loss)

    return make


@pytest.fixture
def start_ranks():
    """Return a function that starts ranks; those that a test left are killed."""
    from ranks import Ranks

    started = []

    def start(function, *args, world_size=2):
        started.append(Ranks(function, *args, world_size=world_size))
        return started[-1]

    yield start
    for ranks in started:
        ranks.join(0)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def offline(monkeypatch):
    """Take away what W&B would log in with."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("HOME", "/nonexistent")
