"""A run that a real Slurm interrupts goes on by itself, and ends where one left alone ends: to the bit."""

from __future__ import annotations

import json

import pytest
from endings import ending, same

from .cluster import poll
from .conftest import HELD_AT, SAVED_BEFORE, await_hold, lives

CHECKPOINT_CALLED = "Calling checkpoint method"


def test_a_preempted_run_is_requeued_and_ends_as_one_left_alone(cluster, site, alone):
    ((job, folder, log),) = site.submit(cluster)
    await_hold(cluster, job, folder, log)
    cluster.preempt()
    cluster.await_end(job)
    assert cluster.restarts(job) == 1
    assert lives(folder) == ["0 0", f"1 {HELD_AT}"]
    assert f"Stopping at step {HELD_AT} because of SIGUSR2" in log.read_text()
    assert CHECKPOINT_CALLED in log.read_text()
    assert "failed" not in log.read_text()
    assert same(ending(folder), alone)


@pytest.mark.slow
def test_a_run_that_reaches_its_time_limit_goes_on_in_its_next_job(cluster, site, alone):
    # The limit is a minute, and looked at every half: the signal comes between 15 and 45 seconds after the start.
    ((job, folder, log),) = site.submit(cluster, "slurm.time=1", "slurm.signal_delay_s=15")
    cluster.await_end(job)
    assert cluster.restarts(job) >= 1
    assert lives(folder)[:2] == ["0 0", f"1 {HELD_AT}"]
    assert "this job is timed-out" in log.read_text()
    assert same(ending(folder), alone)


@pytest.mark.slow
def test_a_run_that_gets_the_signal_by_hand_is_requeued(cluster, site, alone):
    ((job, folder, log),) = site.submit(cluster)
    await_hold(cluster, job, folder, log)
    cluster("scancel", "--signal=USR2", job)
    cluster.await_end(job)
    assert cluster.restarts(job) == 1
    assert lives(folder) == ["0 0", f"1 {HELD_AT}"]
    assert CHECKPOINT_CALLED in log.read_text()
    assert same(ending(folder), alone)


@pytest.mark.slow
def test_a_run_that_is_requeued_without_being_asked_goes_on(cluster, site, alone):
    ((job, folder, log),) = site.submit(cluster)
    await_hold(cluster, job, folder, log)
    cluster("scontrol", "requeue", job)
    cluster.await_end(job)
    assert cluster.restarts(job) == 1
    assert lives(folder) == ["0 0", f"1 {HELD_AT}"]  # Slurm sends SIGTERM then, too
    assert CHECKPOINT_CALLED not in log.read_text()
    assert same(ending(folder), alone)


@pytest.mark.slow
def test_a_run_whose_node_fails_goes_on_from_its_newest_checkpoint_on_another(own_cluster, site, alone):
    ((job, folder, log),) = site.submit(own_cluster)
    await_hold(own_cluster, job, folder, log)
    node = own_cluster.job(job)["NodeList"]
    own_cluster.crash(node)
    try:
        own_cluster.await_end(job)
        assert own_cluster.job(job)["NodeList"] != node
    finally:
        own_cluster.mend(node)
    assert own_cluster.restarts(job) == 1
    assert lives(folder) == ["0 0", f"1 {SAVED_BEFORE}"]
    assert CHECKPOINT_CALLED not in log.read_text()
    assert same(ending(folder), alone)


@pytest.mark.slow
def test_a_run_whose_preemption_is_announced_by_sigterm_only_is_requeued(silent_cluster, site, alone):
    ((job, folder, log),) = site.submit(silent_cluster)
    await_hold(silent_cluster, job, folder, log)
    silent_cluster.preempt()
    silent_cluster.await_end(job)
    assert silent_cluster.restarts(job) == 1
    assert lives(folder) == ["0 0", f"1 {HELD_AT}"]
    assert f"Stopping at step {HELD_AT} because of SIGTERM" in log.read_text()
    assert CHECKPOINT_CALLED in log.read_text()
    assert same(ending(folder), alone)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cluster", "silent_cluster"])
def test_a_run_that_is_preempted_without_grace_is_requeued(request, kind, site, alone):
    cluster = request.getfixturevalue(kind)
    ((job, folder, log),) = site.submit(cluster, "slurm.partition=low_at_once")
    await_hold(cluster, job, folder, log)
    cluster.preempt()
    cluster.await_end(job)
    assert cluster.restarts(job) == 1
    assert lives(folder) == ["0 0", f"1 {HELD_AT}"]
    assert "triggered an exception" not in log.read_text()  # of which who waits for the result would hear
    assert same(ending(folder), alone)


