"""What a real Slurm says of its partitions is what `check` finds a job's limits by."""

from __future__ import annotations

import pytest

from stable_ssl.cli.slurm import read_settings
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.resources.jobs import check_slurm
from stable_ssl.rehearsal.stage import Stage, maker_of

pytestmark = pytest.mark.slow


def test_a_job_beyond_the_limits_of_a_real_partition_is_an_error_for_each(own_cluster, monkeypatch, tmp_path):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, own_cluster.env[name])

    def found(*settings):
        config = {"trainer": {"hardware": {"device": "cpu"}}}
        job = read_settings([f"slurm.{setting}" for setting in settings])[1]
        stage = Stage(config, maker_of(config), tmp_path, Report(), slurm=job)
        check_slurm(stage)
        return [finding.text for finding in stage.report.findings]

    assert found("partition=low", "time=60", "cpus=2", "mem=3") == []
    own_cluster("scontrol", "update", "partitionname=high", "maxtime=30", "maxnodes=1")
    try:
        beyond = found("partition=high", "time=31", "nodes=2", "cpus=3", "mem=8")
    finally:
        own_cluster("scontrol", "update", "partitionname=high", "maxtime=unlimited", "maxnodes=unlimited")
    assert [text.partition(": ")[0] for text in beyond] == ["slurm.time", "slurm.nodes", "slurm.cpus", "slurm.mem"]
    assert "partition high allows 30" in beyond[0]
    assert found("partition=hihg", "cpus=2")[0].startswith("slurm.partition: there is no 'hihg'. Did you mean 'high'?")
