"""Images and histograms in W&B, TensorBoard and `snapshots/`; trackers that fail or hang."""

from __future__ import annotations

import inspect
import io
import json
import os
import sys
import time

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from toys import Toy, toy_backbone, toy_dataset
from wandb_files import wandb_records, wandb_run

from stable_ssl import LoggerConfig
from stable_ssl.config import parse_config
from stable_ssl.data import Loader
from stable_ssl.fields import WANDB_KEYS
from stable_ssl.loggers import media


class Showing(Toy):
    """Logs an image and a histogram in training and in evaluation."""

    def compute_loss(self):
        self.log_image("sample", torch.full((3, 4, 5), self.global_step / 10))
        self.log_histogram("weights", self.module["backbone"][0].weight)
        return super().compute_loss()

    def after_eval_step(self):
        self.log_image("seen", np.full((4, 4), self.batch_idx, dtype=np.uint8))


def sets():
    return {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(16), 8)}


def test_images_and_histograms_reach_every_tracker_and_snapshots(make_toy, offline):
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = {"mode": "offline", "notes": "n", "tags": ["a"], "group": "g", "job_type": "j", "config": {"extra": 1}}
    logger = {"wandb": given, "tensorboard": True, "log_every_step": 2, "level": 30}
    trainer = make_toy(Showing, sets(), logger=logger, epochs=1)  # three steps, the second is logged
    trainer()
    assert not (trainer.folder / "console.log").exists()  # no warning
    with np.load(trainer.folder / "snapshots" / "epoch_0001.npz", allow_pickle=False) as content:
        found = dict(content)
    expected = np.full((4, 5, 3), round(0.1 * 255), dtype=np.uint8)
    assert found["train/sample"].dtype == np.uint8
    assert (found["train/sample"] == expected).all()
    assert found["test/seen"].shape == (4, 4, 1)
    assert (found["test/seen"] == 1).all()
    counts, edges = found["train/weights/counts"], found["train/weights/edges"]
    assert (counts.sum(), len(edges)) == (8 * 16, len(counts) + 1)

    events = EventAccumulator(str(trainer.folder / "tensorboard"), {"images": 0, "histograms": 0}).Reload()
    (image,), (histogram,) = events.Images("train/sample"), events.Histograms("train/weights")
    assert (image.step, histogram.step) == (2, 2)
    assert (np.asarray(Image.open(io.BytesIO(image.encoded_image_string))) == expected).all()
    assert histogram.histogram_value.bucket == counts.tolist()

    deadline = time.monotonic() + 30  # W&B's own process may write its file a moment after the run has ended
    while len(wandb_records(trainer.folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    shown = {name: value for record in wandb_records(trainer.folder) for name, value in record.items()}
    (path,) = trainer.folder.glob(f"wandb/offline-run-*/files/{shown['train/sample/path']}")
    assert (np.asarray(Image.open(path)) == expected).all()
    assert shown["train/weights/values"] == counts.tolist()
    assert "test/seen/path" in shown
    run = wandb_run(trainer.folder)
    assert (run.notes, list(run.tags), run.run_group, run.job_type) == ("n", ["a"], "g", "j")
    assert {"extra", "trainer"} <= {item.key for item in run.config.update}


def shown_by_ranks(folder):
    class Ranked(Toy):
        def compute_loss(self):
            self.log_image("rank", np.full((2, 2), self.rank, dtype=np.uint8))
            return super().compute_loss()

    optim = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1), "epochs": 1}
    data, logger = {"train": Loader(toy_dataset(), 8)}, {"dump_path": folder, "level": 50}
    Ranked(data, {"backbone": toy_backbone()}, {"device": "cpu"}, optim, logger)()


def test_of_several_processes_rank_0_is_shown_also_without_evaluation_sets(start_ranks, tmp_path):
    start_ranks(shown_by_ranks, tmp_path).results()
    (path,) = (tmp_path / "snapshots").iterdir()
    assert not np.load(path)["train/rank"].any()


def ramp(low, high, dtype):
    return torch.linspace(low, high, 12).reshape(3, 4).to(dtype)


