"""What a subclass may add without touching a private name: it does what its docstring says, and is exact on resume."""

from __future__ import annotations

import functools
import os
import signal

import pytest
import torch
from endings import ending, newest_state, same, status_of
from torch import nn
from toys import Toy, toy_backbone, toy_dataset

from stable_ssl import BaseTrainer, BreakAllEpochs, BreakEpoch, BreakStep, ConfigError, Preempted
from stable_ssl.data import Loader
from stable_ssl.engine.alone import is_idle


class Count:
    """An object with a state of its own."""

    def __init__(self):
        self.steps = 0

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class Noted(nn.Linear):
    """A layer that is told when epochs and steps begin."""

    def __init__(self, *args):
        super().__init__(*args)
        self.told = []

    def begin_epoch(self, epoch):
        self.told.append(("epoch", epoch))

    def begin_step(self, progress):
        self.told.append(("step", round(progress, 3)))


class Extended(Toy):
    """A method that uses every extension point: a critic with an optimizer of its own, noise on gradients, a count."""

    dies_at = None

    def prepare_modules(self, modules):
        modules["critic"] = nn.Linear(8, 1)
        self.count = Count()
        self.register("count", self.count)

    def initialize_modules(self):
        nn.init.constant_(self.module["critic"].weight, 0.5)

    def optimized_modules(self):
        return {name: module for name, module in super().optimized_modules().items() if name != "critic"}

    def side_optimizers(self):
        return {"critic_optimizer": torch.optim.Adam(self.module["critic"].parameters(), lr=0.01)}

    def side_losses(self):
        return {"loss_critic": self.module["critic"](self.batch[0]).square().mean()}

    def before_optimizer_step(self):
        for parameter in self.module["backbone"].parameters():
            if parameter.grad is not None:
                parameter.grad += 1e-3 * self.count.steps
        self.count.steps += 1

    def compute_loss(self):
        if self.global_step + 1 == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute_loss()


def make(folder, cls=Extended, batch_size=8, **optim):
    torch.manual_seed(0)
    return cls(
        {"train": Loader(toy_dataset(48), batch_size, shuffle=True)},
        {"backbone": toy_backbone()},
        {"device": "cpu"},
        {
            "optimizer": functools.partial(torch.optim.AdamW, lr=0.01),
            "scheduler": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=9),
            "epochs": 3,
            "accumulation_steps": 2,
            "groups": {
                "backbone": {"weight_decay": 0.2},
                "backbone.4.*": {"lr": 0.05, "schedule": "none"},
                "backbone.0.weight": {"lr_scale": 0.1, "frozen_epochs": 2},
            },
            **optim,
        },
        {"dump_path": folder, "level": 50, "checkpoint_every_step": 1},
    )


def run(folder, dies_at, batch_size):
    trainer = make(folder, batch_size=batch_size)
    trainer.dies_at = dies_at
    trainer()


@pytest.mark.parametrize("size", [1, 2])
def test_all_of_it_is_exact_on_resume(start_ranks, tmp_path, size):
    batch_size = 8 // size
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    start_ranks(run, alone, None, batch_size, world_size=size).results()
    assert start_ranks(run, killed, 8, batch_size, world_size=size).join() == [-signal.SIGKILL] * size
    start_ranks(run, killed, None, batch_size, world_size=size).results()
    (state, log), (expected, expected_log) = ending(killed), ending(alone)
    assert state["parts"]["registered.count"] == {"steps": 9}
    assert {"optimizer", "scheduler", "critic_optimizer"} < state["parts"].keys()
    assert same(state, expected)
    assert log == expected_log
    assert {"train/loss", "train/loss_critic"} < log[0].keys()


