from __future__ import annotations

import json
import logging
import math
import sys
import time

import processes
import pytest
import torch
from toys import Toy, toy_dataset
from wandb_files import wandb_records

from stable_ssl import CheckpointError
from stable_ssl.data import Loader
from stable_ssl.loggers import Console, MetricsFile, open_trackers, read_metrics
from stable_ssl.loggers.collector import Collector


def test_records_read_back_to_the_bit(tmp_path):
    records = [{"global_step": 1, "train/loss": 0.1 + 0.2}, {"global_step": 2, "train/loss": math.inf}]
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for record in records:
        file.log(record)
    file.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == records


def test_cutting_back_forgets_what_came_later_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.log({"global_step": 1})
    position = file.position()
    file.log({"global_step": 2})
    file.close()
    with open(path, "a") as torn:
        torn.write('{"global_st')
    assert [r["global_step"] for r in read_metrics(path)] == [1, 2]
    again = MetricsFile(path)
    again.cut_back(position)
    again.log({"global_step": 2, "again": True})
    again.close()
    assert read_metrics(path) == [{"global_step": 1}, {"global_step": 2, "again": True}]
    with pytest.raises(CheckpointError, match="lines are missing"):
        MetricsFile(path).cut_back(10_000)


def test_values_of_one_name_become_their_mean():
    collector = Collector()
    for value in (torch.tensor(1.0), torch.tensor([3.0]), 5):
        collector.add("a", value)
    collector.add("b", 2)
    assert collector.flush() == {"a": 3.0, "b": 2.0}
    assert collector.flush() == {}
    with pytest.raises(TypeError, match="'c' can't be logged: its value is a tensor of shape"):
        collector.add("c", torch.zeros(2))


RESTARTED = """
import signal, sys
from pathlib import Path
from stable_ssl.loggers import open_trackers

handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
step = int(sys.argv[2])
(tracker,) = open_trackers(Path(sys.argv[1]), wandb={"project": "p"}, tensorboard=False, config={"a": 1}, step=step)
assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
tracker.log({"global_step": step, "train/loss": step / 2}, step)
tracker.close("preempted" if step == 1 else "finished")
"""


def test_wandb_offline_keeps_values_and_its_id_over_a_restart(tmp_path, offline):
    pytest.importorskip("wandb")
    for step in (1, 2):
        processes.run([sys.executable, "-c", RESTARTED, tmp_path, step], check=True)
    known = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert {path.stem for path in tmp_path.glob("wandb/offline-run-*/*.wandb")} == {f"run-{known}"}
    values = {(r["global_step"], r["train/loss"]) for r in wandb_records(tmp_path)}
    assert values == {(1, 0.5), (2, 1.0)}


def test_tensorboard_reads_the_values_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(tmp_path, wandb=None, tensorboard=True, config={}, step=0)
    for step in (1, 2):
        tracker.log({"global_step": step, "train/loss": step / 2}, step)
    tracker.close("finished")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5), (2, 1.0)]


