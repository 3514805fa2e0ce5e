"""Parameters that are frozen, thawed or added during training: they train, and resume, or the log says that they don't."""

from __future__ import annotations

import functools
import os
import signal

import pytest
import torch
from endings import ending, same
from torch import nn

from stable_ssl import CheckpointError, ConfigError, Loader
from stable_ssl.cli import main
from tests.toys import Toy, toy_backbone, toy_dataset

LAST = 18  # steps, six an epoch


class Gradual(Toy):
    """Gives the optimizer two frozen parameters, one in epoch 1 and one within it, and freezes another after that."""

    dies_at = None

    def give(self, name, **options):
        parameter = self.module["backbone"].get_parameter(name).requires_grad_(True)
        self.optim["optimizer"].add_param_group({"params": [parameter], **options})

    def before_fit_epoch(self):
        groups = self.optim["optimizer"].param_groups
        assert len(groups) == (1, 1, 3)[self.epoch]
        if self.epoch == 1:
            self.give("0.weight", lr=0.02)
        if self.epoch == 2:
            groups[2]["lr"] = 0.005

    def before_fit_step(self):
        if self.global_step == 8:
            self.give("0.bias", lr=0.01)

    def after_fit_step(self):
        if self.global_step == 9:
            self.module["backbone"].get_parameter("4.bias").requires_grad_(False)

    def compute_loss(self):
        if self.global_step == self.dies_at and self.world_size > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.global_step == self.dies_at:
            raise SystemExit
        return super().compute_loss()


def make(folder, cls=Gradual, batch_size=8, **optim):
    backbone = toy_backbone()
    backbone[0].requires_grad_(False)
    return cls(
        {"train": Loader(toy_dataset(48), batch_size, shuffle=True)},
        {"backbone": backbone},
        {"device": "cpu"},
        {
            "optimizer": functools.partial(torch.optim.AdamW, lr=0.03),
            "scheduler": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=LAST),
            "epochs": 3,
            **optim,
        },
        {"dump_path": folder, "level": 30, "checkpoint_every_step": 1, "checkpoint_keep": 2 * LAST},
    )


def run(folder, dies_at, batch_size):
    trainer = make(folder, batch_size=batch_size)
    trainer.dies_at = dies_at
    trainer()


@pytest.mark.parametrize("size", [1, 2])
def test_groups_that_hooks_add_and_parameters_that_they_freeze_are_exact_on_resume(start_ranks, tmp_path, size):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    if size == 1:
        run(alone, None, 8)
        for step in (8, 10, 14):
            with pytest.raises(SystemExit):
                run(killed, step, 8)
        run(killed, None, 8)
    else:
        start_ranks(run, alone, None, 4).results()
        assert start_ranks(run, killed, 10, 4).join() == [-signal.SIGKILL] * 2
        start_ranks(run, killed, None, 4).results()
    (state, log), (expected, expected_log) = ending(killed), ending(alone)
    assert same(state, expected)
    assert log == expected_log
    first = toy_backbone()[0]
    assert not torch.equal(state["modules"]["module.backbone.0.weight"], first.weight)
    assert not torch.equal(state["modules"]["module.backbone.0.bias"], first.bias)
    rates = [group["lr"] for group in state["parts"]["optimizer"]["param_groups"]]
    assert rates == [pytest.approx(0, abs=1e-9), 0.02, 0.005]


@pytest.mark.parametrize("hook", ["before_fit_epoch", "before_fit_step", "after_fit_step"])
def test_the_log_names_each_thawed_parameter_that_no_optimizer_has_once(tmp_path, hook):
    def thaw(self):
        self.module["backbone"][0].weight.requires_grad_(self.global_step >= 6)
        self.module["backbone"][0].bias.requires_grad_(self.global_step >= 7)

    make(tmp_path / "run", type("Thawing", (Toy,), {hook: thaw}))()
    said = (tmp_path / "run/console.log").read_text()
    assert said.count("No optimizer of the run has module.backbone.0.weight") == 1
    assert said.count("module.backbone.0.bias") == 1
    assert "add_param_group" in said