def test_groups_have_rates_decays_and_frozen_epochs_of_their_own(tmp_path):
    weights, rates = [], []

    class Watching(Extended):
        def after_fit_epoch(self):
            weights.append([p.detach().clone() for p in self.module["backbone"].parameters()])
            rates.append({group["name"]: group["lr"] for group in self.optim["optimizer"].param_groups})

    trainer = make(tmp_path / "run", Watching)
    trainer.setup()
    first = [p.detach().clone() for p in trainer.module["backbone"].parameters()]
    groups = {group["name"]: group for group in trainer.optim["optimizer"].param_groups}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "backbone": 0.2,
        "backbone.4.*": 0.01,
        "backbone.0.weight": 0.01,
    }
    assert {name: len(group["params"]) for name, group in groups.items()} == {
        "backbone": 3,
        "backbone.4.*": 2,
        "backbone.0.weight": 1,
    }
    trainer.launch()
    is_frozen = [torch.equal(values[0], first[0]) for values in weights]
    assert is_frozen == [True, True, False]
    assert not torch.equal(weights[0][1], first[1])
    cosine = [0.01 * (1 + torch.cos(torch.tensor(torch.pi * step / 9)).item()) / 2 for step in (3, 6, 9)]
    for found, expected in zip(rates, cosine, strict=True):
        assert found["backbone.4.*"] == 0.05
        assert found["backbone"] == pytest.approx(expected, abs=1e-9)
        assert found["backbone.0.weight"] == pytest.approx(0.1 * expected, abs=1e-9)


def test_groups_train_as_torchs_own_groups_do(make_toy):
    """The same two groups, given to torch by hand in a plain loop."""
    settings = {"backbone.4.*": {"lr": 0.02, "weight_decay": 0.3}}
    data = [(x[None], y[None]) for x, y in toy_dataset(6)]
    torch.manual_seed(0)
    network, reference = (
        nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Tanh(), nn.Tanh(), nn.Linear(4, 2)) for _ in "ab"
    )
    reference.load_state_dict(network.state_dict())
    optimizer = functools.partial(torch.optim.AdamW, lr=0.1)
    make_toy(data={"train": data}, module={"backbone": network}, epochs=1, optimizer=optimizer, groups=settings)()
    by_hand = torch.optim.AdamW(
        [{"params": reference[0].parameters()}, {"params": reference[4].parameters(), **settings["backbone.4.*"]}],
        lr=0.1,
    )
    for x, y in data:
        nn.functional.cross_entropy(reference(x), y).backward()
        by_hand.step()
        by_hand.zero_grad()
    assert all(map(torch.equal, network.parameters(), reference.parameters()))


def test_the_global_batch_scales_every_group(make_toy):
    groups = {"backbone.4": {"lr": 0.5}, "backbone.0.*": {"lr_scale": 2.0}}
    with pytest.raises(ConfigError, match=r"optim.groups.backbone.4: no trainable parameter of \['backbone'\]"):
        make_toy(groups=groups).setup()
    groups = {"backbone.4.*": {"lr": 0.5}, "backbone.0.*": {"lr_scale": 2.0}}
    trainer = make_toy(groups=groups, lr_batch_size=4, exclude_bias_norm=True)
    trainer.setup()
    found = [(g.get("name"), g["lr"], g["weight_decay"]) for g in trainer.optim["optimizer"].param_groups]
    others = [(None, 0.2, 0.0)]  # normalisation has no weights of two dimensions
    ours = [("backbone.4.*", 1.0, 0.0)] * 2 + [("backbone.0.*", 0.4, 0.0)] * 2
    assert found == others + ours


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"backbone": {"lr_sclae": 2}}, "optim.groups.backbone.lr_sclae: unknown key .*Did you mean 'lr_scale'"),
        ({"backbone": {"lr": -1}}, "optim.groups.backbone.lr: -1 is not a finite number above 0"),
        ({"backbone": {"lr": 1, "lr_scale": 2}}, "optim.groups.backbone: lr and lr_scale contradict each other"),
        ({"backbone": {"schedule": "cosine"}}, "optim.groups.backbone.schedule: 'cosine' is not"),
        ({"backbone": 0.1}, "optim.groups.backbone: 0.1 is not a dict"),
    ],
)
def test_mistakes_in_groups_are_named(make_toy, groups, said):
    with pytest.raises(ConfigError, match=said):
        make_toy(groups=groups)


