"""A trainer or a network in memory is evaluated as it is, and stays so."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from stable_ssl import BaseTrainer, ConfigError
from stable_ssl.augmentations import EvalView, HorizontalFlip, Normalize, RandomResizedCrop, View
from stable_ssl.data import Digits, Images, Loader
from stable_ssl.evaluation import evaluate
from stable_ssl.evaluation.sources import open_source

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)


class Shifted(BaseTrainer):
    """Its representation is not the output of its backbone, and has no class that a file describes."""

    def forward(self, images):
        return 2 * self.module["backbone"](images)[:, :3] + 1

    def compute_loss(self):
        return self.forward(self.batch[0]).square().mean()


Shifted.__module__ = "__main__"  # as that of a script


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


@pytest.fixture
def trainer(photos, tmp_path):
    """A trainer of which a script made everything; it was trained, and its backbone is partly frozen."""
    view = View([RandomResizedCrop(12), HorizontalFlip(), Normalize(MEAN, STD)])
    made = Shifted(
        {"train": Loader(Images(photos, "folder"), 10, views=view)},
        {"backbone": network()},
        {"device": "cpu", "seed": 0},
        {"epochs": 1, "optimizer": functools.partial(torch.optim.SGD, lr=0.1)},
        {"dump_path": tmp_path / "mine", "level": 50, "save_final_model": True},
    )
    made()
    made.module.train()
    made.module["backbone"][0].bias.requires_grad_(False)
    return made


def state(trainer):
    own = trainer.module
    return [part.training for part in own.modules()], [p.requires_grad for p in own.parameters()]


def test_a_trainer_is_evaluated_by_its_own_forward_on_images_as_it_sees_them(trainer, photos):
    before, values = state(trainer), {name: value.clone() for name, value in trainer.module.state_dict().items()}
    (record,) = evaluate(trainer, "linear", data=photos, cache=None, seeds=1)
    assert state(trainer) == before
    assert all(torch.equal(value, values[name]) for name, value in trainer.module.state_dict().items())
    assert (record["method"], record["global_step"]) == ("Shifted", 3)
    subject = open_source(trainer)
    images = torch.rand(4, 3, 12, 12)
    assert torch.equal(subject.network(images), 2 * trainer.module.eval()["backbone"](images)[:, :3] + 1)
    assert (subject.size, subject.mean, subject.std) == ((12, 12), MEAN, STD)
    (same,) = evaluate(trainer, "linear", data=photos, cache=None, seeds=1, view=EvalView(12, None, MEAN, STD))
    assert same["figures"] == record["figures"]


def test_a_trainers_own_sets_are_taken_without_their_views(make_toy):
    digits = Digits("train")
    view = EvalView(8, None, (0.5,), (0.25,))
    loaders = {
        "train": Loader(Subset(digits, range(60)), 8, views=View([HorizontalFlip(), *view.operations])),
        "test": Loader(Subset(digits, range(60, 90)), 8, views=view),
    }
    made = make_toy(Shifted, loaders, {"backbone": nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())})
    with pytest.raises(ConfigError, match=r"the trainer is not set up\. Call trainer\.setup\(\)"):
        evaluate(made, "simpleshot")
    made.setup()
    (record,) = evaluate(made, "simpleshot", cache=None)
    assert (record["data"]["train"], record["data"]["test"]) == (60, 30)
    given = (Subset(digits, range(60)), Subset(digits, range(60, 90)))
    (same,) = evaluate(made, "simpleshot", data=given, cache=None)
    assert same["figures"] == record["figures"]
    made.data.pop("test")
    with pytest.raises(ConfigError, match="^--data is missing: the trainer has no stable_ssl.data.Loader for"):
        evaluate(made, "simpleshot")


def test_what_only_a_script_knows_is_asked_for(trainer, photos):
    with pytest.raises(ConfigError, match=r"no file has the class of its trainer, Shifted.*evaluate\(trainer"):
        evaluate(trainer.folder, "linear", data=photos, module={"backbone": network()})
    with pytest.raises(ConfigError, match=r"^'Sequential': nothing says how its images are prepared.*view=EvalView"):
        evaluate(network(), "linear", data=photos)
    with pytest.raises(ConfigError, match="^source: a dict is no path, no name, no trainer and no network"):
        evaluate([{}], "linear", data=photos)
    with pytest.raises(ConfigError, match="^data: a Digits is no pair of data sets"):
        evaluate(network(), "linear", data=Digits("train"), view=EvalView(12))


def test_a_network_is_evaluated_as_it_is_and_stays_so(photos):
    own = network().train().half()
    (record,) = evaluate(own, "linear", data=photos, view=EvalView(12, None, MEAN, STD), cache=None, seeds=1)
    assert own.training
    assert all(p.requires_grad and p.dtype == torch.float16 for p in own.parameters())
    assert record["figures"]["linear"]["accuracy"] > 0.6
