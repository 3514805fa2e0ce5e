"""The life of a run is the documented one, call by call."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from endings import newest_state, status_of
from torch import nn
from toys import Toy, toy_backbone, toy_dataset

from stable_ssl import BaseTrainer, BreakAllEpochs, BreakEpoch, BreakStep, ConfigError, DataError, NanError
from stable_ssl.data import Loader
from stable_ssl.engine.optimizing import check_optimized

HOOKS = (
    "before_fit", "_fit", "before_fit_epoch", "_fit_epoch", "before_fit_step", "_fit_step", "after_fit_step",
    "after_fit_epoch", "_evaluate", "before_eval", "before_eval_step", "_eval_step", "after_eval_step", "after_eval",
    "after_fit",
)  # fmt: skip


class Recorder(Toy):
    """Notes each hook as it is entered, with what the hook can see."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []


def _recording(name):
    def hook(self, *args):
        self.calls.append((name, *args))
        return getattr(Toy, name)(self, *args)

    return hook


for _name in HOOKS:
    setattr(Recorder, _name, _recording(_name))


def documented_sequence(epochs, batches, sets):
    """The sequence that the documentation of BaseTrainer gives, written out."""
    evaluation = [("_evaluate",), ("before_eval",)]
    for name, size in sets.items():
        evaluation += [("before_eval_step",), ("_eval_step", name), ("after_eval_step",)] * size
    evaluation += [("after_eval",)]
    calls = [("before_fit",), ("_fit",)]
    for _ in range(epochs):
        calls += [("before_fit_epoch",), ("_fit_epoch",)]
        calls += [("before_fit_step",), ("_fit_step",), ("after_fit_step",)] * batches
        calls += [("after_fit_epoch",)]
        calls += evaluation
    return [*calls, ("after_fit",)]


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_hooks_run_in_the_documented_order(make_toy, accumulation_steps):
    data = {
        "train": Loader(toy_dataset(24), 8),
        "valid": Loader(toy_dataset(16), 8),
        "test": Loader(toy_dataset(8), 8),
    }
    trainer = make_toy(Recorder, data, accumulation_steps=accumulation_steps)
    trainer()
    assert trainer.calls == documented_sequence(epochs=2, batches=3, sets={"valid": 2, "test": 1})
    assert trainer.global_step == {1: 6, 2: 4}[accumulation_steps]  # 3 batches are a group of 2 and one of 1
    assert trainer.epoch == 2


def test_without_train_it_evaluates_only(make_toy):
    trainer = make_toy(Recorder, {"test": Loader(toy_dataset(8), 8)}, optimizer=None)
    trainer()
    assert [call[0] for call in trainer.calls] == [
        "_evaluate", "before_eval", "before_eval_step", "_eval_step", "after_eval_step", "after_eval",
    ]  # fmt: skip


def test_modules_are_in_the_mode_of_their_phase(make_toy):
    class Modes(Toy):
        def compute_loss(self):
            assert self.module["backbone"].training
            return super().compute_loss()

        def _eval_step(self, name_loader):
            assert not self.module["backbone"].training
            assert not torch.is_grad_enabled()

    make_toy(Modes, {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(), 8)})()


def test_counters_and_stepped_follow_groups_not_batches(make_toy):
    class Counting(Toy):
        seen = []

        def after_fit_step(self):
            self.seen.append((self.epoch, self.batch_idx, self.stepped, self.global_step))

    make_toy(Counting, accumulation_steps=2)()
    assert Counting.seen == [
        (0, 0, False, 0), (0, 1, True, 1), (0, 2, True, 2),
        (1, 0, False, 2), (1, 1, True, 3), (1, 2, True, 4),
    ]  # fmt: skip


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.module["backbone"].parameters()])


