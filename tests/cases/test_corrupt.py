"""Corrupt files: all are named at once, or left out as if they were not there."""

from __future__ import annotations

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
    assert "unreadable: skip" in lines[3]
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


def test_if_no_sample_can_be_read_nobody_is_told_to_leave_all_out(folder):
    made = Loader(ImageFolder(folder, transform=lambda image: 1 / 0), 4)
    made.bind(0, "train")
    with pytest.raises(DataError, match="9 can't be read. Since none of them can be read, the data set's") as caught:
        next(iter(made.batches(0)))
    assert "skip" not in str(caught.value)


def test_skip_needs_samples_and_their_order(folder):
    with pytest.raises(ConfigError, match="unreadable: a sampler decides"):
        Loader([1], sampler=[0], unreadable="skip")
    for index in range(9):
        (folder / "cat" / f"{index}.png").write_bytes(b"")
    with pytest.raises(DataError, match="no sample can be read"):
        batches(loader(folder, unreadable="skip"))
