"""Corrupt files: all are named at once, or left out as if they were not there."""

from __future__ import annotations

import errno
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from stable_ssl import ConfigError, DataError
from stable_ssl.augmentations import RandomResizedCrop, View
from stable_ssl.data import ImageFolder, Loader
from stable_ssl.engine.facts import DataFacts

VIEW = View([RandomResizedCrop(8)])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cat").mkdir()
    for index in range(9):
        pixels = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "cat" / f"{index}.png")
    for index in (0, 5, 7):
        path = tmp_path / "cat" / f"{index}.png"
        path.write_bytes(path.read_bytes()[:600])
    return tmp_path


def loader(folder, num_workers=0, views=VIEW, held=True, **options):
    dataset = ImageFolder(folder) if held else ImageFolder(folder, transform=lambda image: image)
    made = Loader(dataset, 4, views=views, shuffle=True, num_workers=num_workers, **options)
    made.bind(0, "train")
    return made


def batches(made):
    found = [[(indices, *batch) for indices, batch in made.batches(epoch)] for epoch in (0, 1)]
    made.close()
    return found


@pytest.mark.parametrize("options", [{}, {"held": False}, {"held": False, "num_workers": 2}, {"views": None}])
def test_all_corrupt_files_are_named_at_once(folder, options):
    with pytest.raises(DataError, match="All 9 samples were tried, and 3 can't be read") as caught:
        batches(loader(folder, **options))
    lines = str(caught.value).split("\n")
    for index, line in zip((0, 5, 7), lines, strict=False):
        assert line.startswith(f"data.train: sample {index} ('{folder}/cat/{index}.png') can't be read: OSError")
    assert "data.train.unreadable=skip (in a script" in lines[3]
    assert "stable-ssl branch" in lines[3]


@pytest.mark.parametrize("options", [{}, {"held": False, "num_workers": 2}, {"views": [np.asarray]}])
def test_skip_leaves_them_out_as_if_they_were_not_there(folder, options, caplog):
    skipping = loader(folder, unreadable="skip", **options)
    with caplog.at_level(logging.WARNING):
        skipping.prepare(torch.device("cpu"))
        assert (skipping.num_samples, len(skipping)) == (6, 2)
        found = batches(skipping)
    facts = DataFacts.of(skipping, 2, num_processes=1)  # which a resumed run must share
    assert (facts.samples, facts.left_out) == (6, "0, 5, 7")
    (record,) = caplog.records
    assert record.message.startswith("data.train: 3 of 9 samples are left out:\ndata.train: sample 0 (")
    for index in (0, 5, 7):
        (folder / "cat" / f"{index}.png").unlink()
    for with_them, without in zip(found, batches(loader(folder, **options)), strict=True):
        for (indices, images, labels), other in zip(with_them, without, strict=True):
            assert (indices, labels.tolist()) == (other[0], other[2].tolist())
            assert torch.equal(images, other[1])


class Failing(torch.utils.data.Dataset):
    """Samples, of which some raise an error."""

    def __init__(self, error, bad=(5,), length=12):
        self.error, self.bad, self.length, self.tried = error, bad, length, []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.tried.append(index)
        if index in self.bad:
            try:
                raise self.error
            except OSError as error:
                raise ValueError("wrapped") from error
        return torch.zeros(1)


@pytest.mark.parametrize("unreadable", ["raise", "skip"])
def test_a_transform_that_fails_for_all_samples_is_found_out_at_once(unreadable):
    failing = Failing(AttributeError("no attribute"), bad=range(2000), length=2000)
    made = Loader(failing, 4, unreadable=unreadable)
    with pytest.raises(DataError, match="Since none of them can be read, the data set's") as caught:
        next(iter(made.batches(0)))
    lines = str(caught.value).split("\n")
    assert [line.partition("AttributeError")[1] for line in lines] == ["AttributeError"] * 3 + ["", ""]
    assert "unreadable=" not in str(caught.value)
    if unreadable == "raise":
        assert lines[4].startswith("32 of 2000 samples were tried, and 32 can't be read.")
        assert len(failing.tried) < 40


def test_many_damaged_samples_are_not_taken_for_a_transform_that_fails():
    made = Loader(Failing(KeyError("x"), bad=range(60), length=128), 4)
    with pytest.raises(DataError, match="All 128 samples were tried, and 60 can't be read. Mend them or") as caught:
        next(iter(made.batches(0)))
    assert str(caught.value).count("KeyError") == 60


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "expected"),
    [(kind, MemoryError) for kind in (MemoryError(), OSError(errno.ENOMEM, "x"), RuntimeError("can't allocate memory"))]
    + [(OSError(number, "x"), DataError) for number in (errno.EMFILE, errno.ENOSPC, errno.EIO, errno.ESTALE)]
    + [(ConnectionResetError(), DataError), (KeyboardInterrupt(), KeyboardInterrupt), (SystemExit(1), SystemExit)],
    ids=repr,
)
def test_a_sample_that_is_not_to_blame_is_never_left_out(error, expected, num_workers):
    if num_workers and expected in (KeyboardInterrupt, SystemExit):
        expected = DataError  # the worker ends
    for unreadable in ("raise", "skip"):
        made = Loader(Failing(error), 4, unreadable=unreadable, num_workers=num_workers)
        with pytest.raises(expected) as caught:
            list(made.batches(0))
        made.close()
        if isinstance(error, OSError) and expected is DataError:
            assert "sample 5 can't be read: ValueError: wrapped. The machine, its disks" in str(caught.value)
        if expected is MemoryError:
            assert "memory ran out as sample 5 of data.data was read" in str(caught.value)


def test_memory_that_runs_out_in_a_batch_is_not_said_to_be_of_the_samples():
    def collate(samples):
        raise MemoryError

    with pytest.raises(MemoryError):
        list(Loader([torch.zeros(1)], 1, collate_fn=collate))


def test_skip_needs_samples_and_their_order(folder):
    with pytest.raises(ConfigError, match="unreadable: a sampler decides"):
        Loader([1], sampler=[0], unreadable="skip")
    for index in range(9):
        (folder / "cat" / f"{index}.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of them can be read"):
        batches(loader(folder, unreadable="skip"))