def test_accumulation_equals_the_mean_gradient_of_the_real_group(make_toy):
    """Against plain PyTorch: groups of 2 and 1, each divided by its own size; no batch norm, no dropout."""
    torch.manual_seed(1)
    plain = nn.Linear(8, 2)
    ours = nn.Linear(8, 2)
    ours.load_state_dict(plain.state_dict())
    x, y = toy_dataset(24).tensors
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for group in ([0, 1], [2]):
        losses = [nn.functional.cross_entropy(plain(x[8 * b : 8 * b + 8]), y[8 * b : 8 * b + 8]) for b in group]
        (sum(losses) / len(losses)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    trainer = make_toy(
        data={"train": Loader(toy_dataset(24), 8)},
        module={"backbone": ours},
        accumulation_steps=2,
        epochs=1,
        scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
    )
    trainer()
    torch.testing.assert_close(ours.weight, plain.weight)
    assert trainer.optim["optimizer"].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(("max_steps", "expected"), [(-1, 3), (2, 2), (7, 3), (0.5, 1), (0.7, 2)])
def test_max_steps_counts_the_mini_batches_of_an_epoch(make_toy, max_steps, expected):
    trainer = make_toy(max_steps=max_steps)
    trainer()
    assert trainer.global_step == 2 * expected
    assert trainer.optim["total_steps"] == 2 * expected


def test_a_stream_that_ends_inside_a_group_steps_with_the_real_mean(make_toy, tmp_path):
    x, y = toy_dataset(24).tensors

    class Stream:
        def __iter__(self):
            return iter([(x[:8], y[:8]), (x[8:16], y[8:16]), (x[16:], y[16:])])

    def run(name, data, **optim):
        torch.manual_seed(1)
        optim = {"epochs": 1, "accumulation_steps": 2, **optim}
        trainer = make_toy(Toy, data, {"backbone": nn.Linear(8, 2)}, logger={"dump_path": tmp_path / name}, **optim)
        trainer()
        return trainer

    known, unknown = (
        run("known", {"train": [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]}),
        run("unknown", {"train": Stream()}, max_steps=4),
    )
    assert known.global_step == unknown.global_step == 2
    torch.testing.assert_close(weights(known), weights(unknown))


def test_a_list_or_dict_of_losses_is_summed_and_logged_one_by_one(make_toy):
    class Several(Toy):
        def compute_loss(self):
            loss = super().compute_loss()
            return {"task": loss, "twice": 2 * loss, "constant": 1.0}

    trainer = make_toy(Several, epochs=1)
    trainer()
    for record in trainer.get_logs():
        assert record["train/twice"] == pytest.approx(2 * record["train/task"])
        assert record["train/constant"] == 1.0
        assert record["train/loss"] == pytest.approx(3 * record["train/task"] + 1)

    class Listed(Toy):
        def compute_loss(self):
            loss = super().compute_loss()
            return [loss, loss]

    trainer = make_toy(Listed, epochs=1, logger={"dump_path": f"{trainer.folder}_list"})
    trainer()
    assert {"train/loss_0", "train/loss_1", "train/loss"} <= trainer.get_logs()[0].keys()


@pytest.mark.parametrize("returned", [None, 3.0, "loss", [], {"a": 1.0}])
def test_a_loss_that_is_none_says_what_was_expected(make_toy, returned):
    class Wrong(Toy):
        def compute_loss(self):
            return returned

    with pytest.raises(TypeError, match=r"compute_loss\(\) returned .* expected a scalar tensor"):
        make_toy(Wrong)()


def test_an_error_in_compute_loss_says_what_the_batch_was(make_toy):
    class Wrong(Toy):
        def compute_loss(self):
            return self.batch["image"]

    with pytest.raises(TypeError) as caught:
        make_toy(Wrong)()
    assert "batch 0 of epoch 1: [float32 (8, 8), int64 (8,) from 0 to 1]" in caught.value.__notes__[0]


def breaking(exception, hook, epoch=0, batch_idx=1):
    class Breaking(Toy):
        fitted = None

        def _fit_step(self):
            self.fitted = [*(self.fitted or []), (self.epoch, self.batch_idx)]
            super()._fit_step()

    def raise_once(self):
        if (self.epoch, self.batch_idx) == (epoch, batch_idx):
            raise exception("enough")
        getattr(Toy, hook)(self)

    setattr(Breaking, hook, raise_once)
    return Breaking


def test_break_step_leaves_out_the_rest_of_the_batch(make_toy):
    trainer = make_toy(breaking(BreakStep, "before_fit_step"))
    trainer()
    assert trainer.fitted == [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert trainer.global_step == 5


def test_break_step_on_the_last_batch_of_a_group_still_steps_with_the_others(make_toy):
    trainer = make_toy(breaking(BreakStep, "before_fit_step"), accumulation_steps=2)
    trainer()
    assert trainer.global_step == 4


def test_break_epoch_goes_on_with_the_next_epoch(make_toy):
    trainer = make_toy(breaking(BreakEpoch, "before_fit_step"))
    trainer()
    assert trainer.fitted == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_break_epoch_after_a_step_keeps_its_record_and_its_checkpoint(make_toy):
    trainer = make_toy(breaking(BreakEpoch, "after_fit_step"), logger={"log_every_step": 2, "checkpoint_every_step": 2})
    trainer()
    assert trainer.fitted == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert [r["global_step"] for r in trainer.get_logs() if "train/loss" in r] == [2, 4]
    assert (trainer.folder / "checkpoints" / "step_00000004").is_dir()


def test_break_epoch_inside_a_group_logs_nothing_of_it(make_toy):
    data = {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(8), 8)}
    trainer = make_toy(breaking(BreakEpoch, "before_fit_step"), data, accumulation_steps=2)
    trainer()
    assert [r["global_step"] for r in trainer.get_logs()] == [1, 2]


def test_hooks_that_forget_super_lose_nothing(make_toy):
    class Bare(Toy):
        modes = ()

        def before_fit_epoch(self):
            pass

        def before_fit_step(self):
            self.modes = (*self.modes, self.module["backbone"].training)

        def after_fit_step(self):
            pass

        def before_eval(self):
            self.modes = (*self.modes, self.module["backbone"].training)

    data = {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(8), 8)}
    steps = Steps()
    trainer = make_toy(Bare, data, logger={"monitor": {"train": {"steps": steps}}})
    trainer()
    assert trainer.modes == (True, True, True, False, True, True, True, False)
    assert steps.seen == 6


