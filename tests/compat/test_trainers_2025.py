"""Trainers and monitors as they were written for early-2025 stable-ssl run unchanged."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import itertools
import math
import re

import pytest
import torch
from omegaconf import OmegaConf
from submitit.helpers import DelayedSubmission
from torch import nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from toys import Toy, toy_dataset

import stable_ssl
from stable_ssl import (
    BaseTrainer,
    BreakEpoch,
    ConfigError,
    DataError,
    JointEmbeddingPredictiveTrainer,
    JointEmbeddingTrainer,
    LoggerConfig,
    NegativeCosineSimilarity,
    NTXEntLoss,
    SelfDistillationTrainer,
    SupervisedTrainer,
    __about__,
    instanciate_config,
    reader,
)
from stable_ssl.cli import entry
from stable_ssl.compat import check_own_step
from stable_ssl.config import WandbConfig
from stable_ssl.data import DistributedSamplerWrapper, Loader
from stable_ssl.modules import TeacherStudentModule
from stable_ssl.monitors import Monitor
from stable_ssl.utils import all_reduce, to_device
from stable_ssl.utils.utils import count_SLURM_jobs, find_local_rank


class Pairs(torch.utils.data.Dataset):
    """Two views of a vector, or the pair with the parameters of a predictive trainer."""

    def __init__(self, params=False):
        self.params = params

    def __len__(self):
        return 24

    def __getitem__(self, index):
        x = torch.randn(8, generator=torch.Generator().manual_seed(index))
        if self.params:
            return (x, torch.zeros(1)), (x + 0.5, torch.ones(1))
        return [x, x + 0.1], int(x[0] > 0)


@pytest.fixture
def make_sup(make_toy, tmp_path):
    """Return a function that makes a supervised trainer with a test set of 16 samples in 2 batches."""
    numbers = iter(range(10))

    def make(cls=SupervisedTrainer, logger=None, **options):
        torch.manual_seed(0)
        data = {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(16, seed=1), 8)}
        logger = {"dump_path": tmp_path / str(next(numbers)), "level": 20, **(logger or {})}
        return make_toy(cls, data, {"backbone": nn.Linear(8, 2)}, logger=logger, **options)

    return make


@pytest.fixture
def make_ssl(make_toy, tmp_path):
    """Return a function that makes a joint-embedding trainer with probes."""
    numbers = iter(range(10))

    def make(cls=JointEmbeddingTrainer, monitor=None, modules=None, loss=None, logger=None, **options):
        torch.manual_seed(0)
        names = {"backbone": (8, 6), "projector": (6, 4), "backbone_classifier": (6, 2), "projector_classifier": (4, 2)}
        modules = modules or {name: nn.Linear(*sizes) for name, sizes in names.items()}
        dump_path = tmp_path / f"ssl{next(numbers)}"
        logger = {"dump_path": dump_path, "level": 20, "monitor": monitor or {}, **(logger or {})}
        return make_toy(
            cls, {"train": Loader(Pairs(), 8)}, modules, loss=loss or NTXEntLoss(), logger=logger, **options
        )

    return make


def said(trainer):
    console = trainer.folder / "console.log"  # there is none if nothing was said
    return console.read_text() if console.exists() else ""


def logged(trainer, name):
    return [record[name] for record in trainer.get_logs() if name in record]


def values(trainer, *modules):
    return torch.cat([p.detach().flatten() for name in modules for p in trainer.module[name].parameters()])


# Losses and logs -------------------------------------------------------------------------------------------------------


def test_a_part_called_loss_or_lr_does_not_mix_with_the_total_or_the_rate(make_toy):
    class Parts(Toy):
        def compute_loss(self):
            loss = super().compute_loss()
            self.log("loss", 100.0)
            return {"loss": loss, "lr": 10 * loss}

    class Sole(Toy):
        def compute_loss(self):
            return {"loss": super().compute_loss()}

    trainer = make_toy(Parts, module={"backbone": nn.Linear(8, 2)}, epochs=1, logger={"level": 20})
    trainer()
    first = trainer.get_logs()[0]
    assert first["train/lr"] == pytest.approx(0.1)
    assert first["train/loss"] == pytest.approx(1.1 * first["train/lr_lr"])
    assert first["train/loss_loss"] == pytest.approx((100 + first["train/lr_lr"] / 10) / 2)  # both have this name
    assert said(trainer).count("train/loss is the total loss") == 1
    alone = make_toy(Sole, epochs=1, logger={"dump_path": trainer.folder.parent / "sole", "level": 20})
    alone()
    assert not logged(alone, "train/loss_loss")
    assert "is the total loss" not in said(alone)


def test_the_supervised_loss_is_a_dict_that_a_subclass_may_add_to(make_sup):
    class Penalised(SupervisedTrainer):
        def compute_loss(self):
            losses = super().compute_loss()
            assert losses.keys() == {"loss"}
            losses["l2"] = self.module["backbone"].weight.square().sum()
            return losses

    trainer = make_sup(Penalised)
    trainer()
    for record in trainer.get_logs():
        assert record["train/loss"] == pytest.approx(record["train/loss_loss"] + record["train/l2"])


def test_values_are_logged_by_their_whole_names_whatever_is_logged_at_the_step(make_sup):
    class Logging(SupervisedTrainer):
        def compute_loss(self):
            self._log({"train/waits": torch.tensor(float(self.global_step.item()))}, commit=False)
            return super().compute_loss()

        def after_fit_step(self):
            self._log({"mine/step": self.global_step.item(), "epoch": self.epoch, "mine/text": "no number"})

    trainer = make_sup(Logging, logger={"log_every_step": 2}, epochs=1)
    trainer()
    records = [{k: v for k, v in record.items() if not k.startswith("perf/")} for record in trainer.get_logs()]
    own = [record for record in records if "mine/step" in record]
    assert [record["mine/step"] for record in own] == [record["global_step"] for record in own] == [1, 2, 3]
    assert [record["train/waits"] for record in records if "train/waits" in record] == [0, 1, 2]
    assert len(logged(trainer, "train/loss")) == 1


def test_a_log_of_ones_own_gets_every_record(make_sup):
    class Keeping(SupervisedTrainer):
        packets = ()

        def _log(self, packet=None, commit=True):
            self.packets = (*self.packets, packet)
            super()._log(packet, commit)

    trainer = make_sup(Keeping)
    trainer()
    assert [packet["train/loss"] for packet in trainer.packets] == logged(trainer, "train/loss")
    assert len(trainer.packets) == len(trainer.get_logs()) == 6


def test_a_trainer_reads_its_logs_configuration_and_settings_as_it_did(make_sup):
    class Reading(SupervisedTrainer):
        def before_fit(self):
            self.epoch = 0
            self.step = 0
            assert dict(self.optim.items()) == {**self.optim} == {key: self.optim[key] for key in self.optim.keys()}  # noqa: SIM118
            assert self.optim["epochs"] == self._optim["epochs"] == 2
            assert self.get_config().trainer.optim.epochs == self.get_config()["trainer"]["optim"]["epochs"] == 2
            assert self._device == "cpu"
            assert self.start_time > 0

        def after_fit_step(self):
            self.step += 1
            assert self.global_step.item() == self.global_step == self.step
            assert self._batch_idx == self.batch_idx
            self.batch = to_device(self.batch, self.device)

    trainer = make_sup(Reading)
    trainer()
    records = trainer.get_logs()
    assert trainer.get_logs(min_step=-2) == records[-2:]
    assert trainer.get_logs(["train/lr"], 1, 4) == records[1:4]
    assert trainer.get_logs(keys=["nothing"]) == []
    assert reader.jsonl(trainer.logger["dump_path"]) == [{**record, "rank": 0} for record in records]
    assert reader.config(trainer.folder).trainer == trainer.get_config().trainer


def test_the_reader_reads_folders_of_early_2025(tmp_path):
    (tmp_path / "logs_rank_0.jsonl").write_text('{"train/loss": 2.0}\n{"train/loss": 1.0}\n')
    (tmp_path / "logs_rank_10.jsonl").write_text('{"train/lo{"train/loss": 9.0}\n{"train/loss": 3.0}\n{"train/lo')
    (tmp_path / "logs_rank_0_old.jsonl").write_text('{"train/loss": 8.0}\n')
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("trainer: {optim: {epochs: 3}}\n")
    losses = [(record["rank"], record["train/loss"]) for record in reader.jsonl(tmp_path)]
    assert losses == [(0, 2.0), (0, 1.0), (10, 3.0)]
    assert reader.config(tmp_path).trainer.optim.epochs == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty' holds no run"):
        reader.jsonl(tmp_path / "empty")
    table, records = reader.jsonl_project(tmp_path)
    assert list(table["trainer.optim.epochs"]) == [3]
    assert records == [reader.jsonl(tmp_path)]


# The set-up ------------------------------------------------------------------------------------------------------------


def test_an_optimizer_and_a_schedule_that_instanciate_makes_are_those_of_the_run(make_sup):
    class Own(SupervisedTrainer):
        def _instanciate(self):
            super()._instanciate()
            self.optim["optimizer"] = torch.optim.SGD(self.module.parameters(), lr=0.8)
            self.optim["scheduler"] = torch.optim.lr_scheduler.StepLR(self.optim["optimizer"], 2, 0.5)

        def after_fit_step(self):
            if self.global_step == dies_at:
                raise InterruptedError

    class TooLate(SupervisedTrainer):
        def before_fit(self):
            self.optim["scheduler"] = torch.optim.lr_scheduler.StepLR(self.optim["optimizer"], 2, 0.5)

    whole, part = (make_sup(Own, logger={"checkpoint_every_step": 1}) for _ in range(2))
    dies_at = None
    whole()
    dies_at = 4
    with pytest.raises(InterruptedError):
        part()
    rest, dies_at = make_sup(Own, logger={"checkpoint_every_step": 1, "dump_path": part.folder}), None
    rest()
    assert logged(whole, "train/lr") == [0.8 * 0.5 ** (step // 2) for step in range(len(whole.get_logs()))]
    assert torch.equal(values(rest, "backbone"), values(whole, "backbone"))
    with pytest.raises(ConfigError, match=r"optim.scheduler: a hook replaced it .* Make it in _instanciate\(\)"):
        make_sup(TooLate)()


def half_every_two(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


class Lookahead(torch.optim.Optimizer):
    """As SAM: it lets an inner optimizer step."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.8})
        self.inner = torch.optim.SGD(self.param_groups, lr=0.8)
        self.param_groups = self.inner.param_groups

    def step(self, closure=None):
        self.inner.step()


