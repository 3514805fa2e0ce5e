"""torchrun starts the ranks again if one dies, and the run goes on by itself and ends as one left alone."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from pathlib import Path

import processes
import pytest
import torch
from endings import ending, same
from toys import Toy, toy_backbone, toy_dataset

from stable_ssl.data import Loader

SCRIPT = "import sys; from pathlib import Path; import test_elastic as t; t.train(Path(sys.argv[1]), *sys.argv[2:])"


class Mortal(Toy):
    """Rank 1 is killed once: in its step 4, or while its second checkpoint is written."""

    dies_in = ""

    def before_fit(self):
        if self.dies_in == "save" and self.rank == 1:
            fsync = os.fsync
            os.fsync = lambda descriptor: self.die() or fsync(descriptor)

    def compute_loss(self):
        if self.dies_in == "step" and self.rank == 1 and self.global_step == 3:
            self.die()
        return super().compute_loss()

    def die(self):
        death = self.folder / "death"
        if any(self.folder.glob("checkpoints/step_*")) and not death.exists():
            death.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, strategy, dies_in=""):
    torch.manual_seed(0)
    trainer = Mortal(
        {"train": Loader(toy_dataset(32), 4, shuffle=True), "test": Loader(toy_dataset(17, seed=1), 4)},
        {"backbone": toy_backbone()},
        {"device": "cpu", "strategy": strategy},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), "epochs": 2},
        {"dump_path": folder, "checkpoint_every_step": 1},
    )
    trainer.dies_in = dies_in
    trainer()


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "dies_in"), [("fsdp", "step"), ("fsdp", "save"), ("ddp", "step")])
def test_a_run_whose_rank_is_killed_is_started_again_and_ends_as_one_left_alone(
    start_ranks, tmp_path, strategy, dies_in
):
    start_ranks(train, tmp_path / "alone", strategy).results()
    script, folder = tmp_path / "script.py", tmp_path / "killed"
    script.write_text(SCRIPT)
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--max-restarts=2", "--nproc-per-node=2"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = processes.run([*torchrun, script, folder, strategy, dies_in], env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folder / "death").exists()
    assert (folder / "console.log").read_text().count("Going on from") == 1
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    assert same(ending(folder), ending(tmp_path / "alone"))
