"""Schedules: more epochs give the rates of a single run of that length, and what can't work is refused at the set-up."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from torch.optim import lr_scheduler as torchs

from stable_ssl import ConfigError, Loader
from stable_ssl.schedulers import LinearWarmupCosineAnnealing
from tests.toys import Toy, toy_dataset


def polynomial(optimizer, total_steps):
    return torchs.PolynomialLR(optimizer, total_iters=total_steps)


def warm_cosine(optimizer, total_steps):
    parts = [torchs.LinearLR(optimizer, 0.1, total_iters=2), torchs.CosineAnnealingLR(optimizer, total_steps - 2)]
    return torchs.SequentialLR(optimizer, parts, milestones=[2])


class WithLengthOfItsOwn(torchs.LRScheduler):
    """A user's schedule: a line to 0, whose length has a name that nobody else knows."""

    def __init__(self, optimizer, total_steps):
        self.horizon = total_steps
        super().__init__(optimizer)

    def get_lr(self):
        return [base * (1 - self.last_epoch / self.horizon) for base in self.base_lrs]


SCHEDULES = [
    functools.partial(torchs.OneCycleLR, max_lr=0.3), polynomial, warm_cosine, WithLengthOfItsOwn, LinearWarmupCosineAnnealing,
]  # fmt: skip


def rates(trainer):
    return [record["train/lr"] for record in trainer.get_logs() if "train/lr" in record]


def forget_the_length(folder):
    """Make the checkpoints those of an early version, which do not tell the number of steps."""
    for path in folder.glob("checkpoints/*/meta.json"):
        meta = json.loads(path.read_text())
        del meta["total_steps"]
        path.write_text(json.dumps(meta))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: getattr(schedule, "__name__", "OneCycleLR"))
def test_with_more_epochs_a_schedule_goes_on_as_that_of_one_long_run(make_toy, tmp_path, schedule):
    def run(name, epochs):
        groups = {"backbone.4.*": {"lr": 0.02, "schedule": "none"}}
        where = {"dump_path": tmp_path / name}
        trainer = make_toy(scheduler=schedule, epochs=epochs, groups=groups, logger=where)
        trainer()
        options = [
            {key: group[key] for key in group if key != "params"} for group in trainer.optim["optimizer"].param_groups
        ]
        return rates(trainer), options

    short, _ = run("run", 2)
    if schedule in (polynomial, warm_cosine):
        forget_the_length(tmp_path / "run")
    (longer, options), (whole, whole_options) = run("run", 4), run("whole", 4)
    assert longer[:6] == short
    assert longer[6:] == pytest.approx(whole[6:], rel=1e-12, abs=1e-15)
    assert options == whole_options


def test_the_same_number_of_epochs_keeps_what_a_hook_did_to_the_rates(make_toy):
    class Halving(Toy):
        def before_fit_step(self):
            if self.global_step == 4:
                self.optim["scheduler"].base_lrs = [0.05]
            if self.global_step == 5 and self.dies:
                raise SystemExit

    Halving.dies = True
    make = functools.partial(make_toy, Halving, scheduler=polynomial, logger={"checkpoint_every_step": 1})
    with pytest.raises(SystemExit):
        make()()
    Halving.dies = False
    trainer = make()
    trainer()
    assert trainer.optim["scheduler"].base_lrs == [0.05]


class Bare:
    """A schedule that can't be saved."""

    def __init__(self, optimizer):
        pass

    def step(self):
        pass


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (torchs.ReduceLROnPlateau, r"ReduceLROnPlateau.step\(\) needs 'metrics', but a run calls it after each"),
        (functools.partial(torchs.OneCycleLR, max_lr=1, total_steps=5), "ends after 5 steps, but the run has 6"),
        (lambda optimizer: 0.1, "optim.scheduler: makes a float, not a schedule"),
        (Bare, r"optim.scheduler: a Bare has no state_dict\(\), so it can't be saved. Derive it"),
    ],
)
def test_a_schedule_that_would_fail_in_training_is_refused_at_the_set_up(make_toy, schedule, said):
    with pytest.raises(ConfigError, match=said):
        make_toy(scheduler=schedule).setup()


def test_an_optimizer_that_needs_a_closure_is_refused_at_the_set_up(make_toy):
    with pytest.raises(ConfigError, match=r"optim.optimizer: LBFGS.step\(\) needs 'closure', but a run calls it"):
        make_toy(optimizer=torch.optim.LBFGS).setup()


def test_a_plateau_can_be_stepped_in_after_eval(make_toy, tmp_path):
    """As the message says that refuses it."""

    class Plateau(Toy):
        dies = False

        def before_fit(self):
            self.plateau = torchs.ReduceLROnPlateau(self.optim["optimizer"], factor=0.5, patience=0)
            self.register("plateau", self.plateau)

        def before_fit_step(self):
            if self.dies and self.global_step == 8:
                raise SystemExit

        def after_eval(self):
            self.plateau.step(1.0)

    data = {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(8), 8)}
    make = functools.partial(make_toy, Plateau, data, epochs=4, logger={"checkpoint_every_step": 1})
    trainer = make()
    trainer.dies = True
    with pytest.raises(SystemExit):
        trainer()
    trainer = make()
    trainer()
    assert rates(trainer) == [0.1] * 6 + [0.05] * 3 + [0.025] * 3
    # The last evaluation of a finished run counts too, if it goes on for more epochs.
    kept = {"checkpoint_frequency": 2, "checkpoint_model_only": False}
    short = functools.partial(make_toy, Plateau, data, logger={"dump_path": tmp_path / "short", **kept})
    short(epochs=2)()
    assert json.loads((tmp_path / "short/checkpoints/step_00000006/meta.json").read_text())["kept"]
    longer = short(epochs=4)
    longer()
    assert rates(longer) == rates(trainer)
    assert all(map(torch.equal, longer.parameters(), trainer.parameters()))

    # If after_fit changes the modules, a longer run still goes on from those that training ended with.
    class Changing(Plateau):
        def after_fit(self):
            super().after_fit()
            with torch.no_grad():
                self.module["backbone"][0].weight.zero_()

    short = functools.partial(make_toy, Changing, data, logger={"dump_path": tmp_path / "changed"})
    short(epochs=1)()
    longer = short(epochs=2)
    longer.setup()
    assert longer.module["backbone"][0].weight.any()


def test_a_rate_of_0_for_a_whole_epoch_is_a_warning(make_toy, tmp_path):
    def said(name, schedule, **optim):
        make_toy(scheduler=schedule, epochs=4, logger={"level": 30, "dump_path": tmp_path / name}, **optim)()
        log = tmp_path / name / "console.log"
        return log.read_text() if log.exists() else ""

    ended = said("ended", functools.partial(torchs.PolynomialLR, total_iters=6))
    assert ended.count("The learning rate was 0 in every step of epoch 3, in 1 of 1 groups of parameters") == 1
    assert "epoch 4" not in ended
    within = functools.partial(torchs.LambdaLR, lr_lambda=lambda step: float(step % 3 == 1))
    assert "rate was 0" not in said("within", within)
    groups = {"backbone.4.*": {"schedule": "none"}}
    assert "epoch 3, in 1 of 2 groups" in said(
        "one", functools.partial(torchs.PolynomialLR, total_iters=6), groups=groups
    )
