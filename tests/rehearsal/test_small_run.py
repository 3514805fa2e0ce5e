"""A small run: what it finds in a healthy run, in a user's own trainers, and that it leaves nothing behind."""

from __future__ import annotations

import functools
import json
import logging
import random
import signal
import threading
import warnings

import numpy as np
import pytest
import torch
from broken_steps import VIT, changed, joint, linear, loader, node, supervised
from torch import nn
from toys import Toy, toy_backbone, toy_dataset

from stable_ssl import JointEmbeddingTrainer, SupervisedTrainer
from stable_ssl.compose import compose
from stable_ssl.data import Loader
from stable_ssl.rehearsal.configuration.building import build_parts
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.stage import Stage, maker_like, maker_of
from stable_ssl.rehearsal.step.few import Few, few_of, first_batch
from stable_ssl.rehearsal.step.small_run import check_small_run
from stable_ssl.rehearsal.step.watching import folded


def checked(config, folder):
    """Check a trainer, or the configuration of one, and return the stage."""
    is_trainer = isinstance(config, nn.Module)
    make = maker_like(config) if is_trainer else maker_of({"trainer": config})
    stage = Stage({"trainer": config._resolved()} if is_trainer else {"trainer": config}, make, folder, Report())
    check_small_run(stage)
    return stage


def texts(stage):
    return [finding.text for finding in stage.report.findings]


def test_a_healthy_run_has_no_finding_and_the_figures_of_its_step(tmp_path):
    config = changed(joint(), {"optim.accumulation_steps": 1, "optim.epochs": 100})
    stage = checked(config, tmp_path)

    assert not stage.report.findings
    facts = json.loads(json.dumps(stage.report.facts["step"]))
    assert facts["batch_size"] == 2
    assert facts["loss"].keys() == {"loss", "loss_ssl", "loss_backbone_classifier", "loss_projector_classifier"}
    # Nearest neighbours have the name of the real run, although there are fewer.
    assert {"test/accuracy", "test/knn_k10_t0.07", "train/rankme"} <= facts["metrics"].keys()
    [written] = (tmp_path / "small" / "checkpoints").glob("step_00000001/state.pt")
    assert facts["checkpoint_bytes"] == written.stat().st_size
    assert min(facts["seconds_per_step"], facts["seconds_of_checkpoint"]) > 0

    # What the others get: the real batch and loaders, and a trainer that has taken one step and was evaluated.
    (indices, (views, _)), trainer = stage.batch, stage.trainer
    assert indices == list(range(12))
    assert [tuple(view.shape) for view in views] == [(12, 1, 8, 8)] * 2
    assert trainer.global_step == 1
    assert trainer.optim["epochs"] == 100
    assert isinstance(trainer.data["train"], Loader)
    assert trainer.data["train"] is trainer._feed.loaders["train"]
    assert trainer.logger["monitor"]["test"]["knn"].k == 10
    assert trainer._steps.num_batches == 1


def test_code_that_counts_on_the_batch_size_is_tried_with_it(tmp_path):
    stage = checked(changed(joint(), {"_target_": "broken_steps.Halves", "optim.epochs": 100}), tmp_path)
    assert texts(stage) == []
    assert stage.report.facts["step"]["batch_size"] == 12


