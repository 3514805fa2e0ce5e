"""What a check says of runs whose processes divide the model: memory per process, and what such runs refuse."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from toys import Toy

from stable_ssl.data import Loader
from stable_ssl.exceptions import ConfigError
from stable_ssl.rehearsal.cards import Card
from stable_ssl.rehearsal.check import rehearse
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.resources.memory import check_memory
from stable_ssl.rehearsal.screen import _of_memory
from stable_ssl.rehearsal.stage import Stage, config_of, maker_like
from stable_ssl.runtime.distributed import local

IN, WIDTH, OUT, BLOCKS, BATCH = 16, 191, 7, 8, 8  # odd widths: two processes can't divide their rows evenly
ADAM = functools.partial(torch.optim.AdamW, lr=1e-3)


class Block(nn.Module):
    """A residual block of a multilayer perceptron."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Network(nn.Module):
    """Blocks between two layers."""

    def __init__(self, blocks=BLOCKS):
        super().__init__()
        self.stem, self.head = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, OUT)
        self.blocks = nn.ModuleList([Block() for _ in range(blocks)])

    def embed(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x):
        return self.head(self.embed(x))


class Scale(nn.Module):
    """A loss with a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(OUT, OUT))


class Scaled(Toy):
    """A classifier whose logits are multiplied by a matrix of the loss."""

    def compute_loss(self):
        return nn.functional.cross_entropy(self.predict() @ self.loss.scale, self.batch[1])


class Wasteful(torch.optim.AdamW):
    """Takes so much memory in its step that no other moment of a run takes as much."""

    @torch.no_grad()
    def step(self, closure=None):
        torch.empty(10**7)
        super().step()


def made(folder, trainer=Scaled, modules=None, loss=None, hardware=None, optim=None):
    samples = torch.utils.data.TensorDataset(torch.zeros(64, IN), torch.zeros(64, dtype=torch.long))
    return trainer(
        {"train": Loader(samples, BATCH, drop_last=True)},
        modules or {"backbone": Network()},
        {"device": "cpu", "strategy": "fsdp", **(hardware or {})},
        {"optimizer": ADAM, "epochs": 1, **(optim or {})},
        {"dump_path": folder / "run", "level": 50},
        loss or Scale(),
    )


def memory_of(folder, card=None, world_size=2, **parts):
    """Return the figures of a check, and its findings."""
    stage = Stage({}, lambda: made(folder, **parts), folder, Report(), card, world_size)
    stage.batch = list(range(BATCH)), [torch.zeros(BATCH, IN), torch.zeros(BATCH, dtype=torch.long)]
    check_memory(stage)
    return stage.report.facts["memory"], stage.report.findings


def errors_of(folder, world_size=2, slurm=None, is_quick=True, **parts):
    trainer = made(folder, **parts)
    report = rehearse(config_of(trainer), maker_like(trainer), world_size=world_size, is_quick=is_quick, slurm=slurm)
    assert not report.broken
    return [finding.text for finding in report.of("error")]


# Memory -------------------------------------------------------------------------------------------------------------


class Measured(Scaled):
    """Notes the bytes that this process has of parameters, gradients and the optimizer's states."""

    def before_optimizer_step(self):
        self.seen = {
            "parameters": sum(local(p).nbytes for p in self.parameters()),
            "gradients": sum(local(p.grad).nbytes for p in self.parameters()),
        }

    def after_fit(self):
        states = [state for own in self.optim["optimizer"].state.values() for state in own.values()]
        self.seen["optimizer"] = sum(local(state).nbytes for state in states)


def measured(folder):
    trainer = made(folder, Measured)
    trainer()
    return trainer.seen


def test_each_process_has_the_bytes_that_two_real_ones_have(start_ranks, tmp_path):
    real, _ = start_ranks(measured, tmp_path).results()
    parts = memory_of(tmp_path / "check", optim={"optimizer": functools.partial(Wasteful, lr=1e-3)})[0]["parts"]
    for name, size in real.items():
        assert size <= parts[name] <= 1.01 * size  # each tensor takes a multiple of 512 bytes


def whole_bytes(modules, bytes_per_value=4):
    return bytes_per_value * sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_two_blocks_and_what_is_in_no_block_are_whole_in_a_step(tmp_path):
    network = Network()
    expected = [network.stem, network.head, *network.blocks[:2]]
    for precision, size in (("fp32", 4), ("bf16", 2)):
        parts = memory_of(tmp_path / precision, hardware={"precision": precision})[0]["parts"]
        assert parts["whole_parameters"] == whole_bytes(expected, size)
    assert parts["activations"] < whole_bytes(network.blocks, 2)  # no copy of all weights in bf16


def test_gradients_are_whole_until_the_last_mini_batch_of_a_group(tmp_path):
    alone, grouped = (
        memory_of(tmp_path / str(count), optim={"accumulation_steps": count})[0]["parts"]["gradients"]
        for count in (1, 2)
    )
    assert grouped >= whole_bytes([Network()]) > 1.9 * alone


def test_an_evaluation_of_a_deep_network_is_the_worst_moment_and_the_screen_says_so(tmp_path):
    found, findings = memory_of(tmp_path, Card("card", 1), 8, modules={"backbone": Network(32)})
    assert found["moment"] == "evaluation"
    assert found["parts"]["whole_parameters"] == whole_bytes([Network(32)])
    assert "in the evaluation, in which each process has whole parameters, and card has" in findings[0].text
    assert "To fit it, take a smaller network" in findings[0].text
    line = "; strategy fsdp with 8 processes. The worst moment is an evaluation, in which each process has whole parameters"
    assert _of_memory(found).endswith(line)
    assert found["host_parts"]["part_of_checkpoint"] == pytest.approx(3 / 8 * whole_bytes([Network(32)]), rel=0.01)


