"""The memory that a run takes of its card: parts that one can count by hand, and the verdict."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from pathlib import Path

import methods
import pytest
import torch
from torch import nn
from toys import Toy

from stable_ssl.augmentations import MultiView, RandomMask
from stable_ssl.data import Loader
from stable_ssl.exceptions import BreakAllEpochs, ConfigError
from stable_ssl.monitors import KNN
from stable_ssl.rehearsal.cards import GIB, Card, card_named
from stable_ssl.rehearsal.device.on_meta import check_on_meta
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.resources.accounting import Accounting
from stable_ssl.rehearsal.resources.memory import check_memory, knn_bytes
from stable_ssl.rehearsal.stage import Stage

IN, HIDDEN, OUT = 64, 512, 8  # widths of a small network
BATCH = 1024


class Small(Toy):
    """Trains a network of two layers."""


def vectors(number=16 * BATCH):
    return torch.utils.data.TensorDataset(torch.zeros(number, IN), torch.zeros(number, dtype=torch.long))


def stage_of(folder, card=None, batch_size=BATCH, world_size=1, **parts):
    """Return a stage of a run whose batch is there."""

    def make():
        optim = {"optimizer": functools.partial(torch.optim.AdamW, lr=0.1), "epochs": 1, **parts.get("optim", {})}
        network = nn.Sequential(nn.Linear(IN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))
        return parts.get("trainer", Small)(
            {"train": Loader(vectors(), batch_size, drop_last=True), **parts.get("data", {})}, {"backbone": network},
            {"device": "cpu", "precision": parts.get("precision", "fp32")}, optim,
            {"dump_path": folder / "unused", "monitor": parts.get("monitor", {})},
        )  # fmt: skip

    stage = Stage({}, make, folder, Report(), card, world_size)
    stage.batch = list(range(32)), [torch.zeros(32, IN), torch.zeros(32, dtype=torch.long)]
    return stage


def memory_of(stage):
    check_memory(stage)
    return stage.report.facts["memory"]


def test_parameters_optimizer_and_activations_are_those_that_one_counts_by_hand(tmp_path):
    found = memory_of(stage_of(tmp_path))
    parts, parameters = found["parts"], 4 * (IN * HIDDEN + HIDDEN + HIDDEN * OUT + OUT)
    assert found["peak_bytes"] == sum(parts.values())
    assert parts["parameters"] == pytest.approx(parameters, abs=4 * 512)  # each is rounded to the allocator's unit
    assert parts["optimizer"] == pytest.approx(2 * parameters, abs=12 * 512)
    assert parts["views"] == 4 * BATCH * IN + 8 * BATCH
    # The worst moment is the backward pass of the ReLU: its output, and the gradients of its output and of its input.
    hidden = 4 * BATCH * HIDDEN
    assert parts["activations"] + parts["temporaries"] == pytest.approx(3 * hidden, rel=0.05)
    assert found["flops_per_step"]["products"] == 2 * BATCH * (2 * IN * HIDDEN + 3 * HIDDEN * OUT)


def test_bf16_halves_the_activations(tmp_path):
    parts = [memory_of(stage_of(tmp_path / kind, precision=kind))["parts"] for kind in ("fp32", "bf16")]
    full, half = (part["activations"] + part["temporaries"] for part in parts)
    assert 0.5 <= half / full < 0.6
    assert parts[0]["parameters"] == parts[1]["parameters"]


def test_gradients_of_a_group_of_batches_are_there_beside_the_activations(tmp_path):
    alone = memory_of(stage_of(tmp_path / "alone"))["parts"]
    grouped = memory_of(stage_of(tmp_path / "grouped", optim={"accumulation_steps": 4}))["parts"]
    assert alone["gradients"] < grouped["gradients"] == grouped["parameters"]


def test_a_peak_above_the_card_is_an_error_and_one_within_the_margin_a_warning(tmp_path):
    found = memory_of(stage_of(tmp_path / "figures"))
    peak, margin = found["peak_bytes"], found["margin_bytes"]
    assert found["largest_batch"] is None
    levels = {}
    for memory in (peak - 1, peak, peak + margin - 1, peak + margin):
        stage = stage_of(tmp_path / str(memory), Card("card", memory))
        check_memory(stage)
        levels[memory] = [(finding.level, finding.part) for finding in stage.report.findings]
        text = "".join(finding.text for finding in stage.report.findings)
        assert not text or (f"data.train.batch_size={BATCH}" in text and "hardware.precision (fp32) to bf16" in text)
    assert list(levels.values()) == [[("error", "memory")], [("warning", "memory")], [("warning", "memory")], []]


def test_the_largest_batch_fits_and_a_larger_one_does_not(tmp_path):
    card = card_named("0.55gb")
    largest = memory_of(stage_of(tmp_path / "estimate", card))["largest_batch"]
    assert largest > 2 * BATCH
    for number, batch_size in enumerate((int(0.98 * largest), int(1.02 * largest))):
        stage = stage_of(tmp_path / str(number), card, batch_size=batch_size // 8 * 8)
        run = memory_of(stage)
        assert (run["peak_bytes"] + run["margin_bytes"] > card.memory_bytes) == bool(number)
    [finding] = stage.report.findings
    assert (
        f"set data.train.batch_size to {run['largest_batch']} and optim.accumulation_steps to 2, which" in finding.text
    )


def test_the_exchange_between_processes_takes_a_copy_of_the_gradients(tmp_path):
    sgd = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1)}  # its step takes no memory of its own
    stage = stage_of(tmp_path, Card("card", 1), batch_size=2, world_size=2, optim=sgd)
    found = memory_of(stage)
    assert "To fit it, take a smaller network, or set" in stage.report.findings[0].text  # a smaller batch is no help
    assert found["moment"] == "exchange of gradients"
    assert found["parts"]["gradients"] == pytest.approx(2 * found["parts"]["parameters"], abs=8 * 512)


def test_host_memory_is_that_of_all_processes_and_that_of_a_slurm_job_is_not_this_machines(tmp_path, monkeypatch):
    monkeypatch.setattr("stable_ssl.rehearsal.resources.memory.whole_memory", lambda: 3 * GIB // 2)
    found = {}
    for processes, job in ((1, None), (2, None), (2, {})):
        stage = stage_of(tmp_path, batch_size=2, world_size=processes)
        stage.slurm = job
        check_memory(stage)
        found[processes, job is None] = [finding.text.partition(" of host")[0] for finding in stage.report.findings]
    assert found == {(1, True): [], (2, True): ["The 2 processes take about 2.0 GiB"], (2, False): []}


def test_the_bank_of_knn_takes_what_a_real_evaluation_of_it_allocates(tmp_path):
    sets = {name: Loader(vectors(1000), 250) for name in ("bank", "test")}
    monitor = {"test": {"knn": KNN("bank", k=5)}}
    stage = stage_of(tmp_path, data=sets, monitor=monitor)
    trainer = stage.throw_away("real")
    trainer.setup()
    trainer.forward = lambda x: torch.zeros(len(x), 256)
    knn, account = trainer.logger["monitor"]["test"]["knn"], Accounting()
    with torch.no_grad(), account:
        for _, batch in trainer._feed.evaluation(trainer.data, "test"):
            trainer.batch = batch
            knn.on_eval(trainer)
        knn.compute(trainer)
    assert knn_bytes(256, 1000, 1000, 5) == pytest.approx(sum(account.at_peak.values()), rel=0.1)


@pytest.mark.parametrize("name", sorted(methods.METHODS.keys() - {"barlow_twins", "byol", "mae", "simsiam", "vicreg"}))
def test_each_kind_of_method_can_be_estimated(name, tmp_path):
    stage = Stage({}, lambda: methods.make(name, tmp_path / "unused"), tmp_path, Report())
    stage.batch = next(methods.make(name, tmp_path / "unused").data["train"].batches(0))
    found = memory_of(stage)
    assert not stage.report.findings
    assert found["peak_bytes"] > found["parts"]["parameters"] > 0
    assert found["parts"]["views"] > 0


@pytest.mark.parametrize("name", ["h100-80gb", "H100 80GB", "h10080gb"])
def test_cards_are_found_by_name(name):
    card = card_named(name)
    assert (card.name, card.memory_bytes, card.bf16) == ("h100-80gb", 80 * GIB, pytest.approx(989e12, rel=1e-3))


def test_a_card_may_be_a_size_and_a_misspelled_one_is_named():
    assert card_named("24gb") == Card("24gb", 24 * GIB)
    with pytest.raises(ConfigError, match="device: 'a100-40g' .* Did you mean 'a100-40gb'?"):
        card_named("a100-40g")
    with pytest.raises(ConfigError, match="Did you mean 'a100-80gb' or 'a100-40gb'?"):
        card_named("A100")


class Doubtful(Small):
    """Looks at its loss, and at the rows of a class."""

    def compute_loss(self):
        loss = super().compute_loss()
        if torch.isnan(loss).any():
            raise ValueError("a loss that is not a number")
        kept = self.batch[0][self.batch[1] == 0]
        return loss + 0 * kept.sum() * self.batch[1].max().item()


def test_a_method_that_looks_at_values_can_be_estimated_too(tmp_path):
    plain = memory_of(stage_of(tmp_path / "plain"))["parts"]
    stage = stage_of(tmp_path / "doubtful", trainer=Doubtful)
    parts = memory_of(stage)["parts"]
    assert not stage.report.findings
    kept = 4 * BATCH * IN + 8 * BATCH  # the rows that are kept may be all, and their places
    assert 0 <= parts["activations"] - plain["activations"] <= 1.1 * kept


class Arrays(Small):
    """Computes something by NumPy, has a gradient of a gradient, and knows its batch size."""

    def compute_loss(self):
        inputs = self.batch[0].clone().requires_grad_(True)
        outputs = self.forward(inputs)
        (gradient,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        order = outputs.detach().cpu().numpy().sum(1).argsort()
        return gradient.square().mean() + nn.functional.mse_loss(outputs[order], torch.zeros(BATCH, OUT))


class Opaque(Small):
    """Fails in its step."""

    def compute_loss(self):
        return (self.batch[0] @ torch.zeros(IN + 1, OUT)).mean()


class Ends(Small):
    """Ends training after the first step."""

    def after_fit_step(self):
        raise BreakAllEpochs


def test_a_hook_that_ends_training_is_no_obstacle(tmp_path):
    stage = stage_of(tmp_path, trainer=Ends)
    assert memory_of(stage)["is_complete"]
    assert not stage.report.findings


class Converges(Small):
    """Has a loop that ends by a value."""

    def compute_loss(self):
        error = self.batch[0].mean() + 1
        while error > 0.1:
            error = error / 2
        return super().compute_loss() + error.cuda()  # "cuda" is the device


def test_a_loop_that_ends_by_a_value_is_ended_and_its_line_is_named(tmp_path):
    stage = stage_of(tmp_path, trainer=Converges)
    memory_of(stage)
    check_on_meta(dataclasses.replace(stage, card=card_named("24gb")))
    line = f"{Path(__file__).name}:{inspect.getsourcelines(Converges)[1] + 5} "
    found = [finding.text for finding in stage.report.of("warning")]
    assert [text.partition(line)[2][:21] for text in found] == ["asks for values witho", "reads a value of a te"]


def test_arrays_second_gradients_and_a_size_that_is_asked_for_are_no_obstacle(tmp_path):
    stage = stage_of(tmp_path, card_named("40gb"), trainer=Arrays)
    found = memory_of(stage)
    assert not stage.report.findings
    assert found["is_complete"]
    assert found["parts"]["activations"] > 4 * BATCH * HIDDEN
    assert found["largest_batch"] is None


def test_a_step_that_fails_leaves_the_figures_of_what_is_known(tmp_path):
    complete = memory_of(stage_of(tmp_path / "small"))["parts"]
    stage = stage_of(tmp_path, trainer=Opaque)
    found = memory_of(stage)
    known = {name: size for name, size in complete.items() if name in ("parameters", "optimizer", "views") and size}
    known["gradients"] = complete["parameters"]
    assert {name: size for name, size in found["parts"].items() if size} == known
    assert not found["is_complete"]
    (finding,) = stage.report.findings
    assert (finding.level, "activations are missing" in finding.text) == ("warning", True)
    assert f"test_card_memory.py:{inspect.getsourcelines(Opaque)[1] + 4}: the step" in finding.text


def test_the_hidden_patches_are_counted_in_the_masks_of_the_run(tmp_path):
    def make(ratio):
        trainer = methods.make("mae", tmp_path / "unused")
        views = MultiView([methods.VIEW], [RandomMask((4, 4), ratio)])
        trainer.data["train"] = Loader(methods.images(), 64, views=views)
        return trainer

    flops = {}
    for ratio in (0.25, 0.75):
        stage = Stage({}, lambda ratio=ratio: make(ratio), tmp_path / str(ratio), Report())
        stage.batch = next(make(ratio).data["train"].batches(0))
        check_memory(stage)
        flops[ratio] = sum(stage.report.facts["memory"]["flops_per_step"].values())
    assert flops[0.75] < 0.8 * flops[0.25]


def test_the_largest_batch_is_found_if_the_optimizer_takes_more_than_a_small_batch(tmp_path):
    card = card_named("0.55gb")
    large = memory_of(stage_of(tmp_path / "large", card))["largest_batch"]
    small = memory_of(stage_of(tmp_path / "small", card, batch_size=4))
    assert small["parts"]["temporaries"] >= small["parts"]["parameters"]  # the worst moment is the optimizer's step
    assert small["largest_batch"] == pytest.approx(large, rel=0.03)