def test_the_loss_is_that_of_the_first_samples(tmp_path):
    stage = checked(supervised(), tmp_path)
    images, labels = stage.batch[1]
    rows = [0, 11]  # of the smallest and the largest label
    first = stage.throw_away("other")
    first.setup()
    expected = nn.functional.cross_entropy(first.module["backbone"](images[rows]), labels[rows])
    first._run.let_go()
    assert stage.report.facts["step"]["loss"]["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)


def test_nothing_is_left_behind(tmp_path):
    logger, before = logging.getLogger("stable_ssl"), [random.getstate(), np.random.get_state()[1].tolist()]
    state, threads, handlers = torch.get_rng_state(), threading.enumerate(), signal.getsignal(signal.SIGTERM)
    stage = checked(changed(supervised(), {"hardware.deterministic": True, "data.train.num_workers": 1}), tmp_path)

    assert not stage.report.of("error")
    assert [random.getstate(), np.random.get_state()[1].tolist()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
    for thread in {*threading.enumerate()} - {*threads}:
        thread.join(10)
    assert threading.enumerate() == threads
    assert signal.getsignal(signal.SIGTERM) == handlers
    assert (logger.handlers, logger.filters, logger.propagate) == ([], [], True)
    assert not torch.distributed.is_initialized()
    again = stage.throw_away("small")  # its folder is not locked
    again.setup()
    again._run.let_go()
    assert again.global_step == 1


def test_a_method_gets_as_many_samples_as_it_needs(tmp_path):
    config = changed(supervised(), {"loss": node("broken_steps.Greedy", least=6)})
    stage = checked(config, tmp_path)
    assert not stage.report.findings
    assert stage.report.facts["step"]["batch_size"] == 8


def test_a_loss_that_is_nan_with_few_samples_is_tried_with_more(tmp_path):
    stage = checked(changed(supervised(), {"_target_": "broken_steps.Means"}), tmp_path)
    assert not stage.report.findings
    assert stage.report.facts["step"]["batch_size"] == 12


def test_a_loss_for_one_size_of_batches_is_not_taken_to_fail_with_other_samples(tmp_path):
    class OfTwo(SupervisedTrainer):
        def compute_loss(self):
            assert len(self.batch[0]) == 2
            return super().compute_loss()

    config = changed(supervised(), {"_target_": OfTwo, "data.train": loader(number=24)})
    assert not checked(config, tmp_path).report.findings


def test_half_precision_gives_the_numbers_of_cuda(tmp_path):
    config = changed(supervised(), {"_target_": "broken_steps.Enqueues", "hardware.precision": "fp16"})
    stage = checked(config, tmp_path)
    assert not stage.report.findings
    assert stage.report.facts["step"]["tried_in_half"]


class Frozen(JointEmbeddingTrainer):
    def prepare_modules(self, modules):
        super().prepare_modules(modules)
        modules["backbone"].requires_grad_(False)


def test_a_backbone_that_learns_nothing_is_named_unless_the_configuration_says_so(tmp_path):
    frozen = {"_target_": f"{__name__}.Frozen"}
    [text] = texts(checked(changed(joint(), frozen), tmp_path))
    assert text.startswith("module.backbone: all its parameters are frozen")
    meant = {"optim.frozen": ["backbone"]}
    (tmp_path / "meant").mkdir()
    assert not texts(checked(changed(joint(), meant), tmp_path / "meant"))


def test_two_mini_batches_stand_for_a_group_of_more(tmp_path):
    class Counts(Toy):
        calls = 0

        def after_fit_step(self):
            Counts.calls += 1

    optim = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 5, "accumulation_steps": 3}
    trainer = Counts({"train": Loader(toy_dataset(), 4)}, {"backbone": toy_backbone()}, {}, optim, {})
    stage = checked(trainer, tmp_path)
    assert not stage.report.findings
    assert (Counts.calls, stage.trainer.global_step) == (4, 2)


def test_hooks_run_in_the_order_of_a_run(tmp_path):
    called = []

    class Told(SupervisedTrainer):
        def after_fit(self):
            called.append(("after_fit", self.epoch))
            super().after_fit()

    for name in (
        "before_fit",
        "before_fit_epoch",
        "before_fit_step",
        "after_fit_step",
        "after_fit_epoch",
        "before_eval",
        "before_eval_step",
        "after_eval_step",
        "after_eval",
    ):
        setattr(Told, name, lambda self, name=name: called.append(name))
    config = changed(supervised(), {"_target_": Told, "logger.eval_every_epoch": 50, "optim.epochs": 100})
    checked(config, tmp_path)
    assert set(called[10:]) == {"before_fit_epoch", "before_fit_step"}  # other samples are tried after the run
    assert called[:10] == [
        *("before_fit", "before_fit_epoch", "before_fit_step", "after_fit_step", "after_fit_epoch"),
        *("before_eval", "before_eval_step", "after_eval_step", "after_eval", ("after_fit", 1)),
    ]


def test_what_a_run_would_log_as_a_warning_is_told_once(tmp_path, capsys):
    class Warns(SupervisedTrainer):
        def compute_loss(self):
            logging.getLogger("stable_ssl").warning("The images are pale.")
            warnings.warn("Old.", DeprecationWarning, stacklevel=1)
            return super().compute_loss()

        predict_before = SupervisedTrainer.predict

        def predict(self):
            logging.getLogger("stable_ssl").warning("The images are pale.")
            return super().predict()

    stage = checked(changed(supervised(), {"_target_": Warns}), tmp_path)
    assert [(f.level, f.text) for f in stage.report.findings] == [
        ("warning", "The images are pale."), ("warning", "DeprecationWarning: Old."),
    ]  # fmt: skip
    assert not any(capsys.readouterr())


def test_a_run_that_only_evaluates_is_evaluated(tmp_path):
    config = changed(supervised(), {"data.train": None, "optim": {}})
    stage = checked(config, tmp_path)
    assert not stage.report.findings
    assert stage.report.facts["step"]["metrics"].keys() == {"test/accuracy"}
    assert (stage.batch, stage.trainer.global_step) == (None, 0)


def test_a_layer_that_gets_its_size_from_the_first_batch_is_no_fault(tmp_path):
    lazy = node("torch.nn.LazyLinear", out_features=10)
    config = {
        "trainer": changed(
            supervised(), {"module.backbone": node("torch.nn.Sequential", node("torch.nn.Flatten"), lazy)}
        )
    }
    stage = Stage(config, maker_of(config), tmp_path, Report())
    build_parts(stage)
    check_small_run(stage)
    assert not stage.report.of("error")
    assert stage.trainer is not None


def test_a_problem_that_another_part_told_is_not_told_again(tmp_path):
    config = changed(supervised(), {"module.backbone": linear(64, 10), "module.odd": node("torch.nn.ReLU", 1, 2, 3)})
    stage = Stage({"trainer": config}, maker_of({"trainer": config}), tmp_path, Report())
    stage.report.error("configuration", "module.odd: three arguments, but it takes one.")
    check_small_run(stage)
    assert len(stage.report.findings) == 1
    assert stage.trainer is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("device", "level"), [("cuda", "warning"), ("auto", "warning"), ("cpu", "error")])
