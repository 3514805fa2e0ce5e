"""`status.json`, whatever ends a run: an error in its set-up, a full disk, or nothing that its process could note."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
import torch
from endings import newest_state
from safetensors.torch import load_file
from torchmetrics.classification import MulticlassAccuracy
from toys import Toy, toy_dataset

from stable_ssl import CheckpointError, ConfigError, Loader
from stable_ssl.cli.resume import newest_unfinished
from stable_ssl.loggers.summary import Summary
from stable_ssl.runtime import status
from stable_ssl.runtime.folder import RunFolder
from stable_ssl.runtime.status import read_status


def evaluated() -> dict:
    return {"train": Loader(toy_dataset(), 8, shuffle=True), "test": Loader(toy_dataset(seed=1), 8)}


def raw(folder) -> dict:
    return json.loads((folder / "status.json").read_text())


def contents(folder) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_the_status_says_where_the_run_is_and_what_its_metrics_were(make_toy):
    accuracy = {"metric": {"test": {"accuracy": MulticlassAccuracy(2)}}}
    make_toy(data=evaluated(), logger=accuracy)()
    trainer = make_toy(data=evaluated(), logger=accuracy, epochs=4)
    trainer()
    found = raw(trainer.folder)
    assert (found["format"], found["status"], found["pid"]) == (1, "finished", os.getpid())
    assert found["host"] == os.uname().nodename
    assert found["progress"] == {"global_step": 12, "epoch": 4, "batches": 0, "phase": "fit"}
    assert sys.orig_argv[-1] in found["command"]
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    assert found["git_commit"] == (git.stdout.strip() or None)
    assert abs(time.time() - found["heartbeat"]) < 60
    for name, best in (("train/loss", min), ("test/accuracy", max)):
        values = [record[name] for record in trainer.get_logs() if name in record]
        assert found["metrics"][name] == {"last": values[-1], "best": best(values)}
    assert not any(name.startswith("perf/") for name in found["metrics"])


def test_a_metric_says_which_of_its_values_are_best_and_none_that_is_not_finite_is():
    class Distance(torch.nn.Module):
        higher_is_better = False

    summary = Summary({"test": {"distance": Distance()}})
    for value in (float("nan"), 2.0, 1.0, float("-inf"), 3.0):
        summary.add({"global_step": 1, "test/distance": value, "test/rank": value})
    assert summary.values() == {"test/distance": {"last": 3.0, "best": 1.0}, "test/rank": {"last": 3.0, "best": 3.0}}


def test_the_heart_beats_while_a_hook_takes_long_and_never_after_the_end(make_toy, monkeypatch):
    monkeypatch.setattr(status, "SECONDS_BETWEEN_BEATS", 0.02)

    class Slow(Toy):
        def after_fit_epoch(self):
            first = raw(self.folder)["heartbeat"]
            deadline = time.monotonic() + 30
            while raw(self.folder)["heartbeat"] == first and time.monotonic() < deadline:
                time.sleep(0.05)
            self.beats = [first, raw(self.folder)["heartbeat"]]
            if (child := os.fork()) == 0:  # has no such thread, and writes nothing
                self._run.status.end("failed", {})
                os._exit(len([thread for thread in threading.enumerate() if thread.name == "heartbeat"]))
            self.threads_of_child = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            self.status_then = raw(self.folder)["status"]

    trainer = make_toy(Slow, epochs=1)
    trainer()
    assert trainer.beats[1] > trainer.beats[0]
    assert (trainer.threads_of_child, trainer.status_then) == (0, "running")
    before = contents(trainer.folder)
    trainer._run.status.beat()
    time.sleep(0.2)
    assert contents(trainer.folder) == before
    assert raw(trainer.folder)["status"] == "finished"
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_a_configuration_of_the_user_s_own_is_not_overwritten(make_toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ("# mine\ntrainer: {}\n", "[1"):
        (tmp_path / "config.yaml").write_text(content)
        for _ in range(2):
            with pytest.raises(ConfigError, match="logger.dump_path: 'config.yaml' is not of a run, and would be over"):
                make_toy(logger={"dump_path": "."})()
        assert (tmp_path / "config.yaml").read_text() == content
    trainer = make_toy(logger={"dump_path": ""}, epochs=1)  # a variable that is not set
    trainer()
    assert str(trainer.folder.parent) == "runs"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"status": "running", "heartbeat": -170}, "running"),
        ({"status": "running", "heartbeat": -190}, "stale"),
        ({"status": "running", "time": -190}, "stale"),
        ({"status": "preempted", "heartbeat": -190}, "preempted"),
    ],
)
def test_a_running_run_without_a_heartbeat_of_three_minutes_is_stale(tmp_path, content, expected):
    now = time.time()
    content = {key: now + value if isinstance(value, int) else value for key, value in content.items()}
    (tmp_path / "status.json").write_text(json.dumps(content))
    assert read_status(tmp_path)["status"] == expected


def test_a_status_that_can_not_be_read_is_none(tmp_path):
    assert read_status(tmp_path) == {}
    (tmp_path / "status.json").write_text('{"status": "runn')
    assert read_status(tmp_path) == {}


class Broken(torch.nn.Module):
    def __init__(self):
        raise RuntimeError("the weights are not here")


BROKEN = {"backbone": {"_target_": f"{__name__}.Broken"}}
SENTENCE = "ConfigError: module.backbone: test_status.Broken failed: RuntimeError: the weights are not here"


def test_a_failure_in_set_up_is_in_the_status_and_the_log(make_toy, tmp_path):
    with pytest.raises(ConfigError, match="the weights are not here"):
        make_toy(module=BROKEN)()
    found = raw(tmp_path / "run")
    assert (found["status"], found["error"]) == ("failed", SENTENCE)
    assert found["progress"]["global_step"] == 0
    assert f"ERROR The set-up failed: {SENTENCE}\n" in (tmp_path / "run" / "console.log").read_text()
    make_toy()()
    assert raw(tmp_path / "run")["status"] == "finished"
    assert "error" not in raw(tmp_path / "run")


class Stopping(Toy):
    def after_fit_step(self):
        if self.global_step == 4:
            raise RuntimeError("a bad sample")


class Unready(Stopping):
    def check_setup(self):
        raise ConfigError("the disk of the data is not mounted")


def renamed(cls):
    """Return a trainer's class that the configuration can't tell from `Toy`."""
    cls.__name__ = cls.__qualname__ = "Toy"
    cls.__module__ = Toy.__module__
    return cls


def test_a_failure_in_a_later_set_up_keeps_progress_and_metrics_and_what_is_finished(make_toy, tmp_path):
    with pytest.raises(RuntimeError, match="a bad sample"):
        make_toy(renamed(Stopping), logger={"checkpoint_every_step": 1})()
    folder = tmp_path / "run"
    before = raw(folder)
    assert (before["status"], before["error"]) == ("failed", "RuntimeError: a bad sample")
    with pytest.raises(ConfigError, match="not mounted"):
        make_toy(renamed(Unready))()
    found = raw(folder)
    assert found["error"] == "ConfigError: the disk of the data is not mounted"
    assert [found[key] for key in ("progress", "metrics")] == [before[key] for key in ("progress", "metrics")]
    make_toy()()
    finished = raw(folder)
    with pytest.raises(ConfigError, match="not mounted"):
        make_toy(renamed(Unready))()
    assert raw(folder) == finished
    assert "not mounted" in (folder / "console.log").read_text().splitlines()[-1]
    make_toy().setup()


@pytest.mark.parametrize("difference", ["configuration", "data", "model"])
def test_a_run_with_another_configuration_is_left_as_it_is(make_toy, tmp_path, difference):
    with pytest.raises(RuntimeError, match="a bad sample"):
        make_toy(renamed(Stopping), logger={"checkpoint_every_step": 1})()
    before = contents(tmp_path / "run")
    options = {
        "configuration": {"grad_max_norm": 1.0, "hardware": {"seed": None}},
        "data": {"data": {"train": Loader(toy_dataset(48), 8, shuffle=True)}},
        "model": {"module": {"backbone": torch.nn.Sequential(torch.nn.Linear(8, 2))}},
    }
    with pytest.raises((ConfigError, CheckpointError), match="another configuration|other data|does not fit"):
        make_toy(**options[difference])()
    assert contents(tmp_path / "run") == before


def test_a_folder_that_a_living_process_holds_is_left_as_it_is(make_toy, tmp_path):
    make_toy()()
    before = contents(tmp_path / "run")
    ready, told = os.pipe()
    ends, end = os.pipe()
    if (child := os.fork()) == 0:
        os.close(end)
        folder = RunFolder(tmp_path / "run", "other")
        os.write(told, b".")
        os.read(ends, 1)
        folder.release()
        os._exit(0)
    os.read(ready, 1)
    with pytest.raises(ConfigError, match="another process is running in"):
        make_toy(epochs=3)()
    assert contents(tmp_path / "run") == before
    os.close(end)
    assert os.waitpid(child, 0)[1] == 0


def test_two_trainers_of_one_process_can_not_use_a_folder_at_the_same_time(make_toy, tmp_path):
    first, second = make_toy(), make_toy()
    first.setup()
    before = contents(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for path in ("run", "link"):
        with pytest.raises(ConfigError, match="another trainer of this process uses '.*'. Run it to its end"):
            make_toy(logger={"dump_path": tmp_path / path}).setup()
    assert contents(tmp_path / "run") == before
    first.launch()
    second()  # says that the run is finished
    unused = make_toy(epochs=3)
    unused.setup()
    unused.itself = unused  # a circle, which only the garbage collector finds
    del unused
    make_toy(epochs=3)()


def fill(disk, free=0):
    (disk / "filler").write_bytes(bytes(max(shutil.disk_usage(disk).free - free, 0)))


def assert_nothing_is_cut_short(folder):
    assert not [path for path in folder.rglob("*") if path.name.endswith((".part", ".spare"))]
    assert all(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    assert (folder / "metrics.jsonl").read_text()[-1:] in ("", "\n")


@pytest.mark.parametrize("free", [0, 4096])
def test_a_disk_that_fills_before_the_end_leaves_a_status_and_the_last_good_state(make_toy, small_disk, free):
    class Filling(Toy):
        def before_fit_step(self):
            if self.global_step == 5:
                self._saver._store.wait()
                fill(small_disk, free)

    options = {"dump_path": small_disk / "run", "checkpoint_every_step": 2, "save_final_model": True}
    accuracy = {"metric": {"test": {"accuracy": MulticlassAccuracy(2)}}}
    trainer = make_toy(renamed(Filling), data=evaluated(), logger={**options, **accuracy})
    with pytest.raises((CheckpointError, OSError), match="could not be written|No space left"):
        trainer()
    found = raw(trainer.folder)
    assert found["status"] == read_status(trainer.folder)["status"] == "failed"
    assert "could not be written" in found["error"] or "No space left" in found["error"]
    assert_nothing_is_cut_short(trainer.folder)
    # The weights may just fit, if no other file takes the last block before them.
    is_there = (trainer.folder / "weights" / "final.safetensors").exists()
    if is_there:
        load_file(trainer.folder / "weights" / "final.safetensors")
    if "could not be written" in found["error"]:  # the error of the log comes before that of the weights
        assert is_there != ("the final weights" in found["error"].lower())
    assert newest_state(trainer)["progress"]["global_step"] == 4
    (small_disk / "filler").unlink()
    again = make_toy(data=evaluated(), logger={**options, **accuracy})
    again()
    alone = make_toy(data=evaluated(), logger=accuracy)
    alone()
    assert raw(again.folder)["status"] == "finished"
    assert all(map(torch.equal, again.parameters(), alone.parameters()))
    assert (again.folder / "weights" / "final.safetensors").exists()
    kept = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in again.get_logs()]
    assert kept == [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in alone.get_logs()]


def test_a_disk_that_fills_after_the_last_checkpoint_loses_no_evaluation(make_toy, small_disk):
    class Filling(Toy):
        def after_fit(self):
            super().after_fit()
            self._saver._store.wait()
            fill(small_disk)
            (self.folder / "metrics.jsonl").stat()

    class Long(MulticlassAccuracy):
        """Its record does not fit into what is left of the file's last block."""

        def compute(self):
            return {f"{'name' * 20}_{index}": super(Long, self).compute() for index in range(100)}

    metric = {"test": {"long": Long(2)}}
    # The evaluation is after_fit's, so that it comes after the last checkpoint.
    data, logger = evaluated(), {"dump_path": small_disk / "run", "metric": metric, "eval_every_epoch": 0}
    trainer = make_toy(renamed(Filling), data=data, logger=logger)
    with pytest.raises(OSError, match="No space left on device"):
        trainer()
    assert raw(trainer.folder)["status"] == "failed"
    records = trainer.folder / "metrics.jsonl"
    assert raw(trainer.folder)["error"] == f"OSError: [Errno 28] No space left on device: '{records}'"
    assert_nothing_is_cut_short(trainer.folder)
    (small_disk / "filler").unlink()
    make_toy(data=evaluated(), logger=logger)()
    assert raw(trainer.folder)["status"] == "finished"
    assert len([record for record in trainer.get_logs() if any("test/" in name for name in record)]) == 1


