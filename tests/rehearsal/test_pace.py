"""The time of a step on a card, and the images that a core makes ready."""

from __future__ import annotations

import functools
import time

import pytest
import torch
from torch import nn
from toys import Toy

from stable_ssl.data import Loader
from stable_ssl.rehearsal.cards import Card, card_named
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.resources import pace
from stable_ssl.rehearsal.resources.pace import check_pace, step_seconds
from stable_ssl.rehearsal.stage import Stage

SECONDS = 0.005  # per sample


class Slow(torch.utils.data.Dataset):
    """Vectors that take time to make, of a core or of a disk."""

    def __init__(self, waits=False):
        self.waits, self.read = waits, 0

    def __len__(self):
        return 64

    def __getitem__(self, index):
        self.read += 1
        until = time.thread_time() + SECONDS
        while not self.waits and time.thread_time() < until:
            pass
        time.sleep(SECONDS if self.waits else 0)
        return torch.zeros(8), 0


def test_the_time_of_a_step_is_bounded_by_the_published_peak_and_the_bandwidth():
    card = Card("card", 0, bf16=100e12, fp16=100e12, tf32=50e12, fp32=10e12, bandwidth=1e12)
    flops = {"convolutions": int(1e12), "products": int(1e12)}
    # In bf16, 2e12 FLOPs at 100e12 per second take 20 ms, and 1e9 bytes 1 ms.
    assert step_seconds(flops, int(1e9), card, "bf16") == pytest.approx((0.02 / 0.5, 0.02 / 0.2 + 0.001 / 0.5))
    # In fp32, torch lets convolutions use TF32 by default, and products not: 20 ms and 100 ms.
    assert step_seconds(flops, 0, card, "fp32") == pytest.approx((0.12 / 0.5, 0.12 / 0.2))
    # If a step reads and writes much, the bandwidth is the limit.
    assert step_seconds(flops, int(9e11), card, "bf16")[0] == pytest.approx(1.0)


@pytest.fixture
def stage_of(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "_SECONDS", 0.3)

    def make(card, waits=False, **memory):
        def make_trainer():
            optim = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 10}
            logger = {"dump_path": tmp_path / "unused"}
            network = {"backbone": nn.Linear(8, 2)}
            return Toy({"train": Loader(Slow(waits), 16)}, network, {"device": "cpu"}, optim, logger)

        stage = Stage({}, make_trainer, tmp_path, Report(), card)
        stage.trainer = stage.throw_away("run")
        stage.trainer.setup()
        stage.report.tell("memory", batch_size=16, views_on="host", precision="fp32", **memory)
        return stage

    return make


def work(seconds):
    """Return a step's work that takes the A100 at least this time in fp32."""
    flops = int(seconds * 0.5 * 19.5e12)
    return {"flops_per_step": {"products": flops}, "traffic_bytes_per_step": 0}


def test_a_run_whose_images_are_not_ready_in_time_is_input_bound(stage_of):
    card = card_named("a100-40gb")
    stage = stage_of(card, **work(0.0008))  # 16 images in 0.8 to 2 ms, of which each takes a core 5 ms
    check_pace(stage)
    facts = stage.report.facts["time"]
    assert facts["images_per_core_second"] == pytest.approx(1 / SECONDS, rel=0.2)
    assert facts["needed_images_per_second"] == pytest.approx([16 / 0.002, 16 / 0.0008], rel=1e-3)
    assert (facts["steps"], facts["run_seconds"]) == (40, pytest.approx([40 * 0.0008, 40 * 0.002], rel=1e-3))
    (finding,) = stage.report.findings
    least, most = facts["needed_cores"]
    assert (finding.level, finding.part) == ("warning", "time")
    assert finding.text.startswith("data.train.num_workers: 0, and the run is input-bound")
    assert f"it needs {least} to {most} workers per card" in finding.text
    assert 35 <= least <= 50


def test_waiting_for_samples_counts_as_a_core_does(stage_of, monkeypatch):
    monkeypatch.setattr(pace, "_SECONDS", 0.05)  # less than a batch takes, so one suffices
    stage = stage_of(card_named("a100-40gb"), waits=True, **work(0.0008))
    check_pace(stage)
    facts = stage.report.facts["time"]
    assert facts["images_per_core_second"] == facts["images_per_second"] <= 1 / SECONDS
    assert stage.trainer.data["train"].dataset.read == 16
    assert "more workers mend that, and more cores do not" in stage.report.findings[0].text


def test_a_run_that_computes_for_long_is_not_input_bound(stage_of):
    stage = stage_of(card_named("a100-40gb"), **work(1.0))
    check_pace(stage)
    assert stage.report.facts["time"]["needed_cores"] == [1, 1]
    assert not stage.report.findings


def test_without_a_card_there_are_figures_and_no_verdict(stage_of):
    stage = stage_of(None, **work(0.0008))
    check_pace(stage)
    facts = stage.report.facts["time"]
    assert facts["images_per_second"] > 0
    assert facts["flops_per_step"] > 0
    assert "step_seconds" not in facts
    assert not stage.report.findings


def test_a_card_without_bf16_is_named(stage_of):
    stage = stage_of(card_named("v100-16gb"), **work(1.0))
    stage.report.tell("memory", precision="bf16")
    check_pace(stage)
    assert "v100-16gb has no tensor cores for bf16" in stage.report.findings[0].text
