"""What only a GPU shows."""

from __future__ import annotations

import pytest
import torch
from toys import Toy, toy_dataset

from stable_ssl.augmentations import SimCLRViews
from stable_ssl.data import Digits, Loader

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


class Watched(Toy):
    """Lets no step of the second half of its epoch wait for the device, but the last, which logs."""

    num_watched = 0

    def before_fit_step(self):
        if self.batch_idx == 19:
            torch.cuda.set_sync_debug_mode("error")
        super().before_fit_step()

    def after_fit_step(self):
        super().after_fit_step()
        type(self).num_watched += torch.cuda.get_sync_debug_mode() == 2
        if self.batch_idx == 38:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_between_two_logging_steps_the_loop_does_not_wait_for_the_device(make_toy, precision):
    Watched.num_watched = 0
    try:
        make_toy(
            Watched,
            {"train": Loader(toy_dataset(320), 8, pin_memory=True)},
            epochs=1,
            hardware={"device": "cuda", "precision": precision},
            logger={"log_every_step": 40},
        )()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert Watched.num_watched == 20


def test_fp16_scales_the_loss_and_learns(make_toy):
    trainer = make_toy(epochs=20, hardware={"device": "cuda", "precision": "fp16"})
    trainer()
    losses = [record["train/loss"] for record in trainer.get_logs() if "train/loss" in record]
    assert losses[-1] < losses[0]
    assert trainer._run.precision.scaler.get_scale() > 1
    assert all(parameter.dtype == torch.float32 for parameter in trainer.parameters())


def test_two_deterministic_runs_are_equal_to_the_bit(make_toy, tmp_path):
    hardware = {"device": "cuda", "deterministic": True}
    runs = [make_toy(hardware=hardware, logger={"dump_path": tmp_path / name}) for name in ("one", "other")]
    for run in runs:
        run()
    for one, other in zip(*(run.parameters() for run in runs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("on", ["auto", "device"])
def test_views_made_on_the_device_make_nobody_wait_and_are_the_cpus_within_a_level(on):
    views = SimCLRViews(32, mean=[0.5], std=[0.5])
    digits = Digits("test", size=32)
    found = {}
    for place in ("cpu", on):
        loader = Loader(digits, 32, views=views, on=place, drop_last=True)
        loader.bind(seed=3, name="train")
        loader.prepare(torch.device("cuda:0"))
        for epoch in (0, 1):  # in the first, the operations are compiled
            batches = loader.batches(epoch)
            torch.cuda.set_sync_debug_mode("error" if place != "cpu" and epoch else "default")
            try:
                found[place] = [made for _, (made, _) in batches]
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert all(view.is_cuda for made in found[on] for view in made)
    pairs = zip(found["cpu"], found[on], strict=True)
    levels = torch.stack([(a.cuda() - b).abs() * 127.5 for one, two in pairs for a, b in zip(one, two, strict=True)])
    assert levels.max() < 1.1
    assert (levels > 0.01).float().mean() < 1e-3
