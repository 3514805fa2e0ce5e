"""What `check` says of the disk, the run's folder and the Slurm job: what does not fit, and nothing of what does."""

from __future__ import annotations

import shutil
import stat
from collections import namedtuple

import pytest
from torch import nn

from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.resources import jobs, surroundings
from stable_ssl.rehearsal.resources.jobs import check_slurm
from stable_ssl.rehearsal.resources.surroundings import check_disk
from stable_ssl.rehearsal.stage import Stage, maker_of

ADAM = {"_target_": "torch.optim.AdamW", "lr": 0.001}
LINEAR = {"_target_": "torch.nn.Linear", "in_features": 8, "out_features": 2}


def config(**sections):
    samples = {"_target_": "torch.utils.data.TensorDataset", "_args_": [{"_target_": "torch.zeros", "size": [8, 8]}]}
    trainer = {
        "_target_": "stable_ssl.trainers.SupervisedTrainer",
        "data": {"train": {"_target_": "stable_ssl.data.Loader", "dataset": samples, "batch_size": 4}},
        "module": {"backbone": LINEAR},
        "hardware": {"device": "cpu"},
        "optim": {"optimizer": ADAM, "epochs": 4},
        "logger": {},
    }
    return {
        "trainer": {
            name: {**value, **sections.get(name, {})} if isinstance(value, dict) else value
            for name, value in trainer.items()
        }
    }


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a stage, with the module built."""

    def stage(built=None, slurm=None, facts=None, world_size=1, **sections):
        whole = config(**sections)
        made = Stage(whole, maker_of(whole), tmp_path / "check", Report(), slurm=slurm, world_size=world_size)
        made.built.update(built or {"module.backbone": nn.Linear(8, 2)})
        made.report.facts.update(facts or {})
        return made

    return stage


def said(stage, level="warning"):
    return [finding.text for finding in stage.report.of(level)]


def disk_of(monkeypatch, free):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10 * free, 9 * free, free))


# Disk ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [
        (ADAM, 3),
        ({"_target_": "torch.optim.SGD", "lr": 1, "momentum": 0.9}, 2),
        ({"_target_": "torch.optim.SGD", "lr": 1}, 1),
    ],
)
def test_the_size_of_a_checkpoint_has_the_optimizers_state(make, tmp_path, optimizer, factor):
    network = nn.Sequential(nn.Linear(100, 100, bias=False), nn.BatchNorm1d(100))
    stage = make(
        {"module.backbone": network}, optim={"optimizer": optimizer}, logger={"dump_path": str(tmp_path / "run")}
    )
    check_disk(stage)
    learned, buffers = 4 * (100 * 100 + 200), 4 * 200 + 8
    found = stage.report.facts["disk"]
    assert found["checkpoint_bytes"] == pytest.approx(factor * learned + buffers, rel=1e-3)
    assert found["weights_bytes"] == learned + buffers
    assert stage.report.findings == []
    assert not (tmp_path / "run").exists()


def test_the_size_is_that_of_the_checkpoint_that_a_small_run_wrote(make, make_toy, tmp_path):
    trainer = make_toy(epochs=1)
    trainer()
    stage = make(logger={"dump_path": str(tmp_path / "other")})
    stage.trainer = trainer
    check_disk(stage)
    (written,) = trainer.folder.glob("checkpoints/step_*")
    assert stage.report.facts["disk"]["checkpoint_bytes"] == sum(file.stat().st_size for file in written.iterdir())


def test_what_does_not_fit_on_the_disk_is_an_error_only_if_no_checkpoint_does(make, tmp_path, monkeypatch):
    logger = {
        "dump_path": str(tmp_path / "run"),
        "checkpoint_keep": 2,
        "checkpoint_frequency": 1,
        "save_final_model": True,
    }
    network, checkpoint = {"module.backbone": nn.Linear(1000, 1000, bias=False)}, 12_000_000
    needed = 3 * checkpoint + 5 * 4_000_000
    for free, errors, warnings in ((2 * needed, 0, 0), (needed - 1_000_000, 0, 1), (checkpoint - 1_000_000, 1, 0)):
        disk_of(monkeypatch, free)
        stage = make(network, logger=logger)
        check_disk(stage)
        assert (len(said(stage, "error")), len(said(stage))) == (errors, warnings)
        assert stage.report.facts["disk"]["total_bytes"] == pytest.approx(needed, rel=1e-3)
    assert "a checkpoint takes 12.0 MB" in said(stage, "error")[0]
    disk_of(monkeypatch, needed)
    whole = make(network, logger={**logger, "checkpoint_model_only": False})
    check_disk(whole)
    assert "7 checkpoints of 12.0 MB and 5 files of weights take 104.0 MB" in said(whole)[0]


def test_a_folder_that_can_not_be_written_is_an_error(make, tmp_path):
    (tmp_path / "file").write_text("")
    for path, words in ((tmp_path / "file" / "run", "is a file"), ("/proc/run", "can't be written")):
        stage = make(logger={"dump_path": str(path)})
        check_disk(stage)
        (error,) = said(stage, "error")
        assert error.startswith("logger.dump_path: ")
        assert words in error


def test_a_folder_with_a_run_is_resumed_by_the_same_configuration_and_by_no_other(make, tmp_path):
    from stable_ssl.instantiate import instanciate_config

    folder = {"dump_path": str(tmp_path / "run"), "level": 50}
    parts = {"data": {"train": _labelled()}, "logger": folder, "optim": {"epochs": 1}}
    instanciate_config(config(**parts))()
    done = make(**parts)
    check_disk(done)
    assert done.report.facts["disk"]["resumes_from_step"] == 2
    assert "is finished, so nothing would be done" in said(done)[0]
    assert said(done, "error") == []
    longer = make(**{**parts, "optim": {"epochs": 2}})
    check_disk(longer)
    assert longer.report.findings == []
    other = make(**{**parts, "optim": {"epochs": 2, "grad_max_norm": 1.0}})
    check_disk(other)
    (error,) = said(other, "error")
    assert "holds a run with another configuration" in error
    assert "optim.grad_max_norm: the run in the folder has None, this one 1.0" in error


def _labelled():
    columns = [
        {"_target_": "torch.zeros", "size": [8, 8]},
        {
            "_target_": "torch.zeros",
            "size": [8],
            "dtype": {"_target_": "stable_ssl.nodes.locate", "target": "builtins.int", "path": ""},
        },
    ]
    return {
        "_target_": "stable_ssl.data.Loader",
        "dataset": {"_target_": "torch.utils.data.TensorDataset", "_args_": columns},
        "batch_size": 4,
    }


def test_a_config_of_somebody_elses_is_not_overwritten(make, tmp_path):
    (tmp_path / "config.yaml").write_text("mine: true\n")
    stage = make(logger={"dump_path": str(tmp_path)})
    check_disk(stage)
    (error,) = said(stage, "error")
    assert "config.yaml' is not of a run" in error


def test_folders_that_other_machines_do_not_see_are_warnings_for_a_job(make, tmp_path, monkeypatch):
    monkeypatch.setattr(surroundings, "_OF_ONE_MACHINE", (str(tmp_path),))
    data = {
        "train": {"_target_": "stable_ssl.data.Loader", "dataset": {"_target_": "a", "root": str(tmp_path / "images")}}
    }
    for slurm, number in ((None, 0), ({}, 1)):
        stage = make(slurm=slurm, logger={"dump_path": str(tmp_path / "run")}, data=data)
        check_disk(stage)
        assert len(said(stage)) == number
    assert said(stage)[0].startswith(
        f"logger.dump_path ('{tmp_path}/run'), data.train.dataset.root ('{tmp_path}/images'): other machines"
    )


# Slurm --------------------------------------------------------------------------------------------------------------

GOOD = {"timeout_min": 60, "nodes": 1, "tasks_per_node": 1, "cpus_per_task": 4}
ON_GPU = {"hardware": {"device": "cuda"}}
ALONE = {
    "disk": {"checkpoint_bytes": 4_500_000_000, "bytes_per_second": 50_000_000},
    "step": {"seconds_of_checkpoint": 11.0},
}
# What Slurm 22.05 prints, shortened.
PARTITION = "PartitionName={} AllowGroups=ALL Default={} GraceTime=20 MaxNodes=2 MaxTime={} PreemptMode={} State=UP"
SAID = {
    "scontrol show config": "JobRequeue              = {requeue}\nSlurmctldParameters     = (null)\n",
    "scontrol --oneliner show partition": "\n".join(
        [PARTITION.format("low", "YES", "2:00:00", "REQUEUE"), PARTITION.format("high", "NO", "1-00:00:00", "CANCEL")]
    ),
    "sinfo": "2 4000 (null)\n8 4000 gpu:a100:2(S:0-1)\n",
}
JOBS = {
    "the tasks are not the processes": ({"tasks_per_node": 2}, {"hardware": {"world_size": 4}}, "error", "hardware.world_size: 4, but slurm.nodes × slurm.tasks is 2"),
    "no GPU": ({"gpus_per_node": 0}, ON_GPU, "error", "slurm.gpus: the job asks for no GPU, so Slurm gives it none, and the run ends"),
    "GPUs without a task": ({"gpus_per_node": 2}, ON_GPU, "warning", "1 of 2 are idle"),
    "tasks without a GPU": ({"gpus_per_node": 1, "tasks_per_node": 2}, ON_GPU, "error", "slurm.tasks: 2 tasks on each node have 1 GPU, but"),
    "GPUs for the CPU": ({"gpus_per_node": 1}, {}, "warning", "hardware.device is cpu, so they are idle"),
    "no CPUs": ({"cpus_per_task": None}, {}, "warning", "slurm.cpus: it is not set"),
    "fewer CPUs than workers": ({}, {"data": {"train": {"num_workers": 6}}}, "warning", "slurm.cpus: 4 per task, but data.train.num_workers is 6"),
    "a limit of its own after the end": ({}, {"hardware": {"time_limit": 59}}, "warning", "hardware.time_limit: 59 minutes, but Slurm stops the job after 58.5 min"),
    "a signal at the beginning": ({"timeout_min": 1}, {}, "warning", "slurm.time: the signal to stop comes 90 s before the end, and the job has 60 s"),
    "a signal too late for the checkpoint": ({}, {"facts": ALONE}, "warning", "slurm.signal_delay_s: the signal to stop comes 90 s before the end, but a step and a checkpoint may take 101 s. Set it to at least 202 s."),
    "a run longer than the job": ({}, {"facts": {"time": {"run_seconds": [36_000, 72_000]}}}, "warning", "slurm.time: the run takes 10 h at least, and the job has 60 min. So it is requeued about 10 times"),
    "too little memory": ({"mem_gb": 4, "tasks_per_node": 2}, {"facts": {"memory": {"host_parts": {"process": 2 * 10**9, "checkpoint": 2 * 10**9}}}}, "warning", "slurm.mem: 4 GB per node, but 2 processes need about 6.0 GB. Ask"),
    "no requeue": ({"slurm_additional_parameters": {"no-requeue": True}}, {}, "warning", "no-requeue keeps Slurm from requeueing the job"),
}  # fmt: skip
WITH_SLURM = {
    "no such partition": ({"slurm_partition": "hihg"}, "error", "slurm.partition: there is no 'hihg'. Did you mean 'high'?"),
    "longer than the default partition allows": ({"timeout_min": 121}, "error", "slurm.time: 121 minutes, but partition low allows 120"),
    "longer than a partition allows": ({"timeout_min": 1441, "slurm_partition": "low,high"}, "error", "partition low/high allows 1440"),
    "more nodes": ({"nodes": 3}, "error", "slurm.nodes: 3, but partition low allows 2"),
    "more CPUs": ({"tasks_per_node": 3}, "error", "slurm.cpus: 12 CPUs on a node (slurm.tasks × slurm.cpus), but no node of partition low has more than 8"),
    "more memory": ({"mem_gb": 8}, "error", "slurm.mem: 8 GB, but no node of partition low has more than 3.9 GB"),
    "more GPUs": ({"slurm_gpus": 0, "gpus_per_node": 4, "tasks_per_node": 2}, "error", "slurm.gpus: 4, but no node of partition low has more than 2"),
    "a partition that cancels": ({"slurm_partition": "high"}, "warning", "slurm.partition: high cancels jobs that it preempts"),
}  # fmt: skip


@pytest.fixture
def no_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """Commands that print what Slurm's own have printed."""
    for name in ("scontrol", "sinfo"):
        cases = "".join(
            f'{command.removeprefix(name).strip() or "*"!r}*) cat <<"END"\n{text.format(requeue=1)}\nEND\n;;\n'.replace("'*'*", "*")
            for command, text in SAID.items() if command.startswith(name)
        )  # fmt: skip
        (tmp_path / name).write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\n')
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_a_job_that_suits_the_run_has_no_finding(make, slurm):
    stage = make(slurm={**GOOD, "slurm_partition": "low"}, facts={"time": {"run_seconds": [60, 600]}})
    check_slurm(stage)
    assert stage.report.findings == []
    assert stage.report.facts["slurm"]["timeout_min"] == 60
    nothing = make()
    check_slurm(nothing)
    assert nothing.report.facts == {}


@pytest.mark.parametrize("name", JOBS)
def test_what_a_job_asks_for_against_what_the_run_needs(make, no_slurm, name):
    job, options, level, words = JOBS[name]
    stage = make(slurm={key: value for key, value in {**GOOD, **job}.items() if value is not None}, **options)
    check_slurm(stage)
    assert [words in text for text in said(stage, level)] == [True], stage.report.findings
    assert len(stage.report.findings) == 1


@pytest.mark.parametrize("name", WITH_SLURM)
def test_what_a_job_asks_for_against_what_slurm_has(make, slurm, name):
    job, level, words = WITH_SLURM[name]
    stage = make(slurm={**GOOD, **job}, hardware={"device": "auto" if "gpus_per_node" in job else "cpu"})
    check_slurm(stage)
    assert any(words in text for text in said(stage, level)), stage.report.findings


def test_times_of_slurm_in_minutes():
    known = {
        "30": 30,
        "1:30": 1.5,
        "2:00:00": 120,
        "1-12": 2160,
        "1-00:30": 1470,
        "7-00:00:00": 10080,
        "UNLIMITED": None,
    }
    assert {text: jobs._minutes(text) for text in known} == known
