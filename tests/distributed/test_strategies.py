"""Sharded runs learn what others learn: fsdp of two ranks, against ddp of two and one process alone."""

from __future__ import annotations

import functools

import pytest
import torch
from methods import make

from stable_ssl import full_state_dict
from stable_ssl.optimizers import LARS

# The gradient of a bias of attention keys is 0 but for rounding, which a small `eps` would make large.
ADAMW = functools.partial(torch.optim.AdamW, lr=0.01, eps=1e-3)
# A method, and what differs from its plain run.
CASES = {
    "lars": ("simclr", {"optim": {"optimizer": functools.partial(LARS, lr=0.1, momentum=0.9, weight_decay=1e-3)}}),
    "adamw_clipped": ("mae", {"optim": {"optimizer": ADAMW, "grad_max_norm": 0.05}}),
    "groups": ("byol", {"optim": {"groups": {"predictor": {"lr_scale": 10.0}, "backbone": {"frozen_epochs": 1}}}}),
    "frozen": ("mae", {"optim": {"frozen": ["backbone.blocks.layers.0.*"], "optimizer": ADAMW}}),
    "accumulation": ("dino", {"optim": {"accumulation_steps": 2}}),
    "left_out": ("moco", {"optim": {"accumulation_steps": 2}}),
    "broken_off": ("moco", {"optim": {"accumulation_steps": 2}}),
    "called_by_hooks": ("simclr", {}),
    "skipped": ("simclr", {"optim": {"nonfinite": "skip"}}),
    "bf16": ("mae", {"hardware": {"precision": "bf16"}, "optim": {"optimizer": ADAMW}}),
    "channels_last": ("simclr", {"hardware": {"channels_last": True}}),
    "compiled": ("simclr", {"hardware": {"compile": True}}),
}


def leave_out(trainer):
    """Leave out the last mini-batch of the second group."""
    from stable_ssl import BreakStep

    if (trainer.epoch, trainer.batch_idx) == (0, 3):
        raise BreakStep


def break_off(trainer):
    """End the first epoch within a group, whose first mini-batch has left gradients."""
    from stable_ssl import BreakEpoch

    if (trainer.epoch, trainer.batch_idx) == (0, 3):
        raise BreakEpoch


def spoil(trainer, compute_loss):
    """Have a loss that is not finite, on one rank, with finite gradients."""
    bad = trainer.global_step == 2 and trainer.rank == trainer.world_size - 1
    loss = compute_loss()
    return {
        "loss": sum(loss.values()) if isinstance(loss, dict) else loss,
        "bad": torch.tensor(float("nan" if bad else 0)),
    }


def run(names, folder, batch_size, strategy):
    """Return the whole values at the end of each case."""
    found = {}
    for name in names:
        method, options = CASES[name]
        options = {key: dict(value) for key, value in options.items()}
        options["hardware"] = {**options.get("hardware", {}), "strategy": strategy}
        trainer = make(method, folder / name, batch_size, **options)
        if name == "left_out":
            trainer.before_fit_step = functools.partial(leave_out, trainer)
        if name == "broken_off":
            trainer.before_fit_step = functools.partial(break_off, trainer)
        if name == "called_by_hooks":
            trainer.before_optimizer_step = trainer.after_fit_epoch = lambda trainer=trainer: trainer.embed(
                trainer.batch
            )
            trainer.before_fit = functools.partial(trainer._save_checkpoint, "begun.ckpt")
        if name == "skipped":
            trainer.compute_loss = functools.partial(spoil, trainer, trainer.compute_loss)
        trainer.after_fit = lambda trainer=trainer, name=name: found.update({name: full_state_dict(trainer)})
        trainer()
        if name == "called_by_hooks":
            found["of_early_2025"] = torch.load(trainer.folder / "begun.ckpt")["module"]
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The endings by strategy, of two ranks, and of one process."""
    from ranks import Ranks

    folder, names = tmp_path_factory.mktemp("strategies"), list(CASES)
    both = {s: Ranks(run, names, folder / s, 8, s).results(timeout=240)[0] for s in ("ddp", "fsdp")}
    return {**both, "alone": run([name for name in names if name != "compiled"], folder / "alone", 16, "ddp")}


def assert_close(ours, theirs, rtol=1e-4, atol=1e-5):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[key], value, rtol=rtol, atol=atol, msg=key)


def test_a_file_that_a_hook_of_early_2025_writes_has_whole_tensors(found):
    saved = found["fsdp"]["of_early_2025"]
    assert_close(saved, found["alone"]["of_early_2025"])
    assert {type(value) for value in saved.values()} == {torch.Tensor}


@pytest.mark.parametrize("name", list(CASES))
def test_two_sharded_ranks_learn_what_two_whole_ones_and_one_do(found, name):
    tolerance = {"rtol": 0.1, "atol": 2e-2} if name == "bf16" else {}
    assert_close(found["fsdp"][name], found["ddp"][name], **tolerance)
    if name in found["alone"]:
        assert_close(found["ddp"][name], found["alone"][name], **tolerance)