@pytest.mark.slow
def test_a_cancelled_run_saves_and_stays_ended(cluster, site):
    ((job, folder, log),) = site.submit(cluster)
    await_hold(cluster, job, folder, log)
    cluster("scancel", job)
    poll("the run to end", lambda: json.loads((folder / "status.json").read_text())["status"] == "preempted")
    cluster.await_state(job, "CANCELLED")
    assert (folder / "checkpoints" / f"step_{HELD_AT:08d}" / "meta.json").exists()
    assert CHECKPOINT_CALLED not in log.read_text()
    assert cluster.restarts(job) == 0


SCRIPT = """
import submitit
from torch import nn
from stable_ssl.data import Loader
import torch
from patient import Patient, Samples


class Mine(Patient):
    def __init__(self, width, folder):
        super().__init__(
            data={"train": Loader(Samples(), 5, shuffle=True), "test": Loader(Samples(), 100)},
            module={"backbone": nn.Sequential(nn.Linear(8, width), nn.Dropout(0.2), nn.Linear(width, 2))},
            hardware={"device": "cpu"},
            optim={"optimizer": torch.optim.AdamW, "epochs": 4, "accumulation_steps": 2},
            logger={"dump_path": folder, "checkpoint_every_step": 7},
        )


if __name__ == "__main__":
    torch.manual_seed(0)
    Mine(32, "alone")()
    torch.manual_seed(0)
    executor = submitit.AutoExecutor("logs", cluster="slurm")
    executor.update_parameters(timeout_min=60, slurm_partition="low")
    print(executor.submit(Mine(width=32, folder="submitted")).job_id)
"""


@pytest.mark.slow
def test_a_trainer_with_its_own_constructor_is_submitted_from_python_and_goes_on(cluster, site):
    job = site.script(cluster, SCRIPT).split()[-1]
    folder, log = site.path / "submitted", site.path / "logs" / f"{job}_0_log.out"
    await_hold(cluster, job, folder, log)
    cluster.preempt()
    cluster.await_end(job)
    assert cluster.restarts(job) == 1
    assert lives(folder) == ["0 0", f"1 {HELD_AT}"]
    assert CHECKPOINT_CALLED in log.read_text()
    assert same(ending(folder), ending(site.path / "alone"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cluster", "silent_cluster"])
def test_a_sweep_is_one_job_array_of_which_each_run_goes_on_by_itself(request, kind, site, alone):
    cluster = request.getfixturevalue(kind)
    jobs = site.submit(cluster, "--multirun", "hardware.seed=0,1", "optim.epochs=range(4,5)")
    first, second = jobs
    assert [job.split("_")[1] for job, _, _ in jobs] == ["0", "1"]
    assert len({job.split("_")[0] for job, _, _ in jobs}) == 1
    for job, folder, log in jobs:
        await_hold(cluster, job, folder, log)
    cluster("scancel", "--signal=USR2", first[0])
    cluster.await_end(first[0])
    assert lives(second[1]) == ["0 0"]
    cluster.preempt()
    cluster.await_end(second[0])
    for job, folder, _ in jobs:
        assert cluster.restarts(job) == 1
        assert lives(folder) == ["0 0", f"1 {HELD_AT}"]
    assert same(ending(first[1]), alone)
    assert not same(ending(second[1]), alone)


@pytest.mark.slow
def test_a_sweep_through_hydras_launcher_goes_on_where_a_job_of_it_is_preempted(cluster, site, alone):
    sweep = site.start(
        cluster, "train", "patient.yaml", "--multirun", "hardware.seed=0,1", "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=low", "hydra.launcher.timeout_min=60", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    try:
        folders = [site.path / "sweep" / f"hardware.seed={seed}" for seed in (0, 1)]
        for folder in folders:
            poll("the sweep to train", lambda folder=folder: sweep.poll() is not None or (folder / "held_0").exists())
            assert sweep.poll() is None, sweep.communicate()
        (array,) = {line.split("_")[0] for line in cluster("squeue", "-h", "-o", "%i").split()}
        cluster("scancel", "--signal=USR2", f"{array}_0")
        cluster.await_end(f"{array}_0")
        assert lives(folders[1]) == ["0 0"]
        cluster.preempt()
        assert sweep.wait(180) == 0, sweep.communicate()
    finally:
        sweep.kill()
    for number, folder in enumerate(folders):
        assert cluster.restarts(f"{array}_{number}") == 1
        assert lives(folder) == ["0 0", f"1 {HELD_AT}"]
    assert same(ending(folders[0]), alone)