class Steps:
    seen = 0

    def on_step(self, trainer):
        self.seen += 1

    def compute(self, trainer):
        return self.seen

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_what_gives_batches_only_once_is_found_out(make_toy):
    batches = ((torch.randn(8, 8), torch.zeros(8, dtype=torch.long)) for _ in range(3))
    with pytest.raises(DataError, match="gave no batch in epoch 2"):
        make_toy(data={"train": batches}, max_steps=3)()


def test_a_poisoned_running_statistic_is_never_checkpointed(make_toy):
    class Poisoned(Toy):
        def compute_loss(self):
            if self.global_step == 3:
                self.batch[0][0] = float("nan")
            return super().compute_loss()

    trainer = make_toy(Poisoned, nonfinite="skip", logger={"checkpoint_every_step": 1})
    with pytest.raises(NanError, match="running statistic"):
        trainer()
    assert not (trainer.folder / "checkpoints" / "step_00000004").exists()


def test_a_module_begins_the_same_whatever_stands_beside_it(make_toy, tmp_path):
    node = {"_target_": "torch.nn.Linear", "in_features": 8, "out_features": 2}
    one = make_toy(module={"backbone": node})
    other = make_toy(module={"head": dict(node), "backbone": node}, logger={"dump_path": tmp_path / "other"})
    one.setup()
    other.setup()
    assert torch.equal(other.module["backbone"].weight, one.module["backbone"].weight)


@pytest.mark.parametrize("name", ["loss_fn", "data_dir", "log_dir"])
def test_attributes_may_have_names_a_little_like_the_constructors(make_toy, name):
    class Named(Toy):
        pass

    assert getattr(make_toy(functools.partial(Named, **{name: 3})), name) == 3


def test_break_all_epochs_ends_training_without_after_fit(make_toy):
    class Stopping(breaking(BreakAllEpochs, "before_fit_step")):
        def after_fit(self):
            raise AssertionError("after_fit is skipped")

    trainer = make_toy(Stopping)
    trainer()
    assert trainer.fitted == [(0, 0)]
    assert status_of(trainer) == "stopped"


