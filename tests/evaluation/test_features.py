"""Features are computed once, in fixed chunks, kept on disk, and found again only if nothing has changed."""

from __future__ import annotations

import errno
import io
import os

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import datasets, transforms

from stable_ssl import ConfigError, DataError
from stable_ssl.augmentations import EvalView
from stable_ssl.data import Images
from stable_ssl.engine.alone import Alone
from stable_ssl.evaluation.features import FeatureStore, How
from stable_ssl.evaluation.fingerprints import of_dataset
from stable_ssl.evaluation.kept import SAVED_EVERY, Writer
from stable_ssl.evaluation.subject import Subject


class Counting(nn.Module):
    """Means of the colours, and a count of the images that it saw."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.weight, self.seen, self.fails_at = nn.Parameter(torch.ones(3)), 0, fails_at

    def extra_repr(self):
        return "counting"

    def forward(self, images):
        if self.fails_at is not None and self.seen >= self.fails_at:
            raise KeyboardInterrupt
        self.seen += len(images)
        return images.mean((2, 3)) * self.weight


def subject(network, digest="one"):
    return Subject("net", network, EvalView(16), (16, 16), (0.5,) * 3, (0.5,) * 3, network, digest=digest)


Counting.__module__ = "torch.of_a_library"


def compute(network, photos, cache, digest="one", batch=4, view=None, limit=20.0, say=print):
    store = FeatureStore(How(cache=cache, batch=batch, limit=limit), Alone(), say)
    try:
        images = Images(photos, "folder", channels=3)
        return store.features(subject(network, digest), ["representation"], images, view or EvalView(16), "photos")
    finally:
        store.close()


def test_features_are_those_of_each_image_with_its_label(photos, tmp_path):
    found = compute(Counting(), photos, tmp_path / "cache")
    images = Images(photos, "folder", channels=3)
    view = EvalView(16)
    for index in (0, 7, 29):
        pixels = np.asarray(images.decoder(images.source(index)))[None]
        expected = view.make(pixels, 0, 0, [index])[0].mean((2, 3))
        assert torch.allclose(found.values["representation"][index], expected[0], atol=1e-6)
    assert found.labels.tolist() == images.targets


@pytest.mark.parametrize("what", ["nothing", "weights", "view", "file", "label"])
def test_features_are_found_again_only_if_nothing_has_changed(photos, tmp_path, what):
    compute(Counting(), photos, tmp_path / "cache")
    again = Counting()
    if what == "file":
        os.utime(photos / "red" / "00.png", ns=(1, 1))
    if what == "label":
        (photos / "red" / "00.png").rename(photos / "blue" / "00.png")
    view = EvalView(14) if what == "view" else None
    compute(again, photos, tmp_path / "cache", "two" if what == "weights" else "one", view=view)
    assert again.seen == (0 if what == "nothing" else 30)


def test_an_interrupted_computation_goes_on_to_the_same_bits(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("stable_ssl.evaluation.kept.SAVED_EVERY", 1)
    whole = compute(Counting(), photos, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compute(Counting(fails_at=16), photos, tmp_path / "cache")
    rest = Counting()
    found = compute(rest, photos, tmp_path / "cache")
    assert rest.seen == 30 - 16
    assert torch.equal(found.values["representation"], whole.values["representation"])
    assert torch.equal(found.labels, whole.labels)


def test_what_was_interrupted_twice_under_different_names_is_computed_from_the_beginning(tmp_path):
    def writer(names):
        return Writer(tmp_path, names, 100)

    rows = {"a": np.ones((1, 2), np.float32), "b": np.ones((1, 2), np.float32)}
    first = writer(["a"])
    for index in range(SAVED_EVERY):
        first.add([index], {"a": rows["a"]}, np.zeros(1))
    assert writer(["a"]).first == SAVED_EVERY
    writer(["a", "b"]).add([0], rows, np.zeros(1))  # empties the file of "a"
    assert writer(["a"]).first == 0


def test_the_cache_keeps_to_its_limit_and_drops_what_was_used_longest_ago(photos, tmp_path):
    for digest in ("one", "two"):
        compute(Counting(), photos, tmp_path / "cache", digest)
    folders = sorted((tmp_path / "cache").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    compute(
        Counting(),
        photos,
        tmp_path / "cache",
        "three",
        limit=2.5e-9 * sum(f.stat().st_size for f in folders[0].iterdir()),
    )
    assert not folders[0].exists()
    assert folders[1].exists()


def test_what_else_is_in_the_folder_of_the_cache_stays_whatever_its_limit(photos, tmp_path):
    compute(Counting(), photos, photos, limit=0.0)  # the classes' folders are in it
    assert len([*photos.rglob("*.png")]) == 30
    assert not [*photos.rglob("*/*/.lock")]


def test_without_a_cache_nothing_stays_on_disk(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    compute(Counting(), photos, None)
    assert not [*(tmp_path / "temporary").iterdir()]


def test_features_that_are_not_finite_are_refused_with_the_sample(photos, tmp_path):
    class Bad(Counting):
        def forward(self, images):
            found = super().forward(images)
            return torch.where(torch.arange(self.seen - len(images), self.seen)[:, None] == 9, torch.nan, found)

    with pytest.raises(
        DataError, match="'representation' is not finite for 1 of the samples 8 to 11; the first one is sample 9"
    ):
        compute(Bad(), photos, tmp_path / "cache")
    assert not [*(tmp_path / "cache").rglob("labels.npy")]


def test_images_that_the_network_can_not_take_are_told_with_their_shape(photos, tmp_path):
    with pytest.raises(DataError, match="'net' can't take images of 3 × 16 × 16: "):
        compute(nn.Sequential(nn.Conv2d(1, 4, 3)), photos, tmp_path / "cache")


class OwnCrop(nn.Module):
    """A transform of a user's own, whose text does not name its size."""

    def __init__(self, size):
        super().__init__()
        self.size = size


