"""Runs of two ranks, with whole or divided modules: optimizers that they register, and sparse gradients."""

from __future__ import annotations

import functools
import os
import shutil

import pytest
import torch
from torch import nn

from stable_ssl import BaseTrainer, full_state_dict
from stable_ssl.data import Loader
from stable_ssl.exceptions import ConfigError


class Pulled(BaseTrainer):
    """A classifier whose hook pulls its weights towards 0, by an optimizer of its own; each rank counts its steps."""

    def before_fit(self):
        self.pull = torch.optim.SGD(self.module["backbone"].parameters(), lr=0.01, momentum=0.9)
        self.register("pull", self.pull)

    def compute_loss(self):
        return nn.functional.cross_entropy(self.module["backbone"](self.batch[0]), self.batch[1])

    def after_fit_step(self):
        for parameter in self.module["backbone"].parameters():
            parameter.grad = parameter.detach().clone()
        self.pull.step()
        self.pull.zero_grad()
        self.pull.param_groups[0]["seen"] = self.pull.param_groups[0].get("seen", 0) + self.rank


def run(folder, strategy, network=None):
    torch.manual_seed(0)
    samples = torch.utils.data.TensorDataset(torch.randn(16, 5), torch.arange(16) % 3)
    trainer = Pulled(
        {"train": Loader(samples, 4, shuffle=True)},
        {"backbone": network or nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))},
        {"device": "cpu", "strategy": strategy},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 2},
        {"dump_path": folder, "level": 50, "checkpoint_every_step": 2},
    )
    found = {}

    def after_fit():
        found.update(full_state_dict(trainer), seen=trainer.pull.param_groups[0]["seen"])

    trainer.after_fit = after_fit
    trainer()
    return found


def run_all(folder):
    """Return the ending of a run by strategy, and of those that go on, with one or the other, from its first epoch.

    Sparse gradients are refused.
    """
    found = []
    for strategy in ("ddp", "fsdp"):
        alone = run(folder / strategy, strategy)
        if os.environ["RANK"] == "0":
            shutil.rmtree(folder / strategy / "checkpoints" / "step_00000004")
            shutil.copytree(folder / strategy, folder / f"{strategy}_switched")
        switched = run(folder / f"{strategy}_switched", "fsdp" if strategy == "ddp" else "ddp")
        with pytest.raises(
            ConfigError, match="^module.backbone.0: gradients of sparse=True can't be averaged over proc"
        ):
            run(folder / "sparse", strategy, nn.Sequential(nn.Embedding(9, 3, sparse=True)))
        found.append((alone, run(folder / strategy, strategy), switched))
    return found


def test_a_registered_optimizer_goes_on_bit_for_bit_with_what_each_rank_had_and_sparse_gradients_are_refused(
    start_ranks, tmp_path
):
    for rank, found in enumerate(start_ranks(run_all, tmp_path).results()):
        whole = found[0][0]
        for alone, resumed, switched in found:
            assert alone["seen"] == resumed["seen"] == switched["seen"] == 4 * rank
            for key in (key for key in whole if key != "seen"):
                assert torch.equal(alone[key], resumed[key]), key
                torch.testing.assert_close(alone[key], whole[key], msg=key)
                torch.testing.assert_close(switched[key], whole[key], msg=key)