class Unsaved:
    def __init__(self, optimizer):
        self.step = optimizer.step


SCHEDULES = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (
            {"optimizer": torch.optim.SGD},
            {"groups": {"backbone": {"lr": 0.1}}},
            "optim.groups: optim.optimizer",
        ),
        ({"optimizer": torch.optim.SGD}, {"lr_batch_size": 4}, "optim.lr_batch_size: it does not scale"),
        ({"optimizer": torch.optim.SGD}, {"scheduler": half_every_two}, "optim.scheduler: it belongs to another"),
        ({"optimizer": torch.optim.LBFGS}, {}, r"optim.optimizer: LBFGS.step\(\) needs 'closure'"),
        (
            {"optimizer": functools.partial(functools.partial, torch.optim.SGD)},
            {},
            r"optim.optimizer: _instanciate\(\) made a partial, not an optimizer",
        ),
        ({"scheduler": SCHEDULES.ReduceLROnPlateau}, {}, r"ReduceLROnPlateau.step\(\) needs 'metrics'"),
        ({"scheduler": lambda _: 0.1}, {}, r"optim.scheduler: _instanciate\(\) made a float, not a schedule"),
        ({"scheduler": Unsaved}, {}, r"optim.scheduler: a Unsaved has no state_dict\(\)"),
        (
            {"scheduler": functools.partial(SCHEDULES.OneCycleLR, max_lr=1.0, total_steps=3)},
            {},
            "OneCycleLR ends after 3 steps, but the run has 6",
        ),
    ],
)
def test_what_instanciate_puts_into_optim_is_checked_as_what_is_configured(make_sup, make, options, words):
    class Own(SupervisedTrainer):
        def _instanciate(self):
            for name, function in make.items():
                given = {"optimizer": self.module.parameters(), "scheduler": self.optim["optimizer"]}[name]
                self.optim[name] = function(given)

    with pytest.raises(ConfigError, match=words):
        make_sup(Own, **options).setup()


