"""The package without a GPU: training steps on `meta` find no tensor on the wrong device, and no wait for the device.

Then a trainer does on purpose what would wait, or what CUDA refuses, in one line after the other.
"""

from __future__ import annotations

import functools
import inspect
import re

import methods
import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from toys import Toy, toy_backbone, toy_dataset

from stable_ssl import losses, optimizers, schedulers
from stable_ssl.augmentations import View
from stable_ssl.compose import compose
from stable_ssl.data import Loader
from stable_ssl.modules.vit import places_of
from stable_ssl.monitors import KNN, LiDAR, RankMe
from stable_ssl.rehearsal.cards import card_named
from stable_ssl.rehearsal.device import waits
from stable_ssl.rehearsal.device.on_meta import check_on_meta
from stable_ssl.rehearsal.device.waits import Findings, noticing
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.stage import Stage, maker_like, maker_of
from stable_ssl.runtime.device import to_device
from stable_ssl.trainers import SupervisedTrainer


def rehearsed(make, folder, device="cuda", card=None):
    """Return the report of the rehearsal on `meta`, and the trainer on the CPU that gave it its batch."""

    def made():
        trainer = make()
        trainer._configured["hardware"]["device"] = device
        return trainer

    stage = Stage({}, made, folder, Report(), card)
    stage.trainer = stage.throw_away("cpu")
    stage.trainer.setup()
    stage.batch = next(iter(stage.trainer.data["train"].batches(0)))
    check_on_meta(stage)
    return stage.report, stage.trainer


def method(name, folder, monitors=None, optim=None):
    """Return a trainer of a method of tests/methods.py, with a probe, and a set to evaluate on."""
    if name == "supervised":
        cls, loss, networks, views, own = SupervisedTrainer, None, {"backbone": methods.normed()}, methods.VIEW, {}
    else:
        cls, loss, networks, views, own = methods.METHODS[name]()
        networks["backbone_classifier"] = nn.Linear(32, 4)
    plain = functools.partial(Loader, methods.images(), 16, views=View([]))
    return cls(
        {"train": Loader(methods.images(), 16, views=views, drop_last=True), "test": plain(), "bank": plain()},
        networks,
        {"device": "cpu"},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 2, **(optim or {})},
        {
            "dump_path": folder / "run",
            "level": 50,
            "metric": {"test": {"accuracy": MulticlassAccuracy(4 if name != "supervised" else 32)}},
            "monitor": {"train": monitors or {}, "test": {"knn": KNN("bank", k=3)}},
        },
        loss,
        **own,
    )


SEVERAL_VIEWS = [name for name in methods.METHODS if name not in ("mae", "ijepa", "moco")]


@pytest.mark.parametrize("name", [*methods.METHODS, "supervised"])
def test_each_method_and_loss_trains_without_a_wait(name, tmp_path):
    monitors = {"rankme": RankMe()} if name != "supervised" else {}
    monitors |= {"lidar": LiDAR(n=20)} if name in SEVERAL_VIEWS else {}
    trainer = method(name, tmp_path, monitors)
    report, _ = rehearsed(maker_like(trainer), tmp_path)
    assert not report.findings


def test_no_loss_is_left_out():
    used = {type(make()[1]).__name__ for make in methods.METHODS.values()}
    assert used >= set(losses.__all__) - {"SIGReg", "DINOLoss"}  # of LeJEPALoss; made by the trainer


SCHEDULES = [
    functools.partial(schedule, start_factor=0.1)
    for schedule in vars(schedulers).values()
    if inspect.isclass(schedule) and issubclass(schedule, schedulers._Schedule) and schedule is not schedulers._Schedule
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.func.__name__)
def test_each_schedule_and_what_surrounds_a_step_waits_for_nothing(schedule, tmp_path):
    optim = {
        "optimizer": functools.partial(optimizers.LARS, lr=0.1, momentum=0.9),
        "scheduler": schedule,
        "grad_max_norm": 1.0,
        "accumulation_steps": 2,
        "exclude_bias_norm": True,
        "groups": {"projector": {"schedule": "none", "lr": 0.01}},
    }
    report, _ = rehearsed(maker_like(method("simclr", tmp_path, optim=optim)), tmp_path)
    assert not report.findings


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(name for name in methods.METHODS if name != "byol_with_batch_norm"), "supervised"])
def test_each_recipe_trains_without_a_wait(name, tmp_path):
    report, _ = rehearsed(maker_of(compose(f"{name}_digits")), tmp_path)
    assert not report.findings