def test_the_log_names_a_layer_that_a_hook_puts_in(make_toy, tmp_path):
    class Replacing(Toy):
        def before_fit(self):
            self.module["backbone"][4] = nn.Linear(16, 2)

    make_toy(Replacing, logger={"level": 30})()
    assert "has module.backbone.4.weight, module.backbone.4.bias, so" in (tmp_path / "run/console.log").read_text()


def test_what_hooks_make_after_the_set_up_is_named_since_no_checkpoint_can_be_loaded_then(make_toy, tmp_path):
    class Late(Toy):
        def before_fit_epoch(self):
            self.module["extra"] = nn.Linear(2, 2)
            self.extra_state = nn.Linear(1, 1)

    trainer = make_toy(Late, logger={"level": 30})
    trainer()
    said = (tmp_path / "run" / "console.log").read_text()
    names = "extra_state.bias, extra_state.weight, module.extra.bias, module.extra.weight"
    assert said.count(f"Hooks made or removed {names} after the set-up, so this run CAN'T BE RESUMED") == 1
    assert said.count("Make modules, parameters and buffers in prepare_modules(modules)") == 1
    with pytest.raises(CheckpointError, match=r"does not fit this model(.|\n)*in prepare_modules\(modules\)"):
        make_toy(Late, epochs=3).setup()

    class First(Toy):
        def initialize_modules(self):
            self.register_buffer("average", torch.zeros(2))

    with pytest.raises(ConfigError, match=r"initialize_modules\(\) made or removed average, but a resumed run"):
        make_toy(First, logger={"dump_path": tmp_path / "first"}).setup()


class Eager(nn.Linear):
    """A layer that thaws itself, as the last layers of some heads do."""

    def begin_epoch(self, epoch):
        self.requires_grad_(True)


def test_frozen_parameters_and_statistics_stay(make_toy, tmp_path):
    backbone = toy_backbone()
    backbone[0] = Eager(8, 16)
    trainer = make_toy(
        module={"backbone": backbone}, frozen=["backbone.0.*"], frozen_norm=["backbone"], logger={"level": 30}
    )
    trainer.setup()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    trainer.launch()
    moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert not (tmp_path / "run/console.log").exists()  # which has warnings only


def test_freezing_works_from_yaml_and_mistakes_are_named(make_toy, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(
        "defaults: [supervised_digits, _self_]\n"
        "trainer:\n"
        "  optim: {epochs: 1, max_steps: 2, frozen: ['backbone.features.0.*'], frozen_norm: ['backbone.features.[01].1']}\n"
    )
    said = ["train", str(tmp_path / "own.yaml"), f"logger.dump_path={tmp_path / 'run'}"]
    assert main([*said, "optim.frozen=[backbone.feature.*]", "optim.frozen_norm=backbone"]) == 2
    assert main([*said, "optim.frozen=[backbone.feature.*]"]) == 2
    assert main(said) == 0
    errors = capsys.readouterr().err
    assert "optim.frozen_norm: 'backbone' is not a list of names, or patterns of names." in errors
    assert "optim.frozen: 'backbone.feature.*' is no parameter of ['backbone']. Did you mean 'backbone." in errors
    state = torch.load(next((tmp_path / "run/checkpoints").glob("step_*/state.pt")), weights_only=True)
    counted = {key: int(value) for key, value in state["modules"].items() if key.endswith("num_batches_tracked")}
    assert sorted(counted.values()) == [0, 0, 2, 2, 2, 2, 2, 2]
    weights = [tuple(entry["exp_avg"].shape) for entry in state["parts"]["optimizer"]["state"].values()]
    assert (16, 1, 3, 3) not in weights
    assert (32, 16, 3, 3) in weights
    with pytest.raises(ConfigError, match="optim.frozen_norm: 'backbone.0' is, or has, no batch normalisation"):
        make_toy(frozen_norm=["backbone.0"], logger={"dump_path": tmp_path / "other"}).setup()
    groups = {"*": {"frozen_epochs": 3}, "*.bias": {"frozen_epochs": 1}}
    with pytest.raises(ConfigError, match="optim.groups: all parameters are frozen in the first epoch"):
        make_toy(groups=groups, logger={"dump_path": tmp_path / "nothing"}).setup()