def test_a_configured_schedule_may_be_one_of_an_inner_optimizer(make_sup):
    trainer = make_sup(optimizer=Lookahead, scheduler=lambda optimizer: half_every_two(optimizer.inner))
    trainer()
    assert logged(trainer, "train/lr") == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]


def test_an_optimizer_of_ones_own_has_all_but_the_probes_as_the_error_says(make_ssl):
    class Own(JointEmbeddingTrainer):
        def _instanciate(self):
            self.optim["optimizer"] = torch.optim.SGD(eval(parameters), lr=0.0)

    parameters = "self.module.parameters()"
    with pytest.raises(ConfigError, match="backbone_classifier.weight.* would train them twice") as refused:
        make_ssl(Own)()
    parameters = re.search(r"\[p for .*\]", str(refused.value))[0]
    trainer = make_ssl(Own)
    before = values(trainer, "backbone", "projector"), values(trainer, "backbone_classifier")
    trainer()
    assert torch.equal(values(trainer, "backbone", "projector"), before[0])
    assert not torch.equal(values(trainer, "backbone_classifier"), before[1])


@pytest.mark.parametrize("loader", [torch.utils.data.DataLoader, Loader])
def test_evaluation_sets_that_instanciate_makes_are_used_and_later_loaders_are_refused(make_sup, loader):
    class Own(SupervisedTrainer):
        def _instanciate(self):
            self.data["more"], self.data["unmeasured"] = (loader(toy_dataset(8, seed=2), 8) for _ in range(2))
            self.logger["metric"]["more"] = accuracy()["test"]

    trainer = make_sup(Own, logger={"metric": accuracy()})
    trainer()
    assert len(logged(trainer, "more/acc1")) == 2
    for hook, name, step in [
        ("before_fit_epoch", "train", 0),
        ("before_fit", "test", 0),
        ("before_fit", "late", 0),
        ("after_fit_epoch", "late", 3),
    ]:

        def put(self, name=name):
            self.data[name] = loader(toy_dataset(8, seed=2), 8)

        late = make_sup(type("TooLate", (SupervisedTrainer,), {hook: put}))
        with pytest.raises(ConfigError, match=f"data.{name}: a hook put this {loader.__name__} there"):
            late()
        assert late.global_step == step


class Named(list):
    """Two samples with names of classes."""

    def __init__(self, *classes):
        super().__init__((torch.ones(8) * label, label) for label in (0, 1))
        self.classes = classes


def test_all_that_is_configured_for_a_set_of_instanciate_is_used(make_sup):
    class Later(SupervisedTrainer):
        def _instanciate(self):
            assert isinstance(self.logger["metric"]["test"]["acc1"], Accuracy)
            self.data["more"] = Loader(Named("dog", "cat"), 2)
            self.logger["metric"] = {
                **self.logger["metric"],
                "more": {**self.logger["metric"]["more"], "of_hook": hits},
            }

    hits = {"_target_": "torchmetrics.classification.MulticlassAccuracy", "num_classes": 2}
    node = {**hits, "average": "micro"}
    logger = {
        "metric": {**accuracy(), "more": {"of_file": node}, "absent": {"acc": node}},
        "monitor": {"more": {"steps": GlobalStep()}},
        "best": {"metric": "more/of_file"},
    }
    trainer = make_sup(Later, logger=logger)
    trainer.data["train"] = Loader(Named("cat", "dog"), 2)
    trainer()
    assert set().union(*trainer.get_logs()) >= {"test/acc1", "more/of_file", "more/of_hook", "more/steps"}
    assert (trainer.folder / "weights" / "best.safetensors").exists()
    assert "logger.metric.absent: there is no such set in data" in said(trainer)
    assert "more: there is no such set" not in said(trainer)
    assert said(trainer).count("data.more: its classes are not those of data.train") == 1
    assert "data.test: its classes" not in said(trainer)


def test_a_metric_that_instanciate_puts_in_place_of_a_dict_is_named(make_sup):
    class Alone(SupervisedTrainer):
        def _instanciate(self):
            self.logger["metric"]["test"] = accuracy()["test"]["acc1"]

    with pytest.raises(ConfigError, match=r"logger.metric.test: <.*Accuracy.*> is not a dict of names"):
        make_sup(Alone).setup()


def test_a_training_set_that_is_another_loader_of_the_run_is_refused_and_copied_as_an_evaluation_set(make_sup):
    def swap(self):
        self.data["train"] = self.data["test"]

    class Again(SupervisedTrainer):
        def _instanciate(self):
            self.data["again"] = self.data["train"]

    trainer = make_sup(Again)
    trainer()
    assert trainer.data["again"].name == "again"
    assert trainer.data["train"].name == "train"
    for hook, words in {"_instanciate": r"_instanciate\(\) put", "before_fit_epoch": "a hook put"}.items():
        with pytest.raises(ConfigError, match=f"data.train: {words} this .* Configure it in data"):
            make_sup(type("Swap", (SupervisedTrainer,), {hook: swap}))()


def test_instanciate_may_look_at_the_configured_sets(make_sup):
    class Looking(SupervisedTrainer):
        def _instanciate(self):
            self.seen = [len(labels) for _, (_, labels) in self.representations("test")]

    trainer = make_sup(Looking)
    trainer.setup()
    assert trainer.seen == [8, 8]


def test_what_early_trainers_do_around_the_set_up(make_sup):
    calls = []

    class Own(SupervisedTrainer):
        def setup(self):
            calls.append("setup")
            super().setup()

        def after_fit_epoch(self):
            calls.append(self.epoch)
            raise BreakEpoch

    trainer = make_sup(Own)
    trainer()
    assert calls == ["setup", 0, 1]
    trainer.load_state_dict(trainer.state_dict() | {"global_step": torch.tensor([7])})
    with pytest.raises(RuntimeError, match=r"not going on: launch\(\) trains, evaluates and logs"):
        trainer._evaluate()


