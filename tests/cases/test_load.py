"""`stable_ssl.load`: the modules of a run, for analysis."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import Toy, toy_backbone, toy_dataset

import stable_ssl
from stable_ssl import CheckpointError, ConfigError, Loader
from stable_ssl.compose import compose


class Buffered(nn.Linear):
    """A layer with a buffer that no file of weights holds, drawn when the layer is made."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.register_buffer("drawn", torch.rand(3), persistent=False)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.count += 1
        return super().forward(x)


class Headed(Toy):
    """A trainer that changes its modules after they were built."""

    def prepare_modules(self, modules):
        modules["backbone"].extra = nn.Linear(2, 2)


def run(folder, cls=Toy, module=None, **logger):
    nodes = {"backbone": {"_target_": f"{__name__}.Buffered", "inputs": 8, "outputs": 2}}
    optim = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 2}
    trainer = cls(
        {"train": Loader(toy_dataset(), 8)}, module or nodes, {"device": "cpu", "seed": 1}, optim,
        {"dump_path": folder, "level": 50, **logger},
    )  # fmt: skip
    trainer()
    return trainer


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_same(modules, trainer):
    expected, found = trainer.module.state_dict(), modules.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("kept", ["checkpoints", "weights"])
def test_load_gives_the_modules_and_writes_nothing(kept, tmp_path):
    trainer = run(tmp_path / "run", save_final_model=True)
    other = "weights" if kept == "checkpoints" else "checkpoints"
    (tmp_path / "run" / other).rename(tmp_path / other)
    before, generator = contents(tmp_path / "run"), torch.get_rng_state()
    modules = stable_ssl.load(tmp_path / "run")
    assert_same(modules, trainer)
    assert torch.equal(modules["backbone"].drawn, trainer.module["backbone"].drawn)
    assert modules["backbone"].count == (6 if kept == "checkpoints" else 0)
    assert not any(part.training for part in modules.modules())
    assert contents(tmp_path / "run") == before
    assert torch.equal(torch.get_rng_state(), generator)


def test_load_takes_the_newest_of_weights_and_checkpoints_or_the_one_that_is_named(tmp_path):
    trainer = run(tmp_path / "run", checkpoint_frequency=1)
    first = stable_ssl.load(tmp_path / "run" / "weights" / "epoch_0001.safetensors")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert not torch.equal(first["backbone"].weight, trainer.module["backbone"].weight)
    assert_same(stable_ssl.load(newest), trainer)
    # A damaged checkpoint is passed over, and left as it is.
    (newest / "state.pt").write_bytes(b"")
    before = contents(tmp_path / "run")
    assert_same(stable_ssl.load(tmp_path / "run"), trainer)
    (tmp_path / "run" / "weights" / "epoch_0002.safetensors").rename(tmp_path / "gone")
    before.pop(str(tmp_path / "run" / "weights" / "epoch_0002.safetensors"))
    assert torch.equal(stable_ssl.load(tmp_path / "run")["backbone"].weight, first["backbone"].weight)
    assert contents(tmp_path / "run") == before


def test_load_of_live_modules_says_how_to_pass_them(tmp_path):
    trainer = run(tmp_path / "run", module={"backbone": toy_backbone()})
    with pytest.raises(ConfigError, match=r"module\.backbone .* pass it as module=\{'backbone': \.\.\.\}"):
        stable_ssl.load(tmp_path / "run")
    assert_same(stable_ssl.load(tmp_path / "run", module={"backbone": toy_backbone()}), trainer)
    with pytest.raises(ConfigError, match="module.bckbone: the run has no such module. Did you mean 'backbone'?"):
        stable_ssl.load(tmp_path / "run", module={"bckbone": toy_backbone()})
    with pytest.raises(CheckpointError, match="does not fit the modules: (.|\n)*backbone.0.weight"):
        stable_ssl.load(tmp_path / "run", module={"backbone": nn.Sequential(nn.Linear(8, 3))})


def test_load_changes_the_modules_as_the_trainer_did(tmp_path):
    trainer = run(tmp_path / "run", cls=Headed)
    assert_same(stable_ssl.load(tmp_path / "run"), trainer)


def test_load_works_while_the_run_goes_on_and_keeps_its_lock(tmp_path):
    class Looking(Toy):
        def after_fit_epoch(self):
            if self.epoch == 1:
                self.seen = stable_ssl.load(self.folder)
                if (child := os.fork()) == 0:
                    with open(self.folder / ".lock", "a") as lock:
                        try:
                            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        except OSError:
                            os._exit(3)
                    os._exit(0)
                self.status_of_child = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    trainer = run(tmp_path / "run", cls=Looking, checkpoint_every_step=1)
    assert trainer.seen["backbone"].weight.shape == (2, 8)
    assert trainer.status_of_child == 3


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="has no config.yaml"):
        stable_ssl.load(tmp_path / "nothing")
    run(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="has neither weights nor a checkpoint"):
        stable_ssl.load(tmp_path / "run")


def test_load_builds_the_modules_of_a_recipe(tmp_path):
    overrides = ["optim.epochs=1", "optim.max_steps=1", "logger.metric={}", "logger.monitor={}", "logger.level=50"]
    trainer = stable_ssl.instanciate_config(
        compose("byol_digits", [*overrides, f"logger.dump_path={tmp_path / 'run'}"])
    )
    trainer()
    assert_same(stable_ssl.load(tmp_path / "run"), trainer)