def test_a_mask_on_a_device_is_counted_in_host_memory():
    mask = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) < 0.4
    placed = to_device([mask], torch.device("meta"))[0]
    findings = Findings()
    with findings.counting_waits(), noticing(findings):
        places, is_real = places_of(placed)
        assert places.shape == is_real.shape == (6, int(mask.sum(1).max()))
        assert not findings.all
        placed[0] = True  # the copy in host memory is another mask now
        places_of(placed)
    assert {finding.kind for finding in findings.all} == {waits.READS}


# On purpose --------------------------------------------------------------------------------------------------------


class Careless(Toy):
    """Each line with a comment in capitals does what it says, and the other lines do nothing of the kind."""

    def before_fit(self):
        self.kept = []

    def after_fit_step(self):
        if self.is_logging:
            self.kept.append(self.latest.mean().item())
            self.log("weighted", self.latest @ torch.ones(8))  # MIXED
        self.latest.tolist()  # TO_HOST

    def compute_loss(self):
        x, labels = self.batch
        device, n = x.device, len(x)
        scores = self.forward(x)  # (8, 2)
        losses = nn.functional.cross_entropy(scores, labels, reduction="none")
        weights = torch.ones(8)
        losses = losses * weights  # MIXED
        together = torch.stack([losses.mean(), torch.tensor(1.0)])  # MIXED
        chosen = scores.gather(1, torch.zeros(8, 1, dtype=torch.long))  # MIXED
        known = np.asarray(scores.detach())  # AS_ARRAY
        if losses.mean() > 100:  # READS
            raise ValueError("too large")
        if torch.isnan(losses).any():  # READS
            raise ValueError("not a number")
        text = f"{losses.mean():.3f}"  # READS
        size = int(labels.max()) + 1  # READS
        on_host = losses.detach().cpu()  # TO_HOST
        scale = torch.tensor(0.5, device=device)  # TO_DEVICE
        shift = torch.arange(n).to(device)  # TO_DEVICE
        hard = losses[losses > 0.1]  # SHAPE
        rows = (labels == 1).nonzero()  # SHAPE
        classes = labels.unique()  # SHAPE
        picked = scores[torch.tensor([1, 0])]  # BY_HOST_INDEX
        listed = scores[[1, 0]]  # BY_HOST_INDEX
        inverse = torch.linalg.inv(scores.detach().T @ scores.detach())  # CHECKS
        fine = losses * torch.tensor(2.0) + torch.where(labels == 1, losses, 0.0) * 2
        fine = fine + torch.arange(n, device=device).to(device, non_blocking=True)
        masked = torch.zeros_like(losses)
        masked[labels == 1] = 1.0
        masked[labels == 0] = losses.detach()[0]  # SHAPE
        self.latest = losses.detach()
        used = [together.mean(), chosen.mean(), hard.mean(), picked.mean(), listed.mean(), fine.mean(), masked.mean()]
        assert (type(text), type(size), len(known), len(on_host), len(shift)) == (str, int, n, n, n)
        assert len(rows) >= len(classes) > 0 < len(inverse)
        return sum(used, losses.mean()) * scale


def expected(cls):
    """Return (kind, line) of each comment in capitals in the source of a class."""
    lines, first = inspect.getsourcelines(cls)
    found = [(re.search(r"  # ([A-Z_]+)$", line.rstrip()), first + place) for place, line in enumerate(lines)]
    return {(getattr(waits, match[1]), number) for match, number in found if match}