# The loop --------------------------------------------------------------------------------------------------------------


def test_a_step_of_ones_own_trains_as_the_runs(make_sup):
    class OwnStep(SupervisedTrainer):
        def _fit_step(self):
            with torch.amp.autocast("cuda", enabled=self.hardware["float16"]):
                loss = sum(self.compute_loss().values())
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optim["optimizer"])
            self.scaler.step(self.optim["optimizer"])
            self.scaler.update()
            self.optim["optimizer"].zero_grad(set_to_none=True)
            self.optim["scheduler"].step()

    schedule = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    own, plain = make_sup(OwnStep, scheduler=schedule), make_sup(scheduler=schedule)
    own()
    plain()
    assert torch.equal(values(own, "backbone"), values(plain, "backbone"))
    assert own.global_step == 6


class Accuracy:
    def reset(self):
        self.hits = []

    def update(self, scores, labels):
        self.hits += (scores.argmax(1) == labels).float()

    def compute(self):
        return torch.stack(self.hits).mean()


def accuracy():
    return {"test": {"acc1": Accuracy()}}


def test_an_evaluation_of_ones_own_is_in_evaluation_mode_and_counts(make_sup):
    class OwnEvaluation(SupervisedTrainer):
        def _evaluate(self):
            self.before_eval()
            assert not self.training
            metrics = self.logger["metric"]["test"]
            metrics["acc1"].reset()
            for self._batch_idx, self.batch in enumerate(self.data["test"]):  # noqa: B020
                self.before_eval_step()
                self._eval_step(name_loader="test")
            self._log({"test/acc1": metrics["acc1"].compute()}, commit=True)
            self.after_eval()

    own, plain = (make_sup(cls, logger={"metric": accuracy()}) for cls in (OwnEvaluation, SupervisedTrainer))
    own()
    plain()
    assert logged(own, "test/acc1") == logged(plain, "test/acc1")
    assert "left out the last evaluation" not in said(own)
    own._feed.on_device = lambda batch: [part.to("meta") for part in batch]  # as on a GPU
    own.batch = [torch.zeros(2)]
    own.before_eval_step()
    assert own.batch[0].device.type == "meta"

    class Watching(SupervisedTrainer):
        def before_eval_step(self):
            super().before_eval_step()
            watched.append(self.batch_idx)

    class Both(OwnEvaluation, Watching):
        pass

    watched = []
    make_sup(Both, logger={"metric": accuracy()})()
    assert watched == [0, 1] * 2


def test_break_epoch_in_an_evaluation_ends_that_set_only(make_sup):
    class Breaking(SupervisedTrainer):
        def before_eval_step(self):
            if self.batch_idx == 1:
                raise BreakEpoch

    trainer = make_sup(Breaking, logger={"metric": accuracy()})
    trainer.data["more"] = Loader(toy_dataset(8, seed=2), 8)
    trainer.logger["metric"]["more"] = accuracy()["test"]
    trainer()
    with torch.no_grad():
        for name, data in (("test", toy_dataset(16, seed=1)[:8]), ("more", toy_dataset(8, seed=2)[:])):
            expected = (trainer.module["backbone"](data[0]).argmax(1) == data[1]).float().mean().item()
            assert logged(trainer, f"{name}/acc1")[-1] == pytest.approx(expected)


@pytest.mark.parametrize("is_live", [False, True])
def test_the_metrics_of_a_set_may_be_a_collection(make_sup, is_live):
    parts = {"a": accuracy()["test"]["acc1"], "b": MulticlassAccuracy(2, average="micro")}
    whole = MetricCollection({"b": parts["b"]}, prefix="of_")
    node = {"_target_": "torchmetrics.MetricCollection", "metrics": {"b": parts["b"]}, "prefix": "of_"}
    trainer = make_sup(logger={"metric": {"test": whole if is_live else node}})
    plain = make_sup(logger={"metric": {"test": parts}})
    trainer()
    plain()
    assert logged(trainer, "test/of_b") == logged(plain, "test/b") == pytest.approx(logged(plain, "test/a"))
    with pytest.raises(ConfigError, match="logger.metric.test: .* is not a dict of names"):
        make_sup(logger={"metric": {"test": MulticlassAccuracy(2) if is_live else {"_target_": "torch.nn.Linear"}}})


def test_the_private_hooks_of_a_run_are_called(make_sup):
    class Hooked(SupervisedTrainer):
        calls = ()

        def _instanciate(self):
            super()._instanciate()
            self.module["backbone"].weight.data.zero_()

        def _load_checkpoint(self):
            super()._load_checkpoint()
            self.calls = (*self.calls, self.module["backbone"].weight.abs().sum().item())

        def _save_checkpoint(self, name, model_only):
            super()._save_checkpoint(name, model_only)
            self.calls = (*self.calls, (name, model_only))

        def _cleanup(self):
            self.calls = (*self.calls, "end")

        def _set_device(self, hardware):
            raise AssertionError

    logger = {"checkpoint_frequency": 1, "checkpoint_model_only": False, "save_final_model": "last"}
    trainer = make_sup(Hooked, logger=logger)
    trainer()
    saved_files = ("checkpoint_1.ckpt", False), ("checkpoint_2.ckpt", False), ("last.ckpt", True)
    assert trainer.calls == (0.0, *saved_files, "end")
    assert [torch.load(trainer.folder / f"checkpoint_{epoch}.ckpt")["epoch"] for epoch in (1, 2)] == [1, 2]
    saved = torch.load(trainer.logger["dump_path"] / "last.ckpt")
    assert torch.equal(saved["module"]["backbone.weight"], trainer.module["backbone"].weight)
    assert said(trainer).count("Hooked._set_device: no run calls this method. Set hardware.device.") == 1


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (lambda self: setattr(self, "epoch", 1), "is in epoch 0, not 1"),
        (lambda self: self.global_step.add_(1), "counts"),
    ],
)
def test_what_would_count_twice_is_refused(make_sup, hook, words):
    with pytest.raises(AttributeError, match=words):
        make_sup(type("Counting", (SupervisedTrainer,), {"before_fit": hook}))()