def palette():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("value", "shape", "corners"),
    [
        (torch.zeros(3, 4, 5).index_fill(0, torch.tensor(1), 1.0), (4, 5, 3), ([0, 255, 0], [0, 255, 0])),
        (np.full((4, 3, 3), 7, dtype=np.uint8), (4, 3, 3), ([7, 7, 7], [7, 7, 7])),  # channels last, as NumPy has them
        (torch.arange(12).reshape(3, 4), (3, 4, 1), ([0], [11])),
        (ramp(0, 1, torch.float32), (3, 4, 1), ([0], [255])),
        (ramp(-2, 2.5, torch.bfloat16), (3, 4, 1), ([0], [255])),  # as normalised images are
        (ramp(0, 65535, torch.int32), (3, 4, 1), ([0], [255])),  # 16 bit
        (torch.tensor([[float("nan"), 0.2], [0.4, float("inf")]]), (2, 2, 1), ([0], [255])),
        (torch.ones(40, 1, 8, 8), (22, 82, 3), ([0, 0, 0], [0, 0, 0])),  # 2 rows of 8, with margins of 2
        (palette(), (1, 2, 3), ([10, 20, 30], [40, 50, 60])),
    ],
)
def test_images_of_many_kinds(value, shape, corners):
    pixels = media.image("train/x", value)().pixels
    assert (pixels.shape, pixels.dtype) == (shape, np.uint8)
    assert (pixels[0, 0].tolist(), pixels[-1, -1].tolist()) == corners


def test_what_is_no_image_or_no_numbers_is_named():
    with pytest.raises(TypeError, match=r"'train/x' can't be logged as an image: its shape is \(5, 8, 8\)"):
        media.image("train/x", torch.zeros(5, 8, 8))
    for kind in (media.image, media.histogram, media.array):
        with pytest.raises(TypeError, match="'train/x' can't be logged: its value, a list, is no array of numbers"):
            kind("train/x", ["a"])
    counts, _ = media.histogram("train/x", [1.0, float("nan"), float("inf"), 1e300])()
    assert counts.sum() == 1


def test_wandb_takes_all_arguments_of_its_init_and_no_others():
    wandb = pytest.importorskip("wandb")
    assert set(WANDB_KEYS) == set(inspect.signature(wandb.init).parameters) - {"anonymous"}  # it has no effect
    problems = []
    assert parse_config(LoggerConfig, {"wandb": {}}, "logger", problems)["wandb"] is True
    parse_config(LoggerConfig, {"wandb": {"note": "n"}}, "logger", problems)
    assert problems == ["logger.wandb.note: unknown key (value 'n'). Did you mean 'notes'?"]


FAILING = """
import functools, os, signal, socket, sys
from pathlib import Path
import torch
from toys import Toy, toy_backbone, toy_dataset
from stable_ssl.data import Loader
from stable_ssl.loggers import tracking

folder, how = Path(sys.argv[1]), sys.argv[2]
logger = {"dump_path": folder, "level": 30, "wandb": {"mode": "offline", "settings": {}}}
if how == "tensorboard":
    logger = {"dump_path": folder, "level": 30, "tensorboard": True}
    folder.mkdir()
    (folder / "tensorboard").write_text("in the way")
elif how == "unanswered":
    server = socket.create_server(("127.0.0.1", 0))
    os.environ["WANDB_BASE_URL"] = "http://127.0.0.1:%d" % server.getsockname()[1]
    os.environ["WANDB_API_KEY"] = "a" * 40
    logger["wandb"] = {"settings": {"init_timeout": 2.0}}
    tracking.SECONDS_TO_OPEN = 0.5
elif how == "stopped":
    logger["wandb"]["settings"] = {"init_timeout": 1.0, "finish_timeout": 1}
    tracking.SECONDS_OF_GRACE = 0.0

def services():
    for path in Path("/proc").glob("[0-9]*/stat"):
        if path.read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
            yield int(path.parent.name)

class Failing(Toy):
    def after_fit_step(self):
        if self.global_step == 2 and how in ("killed", "stopped"):
            for pid in services():
                os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)

trainer = Failing(
    {"train": Loader(toy_dataset(), 8)}, {"backbone": toy_backbone()}, {"device": "cpu"},
    {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 2}, logger,
)
trainer()
assert trainer.global_step == 6 and len(trainer.get_logs()) == 6
if how == "stopped":  # W&B's own hook at the exit would wait for its process
    for pid in services():
        os.kill(pid, signal.SIGKILL)
print("trained")
"""


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("tensorboard", "FileExistsError"),
        ("unanswered", "no answer for 0 s"),
        ("killed", "Connection"),
        ("stopped", "no answer for 1 s"),
    ],
)
def test_a_tracker_that_fails_or_hangs_is_one_warning(tmp_path, offline, how, reason):
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = processes.run([sys.executable, "-c", FAILING, tmp_path / "run", how], env=env)
    assert done.stdout == "trained\n", done.stderr
    warnings = (tmp_path / "run" / "console.log").read_text().splitlines()
    key = "tensorboard" if how == "tensorboard" else "wandb"
    assert len(warnings) == 1, warnings
    assert f"WARNING logger.{key}: " in warnings[0]
    assert reason in warnings[0]
    assert warnings[0].endswith("The run goes on without it; metrics.jsonl has all values.")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"