def test_machines_have_copies_of_each_other(tmp_path):
    found = memory_of(tmp_path, world_size=4, hardware={"strategy": "hsdp"})[0]
    halved = memory_of(tmp_path / "fsdp", world_size=2)[0]
    assert found["parts"]["parameters"] == halved["parts"]["parameters"]
    assert "strategy hsdp with 4 processes on 2 machines, each of which has the whole model" in _of_memory(found)


# What is refused ----------------------------------------------------------------------------------------------------


def test_one_process_is_refused_in_the_words_of_the_run(tmp_path):
    with pytest.raises(ConfigError) as raised:
        made(tmp_path).setup()
    (error,) = errors_of(tmp_path, world_size=1)
    assert error.startswith(str(raised.value))
    assert "--world-size" in error
    assert errors_of(tmp_path, world_size=2) == []


@pytest.mark.parametrize(
    ("hardware", "job", "words"),
    [
        ({"strategy": "hsdp"}, {"nodes": 1, "tasks_per_node": 4}, "hsdp divides the model within each machine, and"),
        ({"strategy": "hsdp"}, {"nodes": 2, "tasks_per_node": 3}, "numbers of the processes on their machines are"),
        ({"precision": "fp16", "device": "cuda"}, None, "fp16 scales losses by what each process finds, which"),
    ],
)
def test_machines_and_precision_that_do_not_suit_the_strategy_are_refused(tmp_path, hardware, job, words):
    (error,) = errors_of(tmp_path, 4, job, hardware=hardware)
    assert words in error


class Bare(nn.Linear):
    """A layer with a parameter that can't be sharded as the others are."""

    def __init__(self, kind):
        super().__init__(IN, OUT)
        self.extra = nn.Parameter(torch.ones((2,) if kind else (), dtype=kind))


def shared():
    one, other = nn.Linear(IN, IN), nn.Linear(IN, IN)
    other.weight = one.weight
    return {"backbone": nn.Sequential(nn.Linear(IN, OUT)), "one": one, "other": other}


def early():
    network = Network()
    return {"modules": {"backbone": network}, "optim": {"optimizer": ADAM(network.parameters())}}


REFUSED = {
    "scalar": lambda: ({"modules": {"backbone": Bare(None)}}, "module.backbone.extra: hardware.strategy=fsdp can't"),
    "types": lambda: ({"modules": {"backbone": Bare(torch.float64)}}, "module.backbone: its parameters have dtypes"),
    "shared": lambda: ({"modules": shared()}, "module.other.weight: it is a parameter of module.one too"),
    "foreach": lambda: ({"optim": {"optimizer": functools.partial(ADAM, foreach=True)}}, "optim.optimizer: foreach=True"),
    "early": lambda: (early(), "optim.optimizer: it was made before strategy fsdp divided the parameters"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_modules_and_optimizers_that_can_not_be_sharded_are_refused(tmp_path, name):
    from stable_ssl.rehearsal.configuration.building import build_parts

    parts, words = REFUSED[name]()
    trainer = made(tmp_path, **parts)
    stage = Stage(config_of(trainer), maker_like(trainer), tmp_path, Report(), world_size=2)
    build_parts(stage)
    assert [finding.text[: len(words)] for finding in stage.report.of("error")] == [words]


def test_gradients_of_a_sparse_embedding_are_refused_if_there_are_several_processes(tmp_path):
    from stable_ssl.rehearsal.configuration.building import build_parts

    def found(folder, world_size):
        network = nn.Sequential(nn.Embedding(IN, WIDTH, sparse=True), nn.Linear(WIDTH, OUT))
        optim = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1)}
        trainer = made(folder, modules={"backbone": network}, hardware={"strategy": "ddp"}, optim=optim)
        stage = Stage(config_of(trainer), maker_like(trainer), folder, Report(), world_size=world_size)
        build_parts(stage)
        return [finding.text for finding in stage.report.of("error")]

    assert found(tmp_path / "one", 1) == []
    (text,) = found(tmp_path / "two", 2)
    assert text.startswith("module.backbone.0: gradients of sparse=True can't be averaged over processes")


# Parameters that are used without a call ----------------------------------------------------------------------------


class OfBlock(Scaled):
    def compute_loss(self):
        block = self.module["backbone"].blocks[1]
        return super().compute_loss() + block.up(torch.ones(BATCH, WIDTH)).mean()


class Before(Scaled):
    def compute_loss(self):
        return (torch.ones(BATCH, WIDTH) @ self.module["backbone"].head.weight.t()).mean() + super().compute_loss()


class Penalty(Scaled):
    def compute_loss(self):
        return super().compute_loss() + sum(p.square().sum() for p in self.module["backbone"].blocks.parameters())


class After(Scaled):
    def compute_loss(self):
        loss = super().compute_loss()  # after it, the head is whole until the end of the step
        return loss + self.module["backbone"].head(torch.ones(BATCH, WIDTH)).mean()


class ByMethod(Scaled):
    def compute_loss(self):
        network = self.module["backbone"]
        return network.head(network.embed(self.batch[0])).mean()


USES = {OfBlock: "blocks.1.up.weight", Before: "head.weight", Penalty: "blocks.0.norm.weight", After: "", ByMethod: ""}


@pytest.mark.parametrize("trainer", USES)
def test_a_parameter_that_is_used_without_a_call_is_named(tmp_path, trainer):
    _, findings = memory_of(tmp_path, trainer=trainer)
    expected = (
        f": module.backbone.{USES[trainer]} is used. hardware.strategy: fsdp makes the parameters of a module whole"
    )
    assert len(findings) == bool(USES[trainer])
    assert all(expected in finding.text and "test_division.py:" in finding.text for finding in findings)