def test_a_run_logs_to_all_of_them(make_toy, offline):
    wandb = pytest.importorskip("wandb")

    class Asking(Toy):
        def before_fit(self):
            deadline = time.monotonic() + 60  # on a busy machine, training begins before W&B has answered
            while not self.logger["wandb"]["project"] and time.monotonic() < deadline:
                time.sleep(0.05)
            names = ("project", "name", "id")
            self.seen = [(self.logger["wandb"][name], getattr(wandb.run, name)) for name in names]

    trainer = make_toy(Asking, logger={"wandb": True, "tensorboard": True}, epochs=1)
    trainer()
    assert not [pair for pair in trainer.seen if pair[0] != pair[1]]
    assert trainer.logger["wandb"].get("id") == trainer.seen[2][1]  # after the run too
    for ask in (trainer.get_project_logs, lambda: trainer.wandb_run):
        with pytest.raises(RuntimeError, match="it has not begun, or it is offline"):
            ask()
    written = [r["train/loss"] for r in trainer.get_logs() if "train/loss" in r]
    assert len(written) == 3
    # W&B's own process may write its file a moment after the run has ended.
    deadline = time.monotonic() + 30
    while len(wandb_records(trainer.folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [r["train/loss"] for r in wandb_records(trainer.folder) if "train/loss" in r] == written
    assert list((trainer.folder / "tensorboard").iterdir())


def test_without_the_package_a_line_says_so(tmp_path):
    code = (
        "import sys, logging; sys.modules['wandb'] = None; logging.basicConfig()\n"
        "from stable_ssl.loggers import open_trackers; from pathlib import Path\n"
        f"print(open_trackers(Path({str(tmp_path)!r}), wandb=True, tensorboard=False, config={{}}, step=0))"
    )
    done = processes.run([sys.executable, "-c", code], check=True)
    assert done.stdout == "[]\n"
    assert "no package wandb" in done.stderr


def test_plain_output_does_not_flood_and_is_kept(make_toy, capsys):
    trainer = make_toy(epochs=50, logger={"level": 20, "eval_every_epoch": 0})
    trainer()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 6
    log = trainer.folder / "console.log"  # made at the first message
    kept = log.read_text() if log.exists() else ""
    assert all(line in kept for line in lines)


def test_epochs_that_max_steps_cuts_short_are_shown_as_steps_of_the_run(make_toy, tmp_path, monkeypatch):
    for name in ("SECONDS_BETWEEN_REDRAWS", "SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(f"stable_ssl.loggers.console.{name}", 0.0)

    class Impatient(Toy):
        def before_fit(self):
            self._run.log.console._line_due = 0.0

        def after_eval_step(self):
            self.log("place", 1.0)

    def shown(max_steps):
        data = {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(8), 8)}
        log = {"dump_path": tmp_path / f"of_{max_steps}", "level": 20, "eval_at_start": True}
        make_toy(Impatient, data, logger=log, max_steps=max_steps)()
        lines = [line.partition("INFO ")[2] for line in (log["dump_path"] / "console.log").read_text().splitlines()]
        return [" ".join(line.split()[:3]) for line in lines if line[:2] in ("tr", "ep", "st")]

    in_steps = [f"training step {step}/4" for step in (0, 1, 2, 2, 3, 4)]
    assert shown(2) == ["step 0 test/place", *in_steps[:3], "step 2 test/place", *in_steps[3:], "step 4 test/place"]
    in_epochs = [[*[f"epoch {epoch}/2 step"] * 4, f"epoch {epoch} test/place"] for epoch in (1, 2)]
    assert shown(-1) == ["step 0 test/place", *in_epochs[0], *in_epochs[1]]


def test_the_console_leaves_the_logger_as_it_was(tmp_path):
    logger = logging.getLogger("stable_ssl")
    before = (list(logger.handlers), logger.level, logger.propagate, list(logging.getLogger().handlers))
    console = Console(tmp_path, 10, 1)
    console.begin_epoch(0, 3)
    console.show(1, 8)
    console.end_epoch(3)
    console.close()
    assert (
        list(logger.handlers),
        logger.level,
        logger.propagate,
        list(logging.getLogger().handlers),
    ) == before


def test_log_in_an_evaluation_is_the_sets_mean(make_toy):
    class Logging(Toy):
        def after_eval_step(self):
            self.log("place", float(self.batch_idx))

    trainer = make_toy(Logging, {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(24), 8)})
    trainer()
    assert [r["test/place"] for r in trainer.get_logs() if "test/place" in r] == [1.0, 1.0]


def test_training_values_come_at_logging_steps_only_as_the_mean_of_the_group(make_toy):
    class Logging(Toy):
        def compute_loss(self):
            self.log("place", float(self.batch_idx))
            return super().compute_loss()

    trainer = make_toy(Logging, accumulation_steps=2, logger={"log_every_step": 2})
    trainer()
    assert [(r["global_step"], r["train/place"]) for r in trainer.get_logs() if "train/place" in r] == [
        (2, 2.0),
        (4, 2.0),
    ]
