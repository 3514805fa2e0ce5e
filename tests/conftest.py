"""What the tests of the trainer share: a run in a folder of its own."""

from __future__ import annotations

import functools
import signal

import pytest
import torch
from ranks import Ranks
from toys import Toy, toy_backbone, toy_dataset

from stable_ssl.data import Loader

# A shell without job control has what it starts in the background ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def make_toy(tmp_path):
    """Return a function that makes a trainer: `make_toy(cls, data=…, epochs=2, dump_path=…)`."""

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
    started = []

    def start(function, *args, world_size=2):
        started.append(Ranks(function, *args, world_size=world_size))
        return started[-1]

    yield start
    for ranks in started:
        ranks.join(0)
