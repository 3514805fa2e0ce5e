"""Metrics that are no numbers, and the files in `snapshots/` that they go to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import numpy as np
import processes
import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryPrecisionRecallCurve,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from toys import Toy, toy_dataset

from stable_ssl import BreakAllEpochs, ConfigError, Preempted
from stable_ssl.data import Loader
from stable_ssl.loggers import snapshots
from stable_ssl.loggers.snapshots import Snapshots, cut_back


def load(path):
    with np.load(path, allow_pickle=False) as content:
        return dict(content)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "snapshots").iterdir())}


def sets():
    return {"train": Loader(toy_dataset(), 8, shuffle=True), "test": Loader(toy_dataset(20, seed=1), 8)}


def test_metrics_that_are_no_numbers_go_to_snapshots_and_the_run_goes_on(make_toy):
    metrics = {
        "confusion": MulticlassConfusionMatrix(2),
        "per_class": MulticlassAccuracy(2, average=None),
        "both": MetricCollection({"accuracy": MulticlassAccuracy(2), "f1": MulticlassF1Score(2, average=None)}),
    }
    trainer = make_toy(data=sets(), logger={"metric": {"test": metrics}}, epochs=2)
    trainer()
    assert list(files(trainer.folder)) == ["epoch_0001.npz", "epoch_0002.npz"]
    found = load(trainer.folder / "snapshots" / "epoch_0002.npz")
    shapes = {"test/confusion": (2, 2), "test/per_class": (2,), "test/both_f1": (2,), "global_step": ()}
    assert {name: array.shape for name, array in found.items()} == shapes
    test = toy_dataset(20, seed=1)
    predictions = trainer.eval().forward(test.tensors[0]).argmax(1)
    matrix = [[((test.tensors[1] == i) & (predictions == j)).sum().item() for j in (0, 1)] for i in (0, 1)]
    assert found["test/confusion"].tolist() == matrix
    assert found["global_step"] == trainer.global_step == 6
    records = [record for record in trainer.get_logs() if "test/both_accuracy" in record]
    assert [set(record) for record in records] == [{"global_step", "epoch", "test/both_accuracy"}] * 2


class Own:
    """A metric of a user."""

    def __init__(self, result):
        self.result = result

    def update(self, predictions, labels): ...

    def reset(self): ...

    def compute(self):
        return self.result


def test_results_of_any_kind_do_not_end_a_run(make_toy):
    metrics = {
        "curve": BinaryPrecisionRecallCurve(),
        "numpy": Own(np.float32(0.5)),
        "names": Own("a"),
        "mixed": Own({"iou": np.ones((2, 3)), "mean": torch.tensor([0.25]), "nothing": None}),
        "numbers": Own([1.0, 2]),
        "half": Own(torch.ones(2, dtype=torch.bfloat16)),
    }

    class Binary(Toy):
        def predict(self):
            return super().predict()[:, 1].sigmoid()

        def compute_loss(self):
            return torch.nn.functional.binary_cross_entropy(self.predict(), self.batch[1].float())

    trainer = make_toy(Binary, sets(), logger={"metric": {"test": metrics}, "level": 30}, epochs=2)
    trainer()
    found = load(trainer.folder / "snapshots" / "epoch_0002.npz")
    precision, recall, thresholds = (found[f"test/curve_{place}"] for place in range(3))
    assert len(precision) == len(recall) == len(thresholds) + 1
    assert found["test/mixed_iou"].tolist() == [[1.0] * 3] * 2
    assert found["test/numbers"].tolist() == [1.0, 2.0]
    assert found["test/half"].tolist() == [1.0, 1.0]
    record = next(record for record in trainer.get_logs() if "test/numpy" in record)
    assert (record["test/numpy"], record["test/mixed_mean"]) == (0.5, 0.25)
    console = (trainer.folder / "console.log").read_text()
    assert console.count("'test/names' can't be logged: its value, a str, is no array of numbers. It is left out.") == 1


def test_metrics_of_train_get_a_true_message(make_toy):
    with pytest.raises(ConfigError, match="logger.metric.train: metrics are for evaluation sets") as caught:
        make_toy(data=sets(), logger={"metric": {"train": {"accuracy": MulticlassAccuracy(2)}}})
    assert "no such set" not in str(caught.value)


class Watched(Toy):
    """Logs at each training step what the next snapshot holds, and may be ended in one."""

    ends_at, by = None, None

    def compute_loss(self):
        self.log_image("sample", self.batch[0][0].reshape(2, 4))
        self.log_histogram("weights", self.module["backbone"][0].weight)
        if self.batch_idx == 0:
            self.log_image("first", self.batch[0][1].reshape(4, 2))
        return super().compute_loss()

    def after_fit_step(self):
        if self.global_step == self.ends_at:
            self.ends_at = None
            os.kill(os.getpid(), self.by)

    def before_fit(self):
        self.log("begun", 1)

    def before_fit_epoch(self):
        self.log("epoch", self.epoch)

    def after_fit_epoch(self):
        self.log("norm", self.module["backbone"][0].weight.norm())

    def before_eval(self):
        self.log("next", self.global_step)

    def after_eval(self):
        self.log_image("last", self.module["backbone"][0].weight)
        self.log("mean", 1)
        self.log("mean", 2)

    def after_fit(self):
        super().after_fit()
        self.log_histogram("bias", self.module["backbone"][0].bias)
        self.log("end", 1)


def watched(make_toy, folder, ends_at=None, by=signal.SIGTERM):
    """Return a run of 4 epochs of 3 steps, evaluated after every second epoch."""
    metrics = {"confusion": MulticlassConfusionMatrix(2)}
    logger = {"metric": {"test": metrics}, "dump_path": folder, "eval_every_epoch": 2, "checkpoint_every_step": 4}
    trainer = make_toy(Watched, sets(), logger=logger, epochs=4)
    trainer.ends_at, trainer.by = ends_at, by
    return trainer


KILLED = """
import functools, signal, sys
from pathlib import Path
from conftest import make_toy
from test_metrics import watched
watched(make_toy.__wrapped__(Path(sys.argv[1])), Path(sys.argv[1]), ends_at=10, by=signal.SIGKILL)()
"""


def records(folder):
    """Return the records of a run without the times that it took."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]