def test_a_step_of_ones_own_that_leaves_out_the_other_processes_is_refused():
    class Alone(SupervisedTrainer):
        def _fit_step(self):
            sum(self.compute_loss().values()).backward()

    class Together(SupervisedTrainer):
        def _fit_step(self):
            super()._fit_step()

    with pytest.raises(ConfigError, match="Alone._fit_step: gradients are not averaged over the 2 processes"):
        check_own_step(Alone, 2)
    for cls, world_size in ((Alone, 1), (Together, 2), (SupervisedTrainer, 2)):
        check_own_step(cls, world_size)


def test_keys_beside_the_trainer_become_attributes_that_a_requeued_run_has_too(tmp_path):
    config = OmegaConf.create({
        "alpha": {"beta": 3},
        "optim": "taken",
        "trainer": {
            "_target_": "stable_ssl.SupervisedTrainer",
            "data": {"test": {"_target_": "stable_ssl.data.Loader", "dataset": {"_target_": "toys.toy_dataset"}}},
            "module": {"backbone": {"_target_": "torch.nn.Flatten"}},
            "logger": {"dump_path": str(tmp_path), "level": 50},
            "_num_classes": 10,
        },
    })  # fmt: skip
    trainer = instanciate_config(config)
    trainer()
    assert (trainer.alpha.beta, trainer._num_classes) == (3, 10)
    written = vars(trainer).keys() - vars(nn.Module()).keys() - vars(BaseTrainer).keys() - {"_num_classes"}
    private = {name for name in written if name.startswith("_") and not hasattr(BaseTrainer, name)}
    for name in sorted(private | {"start_time"}):
        config.trainer = {**config.trainer, name: 1}
        with pytest.raises(ConfigError, match=f"{name}: BaseTrainer uses this name itself"):
            instanciate_config(config)
        del config.trainer[name]
    assert trainer.optim["epochs"] == 1000
    requeued = trainer.checkpoint().function.checkpoint().function  # preempted twice
    assert requeued.alpha.beta == 3
    assert requeued.get_config().alpha.beta == 3
    assert instanciate_config(reader.config(tmp_path)).alpha.beta == 3
    with pytest.raises(ConfigError, match="debug_hash"):
        instanciate_config(debug_hash=b"")


def test_names_of_a_run_are_refused_in_a_class_and_its_constructor(make_sup):
    class Constructed(SupervisedTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._steps = []

    for own in ({"_monitors": 7}, {"_run": lambda self: 5}):
        with pytest.raises(ConfigError, match=f"Own.{next(iter(own))}: BaseTrainer uses this name itself"):
            make_sup(type("Own", (SupervisedTrainer,), own))
    with pytest.raises(ConfigError, match="Constructed: its constructor sets _steps"):
        make_sup(Constructed).setup()


def test_a_checkpoint_of_ones_own_makes_a_trainer_that_goes_on(monkeypatch, tmp_path):
    class Own(SupervisedTrainer):
        def checkpoint(self):
            parts = self._data, self._module, self._hardware, self._optim, self._logger, self._loss
            return DelayedSubmission(type(self)(*parts, **self._kwargs))

        def after_fit_step(self):
            if self.global_step == dies_at:
                raise InterruptedError

    def make():
        linear = {"_target_": "torch.nn.Linear", "in_features": 8, "out_features": 2}
        optim = {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}, "epochs": 2}
        logger = {"checkpoint_every_step": 1, "level": 50}
        data = {"train": Loader(toy_dataset(), 8)}
        return Own(data, {"backbone": linear}, {"device": "cpu"}, optim, logger, scale=3)

    monkeypatch.chdir(tmp_path)
    whole, part, dies_at = make(), make(), None
    whole()
    dies_at = 4
    with pytest.raises(InterruptedError):
        part()
    fresh, dies_at = part.checkpoint().function, None
    fresh()
    assert (fresh.folder, fresh.scale, fresh.global_step) == (part.folder, 3, 6)
    assert torch.equal(values(fresh, "backbone"), values(whole, "backbone"))


# Self-supervised trainers -----------------------------------------------------------------------------------------------


def test_the_probes_are_trained_as_ever_whatever_is_made_of_their_losses(make_ssl):
    class Weighted(JointEmbeddingTrainer):
        def compute_loss(self):
            losses = super().compute_loss()
            losses["loss_backbone_classifier"] = 2 * losses["loss_backbone_classifier"]
            assert losses.pop("loss_projector_classifier") > 0
            return losses

    class ByHand(JointEmbeddingTrainer):
        def compute_loss(self):
            views, labels = self.format_views_labels()
            self._latest_representations = representations = [self.module["backbone"](view) for view in views]
            self._latest_embeddings = embeddings = [self.module["projector"](r) for r in representations]
            own = self.compute_loss_classifiers(representations, embeddings, labels)
            return {"loss_ssl": self.loss(*embeddings), **own}

    class Replaced(JointEmbeddingTrainer):
        def compute_loss(self):
            losses = super().compute_loss()
            losses["loss_backbone_classifier"] = torch.tensor(0.25)
            assert losses["loss_projector_classifier"] > 0
            assert losses.get("loss_backbone_classifier") == 0.25
            return losses

    plain, weighted, by_hand, replaced = make_ssl(), make_ssl(Weighted), make_ssl(ByHand), make_ssl(Replaced)
    for trainer in (plain, weighted, by_hand, replaced):
        trainer()
    assert {*logged(replaced, "train/loss_backbone_classifier")} == {0.25}
    assert torch.equal(values(replaced, *replaced.module), values(plain, *plain.module))
    alone = logged(plain, "train/loss_backbone_classifier")
    assert logged(weighted, "train/loss_backbone_classifier")[0] == pytest.approx(2 * alone[0])
    assert logged(by_hand, "train/loss_backbone_classifier") == pytest.approx(alone)
    total = [record["train/loss_ssl"] + record["train/loss_backbone_classifier"] for record in weighted.get_logs()]
    assert logged(weighted, "train/loss") == pytest.approx(total)
    assert torch.equal(values(weighted, *weighted.module), values(plain, *plain.module))
    torch.testing.assert_close(values(by_hand, *by_hand.module), values(plain, *plain.module))
    assert said(weighted).count("trained by an optimizer of their own") == 1