def test_each_line_that_waits_or_mixes_devices_is_named_in_one_pass(make_toy, tmp_path):
    report, _ = rehearsed(maker_like(make_toy(Careless)), tmp_path)
    for kind, line in expected(Careless):
        level = "error" if kind in waits.ERRORS else "warning"
        assert [f for f in report.of(level) if f"test_package_on_meta.py:{line} {kind}" in f.text], (kind, line)
    assert len(report.findings) == len(expected(Careless)), [finding.text for finding in report.findings]
    assert {finding.part for finding in report.findings} == {"device"}


class Waiting(nn.Module):
    """Reads a value in a module of the user's own, from inside of a torch module."""

    def forward(self, x):
        self.largest = x.abs().max().item()
        return x


def test_the_line_is_that_of_the_user_and_not_of_the_package_it_calls(make_toy, tmp_path):
    backbone = nn.Sequential(Waiting(), nn.Linear(8, 2))
    report, _ = rehearsed(maker_like(make_toy(module={"backbone": backbone})), tmp_path)
    (finding,) = report.findings
    assert finding.level == "warning"
    assert f"test_package_on_meta.py:{inspect.getsourcelines(Waiting)[1] + 4} reads a value" in finding.text


class Unregistered(nn.Module):
    """Holds layers in a list, so that they stay on the CPU, with their parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.others = nn.Linear(8, 8), [nn.Linear(8, 2)]

    def forward(self, x):
        return self.others[0](self.first(x))


def test_parameters_that_were_left_on_the_cpu_are_one_error(make_toy, tmp_path):
    report, _ = rehearsed(maker_like(make_toy(module={"backbone": Unregistered()})), tmp_path)
    assert [(f.level, f"test_package_on_meta.py:{inspect.getsourcelines(Unregistered)[1] + 8} mixes" in f.text)
            for f in report.findings] == [("error", True)]  # fmt: skip


class OnGpu(Toy):
    """Names the device by hand."""

    def compute_loss(self):
        weights = torch.ones(2, device="cuda")
        return nn.functional.cross_entropy(self.predict(), self.batch[1].cuda(), weights.to("cuda:0"))


def test_cuda_by_name_is_the_device(make_toy, tmp_path):
    report, _ = rehearsed(maker_like(make_toy(OnGpu)), tmp_path)
    assert not report.findings


class OnHost(Toy):
    """Makes a tensor on the CPU."""

    def compute_loss(self):
        return (self.predict() * torch.ones(2)).sum()


def test_what_only_cuda_refuses_is_no_error_of_a_run_on_the_cpu(make_toy, tmp_path):
    make = maker_like(make_toy(OnHost))
    for device, card, levels in (
        ("cuda", None, ["error"]),
        ("cpu", None, []),
        ("cpu", card_named("40gb"), ["warning"]),
    ):
        report, _ = rehearsed(make, tmp_path / f"{device} {card}", device, card)
        assert [finding.level for finding in report.findings] == levels, report.findings


class Penalty(Toy):
    """Has the gradient of a gradient in its loss."""

    def compute_loss(self):
        images = self.batch[0].clone().requires_grad_(True)
        loss = self.module["backbone"](images).square().sum()
        (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
        return loss + gradient.square().sum()


def test_the_gradient_of_a_gradient_is_no_obstacle(make_toy, tmp_path):
    report, _ = rehearsed(maker_like(make_toy(Penalty)), tmp_path)
    assert not report.findings


class Attached(Toy):
    """Forgets to detach what it keeps."""

    kept = 0.0

    def compute_loss(self):
        self.kept = 0.9 * self.kept + self.predict().mean()
        return self.kept**2


def test_a_second_backward_pass_is_an_error_and_no_missing_value(make_toy, tmp_path):
    report, _ = rehearsed(maker_like(make_toy(Attached)), tmp_path)
    (finding,) = report.findings
    assert (finding.level, ".detach()" in finding.text) == ("error", True)


class IfThere(Toy):
    """Chooses the device by hand, as many scripts do."""

    def compute_loss(self):
        weights = torch.ones(2, device="cuda" if torch.cuda.is_available() else "cpu")
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return nn.functional.cross_entropy(self.predict(), self.batch[1], weights)


def test_cuda_is_there_for_the_code_that_asks(make_toy, tmp_path):
    before = torch.cuda.is_available, torch.cuda.synchronize
    report, _ = rehearsed(maker_like(make_toy(IfThere)), tmp_path)
    (finding,) = report.findings
    assert finding.level == "warning"
    assert f":{inspect.getsourcelines(IfThere)[1] + 6} waits for all work" in finding.text
    assert (torch.cuda.is_available, torch.cuda.synchronize) == before


def test_a_run_that_skips_bad_steps_waits_and_the_key_is_named(make_toy, tmp_path):
    report, _ = rehearsed(maker_like(make_toy(nonfinite="skip", grad_max_norm=1.0)), tmp_path)
    assert [f.level for f in report.findings] == ["warning"]
    assert report.findings[0].text.startswith("optim.nonfinite: skip looks at")


class Unknown(Toy):
    """Can't be computed without values."""

    def compute_loss(self):
        classes = self.batch[1].tolist()
        assert 0 in classes
        return super().compute_loss()