def gradients_before_each_step(folder, batch_size):
    seen = []

    class Looking(Toy):
        def before_optimizer_step(self):
            seen.append([p.grad.clone() for p in self.parameters()])

    trainer = Looking(
        {"train": Loader(toy_dataset(16), batch_size)},
        {"backbone": nn.Linear(8, 2)},
        {"device": "cpu"},
        {
            "optimizer": functools.partial(torch.optim.SGD, lr=0.0),
            "epochs": 1,
            "accumulation_steps": 2,
            "grad_max_norm": 1e-9,
        },
        {"dump_path": folder, "level": 50},
    )
    nn.init.zeros_(trainer.module["backbone"].weight)
    nn.init.zeros_(trainer.module["backbone"].bias)
    trainer()
    return seen


@pytest.mark.parametrize("size", [1, 2])
def test_before_an_optimizer_step_gradients_are_those_of_the_whole_group_and_not_clipped(start_ranks, tmp_path, size):
    """Of a linear classifier at zero, by the formula: mean of (softmax - target) x."""
    for found in start_ranks(gradients_before_each_step, tmp_path / "run", 4 // size, world_size=size).results():
        x, y = toy_dataset(16).tensors
        assert len(found) == 2
        for (weight, bias), images, labels in zip(found, x.split(8), y.split(8), strict=True):
            error = 0.5 - nn.functional.one_hot(labels, 2).float()
            torch.testing.assert_close(weight, error.T @ images / 8)
            torch.testing.assert_close(bias, error.mean(0))


def test_a_step_that_is_broken_off_before_the_optimizer_counts_and_changes_nothing(make_toy):
    class Refusing(Toy):
        def before_optimizer_step(self):
            if self.global_step == 1:
                raise BreakStep
            if self.global_step == 3:
                raise BreakAllEpochs

    weights = []

    class Watching(Refusing):
        def after_fit_step(self):
            weights.append(self.module["backbone"][0].weight.detach().clone())

    trainer = make_toy(Watching)
    trainer()
    assert trainer.global_step == 3
    assert torch.equal(weights[1], weights[0])
    assert not torch.equal(weights[2], weights[1])


def test_side_losses_leave_the_method_as_it_was(make_toy, tmp_path):
    class Sided(Toy):
        def prepare_modules(self, modules):
            modules["critic"] = nn.Linear(8, 1, device="cpu")

        def optimized_modules(self):
            return {"backbone": self.module["backbone"]}

        def side_optimizers(self):
            return {"critic": torch.optim.SGD(self.module["critic"].parameters(), lr=0.1)}

        def side_losses(self):
            return {"a": self.module["critic"](self.batch[0]).mean(), "b": self.module["critic"].weight.square().sum()}

    plain, sided = make_toy(), make_toy(Sided, logger={"dump_path": tmp_path / "sided"})
    plain()
    sided.setup()
    before = sided.module["critic"].weight.detach().clone()
    sided.launch()
    assert all(map(torch.equal, plain.module["backbone"].parameters(), sided.module["backbone"].parameters()))
    assert not torch.equal(sided.module["critic"].weight, before)
    assert {"train/a", "train/b"} < sided.get_logs()[0].keys()


def test_parameters_of_two_optimizers_are_named(make_toy):
    class Twice(Toy):
        def side_optimizers(self):
            return {"again": torch.optim.SGD(self.module["backbone"][0].parameters(), lr=0.1)}

    with pytest.raises(ConfigError, match=r"has \['module.backbone.0.weight', 'module.backbone.0.bias'\] too"):
        make_toy(Twice).setup()


def test_hooks_outside_of_steps_draw_the_same_whatever_was_drawn_before(make_toy, tmp_path):
    def drawn(name, number):
        draws = []

        class Drawing(Toy):
            def before_fit(self):
                draws.append(torch.rand(()).item())

            def after_fit_step(self):
                torch.rand(number)

            after_fit_epoch = before_eval = after_eval = before_fit

        torch.manual_seed(number)
        data = {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(8), 8)}
        make_toy(Drawing, data, logger={"dump_path": tmp_path / name})()
        return draws

    first, second = drawn("a", 1), drawn("b", 7)
    assert first == second
    assert len(set(first)) > 1