def test_a_trainer_with_a_compute_loss_of_its_own_needs_no_loss(make_ssl):
    class Own(JointEmbeddingTrainer):
        def compute_loss(self):
            (first, second), _ = self.format_views_labels()
            return (self.module["projector"](self.module["backbone"](first - second))).square().mean()

    class Deeper(Own):
        def compute_loss(self):
            return 2 * super().compute_loss()

    class Extending(JointEmbeddingTrainer):
        def compute_loss(self):
            return super().compute_loss()

    own, deeper, extending = map(make_ssl, (Own, Deeper, Extending))
    for trainer in (own, deeper, extending):
        trainer.loss = None
    own()
    deeper()
    assert logged(deeper, "train/loss")[0] == pytest.approx(2 * logged(own, "train/loss")[0])
    with pytest.raises(ConfigError, match="loss: Extending needs one, .* or a compute_loss of its own"):
        extending()


def test_a_loss_of_the_probes_alone_trains_nothing_else(make_ssl):
    class ProbeOnly(JointEmbeddingTrainer):
        def compute_loss(self):
            return {"loss_backbone_classifier": super().compute_loss()["loss_backbone_classifier"]}

    trainer = make_ssl(ProbeOnly)
    before = values(trainer, "backbone", "projector"), values(trainer, "backbone_classifier")
    trainer()
    assert torch.equal(values(trainer, "backbone", "projector"), before[0])
    assert not torch.equal(values(trainer, "backbone_classifier"), before[1])


def test_a_loss_finds_labels_that_the_batch_does_not_have(make_ssl):
    class OfBatch(JointEmbeddingTrainer):
        def compute_loss(self):
            losses = super().compute_loss()
            labels = (self.batch[0][:, 0] > 0).long()
            return losses | self.compute_loss_classifiers(self.latest_representations, self.latest_embeddings, labels)

    trainer, plain = make_ssl(OfBatch), make_ssl()
    trainer.data["train"] = Loader([Pairs()[i][0] for i in range(24)], 8)
    trainer()
    plain()
    assert logged(trainer, "train/loss_backbone_classifier") == logged(plain, "train/loss_backbone_classifier")
    assert torch.equal(values(trainer, *trainer.module), values(plain, *plain.module))
    assert "is not trained" not in said(trainer)


def test_a_subclass_or_a_mixin_formats_batches_and_trains_the_probes_its_own_way(make_ssl):
    seen = []

    class Mixin:
        def format_views_labels(self):
            views, labels = super().format_views_labels()
            return views[::-1], 1 - labels

        def compute_loss_classifiers(self, representations, embeddings, labels):
            assert (
                super()
                .compute_loss_classifiers(representations, embeddings, labels)["loss_backbone_classifier"]
                .requires_grad
            )
            scores = [self.module["backbone_classifier"](r.detach()) for r in representations]
            seen.append(sum(F.cross_entropy(s, labels, label_smoothing=0.1) for s in scores).item())
            assert torch.equal(labels, 1 - self.batch[1])
            return {"loss_backbone_classifier": sum(F.cross_entropy(s, labels, label_smoothing=0.1) for s in scores)}

    class Own(Mixin, JointEmbeddingTrainer):
        def compute_loss(self):
            losses = super().compute_loss()
            loss, weight = losses["loss_backbone_classifier"], self.module["backbone_classifier"].weight
            assert torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True) == (None,)
            return losses

    trainer = make_ssl(Own)
    probes = values(trainer, "backbone_classifier"), values(trainer, "projector_classifier")
    trainer()
    assert logged(trainer, "train/loss_backbone_classifier") == pytest.approx(seen)
    assert not torch.equal(values(trainer, "backbone_classifier"), probes[0])
    assert torch.equal(values(trainer, "projector_classifier"), probes[1])


def test_newest_outputs_are_lists_of_views_with_gradients_in_the_loss_and_without_after_it(make_ssl):
    kept = []

    class Spread(JointEmbeddingTrainer):
        def compute_loss(self):
            losses = super().compute_loss()
            first, second = self.latest_embeddings
            assert torch.cat([self.latest_embeddings, torch.ones(5, 4)]).shape == (21, 4)
            assert torch.stack([self.latest_embeddings] * 2).shape == (2, 16, 4)
            moved = self.latest_embeddings
            moved += 1
            torch.testing.assert_close(moved[8:], second + 1)
            losses["loss_std"] = sum(F.relu(1 - z.std(0)).mean() for z in self.latest_embeddings)
            kept.append(torch.cat([first, second]).detach())
            assert losses["loss_std"].requires_grad
            return losses

    class Norm(Monitor):
        name = "norm"

        def compute(self, trainer):
            z = trainer.latest_embeddings
            assert not z.requires_grad
            assert z.shape == (16, 4)
            assert torch.equal(torch.cat(z), z[:])
            return torch.cat(z).norm().item()

    trainer = make_ssl(Spread, monitor={"train": {"key": Norm()}})
    trainer()
    assert logged(trainer, "train/norm") == pytest.approx([z.norm().item() for z in kept])


class Encoder(nn.Linear):
    def forward(self, images, params):
        return super().forward(images) + params


class ShiftEncoder(nn.Linear):
    def forward(self, images):
        return super().forward(images[:, :8]) + images[:, 8:]


class EarlyPredictor(nn.Linear):
    def forward(self, context, target, context_params, target_params):
        return super().forward(torch.cat([context, target_params - context_params], 1))


class Predictor(nn.Linear):
    def forward(self, encoded, context_params, target_params):
        return super().forward(torch.cat([encoded, target_params - context_params], 1))


class Overriding(JointEmbeddingPredictiveTrainer):
    def forward(self, images, params):
        return self.module["context_encoder"](torch.cat([images, params], 1))

    def forward_target(self, *args):
        return self.module["target_encoder"](torch.cat(args, 1))

    def forward_predictor(self, context, target, context_params, target_params):
        return self.module["predictor"](context, context_params, target_params)


