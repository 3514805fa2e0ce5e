"""A run on shards or on a stream that was killed and stopped, with other workers each time, ends as one left alone."""

from __future__ import annotations

import functools
import io
import os
import signal
import tarfile

import pytest
import torch
from endings import ending, same
from PIL import Image
from toys import Toy

from stable_ssl import ConfigError, Preempted
from stable_ssl.augmentations import Affine, HorizontalFlip, View

SIZES = (9, 14, 7, 12)  # samples per shard: 21 batches of 2 at most
VIEW = View([HorizontalFlip(), Affine(degrees=20)])


def encoded(number):
    out = io.BytesIO()
    pixels = torch.randint(0, 255, (4, 4, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(out, "PNG")
    return out.getvalue()


def write_tars(folder, sizes=SIZES):
    numbers = iter(range(sum(sizes)))
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            for number in (next(numbers) for _ in range(size)):
                for name, content in (
                    (f"{number:03d}.png", encoded(number)),
                    (f"{number:03d}.cls", b"%d" % (number % 2)),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def write_parquet(folder, sizes=SIZES):
    pyarrow = pytest.importorskip("pyarrow")
    numbers = iter(range(sum(sizes)))
    for shard, size in enumerate(sizes):
        rows = [
            {"image": {"bytes": encoded(n), "path": None}, "label": n % 2} for n in (next(numbers) for _ in range(size))
        ]
        pytest.importorskip("pyarrow.parquet").write_table(
            pyarrow.Table.from_pylist(rows), folder / f"train-{shard}.parquet", row_group_size=4
        )


def shards(folder, **options):
    dataset = {"_target_": "stable_ssl.data.WebDataset", "path": str(folder)}
    return {"_target_": "stable_ssl.data.Loader", "dataset": dataset, "batch_size": 2, "shuffle": True, **options}


def stream(folder, **options):
    node = {"_target_": "stable_ssl.data.HuggingFaceStream", "path": "parquet", "x": "image", "y": "label"}
    node["data_files"] = f"{folder}/train-*.parquet"
    given = {"stream": node, "batch_size": 2, "shuffle": True, "buffer": 5, **options}
    return {"_target_": "stable_ssl.data.StreamLoader", **given}


class Stopped(Toy):
    """Sends itself a signal while it does a step for the first time."""

    signum, at_step = 0, 0

    def compute_loss(self):
        if self.global_step + 1 == self.at_step:
            os.kill(os.getpid(), self.signum)
        return super().compute_loss()


def train(node, folder, workers=0, signum=0, at_step=0, steps=9):
    Stopped.signum, Stopped.at_step = signum, at_step
    torch.manual_seed(0)
    network = [torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3)]
    trainer = Stopped(
        {"train": {**node, "num_workers": workers, "views": VIEW}},
        {"backbone": torch.nn.Sequential(*network, torch.nn.Linear(8, 2))},
        {"device": "cpu"},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), "epochs": 2, "max_steps": steps},
        {"dump_path": folder, "level": 30, "checkpoint_every_step": 3},
    )
    trainer()


@pytest.mark.parametrize(("write", "make"), [(write_tars, shards), (write_parquet, stream)])
def test_a_killed_run_goes_on_as_one_left_alone_with_any_number_of_workers(start_ranks, tmp_path, write, make):
    write(tmp_path)
    train(make(tmp_path), tmp_path / "alone")
    killed = start_ranks(train, make(tmp_path), tmp_path / "stopped", 2, signal.SIGKILL, 5, world_size=1)
    assert killed.join() == [-signal.SIGKILL]
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").glob("step*")] == ["step_00000003"]
    with pytest.raises(Preempted):
        train(make(tmp_path), tmp_path / "stopped", 0, signal.SIGTERM, 14)
    train(make(tmp_path), tmp_path / "stopped", 1)
    assert same(ending(tmp_path / "stopped"), ending(tmp_path / "alone"))
    assert ending(tmp_path / "alone")[0]["progress"]["global_step"] == 18


def test_two_killed_ranks_go_on_in_a_stream_whose_shares_are_of_several_lengths(start_ranks, tmp_path):
    write_parquet(tmp_path)

    def start(folder, *args):
        return start_ranks(train, stream(tmp_path), tmp_path / folder, *args)

    alone = start("alone")
    assert -signal.SIGKILL in start("stopped", 1, signal.SIGKILL, 12).join(30)
    start("stopped").results()
    alone.results()
    assert same(ending(tmp_path / "stopped"), ending(tmp_path / "alone"))
    # The shard of 9 and that of 7 samples are one process's in an epoch: it ends for both after 8 batches.
    assert ending(tmp_path / "alone")[0]["progress"]["global_step"] == 17


def test_a_shard_that_changed_since_the_run_began_is_named_and_a_folder_that_moved_is_not(tmp_path):
    (tmp_path / "old").mkdir()
    write_tars(tmp_path / "old")
    train(shards(tmp_path / "old"), tmp_path / "run", steps=1)
    (tmp_path / "old").rename(tmp_path / "new")
    train(shards(tmp_path / "new"), tmp_path / "run", steps=1)
    name = "train-1.tar"
    with tarfile.open(tmp_path / "new" / name) as tar, tarfile.open(tmp_path / name, "w") as other:
        for member in tar:
            content = tar.extractfile(member).read()
            member.name = member.name.replace("012", "812")
            other.addfile(member, io.BytesIO(content))
    (tmp_path / name).replace(tmp_path / "new" / name)
    with pytest.raises(
        ConfigError, match=r"data.train: shard 1: the run in the folder has 'train-1.tar \w{8}', this one"
    ):
        train(shards(tmp_path / "new"), tmp_path / "run", steps=1)