def test_code_that_calls_cuda_fails_for_certain_only_in_a_run_on_the_cpu(device, level, tmp_path):
    changes = {"_target_": "broken_steps.Synchronizes", "hardware.device": device}
    stage = checked(changed(supervised(), changes), tmp_path)
    [finding] = stage.report.findings
    assert finding.level == level
    assert finding.text.startswith("before_fit_step(): ")
    assert ("it calls CUDA, so it can't be tried without a GPU" in finding.text) == (device != "cpu")


def test_weights_that_are_not_there_are_told_once(tmp_path):
    config = changed(supervised(), {"module_init": {"backbone": "nothere.pth"}})
    stage = Stage({"trainer": config}, maker_of({"trainer": config}), tmp_path, Report())
    build_parts(stage)
    check_small_run(stage)
    [finding] = stage.report.of("error")
    assert finding.text.startswith("module_init.backbone: 'nothere.pth' is not there.")


def test_a_step_that_does_not_fit_into_memory_is_not_tried(tmp_path):
    with torch.device("meta"):
        huge = nn.Linear(10**6, 10**6)
    config = supervised()
    stage = Stage(
        {"trainer": config},
        maker_of({"trainer": config}),
        tmp_path,
        Report(),
        built={"module.backbone": huge, "data.train": None, "data.test": None},
    )
    check_small_run(stage)
    [finding] = stage.report.findings
    assert finding.level == "warning"
    assert finding.text.startswith("No step was tried: with 1,000,001 million parameters it needs 22,351.8 GiB")
    assert stage.trainer is None
    assert stage.batch[0] == list(range(12))


# The table of groups ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        node("stable_ssl.schedulers.LinearWarmupCosineAnnealing", start_factor=0.1, end_lr=0.001, peak_step=0.3),
        node("torch.optim.lr_scheduler.OneCycleLR", max_lr=0.4),
    ],
    ids=lambda value: value["_target_"].rpartition(".")[2],
)
def test_the_table_of_groups_has_the_rates_of_all_steps(schedule, tmp_path):
    config = changed(
        joint(),
        {
            "optim.scheduler": schedule,
            "optim.epochs": 40,
            "optim.optimizer.weight_decay": 0.01,
            "optim.exclude_bias_norm": True,
            "optim.groups": {"projector": {"schedule": "none", "lr": 0.03}},
        },
    )
    stage = checked(config, tmp_path)
    decayed, others, fixed, fixed_others, probes = stage.report.facts["step"]["groups"]

    # An independent way: the schedule of another trainer, step by step.
    other = stage.throw_away("other")
    other.setup()
    rates = []
    for _ in range(40):
        rates.append(other.optim["optimizer"].param_groups[0]["lr"])
        other.optim["optimizer"].step()
        other.optim["scheduler"].step()
    other._run.let_go()
    assert decayed["rates"] == pytest.approx([rates[0], max(rates), rates[-1]])
    assert decayed["lr"] == pytest.approx(max(rates))
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert (fixed["rates"], fixed["schedule"], fixed["name"]) == ([0.03] * 3, "0.03, constant", "projector")
    assert (decayed["modules"], fixed["modules"]) == (["backbone"], ["projector"])
    assert probes["modules"] == ["backbone_classifier", "projector_classifier"]
    assert (decayed["tensors"], decayed["parameters"]) == (1, 64 * 12)
    counted = sum(group["parameters"] for group in (decayed, others, fixed, fixed_others, probes))
    assert counted == sum(p.numel() for p in stage.trainer.parameters())