def test_a_predictive_trainer_calls_its_networks_as_their_signatures_say(make_toy, tmp_path):
    """The same networks, called as in early 2025, by methods of early 2025, and as today on images that hold the params."""

    class Together(JointEmbeddingPredictiveTrainer):
        def format_context_target(self):
            pairs = self.batch.values() if isinstance(self.batch, dict) else self.batch
            return [(torch.cat(pair, 1), pair[1]) for pair in pairs]

    ends = []
    dicts = [dict(zip(("context", "target"), Pairs(True)[i], strict=True)) for i in range(24)]
    for number, (cls, encoder, predictor, *samples) in enumerate(
        [
            (JointEmbeddingPredictiveTrainer, Encoder, EarlyPredictor),
            (Overriding, ShiftEncoder, Predictor),
            (Together, ShiftEncoder, Predictor),
            (Together, ShiftEncoder, Predictor, dicts),
        ]
    ):
        torch.manual_seed(0)
        modules = {"context_encoder": encoder(8, 6), "target_encoder": encoder(8, 6), "predictor": predictor(7, 6)}
        modules["backbone_classifier"] = nn.Linear(6, 2)  # the pairs have no labels
        logger = {"dump_path": tmp_path / str(number), "level": 20}
        data = {"train": Loader(*samples or [Pairs(True)], 8)}
        trainer = make_toy(cls, data, modules, loss=F.mse_loss, logger=logger)
        trainer()
        ends.append(torch.cat([logged_loss := torch.tensor(logged(trainer, "train/loss")), values(trainer, *modules)]))
        assert logged_loss[-1] < logged_loss[0]
        assert ("Called as in early 2025" in said(trainer)) == (number < 2)
        assert "module.backbone_classifier has nothing to learn from" in said(trainer)
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])
    assert torch.equal(ends[3], ends[2])


def test_a_teacher_follows_the_schedule_that_a_subclass_has(make_ssl):
    class Halving(TeacherStudentModule):
        def update_ema_coefficient(self, epoch, total_epochs):
            self.ema_coefficient = torch.tensor(1.0 if epoch == 0 else 0.5 / total_epochs)

    class Watching(SelfDistillationTrainer):
        def after_fit_step(self):
            pair = self.module["backbone"]
            seen.append(
                (float(pair.ema_coefficient), pair.teacher.weight.clone(), pair.student.weight.detach().clone())
            )

    ends = []
    for module in (Halving, TeacherStudentModule):
        torch.manual_seed(0)
        seen = []
        networks = {
            "backbone": module(nn.Linear(8, 6), base_ema_coefficient=0.5),
            "projector": TeacherStudentModule(nn.Linear(6, 4)),
        }
        trainer = make_ssl(Watching, modules=networks, loss=NegativeCosineSimilarity())
        trainer()
        ends.append([momentum for momentum, _, _ in seen])
        for (_, before, _), (momentum, after, student) in itertools.pairwise(seen):
            torch.testing.assert_close(after, momentum * before + (1 - momentum) * student)
    assert ends[0] == [1.0] * 3 + [0.25] * 3
    assert ends[1] == pytest.approx([1 - 0.5 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)])


def test_an_assigned_momentum_is_that_of_the_run_when_it_is_resumed(make_ssl):
    class Falling(TeacherStudentModule):
        def update_ema_coefficient(self, epoch, total_epochs):
            self.ema_coefficient = 0.9 * self.ema_coefficient

    class Assigning(SelfDistillationTrainer):
        dies_at = None

        def before_fit_epoch(self):
            if self.epoch == 1:
                self.module["projector"].ema_coefficient = 0.5

        def after_fit_step(self):
            seen[int(self.global_step)] = [self.module[name].ema_coefficient for name in ("backbone", "projector")]
            if self.global_step == self.dies_at:
                raise InterruptedError

    def make(**logger):
        torch.manual_seed(0)
        networks = {"backbone": Falling(nn.Linear(8, 6)), "projector": TeacherStudentModule(nn.Linear(6, 4))}
        logger = {"checkpoint_every_step": 1, **logger}
        return make_ssl(Assigning, modules=networks, loss=NegativeCosineSimilarity(), epochs=3, logger=logger)

    seen = {}
    whole, part = make(), make()
    whole()
    expected, seen = seen, {}
    assert [expected[step][1] for step in range(4, 10)] == [0.5] * 6
    assert [expected[step][0] / expected[1][0] for step in (1, 4, 7)] == pytest.approx([1, 0.9, 0.81])
    for part.dies_at in (5, 7):  # the newest checkpoint is from within the second epoch, and from its end
        with pytest.raises(InterruptedError):
            part()
        part = make(dump_path=part.folder)
    part()
    assert seen == expected
    assert torch.equal(values(part, *part.module), values(whole, *whole.module))
    assert part.module["backbone"].state_dict().keys() == {
        f"{network}.{name}" for network in ("student", "teacher") for name in ("weight", "bias")
    }


def test_teachers_follow_once_per_step_although_a_hook_updates_them_too(make_ssl):
    class ByHand(SelfDistillationTrainer):
        def before_fit_step(self):  # before the run has updated a teacher, as after a resume
            for module in self.modules():
                if isinstance(module, TeacherStudentModule):
                    module.update_ema_coefficient(epoch=self.epoch, total_epochs=self.optim["epochs"])
                    module.update_teacher()

    class Idle(nn.Linear):
        def update_teacher(self):
            raise AssertionError

    def networks():
        torch.manual_seed(0)
        pair = {"backbone": nn.Linear(8, 6), "projector": nn.Linear(6, 4)}
        return {**{name: TeacherStudentModule(network) for name, network in pair.items()}, "predictor": Idle(4, 4)}

    ends = [
        make_ssl(cls, modules=networks(), loss=NegativeCosineSimilarity()) for cls in (ByHand, SelfDistillationTrainer)
    ]
    for trainer in ends:
        trainer()
    assert torch.equal(values(ends[0], *ends[0].module), values(ends[1], *ends[1].module))
    assert said(ends[0]).count("update_teacher() does nothing in a hook") == 2  # backbone and projector
    assert said(ends[0]).count("Idle.update_teacher() is not called by the run") == 1
    alone = TeacherStudentModule(nn.Linear(2, 2), base_ema_coefficient=0.5, final_ema_coefficient=1.0)
    nn.init.constant_(alone.teacher.bias, 0.0), nn.init.constant_(alone.student.bias, 1.0)
    alone.update_ema_coefficient(1, 2)
    alone.update_teacher()  # half a cosine is half over: the momentum is 0.75
    torch.testing.assert_close(alone.teacher.bias, torch.full((2,), 0.25))
    assert alone.ema_coefficient == pytest.approx(0.75)
    assert alone.ema_coefficient.item() == alone.ema_coefficient.clone().numpy() == 0.75
    assert copy.deepcopy(alone).base_ema_coefficient.item() == 0.5


