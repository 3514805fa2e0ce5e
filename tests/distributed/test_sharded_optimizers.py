"""Optimizers of parameters that two ranks divide: they train as with whole ones and go on bit for bit, or are refused."""

from __future__ import annotations

import functools
import os
import shutil

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Replicate

from stable_ssl import BaseTrainer, full_state_dict
from stable_ssl.data import Loader
from stable_ssl.exceptions import ConfigError
from stable_ssl.optimizers import LARS


class Factored(torch.optim.Optimizer):
    """Divides gradients by a mean square per row times one per column, and keeps their norm.

    Its states have other shapes than parameters. Those per column are the same on all ranks, and of the norm each rank
    has a part.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            square, state = p.grad.square().reshape(p.shape[0], -1), self.state[p]
            for name, dim in (("rows", 1), ("columns", 0)):
                mean = square.mean(dim, keepdim=True)
                if hasattr(mean, "placements"):
                    mean = mean.redistribute(placements=p.placements if name == "rows" else [Replicate()])
                state[name] = state[name].mul_(0.9).add_(mean) if name in state else mean
            state["norm"] = square.sum() + 0.5 * state.get("norm", 0.0)
            scale = (state["rows"] * state["columns"]).sqrt().reshape(p.shape) + state["norm"].sqrt()
            update = 0.1 * p.grad / (scale + 1e-3)
            p.sub_(update.redistribute(placements=p.placements) if hasattr(p, "placements") else update)


rate = {"lr": 0.01}
TRAINED = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": functools.partial(torch.optim.Adam, **rate, weight_decay=0.1, fused=True),
    "adamw_amsgrad": functools.partial(torch.optim.AdamW, lr=torch.tensor(0.01), amsgrad=True),
    "rmsprop": functools.partial(torch.optim.RMSprop, **rate, momentum=0.9, centered=True, foreach=True),
    "adagrad": functools.partial(torch.optim.Adagrad, **rate),
    "nadam": functools.partial(torch.optim.NAdam, **rate),
    "radam": functools.partial(torch.optim.RAdam, **rate),
    "adamax": functools.partial(torch.optim.Adamax, **rate),
    "asgd": functools.partial(torch.optim.ASGD, **rate, t0=1),
    "adadelta": functools.partial(torch.optim.Adadelta, lr=0.5),
    "lars": functools.partial(LARS, lr=0.1, momentum=0.9),
    "factored": functools.partial(Factored, defaults={"lr": 0.1}),
}
REFUSED = {
    "Adafactor": torch.optim.AdamW,  # which the trainer replaces
    "Muon": lambda parameters: torch.optim.Muon([p for p in parameters if p.ndim == 2]),
    "Rprop": torch.optim.Rprop,
    "fused=True": functools.partial(torch.optim.SGD, fused=True),
}


class Classifier(BaseTrainer):
    def compute_loss(self):
        return nn.functional.cross_entropy(self.module["backbone"](self.batch[0]), self.batch[1])


class Replacing(Classifier):
    """Puts another optimizer into `optim`, as trainers of early 2025 do."""

    def _instanciate(self):
        super()._instanciate()
        self.optim["optimizer"] = torch.optim.Adafactor(self.module["backbone"].parameters())


def run(folder, optimizer, batch_size, strategy, trainer=Classifier):
    """Return the whole weights and the whole states of the optimizer at the end of a run."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 7), nn.Linear(7, 1))
    samples = torch.utils.data.TensorDataset(torch.randn(16, 3, 4, 4), torch.arange(16) % 3)
    trainer = trainer(
        {"train": Loader(samples, batch_size, shuffle=True)},
        {"backbone": nn.Sequential(network, nn.Linear(1, 3))},
        {"device": "cpu", "strategy": strategy},
        {"optimizer": optimizer, "epochs": 2},
        {"dump_path": folder, "level": 50, "checkpoint_every_step": 2},
    )
    found = {}

    def after_fit():
        found.update(full_state_dict(trainer))
        for number, state in trainer.optim["optimizer"].state_dict()["state"].items():
            for name, value in state.items():
                is_sharded = hasattr(value, "full_tensor")
                found[f"{number}.{name}"] = (value.full_tensor() if is_sharded else torch.as_tensor(value)).clone()
                found[f"{number}.{name} placements"] = str(value.placements) if is_sharded else ""

    trainer.after_fit = after_fit
    trainer()
    return found


def run_all(folder):
    """Return the endings by optimizer, of a run and of one that goes on from the first epoch's end; and refusals."""
    endings, refusals = {}, {}
    for name, optimizer in TRAINED.items():
        endings[name] = [run(folder / name, optimizer, 4, "fsdp")]
        if os.environ["RANK"] == "0":
            shutil.rmtree(folder / name / "checkpoints" / "step_00000004")
        endings[name].append(run(folder / name, optimizer, 4, "fsdp"))
    for name, optimizer in REFUSED.items():
        with pytest.raises(ConfigError) as refused:
            run(folder / name, optimizer, 4, "fsdp", Replacing if name == "Adafactor" else Classifier)
        refusals[name] = str(refused.value)
    return endings, refusals


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    from ranks import Ranks

    return Ranks(run_all, tmp_path_factory.mktemp("optimizers")).results(timeout=120)[0]


@pytest.mark.parametrize("name", TRAINED)
def test_an_optimizer_of_divided_parameters_trains_as_one_of_whole_ones_and_goes_on_bit_for_bit(found, tmp_path, name):
    whole = run(tmp_path / "whole", TRAINED[name], 8, "ddp")
    divided, resumed = found[0][name]
    for key, value in divided.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, whole[key], rtol=1e-5, atol=1e-5, msg=key)
            is_same = torch.equal(value, resumed[key])
            assert is_same or key.endswith("norm"), key  # the parts of a sum are saved as their sum
        elif not key.endswith("norm placements"):
            assert value == resumed[key], key


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_needs_whole_parameters_is_refused(found, name):
    assert found[1][name].startswith(
        f"optim.optimizer: {name} needs whole parameters, but strategy fsdp divides them. Ta"
    )
