from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from stable_ssl import BreakStep, ConfigError, JointEmbeddingTrainer, NTXEntLoss, SupervisedTrainer
from stable_ssl.data import Digits, Loader
from stable_ssl.monitors import RankMe


def two_views(x):
    return [x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)]


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        x = torch.randn(8, generator=torch.Generator().manual_seed(index))
        return two_views(x), int(x[0] > 0)


@pytest.fixture
def make_simclr(make_toy, tmp_path):
    def make(name, probes=False, monitor=None, cls=JointEmbeddingTrainer, **options):
        torch.manual_seed(0)
        modules = {
            "backbone": nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2)),
            "projector": nn.Linear(16, 4),
        }
        if probes:
            modules["backbone_classifier"] = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 2))
            modules["projector_classifier"] = nn.Linear(4, 2)
        return make_toy(
            cls, {"train": Loader(Pairs(), 8, shuffle=True)}, modules, loss=NTXEntLoss(),
            logger={"dump_path": tmp_path / name, "monitor": monitor or {}}, **options,
        )  # fmt: skip

    return make


def own(trainer):
    return torch.cat([p.detach().flatten() for n in ("backbone", "projector") for p in trainer.module[n].parameters()])


@pytest.mark.parametrize("options", [{}, {"grad_max_norm": 0.01}, {"accumulation_steps": 2}])
def test_weights_are_the_same_bits_with_and_without_probes_and_monitors(make_simclr, options):
    without, watched = (
        make_simclr("a", **options),
        make_simclr("b", True, {"train": {"rankme": RankMe()}}, **options),
    )
    without()
    watched()
    assert torch.equal(own(without), own(watched))
    record = watched.get_logs()[-1]
    assert {
        "train/loss_ssl",
        "train/loss_backbone_classifier",
        "train/loss_projector_classifier",
        "train/rankme",
    } <= set(record)
    assert record["train/loss"] == record["train/loss_ssl"]


def test_probes_learn(make_simclr):
    trainer = make_simclr("a", True, epochs=40, optimizer=functools.partial(torch.optim.SGD, lr=1e-3))
    trainer.module["backbone_classifier"] = nn.Linear(16, 2)
    trainer.probe_optimizer = functools.partial(torch.optim.AdamW, lr=0.05)
    trainer()
    values = [r["train/loss_backbone_classifier"] for r in trainer.get_logs()]
    assert sum(values[-8:]) < 0.8 * sum(values[:8])


def test_a_probe_that_breaks_does_not_break_the_run(make_simclr):
    class Broken(nn.Linear):
        def forward(self, x):
            return super().forward(x) * float("nan")

    without, broken = make_simclr("a"), make_simclr("b", True)
    broken.module["backbone_classifier"] = Broken(16, 2)
    without()
    broken()
    assert torch.equal(own(without), own(broken))


def test_supervised_training_learns_digits(make_toy):
    from torchmetrics.classification import MulticlassAccuracy

    data = {"train": Loader(Digits(size=8), 64, shuffle=True), "test": Loader(Digits("test", size=8), 256)}
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    trainer = make_toy(
        SupervisedTrainer, data, {"backbone": network}, epochs=10, optimizer=functools.partial(torch.optim.AdamW, lr=1e-2),
        logger={"metric": {"test": {"accuracy": MulticlassAccuracy(10, average="micro")}}},
    )  # fmt: skip
    trainer()
    assert trainer.get_logs()[-1]["test/accuracy"] > 0.93


def test_a_left_out_batch_leaves_no_gradient_of_a_probe_behind(make_simclr):
    seen = []

    class Skipping(JointEmbeddingTrainer):
        def before_fit_step(self):
            seen.append([p.grad is None for probe in self.probes.values() for p in probe.parameters()])
            if self.batch_idx == 1:
                raise BreakStep

    trainer = make_simclr("run", True, accumulation_steps=2, cls=Skipping)
    trainer()
    assert all(none and all(none) for none in seen[::2])
    assert len(seen) == 8


def test_labels_below_zero_are_left_out(make_simclr):
    trainer = make_simclr("run", True, epochs=1)
    trainer.setup()
    trainer.latest_representations = torch.randn(8, 16)
    trainer.latest_embeddings = torch.randn(8, 4)
    trainer.eval()
    labels = torch.tensor([0, -1, 1, -2])
    expected = sum(
        nn.functional.cross_entropy(trainer.module[f"{name}_classifier"](features)[[0, 2, 4, 6]], labels[[0, 2, 0, 2]])
        for name, features in (
            ("backbone", trainer.latest_representations),
            ("projector", trainer.latest_embeddings),
        )
    )
    trainer.batch = [[], labels]
    assert sum(trainer.side_losses().values()).item() == pytest.approx(expected.item())
    trainer.batch = [[], torch.full((4,), -1)]
    assert sum(trainer.side_losses().values()).item() == 0.0


def test_metrics_without_the_probe_that_predicts_are_refused_at_the_start(make_toy):
    data = {"train": Loader(Pairs(), 8), "test": Loader(Pairs(), 8)}
    modules = {"backbone": nn.Linear(8, 16), "projector": nn.Linear(16, 4)}
    metric = {"test": {"accuracy": {"_target_": "torchmetrics.classification.MulticlassAccuracy", "num_classes": 2}}}
    with pytest.raises(ConfigError, match="module.backbone_classifier"):
        make_toy(JointEmbeddingTrainer, data, modules, loss=NTXEntLoss(), logger={"metric": metric}).setup()


def test_a_subclass_may_call_its_own_attributes_and_losses_as_it_likes(make_simclr):
    class Mine(JointEmbeddingTrainer):
        best_epoch: int | None = None
        seconds_of_epoch: list

        def compute_loss(self):
            self.loss.update()
            return super().compute_loss()

    updates = []
    trainer = make_simclr("run", cls=Mine)
    trainer.loss.update = lambda: updates.append(1)
    trainer()
    assert len(updates) == trainer.global_step > 0
    assert trainer.best_epoch is None


def test_probes_that_are_shown_nothing_say_so(make_simclr):
    class Unwatched(JointEmbeddingTrainer):
        def compute_loss(self):
            return self.module["projector"](self.forward(self.views()[0])).square().mean()

    trainer = make_simclr("run", True, cls=Unwatched)
    trainer.logger["level"] = 20
    trainer()
    said = (trainer.folder / "console.log").read_text()
    assert said.count("module.backbone_classifier has nothing to learn from and is not trained") == 1


def test_the_probes_optimizer_does_not_hide_that_the_method_has_none(make_simclr):
    others = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    with pytest.raises(ConfigError, match="has none of the parameters"):
        make_simclr("run", True, optimizer=others).setup()


@pytest.mark.parametrize("loss", [lambda a, b: {"x": (a - b).mean()}, lambda a, b: (a - b).mean(1)])
def test_a_loss_that_is_no_number_is_described(make_simclr, loss):
    trainer = make_simclr("run")
    trainer.loss.forward = loss
    with pytest.raises(TypeError, match=r"returned \{loss_ssl: .*; expected a scalar tensor"):
        trainer()


def test_a_missing_loss_is_named_at_the_start(make_toy):
    modules = {"backbone": nn.Linear(8, 16), "projector": nn.Linear(16, 4)}
    with pytest.raises(ConfigError, match="loss: JointEmbeddingTrainer needs"):
        make_toy(JointEmbeddingTrainer, {"train": Loader(Pairs(), 8)}, modules).setup()