# Monitors --------------------------------------------------------------------------------------------------------------


class Confidence(Monitor):
    name = "confidence"

    def compute(self, predictions):
        return predictions.softmax(-1).amax(-1).mean()


class Steps:
    """No Monitor, and without a state."""

    name = "steps"
    count = 0

    def compute(self, trainer):
        self.count += 1
        return self.count


class GlobalStep(Monitor):
    def compute(self, trainer):
        return trainer.global_step


def test_monitors_are_given_and_named_as_they_ask(make_sup):
    monitor = {
        "train": {"key": Steps()},
        "test": {"a": Confidence(), "b": GlobalStep(), "c": Steps(), "d": Steps()},
    }
    trainer = make_sup(logger={"monitor": monitor, "log_every_step": 3})
    trainer()
    assert logged(trainer, "train/steps") == [3, 6]  # it computes in each step
    with torch.no_grad():
        scores = trainer.module["backbone"](toy_dataset(16, seed=1).tensors[0]).softmax(-1).amax(-1)
    assert logged(trainer, "test/confidence")[-1] == pytest.approx(scores.mean().item())
    assert logged(trainer, "test/b")[-1] == 6  # a monitor without a name of its own has its key
    assert logged(trainer, "test/c") == logged(trainer, "test/d")  # and so have two of one name
    assert "a Steps has no state_dict(), so a resumed run begins it anew" in said(trainer)


def test_a_hook_that_computes_the_monitors_a_second_time_is_told_of(make_sup):
    class Copied(SupervisedTrainer):
        def after_fit_step(self):
            for metric in self.logger["monitor"]["train"].values():
                self._log({f"train/{metric.name}": metric.compute(self)})

    class Plain(SupervisedTrainer):
        def after_fit_step(self):
            self._log({"train/monitor": self.global_step})

    copied, plain = (make_sup(cls, logger={"monitor": {"train": {"key": Steps()}}}) for cls in (Copied, Plain))
    copied()
    plain()
    assert said(copied).count("Copied.after_fit_step computes the monitors of train, as the run does too") == 1
    assert "computes the monitors" not in said(plain)


# Functions -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [f"stable_ssl.{name}" for name in ("utils", "utils.utils", "utils.exceptions", "config", "data", "cli")]
)
def test_the_small_functions_of_early_2025_are_there(path):
    names = {
        "stable_ssl.config": "collapse_nested_dict instanciate_config WandbConfig",
        "stable_ssl.data": "DistributedSamplerWrapper",
        "stable_ssl.cli": "entry",
        "stable_ssl.utils": "str_to_dtype GatherLayer all_gather gather seed_everything BreakEpoch BreakStep NanError "
        "BreakAllEpochs to_device off_diagonal get_open_port get_gpu_info log_and_raise all_reduce reduce warn_once "
        "compute_global_mean broadcast rsetattr rgetattr",
        "stable_ssl.utils.utils": "find_module replace_module warn_once count_SLURM_jobs find_local_rank",
        "stable_ssl.utils.exceptions": "BreakAllEpochs BreakEpoch BreakStep NanError",
    }[path]
    module = importlib.import_module(path)
    assert all(callable(getattr(module, name)) for name in names.split())
    if path == "stable_ssl.config":
        assert module.collapse_nested_dict({"a": {"b": [1, {}]}, "c": 2}) == {"a.b.0": 1, "c": 2}


def test_public_names_of_early_2025_do_what_they_did(monkeypatch, tmp_path):
    wrapper = DistributedSamplerWrapper([5, 6, 7, 8], num_replicas=2, rank=1, shuffle=False)
    assert list(wrapper) == [6, 8]
    options = dataclasses.asdict(WandbConfig(project="p"))
    assert LoggerConfig(wandb=options)["wandb"] == options
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 1; echo 2; echo 3\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert count_SLURM_jobs(pending=True, running=False) == 3
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert find_local_rank() == 3
    monkeypatch.setattr("sys.argv", ["stable-ssl", "train", "nothing_of_this_name"])
    with pytest.raises(SystemExit, match="2"):
        entry()
    assert (stable_ssl.__title__, __about__.__version__) == ("stable-ssl", stable_ssl.__version__)
    with pytest.raises(ImportError, match="tabulate_runs is gone: pandas.pivot_table"):
        from stable_ssl.reader import tabulate_runs  # noqa: F401


def exchanged(x):
    from stable_ssl import utils

    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    own = x[2 * rank : 2 * rank + 2].clone().requires_grad_()
    ((rank + 1) * all_reduce(own.mean(0)).square().sum()).backward()  # both losses together: 3 times one
    gathered = utils.gather(own.detach(), rank=1)
    broadcast = utils.broadcast(own.detach() if rank == 0 else torch.zeros(1, 1), src_rank=0)
    mean = utils.compute_global_mean(own.detach(), dim=0)
    return own.grad, gathered, broadcast, mean, torch.cat(utils.GatherLayer.apply(own.detach()))


def test_exchanges_of_early_2025_are_those_of_one_process_with_all_rows(start_ranks):
    x = torch.arange(12.0).view(4, 3)
    whole = x.clone().requires_grad_()
    (3 * whole.mean(0).square().sum()).backward()
    for rank, (grad, gathered, broadcast, mean, rows) in enumerate(start_ranks(exchanged, x).results()):
        torch.testing.assert_close(grad, whole.grad[2 * rank : 2 * rank + 2])
        assert torch.equal(gathered, x if rank == 1 else x[:2])
        assert torch.equal(broadcast, x[:2])
        torch.testing.assert_close(mean, x.mean(0, keepdim=True))
        assert torch.equal(rows, x)
