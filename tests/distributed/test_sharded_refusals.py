"""What a user's code can't do with divided modules: each attempt ends with a sentence that names the line."""

from __future__ import annotations

import copy
import functools

import numpy as np
import torch
from torch import nn
from toys import Toy, toy_dataset

from stable_ssl.data import Loader
from stable_ssl.exceptions import ConfigError


def penalize(trainer, x):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(trainer.module["backbone"](x).sum(), x, create_graph=True)
    slope.square().sum().backward()


ATTEMPTS = {
    "second derivatives": penalize,
    "can't be copied": lambda trainer, x: copy.deepcopy(trainer.module["backbone"]),
    "no plain tensors": lambda trainer, x: trainer.module["backbone"].load_state_dict(
        {name: torch.zeros(p.shape) for name, p in trainer.module["backbone"].named_parameters()}
    ),
    "NumPy can't read": lambda trainer, x: np.asarray(trainer.module["backbone"][0].weight),
    "only while the module is called": lambda trainer, x: nn.functional.linear(x, trainer.module["backbone"][0].weight),
}


class Trying(Toy):
    """Tries everything in its last hook, and logs a histogram of a weight, which is whole there."""

    def after_fit(self):
        self.found = {}
        for name, attempt in ATTEMPTS.items():
            self._run.ranks.sharding.reshard()
            try:
                with self._run.ranks.sharding.explained():
                    attempt(self, self.batch[0])
            except ConfigError as error:
                self.found[name] = str(error)
        self._run.ranks.sharding.reshard()
        self.log_histogram("weight", self.module["backbone"][0].weight)


def run(folder):
    torch.manual_seed(0)
    trainer = Trying(
        {"train": Loader(toy_dataset(8), 4)},
        {"backbone": nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))},
        {"device": "cpu", "strategy": "fsdp"},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 1},
        {"dump_path": folder, "level": 50},
    )
    trainer()
    return trainer.found


def test_what_divided_modules_can_not_do_is_said_with_the_line_and_a_histogram_is_of_the_whole(start_ranks, tmp_path):
    for found in start_ranks(run, tmp_path).results():
        assert found.keys() == ATTEMPTS.keys()
        for name, sentence in found.items():
            assert name in sentence
            assert "test_sharded_refusals.py:" in sentence
    (snapshot,) = (tmp_path / "snapshots").iterdir()
    assert np.load(snapshot)["train/weight/counts"].sum() == 64
