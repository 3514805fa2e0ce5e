"""A job uses the CPUs and the device that it was given, and says so; without a folder for numba's cache it goes on."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch

import stable_ssl
from stable_ssl import ConfigError
from stable_ssl.runtime import cpus
from stable_ssl.runtime.device import resolve_device
from stable_ssl.runtime.precision import resolve_precision

COMMAND = Path(sys.executable).with_name("stable-ssl")


@pytest.fixture
def clean_env():
    """The environment without Slurm and without a number of threads."""
    ours = ("SLURM", "OMP_", "MKL_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture
def no_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, 8),
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "4"}, 2),
        ({"SLURM_CPUS_ON_NODE": "4"}, 4),
        ({"SLURM_CPUS_ON_NODE": "6", "SLURM_STEP_TASKS_PER_NODE": "1,3(x2)", "SLURM_NODEID": "2"}, 2),
        ({"SLURM_CPUS_PER_TASK": "64"}, 8),
    ],
)
def test_a_process_counts_the_cpus_that_slurm_gave_its_task(no_slurm, env, expected):
    no_slurm.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, value in env.items():
        no_slurm.setenv(name, value)
    assert cpus.cpus_of_process() == expected


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/job/step", {"job/cpu.max": "250000 100000", "job/step/cpu.max": "max 100000"}, 2),
        ("0::/elsewhere", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("4:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_is_that_of_its_groups_and_their_parents(tmp_path, line, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "membership").write_text(f"9:name=systemd:/\n{line}\n")
    assert cpus.quota(tmp_path, tmp_path / "membership") == expected


TRAINING = """
import functools, sys, torch
from stable_ssl.data import Loader
from toys import Toy, toy_backbone, toy_dataset
epochs, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)  # as many as torch takes on a large machine
Toy(
    {"train": Loader(toy_dataset(), 8)}, {"backbone": toy_backbone()}, {"device": "cpu"},
    {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": epochs}, {"dump_path": "run"},
)()
"""


def test_a_job_uses_the_threads_that_it_was_given_and_a_resume_with_others_says_so(tmp_path, clean_env):
    def run(epochs, **env):
        env = {**clean_env, "PYTHONPATH": str(Path(processes.__file__).parent), "SLURM_CPUS_PER_TASK": "1", **env}
        done = processes.run([sys.executable, "-c", TRAINING, epochs, 3], cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        newest = max((tmp_path / "run" / "checkpoints").glob("step_*/meta.json"))
        return json.loads(newest.read_text())["world"]["threads"], done.stderr

    threads, said = run(1)
    assert threads == 1
    assert "This process was given 1 of the CPUs, so torch uses as many threads and not 3" in said
    threads, said = run(2, OMP_NUM_THREADS="3")
    assert threads == 3
    assert "was given" not in said
    assert "The number of threads was 1 before and is 3 now. Results may differ in the last bits." in said


def test_what_is_missing_by_name_is_an_error_where_others_would_pay_for_it(no_slurm, caplog):
    no_slurm.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("cuda:1") == torch.device("cpu")
    assert resolve_precision("fp16", torch.device("cpu")) == "fp32"
    assert [record.message for record in caplog.records] == [
        "hardware.device is 'cuda:1', but this machine has no CUDA device: using the CPU.",
        "Precision fp16 needs a CUDA device: using fp32 on cpu.",
    ]
    with pytest.raises(ConfigError, match="'cuda', but this .* is an error in a run of 2 processes"):
        resolve_device("cuda", world_size=2)
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device, which is an error in a run of 2 processes"):
        resolve_precision("fp16", torch.device("cpu"), world_size=2)
    no_slurm.setenv("SLURM_JOB_ID", "1")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ConfigError, match="is an error in a Slurm job. Ask for a GPU"):
            resolve_device(name)
    assert resolve_device("auto") == torch.device("cpu")
    no_slurm.setenv("SLURM_GPUS_ON_NODE", "1")
    resolve_device("auto")
    assert caplog.records[-1].message == "Slurm gave this job GPUs, but torch finds no CUDA device: using cpu."


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_slurm_job_without_its_device_has_status_2(tmp_path):
    env = {**os.environ, "SLURM_JOB_ID": "1"}
    done = processes.run([COMMAND, "train", "supervised_digits", "hardware.device=cuda"], cwd=tmp_path, env=env)
    assert done.returncode == 2, done.stderr
    assert "CUDA device, which is an error in a Slurm job" in done.stderr


COMPILING = """
import logging
logging.basicConfig()
from stable_ssl.augmentations.kernels.compiling import ZERO, kernel
@kernel
def double(x):
    return x + x
print(double(2), double.stats.cache_path)
"""


@pytest.mark.parametrize("is_open_to_others", [False, True])
def test_without_a_folder_for_its_cache_numba_uses_a_temporary_one(tmp_path, clean_env, is_open_to_others):
    # Another copy of the package, in which a file takes the place of the cache's folder: root may write everywhere.
    shutil.copytree(Path(stable_ssl.__file__).parent, tmp_path / "stable_ssl", ignore=lambda *_: {"__pycache__"})
    (tmp_path / "stable_ssl" / "augmentations" / "kernels" / "__pycache__").touch()
    (tmp_path / "code.py").write_text(COMPILING)
    shared = tmp_path / "tmp" / f"stable_ssl_numba_{os.getuid()}"
    shared.parent.mkdir()
    if is_open_to_others:
        shared.mkdir()
        shared.chmod(0o777)
    env = {**clean_env, "PYTHONPATH": str(tmp_path), "HOME": "/dev/null", "TMPDIR": str(shared.parent)}
    env = {name: value for name, value in env.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    done = subprocess.run([sys.executable, "code.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "numba can write neither beside the library nor in the home folder" in done.stderr
    result, folder = done.stdout.split()
    assert result == "4"
    # numba runs what it finds in its cache, so a folder that others can write to is left alone.
    assert (Path(folder).parent == shared) == (not is_open_to_others)
    assert Path(folder).is_relative_to(shared.parent)
    assert not is_open_to_others or not list(shared.iterdir())


@pytest.mark.skipif(sys.platform + platform.machine() != "linuxx86_64", reason="Linux on x86 tells the flags of a CPU")
def test_bf16_on_a_cpu_without_instructions_for_it_is_kept_and_said(caplog):
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"
    said = "hardware.precision is bf16, for which this CPU has no instructions" in caplog.text
    assert said == (not {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags and "avx_ne_convert" not in flags)
    caplog.clear()
    resolve_precision("fp32", torch.device("cpu"))
    assert not caplog.records
