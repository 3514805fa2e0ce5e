"""What can go wrong around a run: each test makes it go wrong, and asserts that it did."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import processes
import pytest
import torch
from endings import newest_state, status_of
from torch import nn
from toys import Toy, toy_dataset

from stable_ssl import CheckpointError, ConfigError, DataError
from stable_ssl.data import Loader
from stable_ssl.runtime.folder import written_at_start


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(make_toy, small_disk):
    found = []

    class Filling(Toy):
        def after_fit_step(self):
            filler = small_disk / "filler"
            if self.global_step == 4:
                self._saver._store.wait()
                filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100))
            if self.global_step == 5:
                self._saver._store.wait()
                found.extend(path.name for path in (self.folder / "checkpoints").iterdir())
                filler.unlink()

    trainer = make_toy(Filling, logger={"dump_path": small_disk / "run", "checkpoint_every_step": 1, "level": 40})
    trainer()
    said = (trainer.folder / "console.log").read_text()
    assert "No space left on device" in said  # the first message about it: the disk may be full for the next ones
    assert "step_00000004" not in found
    assert "step_00000003" in found
    assert trainer.global_step == 6
    assert [record["global_step"] for record in trainer.get_logs()] == [1, 2, 3, 4, 5, 6]
    assert sorted(p.name for p in (trainer.folder / "checkpoints").iterdir()) == ["step_00000005", "step_00000006"]
    alone = make_toy()
    alone()
    assert all(map(torch.equal, trainer.parameters(), alone.parameters()))


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_costs_that_one_only(make_toy, small_disk):
    class Growing(Toy):
        """Its state no longer fits on the disk for two steps."""

        def after_fit_step(self):
            self._saver._store.wait()
            self.register_buffer("ballast", torch.zeros(400_000 if self.global_step in (3, 4) else 1))

    trainer = make_toy(Growing, logger={"dump_path": small_disk / "run", "checkpoint_every_step": 1, "level": 40})
    trainer()
    said = (trainer.folder / "console.log").read_text()
    assert said.count("No space left on device. That of step 2 stands: started again, the run goes on from there.") == 2
    assert trainer.global_step == 6
    assert newest_state(trainer)["progress"]["global_step"] == 6


@pytest.mark.parametrize("has_weights", [True, False])
def test_a_run_without_room_for_any_checkpoint_says_what_would_be_lost_and_what_is_left(
    make_toy, small_disk, has_weights
):
    class Big(Toy):
        """Its weights fit on the disk, and its checkpoints do not."""

        def before_fit(self):
            self.register_buffer("ballast", torch.zeros(400_000))

    options = {"dump_path": small_disk / "run", "save_final_model": has_weights, "level": 40}
    trainer = make_toy(Big, logger=options)
    with pytest.raises(CheckpointError, match="The run has no checkpoint, so started again it begins anew") as caught:
        trainer()
    weights = small_disk / "run" / "weights" / "final.safetensors"
    assert (f"'{weights}' has the weights of step 6: copy it first." in str(caught.value)) == has_weights
    assert weights.exists() == has_weights
    said = (trainer.folder / "console.log").read_text()
    assert "The run has NO CHECKPOINT: if it ends now, all that it has trained is lost" in said
    assert "stands" not in said


def test_a_folder_that_can_not_be_written_is_refused_at_the_start(make_toy, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(ConfigError, match="logger.dump_path: .* can't be written: .*Read-only file system"):
        make_toy(logger={"dump_path": small_disk / "run"}).setup()


def test_a_file_that_is_there_is_not_blamed_for_a_full_disk(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    said = "config.yaml' can't be written: No space left on device. Make room"
    with pytest.raises(ConfigError, match=said), written_at_start(tmp_path / "config.yaml"):
        raise OSError(errno.ENOSPC, "No space left on device")


HOLDER = """
import sys, time
from stable_ssl.runtime.folder import RunFolder
folder = RunFolder(sys.argv[1], "holder")
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_in_one_folder_is_refused_until_the_first_is_gone(make_toy, tmp_path):
    held, told = os.pipe()
    holder = processes.start([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=told)
    os.close(told)
    with open(held) as stdout:
        assert stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="another process is running in"):
        make_toy().setup()
    holder.kill()
    assert holder.wait() == -signal.SIGKILL
    make_toy()()


def test_a_checkpoint_of_another_model_is_refused_with_every_mismatch(make_toy):
    make_toy()()
    other = {"backbone": nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 2))}
    with pytest.raises(CheckpointError) as caught:
        make_toy(module=other, epochs=3).setup()
    for name in ("module.backbone.0.weight", "module.backbone.1.running_mean", "module.backbone.4.weight"):
        assert name in str(caught.value)


def test_a_forged_folder_without_metadata_is_passed_over(make_toy):
    trainer = make_toy(logger={"checkpoint_every_step": 2})
    trainer()
    checkpoints = trainer.folder / "checkpoints"
    shutil.copytree(checkpoints / "step_00000006", checkpoints / "step_00000099")
    (checkpoints / "step_00000099" / "meta.json").unlink()
    again = make_toy(epochs=3, logger={"level": 40})
    again()
    assert again.global_step == 9
    assert "step_00000099' is not a whole checkpoint" in (again.folder / "console.log").read_text()


class Deadly(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        if index == 13 and torch.utils.data.get_worker_info() is not None:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return toy_dataset()[index]


def test_a_killed_worker_ends_the_run_and_keeps_its_last_state(make_toy):
    trainer = make_toy(
        data={"train": Loader(Deadly(), 4, num_workers=1, prefetch_factor=1)}, logger={"checkpoint_every_step": 1}
    )
    with pytest.raises(DataError, match="a worker process died .* samples"):
        trainer()
    assert status_of(trainer) == "failed"
    kept = make_toy(data={"train": Loader(toy_dataset(), 4)})
    kept.setup()
    assert kept.global_step == trainer.global_step >= 1


def test_an_error_of_a_run_has_status_1_and_closes_its_log(tmp_path):
    script = """
    import functools, sys, torch
    from stable_ssl import SupervisedTrainer
    from torch import nn

    batches = [(torch.randn(4, 8), torch.zeros(4, dtype=torch.long)) for _ in range(3)]
    batches[2] = (torch.randn(4, 7), batches[2][1])
    SupervisedTrainer({"train": batches}, {"backbone": nn.Linear(8, 2)}, {"device": "cpu"},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1)}, {"dump_path": sys.argv[1]})()
    """
    done = processes.run([sys.executable, "-c", textwrap.dedent(script), tmp_path])
    assert done.returncode == 1
    assert "used batch 2 of epoch 1: (float32 (4, 7), int64 (4,) from 0 to 0)" in done.stderr
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
