"""What the tests of the trainer share: a tiny real model, and a run in a folder of its own."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from stable_ssl import BaseTrainer
from stable_ssl.data import Loader


class Toy(BaseTrainer):
    """A linear classifier with dropout, so that randomness has something to act on."""

    def forward(self, x):
        return self.module["backbone"](x)

    def predict(self):
        return self.forward(self.batch[0])

    def compute_loss(self):
        return nn.functional.cross_entropy(self.predict(), self.batch[1])


def toy_dataset(num_samples: int = 24, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_samples, 8, generator=generator)
    return torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())


def toy_backbone():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


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