class Exploding(Toy):
    bad = float("nan")

    def compute_loss(self):
        return super().compute_loss() * (self.bad if self.global_step == 3 else 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("log_every_step", [1, 100])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_never_checkpointed(make_toy, bad, log_every_step):
    Exploding.bad = bad
    trainer = make_toy(Exploding, logger={"checkpoint_every_step": 1, "log_every_step": log_every_step})
    with pytest.raises(NanError, match="The loss of step 4 is"):
        trainer()
    assert status_of(trainer) == "failed"
    state = newest_state(trainer)
    assert state["progress"]["global_step"] == 3
    assert all(torch.isfinite(value).all() for value in state["modules"].values())


def test_nonfinite_skip_leaves_out_the_step_and_counts_it(make_toy):
    trainer = make_toy(Exploding, nonfinite="skip")
    trainer()
    assert trainer.global_step == 6
    assert torch.isfinite(weights(trainer)).all()


def test_gradients_are_clipped_to_the_asked_norm(make_toy):
    seen = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(float(torch.nn.utils.get_total_norm([p.grad for g in self.param_groups for p in g["params"]])))
            return super().step()

    make_toy(grad_max_norm=1e-3, optimizer=functools.partial(Watching, lr=0.1))()
    assert len(seen) == 6
    assert all(norm == pytest.approx(1e-3, rel=1e-3) for norm in seen)


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(make_toy):
    class Watching(Toy):
        def compute_loss(self):
            self.seen = self.predict().dtype
            return super().compute_loss()

    trainer = make_toy(Watching, hardware={"precision": "bf16"})
    trainer()
    assert trainer.seen == torch.bfloat16
    assert weights(trainer).dtype == torch.float32


def test_fp16_on_a_cpu_becomes_fp32_with_a_warning(make_toy, capsys):
    trainer = make_toy(hardware={"float16": True}, logger={"level": 30})
    trainer()
    assert trainer.hardware["precision"] == "fp32"
    assert "fp16 needs a CUDA device" in capsys.readouterr().err


def test_channels_last_reaches_weights_and_images(make_toy):
    class Images(Toy):
        def compute_loss(self):
            assert self.batch[0].is_contiguous(memory_format=torch.channels_last)
            return super().compute_loss()

    images = torch.utils.data.TensorDataset(torch.randn(16, 3, 8, 8), torch.zeros(16, dtype=torch.long))
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    make_toy(Images, {"train": Loader(images, 8)}, {"backbone": backbone}, hardware={"channels_last": True})()
    assert backbone[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_compile_keeps_the_users_module_and_its_names(make_toy):
    backbone = toy_backbone()
    names = list(backbone.state_dict())
    trainer = make_toy(module={"backbone": backbone}, hardware={"compile": True}, epochs=1)
    trainer()
    assert trainer.module["backbone"] is backbone
    assert list(backbone.state_dict()) == names
    assert backbone._compiled_call_impl is not None


def test_a_teacher_follows_once_an_optimizer_step(make_toy):
    class Teacher(nn.Linear):
        seen = ()

        def update_teacher(self, progress):
            self.seen = (*self.seen, progress)

    teacher = Teacher(2, 2).requires_grad_(False)
    trainer = make_toy(module={"backbone": toy_backbone(), "teacher": teacher}, accumulation_steps=2)
    trainer()
    assert trainer.global_step == 4
    assert teacher.seen == (0, 0.25, 0.5, 0.75)


def test_learning_rates_follow_the_global_batch_where_that_is_asked_for(make_toy):
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    schedule = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    trainer = make_toy(optimizer=sgd, scheduler=schedule, lr_batch_size=32, accumulation_steps=2, epochs=1)
    trainer()
    assert [record["train/lr"] for record in trainer.get_logs()] == pytest.approx([0.05, 0.025])  # 2 × 8 of 32
    elsewhere = {"dump_path": trainer.folder.parent / "other"}
    trainer = make_toy(data={"train": [toy_dataset()[:8]]}, optimizer=sgd, lr_batch_size=32, logger=elsewhere)
    with pytest.raises(ConfigError, match="lr_batch_size: data.train does not tell its batch_size"):
        trainer.setup()


def test_metrics_see_predictions_and_labels_of_every_sample_once(make_toy):
    from torchmetrics.classification import MulticlassAccuracy

    x, y = toy_dataset(21).tensors
    data = {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(21), 8)}
    trainer = make_toy(data=data, logger={"metric": {"test": {"accuracy": MulticlassAccuracy(2, average="micro")}}})
    trainer()
    with torch.no_grad():
        expected = (trainer.module["backbone"].eval()(x).argmax(1) == y).float().mean()
    assert trainer.get_logs()[-1]["test/accuracy"] == pytest.approx(float(expected))


def test_weights_are_kept_at_the_asked_frequency_and_at_the_end(make_toy):
    from safetensors.torch import load_file

    trainer = make_toy(epochs=3, logger={"checkpoint_frequency": 2, "save_final_model": True})
    trainer()
    folder = trainer.folder / "weights"
    assert sorted(file.name for file in folder.iterdir()) == ["epoch_0002.safetensors", "final.safetensors"]
    kept = load_file(folder / "final.safetensors")
    own = {f"backbone.{key}": value for key, value in trainer.module["backbone"].state_dict().items()}
    assert kept.keys() == own.keys()
    assert all(torch.equal(kept[key], own[key]) for key in own)


def test_full_states_are_kept_beside_the_newest_checkpoints(make_toy):
    trainer = make_toy(
        epochs=5, logger={"checkpoint_frequency": 2, "checkpoint_model_only": False, "checkpoint_keep": 1}
    )
    trainer()
    per_epoch = trainer.global_step // 5
    steps = [int(folder.name[5:]) for folder in (trainer.folder / "checkpoints").iterdir()]
    assert sorted(steps) == [2 * per_epoch, 4 * per_epoch, 5 * per_epoch]


def test_module_init_starts_from_the_weights_of_a_run(make_toy, tmp_path):
    first = make_toy(logger={"save_final_model": True})
    first()
    second = Toy(
        {"test": Loader(toy_dataset(), 8)},
        {"backbone": nn.Sequential(*toy_backbone()).apply(lambda m: None)},
        {"device": "cpu"},
        {},
        {"dump_path": tmp_path / "second", "level": 50},
        module_init={"backbone": first.folder},
    )
    nn.init.zeros_(second.module["backbone"][0].weight)
    second()
    assert torch.equal(weights(first), weights(second))
    assert second.global_step == 0


def test_every_mistake_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        Toy(
            data={"train": {"_target_": "stable_ssl.data.Loder", "batch_size": 8}},
            module={"backbone": {"_target_": "stable_ssl.modules.MLP", "size": [1, 2]}},
            hardware={"precission": "bf16"},
            optim={"epochs": "ten"},
            logger={"metric": {"tset": {}}},
            losss=None,
            epoch=3,
        )
    text = str(caught.value)
    for expected in (
        "data.train._target_", "Did you mean 'Loader'", "module.backbone.size", "Did you mean 'sizes'",
        "hardware.precission", "Did you mean 'precision'", "optim.epochs: 'ten'", "logger.metric.tset",
        "losss: unknown argument. Did you mean 'loss'", "epoch: BaseTrainer uses this name",
    ):  # fmt: skip
        assert expected in text, text


def test_a_missing_required_module_is_named():
    from stable_ssl import JointEmbeddingTrainer

    with pytest.raises(
        ConfigError,
        match="module.projector: missing; JointEmbeddingTrainer needs it. Did you mean 'projektor'",
    ):
        JointEmbeddingTrainer(
            {"train": [1]},
            {"backbone": nn.Identity(), "projektor": nn.Identity()},
            {},
            {"optimizer": torch.optim.SGD},
            {},
        )


def test_one_view_where_two_are_needed_is_explained(make_toy):
    from stable_ssl import JointEmbeddingTrainer, NTXEntLoss

    with pytest.raises(DataError, match="needs 2 views of each image"):
        make_toy(
            JointEmbeddingTrainer,
            module={"backbone": nn.Linear(8, 4), "projector": nn.Linear(4, 4)},
            loss=NTXEntLoss(),
        )()


class Plain(BaseTrainer):
    """Implements nothing."""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cls": Plain}, r"Plain does not implement compute_loss\(\), which training needs"),
        ({"loss": nn.CrossEntropyLoss}, "loss: a class, CrossEntropyLoss; make an object of it"),
        (
            {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)},
            "optim.optimizer: has none of the parameters",
        ),
        ({"optimizer": lambda p: [torch.optim.SGD(p, lr=0.1)]}, "optim.optimizer: makes a list, not an optimizer"),
        (
            {"optimizer": "AdamW"},
            "optim.optimizer: 'AdamW' is neither a node nor a callable. Set optim.optimizer._target_",
        ),
        ({"scheduler": functools.partial(torch.optim.lr_scheduler.StepLR)}, "optim.scheduler: TypeError: .*step_size"),
        ({"logger": {"monitor": {"train": {"m": len}}}}, r"logger.monitor.train.m: a builtin.* has no compute\(\)"),
        ({"logger": {"metric": {"test": {"m": dict}}}, "data": True}, "logger.metric.test.m: .* is a class"),
        (
            {"data": True, "cls": Plain, "logger": {"metric": {"test": {"m": 1}}}},
            r"predict\(\), which logger.metric needs",
        ),
    ],
)
def test_a_mistake_is_found_before_training_and_named(make_toy, options, words):
    if options.get("data"):
        options = {**options, "data": {"test": Loader(toy_dataset(), 8)}}
    with pytest.raises(ConfigError, match=words):
        make_toy(**options).setup()