def test_what_hooks_log_in_a_resumed_run_is_what_they_log_in_one_left_alone(make_toy, tmp_path):
    watched(make_toy, tmp_path / "whole")()
    logged = records(tmp_path / "whole")
    outside = [{key for key in record if "/" in key} for record in logged if "train/loss" not in record]
    epoch = [{"train/epoch"}, {"train/norm"}]
    evaluation = [{"eval/next"}, {"eval/mean"}]
    assert outside == [{"train/begun"}, *epoch * 2, *evaluation, *epoch * 2, *evaluation, {"train/end"}]
    assert [record["eval/mean"] for record in logged if "eval/mean" in record] == [1.5, 1.5]
    assert [record["train/epoch"] for record in logged if "train/epoch" in record] == [0, 1, 2, 3]
    assert logged[-1]["epoch"] == 3
    whole = files(tmp_path / "whole")
    content = load(tmp_path / "whole" / "snapshots" / "epoch_0004.npz")
    assert list(whole) == ["epoch_0002.npz", "epoch_0004.npz"]
    assert content.keys() == {
        "global_step", "test/confusion", "train/sample", "train/first", "eval/last", "train/weights/counts",
        "train/weights/edges", "train/bias/counts", "train/bias/edges",
    }  # fmt: skip
    # What waits for the next evaluation is in the checkpoint: step 11 is not the first of its epoch.
    with pytest.raises(Preempted):
        watched(make_toy, tmp_path / "preempted", ends_at=11)()
    watched(make_toy, tmp_path / "preempted")()
    assert files(tmp_path / "preempted") == whole
    assert records(tmp_path / "preempted") == logged
    # Killed after the evaluation of step 6, and going on from step 4, as if the checkpoint of step 8 had not been written.
    path = os.pathsep.join([*sys.path, os.path.dirname(__file__)])
    killed = processes.run([sys.executable, "-c", KILLED, tmp_path / "killed"], env={**os.environ, "PYTHONPATH": path})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(files(tmp_path / "killed")) == ["epoch_0002.npz"]
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step_00000008", ignore_errors=True)
    watched(make_toy, tmp_path / "killed")()
    assert files(tmp_path / "killed") == whole
    assert records(tmp_path / "killed") == logged
    # The hooks before training, and at an epoch's beginning, run again in a run that goes on; what they log is not new.
    longer = watched(make_toy, tmp_path / "whole")
    longer.optim["epochs"] = 5
    longer()
    begun = [record for record in records(tmp_path / "whole") if "train/begun" in record]
    assert len(begun) == 1


def test_what_a_hook_at_the_beginning_of_an_epoch_logs_is_logged_once_if_the_epoch_is_begun_again(make_toy, tmp_path):
    class Begun(Watched):
        stops = False

        def before_fit_step(self):
            if self.stops and (self.epoch, self.batch_idx) == (1, 1):
                raise BreakAllEpochs

    def run(stops, epochs):
        logger = {"dump_path": tmp_path / "run"}
        trainer = make_toy(Begun, sets(), logger=logger, epochs=epochs, accumulation_steps=2)
        trainer.stops = stops
        trainer()

    run(True, 2)  # stopped within the first group of the second epoch, which begins anew
    run(False, 3)
    epochs = [record["train/epoch"] for record in records(tmp_path / "run") if "train/epoch" in record]
    assert epochs == [0, 1, 2]


def test_files_newer_than_the_checkpoint_are_removed(tmp_path):
    written = Snapshots(tmp_path)
    for number, step in ((1, 3), (2, 6), (10, 30)):
        written.add({"test/a": np.arange(step)})
        written.write(number, step)
    (tmp_path / "epoch_0011.npz").write_bytes(b"torn")
    cut_back(tmp_path, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_0001.npz", "epoch_0002.npz"]
    assert load(tmp_path / "epoch_0002.npz")["test/a"].tolist() == list(range(6))


def test_a_run_keeps_20_mb_of_the_newest_snapshots(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 256, 4_000_000, dtype=np.uint8)
    written = Snapshots(tmp_path)
    for number in range(1, 7):
        written.add({"test/noise": noise + np.uint8(number)})
        written.write(number, number)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sorted(sizes) == [f"epoch_000{number}.npz" for number in (3, 4, 5, 6)]
    assert sum(sizes.values()) <= 20_000_000
    assert [record.getMessage() for record in caplog.records] == [
        "snapshots/ may hold 20 MB: 'epoch_0001.npz', the oldest file, is removed. This is said once."
    ]
    # One that does not fit alone is left out; the others are written.
    written.add({"test/huge": np.tile(noise, 6), "test/small": np.arange(3)})
    written.write(7, 7)
    assert load(tmp_path / "epoch_0007.npz").keys() == {"global_step", "test/small"}
    assert snapshots.MAX_BYTES == 20_000_000


def test_a_snapshot_that_can_not_be_written_does_not_end_the_run(make_toy, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "snapshots").write_text("in the way")
    metrics = {"confusion": MulticlassConfusionMatrix(2)}
    trainer = make_toy(data=sets(), logger={"metric": {"test": metrics}, "level": 30}, epochs=1)
    trainer()
    assert "epoch_0001.npz' could not be written" in (tmp_path / "run" / "console.log").read_text()