def test_the_rates_are_those_of_all_processes_together(tmp_path):
    config = compose("simclr_digits", ["optim.lr_batch_size=128", "optim.scheduler=null", "optim.optimizer.lr=0.5"])
    stage = Stage(config, maker_of(config), tmp_path, Report(), world_size=8)
    check_small_run(stage)
    assert stage.report.facts["step"]["groups"][0]["lr"] == 4.0


def test_the_table_of_groups_has_what_is_never_trained(tmp_path):
    stage = checked(
        changed(supervised(), {"module.backbone": {**VIT, "num_classes": 10}, "optim.frozen": ["backbone.embed.*"]}),
        tmp_path,
    )
    *_, frozen = stage.report.facts["step"]["groups"]
    assert (frozen["schedule"], frozen["lr"], frozen["parameters"]) == ("not trained", 0.0, 16 * 16 + 16)


# Its parts -------------------------------------------------------------------------------------------------------------


def test_few_samples_are_those_of_the_smallest_and_largest_label_first():
    batch = {
        "image": torch.arange(20).view(10, 2),
        "label": torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3]),
        "name": [*"abcdefghij"],
        "scale": torch.ones(2),
    }
    indices, few = few_of(([*range(100, 110)], batch), 3)
    assert indices == [100, 101, 105]
    assert few["label"].tolist() == [3, 1, 9]
    assert few["image"].tolist() == [[0, 1], [2, 3], [10, 11]]
    assert few["name"] == ["a", "b", "f"]
    assert torch.equal(few["scale"], torch.ones(2))
    assert few_of((None, batch), 10) == (None, batch)


def test_the_first_batch_is_that_of_the_run_and_no_other_sample_is_read():
    class Counted(torch.utils.data.Dataset):
        constant, read = True, 0

        def __len__(self):
            return 50

        def __getitem__(self, index):
            Counted.read += 1
            return np.full((4, 4, 3), index, np.uint8), index

    from stable_ssl.augmentations import HorizontalFlip, View

    make = functools.partial(Loader, batch_size=5, views=View([HorizontalFlip()]), shuffle=True)
    held, few = make(Counted()), make(Counted())
    for one in (held, few):
        one.bind(7, "train")
        one.prepare(torch.device("cpu"))
    indices, (views, labels) = next(iter(held.batches(0)))
    Counted.read = 0
    found, (seen, numbers) = first_batch(few)
    assert Counted.read <= 6  # the channels are looked up once
    assert found == indices
    assert torch.equal(numbers, labels)
    assert torch.equal(seen, views)
    assert not hasattr(few.dataset, "in_memory")
    assert torch.equal(next(iter(few.batches(0)))[1][0], views)  # it works as before


def test_each_batch_of_few_samples_is_a_copy():
    few = Few([1, 2, 3], ([0], [torch.zeros(1), "a"]), 2)
    (_, first), (_, second) = few.batches(0)
    first[0] += 1
    assert second == [torch.zeros(1), "a"]
    assert len(few) == 3
    assert isinstance(few, list)


def test_names_of_parameters_are_folded_to_the_largest_module_of_which_all_are_meant():
    names = [
        f"module.{name}"
        for name in (
            "a.0.weight",
            "a.0.bias",
            "a.1.weight",
            "b.0.weight",
            "b.0.bias",
            "b.1.weight",
            "b.1.bias",
            "c.weight",
        )
    ]
    assert folded(names[:3], names) == ["module.a.*"]
    assert folded(names[3:5], names) == ["module.b.0.*"]
    assert folded([names[3], *names[5:7]], names) == ["module.b.0.weight", "module.b.1.*"]
    assert folded(names[7:], names) == ["module.c.weight"]