def test_parameters_that_no_optimizer_has_are_named(make_toy):
    class Tempered(Toy):
        def compute_loss(self):
            return super().compute_loss() * self.temperature

    plain = make_toy()
    trainer = Tempered(*plain._captured[0], temperature=nn.Parameter(torch.ones(())))
    trainer.logger["level"] = 20
    trainer()
    assert "No optimizer has temperature" in (trainer.folder / "console.log").read_text()


def test_modules_that_an_optimizer_of_the_user_lacks_are_named(caplog):
    module = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("backbone", "projector", "head")})
    optimizer = torch.optim.SGD([*module["backbone"].parameters(), module["head"].weight], lr=0.1)
    check_optimized(optimizer, {}, nn.ModuleDict({"module": module}).named_parameters())
    assert "optim.optimizer: it lacks module.projector, module.head.bias, so nothing trains them." in caplog.text


def test_a_metric_that_can_not_take_the_predictions_is_named(make_toy):
    from torchmetrics.classification import MulticlassAccuracy

    data = {"test": Loader(toy_dataset(), 8)}
    with pytest.raises((ValueError, RuntimeError), match="preds|class|shape") as caught:
        make_toy(data=data, logger={"metric": {"test": {"accuracy": MulticlassAccuracy(5)}}})()
    assert "logger.metric.test.accuracy took predictions float32 (8, 2)" in caught.value.__notes__[0]


def test_a_constructor_may_call_itself_anything(make_toy):
    class Odd(Toy):
        def __init__(this, *args, margin=1, **kwargs):
            super().__init__(*args, **kwargs)

    assert make_toy(Odd).get_config()["trainer"]["optim"]["epochs"] == 2


def test_one_loader_may_have_two_names(make_toy):
    loader = Loader(toy_dataset(10), 4)
    trainer = make_toy(data={"train": loader, "test": loader})
    trainer()
    assert (trainer.data["train"].name, trainer.data["test"].name) == ("train", "test")


def test_logs_that_can_not_be_opened_end_the_run_and_let_the_folder_go(make_toy, tmp_path):
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(ConfigError, match="metrics.jsonl' can't be written: Is a directory"):
        make_toy()()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"
    (tmp_path / "run" / "metrics.jsonl").rmdir()
    make_toy()()