@pytest.mark.parametrize("change", [{"transform": OwnCrop(8)}, {"target_transform": int}])
def test_a_data_set_whose_samples_its_options_do_not_tell_has_no_fingerprint(photos, change):
    known = {"transform": transforms.Compose([transforms.Resize(8), transforms.ToTensor()])}
    assert of_dataset(datasets.ImageFolder(photos, **known)) is not None
    assert of_dataset(datasets.ImageFolder(photos, **{**known, **change})) is None
    assert of_dataset(type("Own", (Images,), {})(photos)) is None


def test_features_of_a_network_of_a_users_own_are_not_kept(photos, tmp_path):
    class Own(Counting):
        pass

    Own.__module__ = "own"
    compute(Own(), photos, tmp_path / "cache")
    again = Own()
    compute(again, photos, tmp_path / "cache")
    assert again.seen == 30


def test_a_full_disk_is_told_and_what_is_there_stays(photos, small_disk, monkeypatch):
    compute(Counting(), photos, small_disk / "cache")
    earlier = {path: path.stat() for path in (small_disk / "cache").rglob("*.npy")}

    class Wide(Counting):
        def forward(self, images):
            return super().forward(images).repeat(1, 10_000)

    Wide.__module__ = Counting.__module__
    told = (
        "--cache: there is no room for 3.6 MB in '.*': No space left on device. Give another --cache DIR, or `--cache"
    )
    with pytest.raises(ConfigError, match=told):
        compute(Wide(), photos, small_disk / "cache", "wide")
    assert {path: path.stat() for path in (small_disk / "cache").rglob("*.npy")} == earlier
    assert not [*small_disk.rglob("*.part*")]


@pytest.mark.parametrize("begun", [False, True])
def test_a_disk_that_is_full_while_progress_is_written_costs_only_what_was_begun(tmp_path, monkeypatch, begun):
    monkeypatch.setattr("stable_ssl.evaluation.kept.SAVED_EVERY", 1)
    chunk = [0], {"a": np.ones((1, 2), np.float32)}, np.zeros(1)
    if begun:
        Writer(tmp_path, ["a"], 100).add(*chunk)
    writer = Writer(tmp_path, ["a"], 100)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(ConfigError, match="there is no room"):
        writer.add(*chunk)
    assert Writer(tmp_path, ["a"], 100).first == int(begun)
    assert bool([*tmp_path.iterdir()]) == begun


def damage(path, how):
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "rows":
        np.save(path, np.load(io.BytesIO(content))[1:])
    else:
        damaged = {"truncated": content[:-1], "garbage": b"\x93NUMPY\1\0" + b"{(" * 200, "empty": b""}
        path.write_bytes(damaged[how])


@pytest.mark.parametrize("how", ["truncated", "garbage", "empty", "rows", "folder"])
@pytest.mark.parametrize("name", ["representation", "labels"])
def test_damaged_files_are_computed_again(photos, tmp_path, name, how):
    whole = compute(Counting(), photos, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob(f"*/{name}.npy")
    expected = whole.values["representation"].clone()
    damage(path, how)
    again, said = Counting(), []
    found = compute(again, photos, tmp_path / "cache", say=said.append)
    assert again.seen == 30
    assert f"'{path}' of the cache is damaged, so it is computed again" in said
    assert torch.equal(found.values["representation"], expected)
    assert torch.equal(found.labels, whole.labels)


@pytest.mark.parametrize("how", ["truncated", "empty", "folder"])
@pytest.mark.parametrize("name", [".a.part.npy", ".labels.part.npy", "progress.json"])
def test_damaged_files_of_an_interrupted_computation_are_begun_again(tmp_path, monkeypatch, name, how):
    monkeypatch.setattr("stable_ssl.evaluation.kept.SAVED_EVERY", 1)
    chunk = [0], {"a": np.ones((1, 2), np.float32)}, np.zeros(1)
    Writer(tmp_path, ["a"], 100).add(*chunk)
    damage(tmp_path / name, how)
    writer = Writer(tmp_path, ["a"], 100)
    assert writer.first == 0
    writer.add(*chunk)
    writer.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "labels.npy"]


def test_a_view_that_does_not_suit_the_images_is_told_with_the_set(photos, tmp_path):
    view = EvalView(16, mean=(0.5,) * 2, std=(0.5,) * 2)
    with pytest.raises(ConfigError, match="^photos: view 0: Normalize"):
        compute(Counting(), photos, tmp_path / "cache", view=view)


def test_an_image_that_can_not_be_read_is_told_with_the_set_and_nothing_of_runs(photos, tmp_path):
    path = photos / "red" / "00.png"
    content = bytearray(path.read_bytes())
    content[100:500] = bytes(400)  # neither its header nor its end
    path.write_bytes(content)
    told = r"^photos: sample 20 \('.*/red/00.png'\) can't be read: .*\nMend or remove what can't be read.$"
    with pytest.raises(DataError, match=told):
        compute(Counting(), photos, tmp_path / "cache")
