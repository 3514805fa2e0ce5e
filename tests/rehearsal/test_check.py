"""`stable-ssl check`: all faults in one go, what it leaves behind, and the quick part before a run."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import processes
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from toys import Toy, toy_backbone

import stable_ssl
from stable_ssl import ConfigError
from stable_ssl.cli import main
from stable_ssl.rehearsal.check import check_first
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.screen import show

SMALL = ["optim.epochs=2", "backbone=resnet9", "module.backbone.widths=[8,8]"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def found_by(capsys, *args):
    """Run the command with --json, and return its exit status and what it printed."""
    status = main(["check", *args, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_healthy_run_has_figures_of_every_part_and_leaves_nothing_behind(tmp_path, capsys):
    status, report = found_by(capsys, "simclr_digits", "--device", "a100-40gb")
    assert (status, report["findings"], report["broken"]) == (0, [], {})
    facts = report["facts"]
    assert facts["data"]["train"]["images"] == 1442
    assert facts["memory"]["peak_bytes"] < facts["memory"]["card_bytes"] == 40 * 2**30
    assert facts["step"]["loss"]["loss_ssl"] > 0
    assert facts["time"]["steps"] == 25 * (1442 // 128)
    assert facts["disk"]["checkpoint_bytes"] == pytest.approx(facts["step"]["checkpoint_bytes"], rel=0.01)
    assert not os.listdir(tmp_path)


def test_faults_of_several_parts_come_in_one_go(capsys):
    broken = ["hardware.seed=-1", "loss.temperature=-1", "data.test.dataset.split=tset", "+module.projector.depth=3"]
    broken += ["logger.dump_path=/dev/null/run", "+backbone.width=8"]
    status, report = found_by(capsys, "simclr_digits", *broken)
    assert status == 2
    texts = [finding["text"] for finding in report["findings"] if finding["level"] == "error"]
    for key in (
        "hardware.seed",
        "loss",
        "data.test.dataset",
        "module.projector",
        "module.backbone",
        "logger.dump_path",
    ):
        assert [key for text in texts if text.startswith((f"{key}:", f"{key}."))] == [key], texts
    assert not any(text.startswith("backbone") for text in texts)


def test_a_data_set_that_is_not_there_is_a_fault_of_the_data_and_is_said_once(capsys):
    _, report = found_by(capsys, "simclr_digits", "data.test.dataset.split=tset")
    errors = [finding for finding in report["findings"] if finding["level"] == "error"]
    assert [(one["part"], one["text"].partition(":")[0]) for one in errors] == [("data", "data.test.dataset.split")]


def test_a_module_that_only_this_machine_has_no_memory_for_is_looked_at_without_values(capsys):
    sizes = "module.projector.sizes=[128,10000000,10000000,64]"
    _, report = found_by(capsys, "simclr_digits", sizes, "--device", "h100-80gb")
    told = [(one["level"], one["part"], one["text"][:40]) for one in report["findings"]]
    assert told[0] == ("warning", "configuration", "module.projector: this machine has too l"), told
    assert {one[1] for one in told if one[0] == "error"} == {"memory", "disk"}, told
    assert report["facts"]["memory"]["is_complete"]
    assert report["facts"]["device"]["waits_per_step"] == 0
    assert report["facts"]["time"]["step_seconds"]
    assert not report["broken"]


def test_the_table_names_the_fault_and_the_verdict(capsys):
    assert main(["check", "simclr_digits", "module.projector.sizes=[100,64]"]) == 2
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "The run would fail: 1 error, 0 warnings."
    assert any(line.startswith("✗ step: module.projector") for line in shown), shown


def test_a_part_that_broke_is_named_and_so_is_one_that_was_not_looked_at():
    report = Report(broken={"data": "KeyError: 3"})
    report.tell("configuration", is_built=True)
    console = Console(width=120, record=True, file=io.StringIO())
    show(report, console)
    built, broken, left, *_, fault, verdict = console.export_text().splitlines()
    assert built.startswith("✓  configuration  the trainer and all its parts can be built")
    assert broken.rstrip().endswith("the check of it broke, see below")
    assert left.rstrip().endswith("no figures, since something else is missing or wrong")
    assert fault == "? The check of the data broke by a fault of its own: KeyError: 3"
    assert verdict == "The check broke, so the run may fail by what was not looked at: 0 errors, 0 warnings."


@pytest.mark.parametrize(
    ("args", "beginning"),
    [
        (["simclr_digts"], "Did you mean 'simclr_digits'?"),
        (
            ["train.py"],
            "'train.py': a Python script, and no recipe or YAML file. Run it by `python train.py`. To check",
        ),
        (["simclr_digits", "--device", "h100-81gb"], "device: 'h100-81gb' is none of the cards"),
        (["simclr_digits", "slurm.time=5"], "check: 'slurm.time=5' is a setting of a Slurm job"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_a_sentence(args, beginning, capsys):
    status, report = found_by(capsys, *args)
    assert status == 2
    assert beginning in report["findings"][0]["text"]


def test_a_configuration_that_is_no_dict_breaks_no_check():
    assert stable_ssl.check({"trainer": 3}).status == 2
    with pytest.raises(ConfigError):
        check_first({"trainer": 3}, print)


def test_a_check_may_run_in_any_thread():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, ["check", "simclr_digts"]).result() == 2


def test_of_a_sweep_the_first_run_is_checked_and_the_others_in_brief(capsys):
    status, report = found_by(capsys, "simclr_digits", "-m", "optim.optimizer.lr=0.001,-1")
    assert status == 2
    [error] = [finding["text"] for finding in report["findings"] if finding["level"] == "error"]
    assert error.startswith("optim.optimizer.lr=-1: optim.optimizer")
    assert "step" in report["facts"]


def test_a_trainer_of_a_script_is_checked_and_stays_as_it_is(make_toy, tmp_path, capsys):
    backbone = toy_backbone()
    backbone.lock = threading.Lock()  # it can't be copied
    trainer = make_toy(module={"backbone": backbone})
    before = {name: value.clone() for name, value in trainer.module["backbone"].state_dict().items()}
    random_state = torch.get_rng_state()
    report = stable_ssl.check(trainer, device="1gb")
    report.show()
    assert "Nothing says that the run would fail: 0 errors" in capsys.readouterr().out
    assert (report.status, [finding.text for finding in report.of("error")]) == (0, [])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(trainer.module["backbone"].state_dict()[name], value) for name, value in before.items())
    trainer()
    assert trainer.epoch == 2


class Asks(Toy):
    def after_fit_step(self, batch):
        pass


def test_a_hook_that_can_not_be_called_is_told_once(make_toy):
    [error] = stable_ssl.check(make_toy(Asks)).of("error")
    assert error.text == "Asks.after_fit_step: it takes batch beside self, but a run calls it with nothing."


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (20, 20), (40 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_pretrain_looks_at_the_run_before_it_begins_unless_told_otherwise(photos, capsys):
    line = ["pretrain", "photos", "--epochs", "1", "--size", "16", "--out", "run", "optim.optimizer.momentum=2"]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "stable-ssl: --no-check begins without this check." in said
    assert not os.path.exists("run")
    assert main([*line[:-1], "--no-check"]) == 0


def test_an_error_in_a_data_set_of_the_user_is_said_with_its_line_before_a_run_begins(tmp_path, capsys):
    lines = ["class Mine:", "    def __init__(self, split, size):", "        pass", "    def __len__(self):"]
    lines += ["        return 300", "    def __getitem__(self, index):", "        return {}[index]"]
    (tmp_path / "own_set.py").write_text("\n".join(lines))
    own = ["data.train.dataset._target_=own_set.Mine"]
    assert main(["train", "simclr_digits", *own, "--slurm"]) == 2
    said = capsys.readouterr().err
    assert "KeyError: 0 (own_set.py:7). 1 of 1 samples" in said


def test_a_job_is_not_submitted_if_its_run_would_fail(tmp_path, monkeypatch, capsys):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho Submitted batch job 7\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    line = ["train", "simclr", "data=parquet", "root=/nowhere", "num_classes=2", "size=16", "--slurm"]
    assert main(line) == 2
    assert "data.train" in capsys.readouterr().err
    sweep = ["-m", "optim.optimizer.lr=0.001,-1", "hardware.seed=1,2"]
    assert main(["train", "simclr_digits", *sweep, "--slurm"]) == 2
    both = "optim.optimizer.lr=-1,hardware.seed=1; optim.optimizer.lr=-1,hardware.seed=2"
    assert f"{both}: optim.optimizer.lr: -1" in capsys.readouterr().err
    assert not os.path.exists("runs")
    assert main([*line, "--no-check"]) == 0
    assert "job 7" in capsys.readouterr().out


def test_the_file_of_a_user_is_read_beside_its_own_modules(tmp_path, capsys):
    (tmp_path / "nearly_hooked.py").write_text(
        "from stable_ssl import SupervisedTrainer\n"
        "class Own(SupervisedTrainer):\n"
        "    def befor_fit(self):\n"
        "        pass\n"
    )
    config = {"trainer": {**yaml.safe_load(_shown("supervised_digits"))["trainer"], "_target_": "nearly_hooked.Own"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    status, report = found_by(capsys, "mine.yaml")
    assert status == 0
    [warning] = [finding["text"] for finding in report["findings"]]
    assert "befor_fit" in warning
    assert "before_fit" in warning


def _shown(recipe):
    from stable_ssl.compose import compose

    return yaml.safe_dump(compose(recipe))


def test_a_check_that_is_asked_to_end_removes_its_folder(tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "stable_ssl", "check", "simclr_digits"]
    process = processes.start(command, env={**os.environ, "TMPDIR": str(temporary)})
    while not list(temporary.glob("stable_ssl_*/*")):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not list(temporary.glob("stable_ssl_*"))
