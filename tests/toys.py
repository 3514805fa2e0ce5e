"""What many tests train: a tiny real model on separable data."""

from __future__ import annotations

import torch
from torch import nn

from stable_ssl import BaseTrainer


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