def test_weights_of_an_epoch_that_do_not_fit_do_not_end_the_run(make_toy, small_disk):
    class Filling(Toy):
        def after_fit_epoch(self):
            (small_disk / "filler").unlink(missing_ok=True)
            if self.epoch == 0:
                fill(small_disk)

    trainer = make_toy(
        renamed(Filling), logger={"dump_path": small_disk / "run", "checkpoint_frequency": 1, "level": 40}
    )
    trainer()
    assert raw(trainer.folder)["status"] == "finished"
    assert [path.name for path in (trainer.folder / "weights").iterdir()] == ["epoch_0002.safetensors"]


def test_a_folder_that_is_moved_while_its_run_goes_on_is_told(make_toy, tmp_path, capsys):
    class Moved(Toy):
        def before_fit_step(self):
            if self.global_step == 3:
                self._saver._store.wait()
                (tmp_path / "run").rename(tmp_path / "elsewhere")
            elif self.global_step == 5:
                raise SystemExit

    trainer = make_toy(renamed(Moved), logger={"level": 30, "checkpoint_every_step": 1})
    with pytest.raises(SystemExit):
        trainer()
    assert f"'{trainer.folder}' has no config.yaml any more: the folder was removed or m" in capsys.readouterr().err
    again = make_toy(logger={"checkpoint_every_step": 1})  # what is there now is whole
    again()
    alone = make_toy(logger={"dump_path": tmp_path / "alone"})
    alone()
    assert all(map(torch.equal, again.parameters(), alone.parameters()))


def test_resume_passes_over_a_status_that_can_not_be_read(tmp_path):
    for name, content in (("whole", '{"status": "preempted", "time": 1.0}'), ("cut", '{"status": "pree')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(content)
    assert newest_unfinished(tmp_path) == tmp_path / "whole"
