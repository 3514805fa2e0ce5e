"""A run of two processes that Slurm interrupts ends, to the bit, where one left alone ends, on one node or on two."""

from __future__ import annotations

import pytest
from endings import ending, same

from .conftest import HELD_AT, SAVED_BEFORE, await_hold, lives

pytestmark = pytest.mark.slow
STOPPED_AT = HELD_AT + 1  # processes tell each other of a signal while they take the next step
# Half as many steps an epoch as with one process.
EPOCHS = "optim.epochs=8"


@pytest.fixture(scope="module")
def two_alone(cluster, make_site):
    """The ending of the run of two processes when it is left alone."""
    ((job, folder, _),) = make_site("two_alone").submit(cluster, "slurm.tasks=2", EPOCHS, "holds=false")
    cluster.await_end(job)
    assert cluster.restarts(job) == 0
    return ending(folder)


def preempt(cluster, site, *arguments):
    """Return the folder of a run that was preempted, requeued, and has ended."""
    ((job, folder, log),) = site.submit(cluster, *arguments)
    await_hold(cluster, job, folder, log, ranks=2)
    cluster.preempt()
    cluster.await_end(job)
    assert cluster.restarts(job) == 1
    for rank in range(2):
        assert lives(folder, rank) == ["0 0", f"1 {STOPPED_AT}"]
    return folder


@pytest.mark.parametrize("places", [["slurm.tasks=2"], ["slurm.nodes=2"]], ids=["one node", "two nodes"])
def test_a_preempted_run_of_two_tasks_is_requeued_and_ends_as_one_left_alone(cluster, site, two_alone, places):
    folder = preempt(cluster, site, *places, EPOCHS)
    assert same(ending(folder), two_alone)


def test_a_preempted_run_that_divides_the_model_between_two_nodes_ends_as_one_left_alone(cluster, site, make_site):
    arguments = ["slurm.nodes=2", EPOCHS, "hardware.strategy=fsdp"]
    folder = preempt(cluster, site, *arguments)
    assert any(folder.glob("checkpoints/step_*/shards/__1_0.distcp"))
    ((job, alone, _),) = make_site("sharded_alone").submit(cluster, *arguments, "holds=false")
    cluster.await_end(job)
    assert same(ending(folder), ending(alone))


def test_a_run_of_which_one_node_fails_ends_and_goes_on_from_its_newest_checkpoint(own_cluster, site, two_alone):
    ((job, folder, log),) = site.submit(own_cluster, "slurm.nodes=2", EPOCHS)
    await_hold(own_cluster, job, folder, log, ranks=2)
    own_cluster.crash("n2")
    own_cluster.mend("n2")
    own_cluster.await_end(job)
    assert own_cluster.restarts(job) == 1
    for rank in range(2):
        assert lives(folder, rank) == ["0 0", f"1 {SAVED_BEFORE}"]
    assert same(ending(folder), two_alone)


def test_a_task_that_fails_ends_the_job(cluster, site):
    ((job, _, log),) = site.submit(cluster, "slurm.tasks=2", EPOCHS, "fails_on_rank=1")
    cluster.await_state(job, "FAILED")
    assert "RuntimeError: as asked" in (log.parent / f"{job}_1_log.out").read_text()
    assert cluster.restarts(job) == 0