def test_what_needs_values_is_a_warning_with_its_line(make_toy, tmp_path):
    report, _ = rehearsed(maker_like(make_toy(Unknown)), tmp_path)
    line = inspect.getsourcelines(Unknown)[1]
    assert [f.level for f in report.findings] == ["warning", "warning"]
    assert f"test_package_on_meta.py:{line + 5}: the step can't be rehearsed" in report.findings[0].text
    assert f"test_package_on_meta.py:{line + 4} copies a tensor to host memory" in report.findings[1].text


class OfOneSize(Toy):
    """Can't take a batch of some size."""

    refused = 8

    def compute_loss(self):
        assert len(self.batch[1]) != self.refused, "a size that is refused"
        return super().compute_loss()


@pytest.mark.parametrize(("refused", "part"), [(8, "step"), (4, "device")])
def test_a_step_that_fails_with_the_whole_batch_or_the_last_one_is_an_error(refused, part, tmp_path):
    trainer = OfOneSize(
        {"train": Loader(toy_dataset(20), 8)},
        {"backbone": nn.Linear(8, 2)},
        {"device": "cpu"},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 1},
        {"dump_path": tmp_path / "run", "level": 50},
        refused=refused,
    )
    report, _ = rehearsed(maker_like(trainer), tmp_path)
    [error] = report.of("error")
    assert (error.part, "AssertionError: a size that is refused" in error.text) == (part, True)


class BadMetric:
    """Compares predictions with a tensor on the CPU."""

    def __init__(self):
        self.total = torch.zeros(2)

    def reset(self): ...

    def update(self, predictions, labels):
        self.total = self.total + predictions.sum(0)

    def compute(self):
        return float(self.total.sum())


def test_a_metric_on_another_device_is_an_error_and_reading_its_value_is_none(make_toy, tmp_path):
    data = {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(), 8)}
    trainer = make_toy(data=data, module={"backbone": toy_backbone()}, logger={"metric": {"test": {"m": BadMetric()}}})
    report, _ = rehearsed(maker_like(trainer), tmp_path)
    (finding,) = report.findings
    assert finding.level == "error"
    assert f":{inspect.getsourcelines(BadMetric.update)[1] + 1} mixes" in finding.text


def test_torch_is_as_before_after_a_rehearsal():
    before = torch.autocast.__init__, torch.Generator
    with noticing(Findings()), torch.autocast("meta", torch.bfloat16):
        assert (torch.ones(2, 2, device="meta") @ torch.ones(2, 2, device="meta")).dtype == torch.float32
        assert isinstance(torch.default_generator, torch.Generator)
    assert (torch.autocast.__init__, torch.Generator) == before
    with pytest.raises(RuntimeError):
        torch.autocast("meta")
