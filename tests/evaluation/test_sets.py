"""Which images are evaluated on, which settings change that, and what is told of those that can't be taken."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from stable_ssl import ConfigError
from stable_ssl.data import Digits
from stable_ssl.evaluation.request import Request
from stable_ssl.evaluation.sets import open_data, open_whole


@pytest.mark.parametrize("opened", [open_data, open_whole])
@pytest.mark.parametrize("content", ["image", "nothing"])
def test_a_file_that_is_not_prepared_is_told_with_what_data_takes(photos, opened, content):
    path = photos / "red" / "00.png"
    if content == "nothing":
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="00.png' is no folder, no file of `stable-ssl prepare`, and no recipe of da"):
        opened(str(path))


def test_a_folder_with_one_image_of_each_class_has_none_to_test_on(photos):
    for folder in photos.iterdir():
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    with pytest.raises(ConfigError, match="--data: the test set of '.*photos' is empty. .* a fifth of each class"):
        open_data(photos)


@pytest.mark.parametrize("empty", ["train", "test"])
@pytest.mark.parametrize("opened", [open_data, open_whole])
def test_a_folder_without_images_for_one_set_is_named(photos, tmp_path, opened, empty):
    for part in ("train", "test"):
        shutil.copytree(photos, tmp_path / "split" / part)
    for path in (tmp_path / "split" / empty).rglob("*.png"):
        path.unlink()
    with pytest.raises(ConfigError, match=f"^'.*split/{empty}' has no images of the kinds"):
        opened(tmp_path / "split") or open_data(tmp_path / "split")


@pytest.mark.parametrize("what", [(Digits("test"),), (Digits("test"),) * 3, 5, ("photos", "photos"), (iter([1]),) * 2])
def test_what_is_no_pair_of_data_sets_is_told(what):
    with pytest.raises(ConfigError, match="no pair of data sets|no map-style data set"):
        open_data(what)


@pytest.mark.parametrize("limit", [-1.0, float("nan"), "20"])
def test_a_limit_of_the_cache_is_at_least_0(limit):
    Request(["run"], limit=0).check()
    with pytest.raises(ConfigError, match="--cache-limit: .* is not a number of at least 0."):
        Request(["run"], limit=limit).check()


def test_settings_are_for_folders_and_recipes_and_an_unknown_one_is_told(photos):
    file = str(photos / "red" / "00.png")
    Request(["run"], data=[file, photos], overrides=["on_error=skip", "levels=[0,4095]"]).check()
    Request(["run"], data=[photos, "cifar10"], overrides=["root=/data"]).check()
    with pytest.raises(ConfigError, match="on_eror: a folder takes no such setting, .* Did you mean 'on_error'?"):
        Request(["run"], data=[photos], overrides=["on_eror=skip"]).check()
    with pytest.raises(ConfigError, match="^on_error=skip changes a recipe or folder of --data, and none is given"):
        Request(["run"], data=[file], overrides=["on_error=skip"]).check()


def test_levels_of_a_folder_change_its_pixels_and_its_fingerprint(photos):
    for path in sorted(photos.rglob("*.png")):
        Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(path)
    one, two = (open_data(photos, [f"levels=[0,{high}]"]) for high in (2000, 4000))
    assert [float(data.test[0][0].max()) for data in (one, two)] == pytest.approx([128 / 255, 64 / 255])
    assert one.fingerprint != two.fingerprint