def test_a_side_optimizer_skips_the_step_that_the_method_skips(make_toy):
    moved = []

    class Bad(Extended):
        def compute_loss(self):
            return super().compute_loss() * (float("nan") if self.global_step == 1 else 1.0)

        def after_fit_step(self):
            moved.append(self.module["critic"].weight.detach().clone())

    make_toy(Bad, epochs=1, nonfinite="skip")()
    assert torch.equal(moved[1], moved[0])
    assert not torch.equal(moved[2], moved[1])


def test_modules_and_losses_are_told_when_epochs_and_steps_begin(make_toy):
    class Loss:
        def __init__(self):
            self.epochs = []

        def begin_epoch(self, epoch):
            self.epochs.append(epoch)

    layer, loss = Noted(8, 2), Loss()
    make_toy(module={"backbone": layer}, loss=loss, accumulation_steps=2)()
    steps = [("step", 0.0), ("step", 0.25)], [("step", 0.5), ("step", 0.75)]
    assert layer.told == [("epoch", 0), *steps[0], ("epoch", 1), *steps[1]]
    assert loss.epochs == [0, 1]


def test_first_values_are_set_in_a_new_run_only_and_after_weights_were_loaded(make_toy):
    class First(Toy):
        calls = 0

        def initialize_modules(self):
            type(self).calls += 1
            nn.init.constant_(self.module["backbone"][0].weight, 3.0)

    trainer = make_toy(First, epochs=1)
    trainer.setup()
    assert (trainer.module["backbone"][0].weight == 3.0).all()
    trainer.launch()
    again = make_toy(First, epochs=2)
    again.setup()
    assert First.calls == 1
    assert torch.equal(again.module["backbone"][0].weight, trainer.module["backbone"][0].weight)


def test_what_does_not_fit_together_is_refused_before_the_first_step(make_toy):
    class Checked(Toy):
        def check_setup(self):
            raise ConfigError("module.backbone: too small.")

    with pytest.raises(ConfigError, match="too small"):
        make_toy(Checked).setup()


def test_what_is_registered_late_is_restored_at_once_and_its_mistakes_are_named(make_toy, tmp_path):
    def counting(epochs):
        class Late(Toy):
            def before_fit(self):
                self.count = Count()
                self.register("late", self.count)

            def after_fit_step(self):
                self.count.steps += 1

        trainer = make_toy(Late, epochs=epochs)
        trainer()
        return trainer.count.steps

    assert [counting(1), counting(2)] == [3, 6]
    trainer = make_toy(logger={"dump_path": tmp_path / "other"})
    trainer.register("nothing", object())
    with pytest.raises(ConfigError, match="registered.nothing: a object has no state_dict"):
        trainer.setup()


def test_no_trainer_monitor_or_example_touches_a_private_name_of_the_base():
    """But for the five that the first version of the library documented."""
    import ast
    from pathlib import Path

    root = Path(__file__).parent.parent.parent
    seed = {"_fit", "_fit_epoch", "_fit_step", "_evaluate", "_eval_step"}
    private = {name for name in vars(BaseTrainer) if name.startswith("_") and not name.startswith("__")} - seed
    source = ast.parse((root / "src/stable_ssl/base.py").read_text())
    private |= {
        node.attr
        for node in ast.walk(source)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    } - seed
    assert {"_run", "_steps", "_saver", "_progress"} <= private
    files = [*(root / "src/stable_ssl/trainers").glob("*.py"), *(root / "src/stable_ssl/monitors").glob("*.py")]
    files += [*(root / "examples").glob("*.py")]
    touched = [
        f"{file.name}: {name}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        for name in [getattr(node, "attr", getattr(node, "name", ""))]
        if name in private
    ]
    assert not touched


def test_a_part_that_is_registered_late_keeps_its_state_over_two_stops(make_toy):
    stops = []

    class Late(Toy):
        def after_fit_epoch(self):
            if self.epoch == 0 or not hasattr(self, "count"):
                self.count = Count()
                self.register("late", self.count)
            self.count.steps += 1

        def after_fit_step(self):
            if self.global_step in stops:
                stops.remove(self.global_step)
                os.kill(os.getpid(), signal.SIGTERM)

    stops += [4, 5]
    for _ in range(2):
        with pytest.raises(Preempted):
            make_toy(Late, epochs=3)()
    trainer = make_toy(Late, epochs=3)
    trainer()
    assert trainer.count.steps == 3


def test_a_trainer_whose_set_up_failed_is_not_set_up_again(make_toy):
    class Unlucky(Toy):
        def check_setup(self):
            raise ConfigError("not today")

    trainer = make_toy(Unlucky, lr_batch_size=4)
    with pytest.raises(ConfigError):
        trainer.setup()
    with pytest.raises(RuntimeError, match="make a new trainer"):
        trainer.setup()


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_a_rate_without_a_schedule_is_what_a_hook_makes_it(make_toy, lr):
    class Setting(Toy):
        def before_fit(self):
            for group in self.optim["optimizer"].param_groups:
                group["lr"] = group["lr"] * 0.5

    trainer = make_toy(
        Setting,
        optimizer=functools.partial(torch.optim.SGD, lr=lr),
        scheduler=functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
        groups={"backbone.4.*": {"schedule": "none"}},
    )
    trainer()
    rates = [float(group["lr"]) for group in trainer.optim["optimizer"].param_groups]
    assert rates == pytest.approx([0.05 * 0.5**6, 0.05])


def test_breaks_in_what_a_subclass_adds_are_breaks(make_toy):
    class Breaking(Toy):
        def begin_epoch(self, epoch):
            if epoch == 0:
                raise BreakEpoch

        def side_losses(self):
            if self.batch_idx == 0:
                raise BreakStep
            return {}

    class Quiet(Toy):
        def before_fit_epoch(self):
            if self.epoch == 0:
                raise BreakEpoch

        def before_fit_step(self):
            if self.batch_idx == 0:
                raise BreakStep

    one = make_toy(Breaking)
    one()
    other = make_toy(Quiet, logger={"dump_path": one.folder.parent / "other"})
    other()
    assert one.global_step == other.global_step == 2
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_embed_is_in_evaluation_mode_and_leaves_no_trace(make_toy):
    seen = []

    class Embedding(Toy):
        def after_fit_epoch(self):
            before = [buffer.clone() for buffer in self.buffers()]
            seen.append(torch.equal(self.embed(self.batch), self.embed(self.batch)))
            seen.append(all(map(torch.equal, before, self.buffers())))
            seen.append(all(part.training for part in self.modules()))

    make_toy(Embedding)()
    assert seen == [True] * 6


def test_all_is_closed_although_one_loader_can_not_be(make_toy):
    class Stuck(Loader):
        def close(self):
            if getattr(self, "is_stuck", False):
                raise OSError("stuck")
            super().close()

    loader = Stuck(toy_dataset(), 8)
    trainer = make_toy(data={"train": loader})
    trainer.setup()
    loader.is_stuck = True
    with pytest.raises(OSError, match="stuck"):
        trainer.launch()
    loader.is_stuck = False
    assert status_of(trainer) == "failed"
    assert newest_state(trainer)["progress"]["global_step"] == 6


def test_only_a_hook_whose_body_is_a_docstring_is_idle():
    class Hooked(Toy):
        def before_fit(self):
            """Do nothing either."""

        def before_fit_epoch(self):
            """Raise."""
            raise BreakAllEpochs

        def after_fit_epoch(self):
            """Have an effect."""
            self.has_run = True

    trainer = Hooked.__new__(Hooked)
    assert is_idle(trainer.before_fit)
    assert is_idle(trainer.before_eval)
    assert not is_idle(trainer.after_fit)
    assert not is_idle(trainer.before_fit_epoch)
    assert not is_idle(trainer.after_fit_epoch)
    assert not is_idle(functools.partial(print))
