"""`Images`: which files of a folder are taken, with which labels, and what is said of all that is wrong."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import multiprocessing
import os
import shutil
import signal
import struct
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin
from torch import nn
from toys import Toy

from stable_ssl import BaseTrainer, ConfigError, DataError
from stable_ssl.augmentations import CenterCrop, EvalView, Normalize, View
from stable_ssl.cli import main
from stable_ssl.config import build
from stable_ssl.data import Images, Loader, in_memory, scanning
from stable_ssl.data.scan_cache import cache_of
from stable_ssl.runtime.folder import read_config

COLOURS = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
RGB, GREY = Image.fromarray(COLOURS), Image.fromarray(COLOURS[:, :, 0])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    return make(tmp_path / "root", {"cat/0.jpg": RGB, "cat/1.png": RGB, "dog/0.jpg": RGB, "dog/deep/er.bmp": RGB})


def make(root, files):
    """Write images, or bytes, to a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content.save(path) if isinstance(content, Image.Image) else path.write_bytes(content)
    return root


def encoded(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_header(width, height):
    """A PNG that says its size, and has no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def refused(error, *args, **options):
    with pytest.raises(error) as caught:
        Images(*args, **options)
    return str(caught.value)


# Which files -----------------------------------------------------------------------------------------------------------


def test_all_images_of_five_kinds_are_taken_in_one_order_and_all_else_is_counted(tmp_path, caplog):
    kinds = ["b/1.JPG", "b/0.jpeg", "b.jpe", "a/c/2.PNG", "a-/2.tif", "a/2.TIFF", "a/é.webp", "a/e.bmp"]
    images = {name: RGB for name in kinds if not name.endswith("jpe")} | {"b.jpe": encoded(RGB)}
    hidden = [".git/0.jpg", "a/.ipynb_checkpoints/0.jpg", "__MACOSX/0.jpg", "a/._0.jpg", "a/Thumbs.db"]
    others = {"notes.txt": b"x", "a/more.TXT": b"x", "README": b"x", "a/movie.gif": b"x"}
    make(tmp_path / "root", images | {name: b"x" for name in hidden} | others)
    with caplog.at_level(logging.INFO, logger="stable_ssl"):
        data = Images(tmp_path / "root")
    assert data.files == sorted(kinds, key=str.encode)
    assert data.targets == [-1] * 8
    (line,) = caplog.messages
    assert line.partition("left out: ")[2].startswith("2 × .txt, 1 × ")
    assert line.count(" × ") == 3
    pixels, label = data[data.files.index("a/e.bmp")]
    assert torch.equal(pixels, torch.from_numpy(COLOURS).movedim(2, 0) / 255)
    assert label == -1


def test_links_are_followed_and_each_folder_is_taken_once_by_its_own_path(root, tmp_path, caplog):
    make(tmp_path / "elsewhere", {"far.png": RGB})
    (root / "a_circle").symlink_to(root)
    (root / "cat" / "up").symlink_to("..")
    (root / "a_cat").symlink_to("cat")
    (root / "z_link").symlink_to(tmp_path / "elsewhere")
    (root / "y_link").symlink_to(tmp_path / "elsewhere")
    (root / "itself").symlink_to("itself")
    (root / "dog" / "file.jpg").symlink_to("../cat/0.jpg")
    with caplog.at_level(logging.INFO, logger="stable_ssl"):
        found = Images(root).files
    assert found == ["cat/0.jpg", "cat/1.png", "dog/0.jpg", "dog/deep/er.bmp", "dog/file.jpg", "y_link/far.png"]
    assert "4 links lead to folders that are taken already" in caplog.text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing", "does not exist, or may not be looked at."),
        ("file.jpg", "is a file; it must be the folder of the images."),
        ("empty", "has no images of the kinds JPEG, PNG, TIFF, WebP and BMP."),
        ("texts", "BMP. Files whose endings are not those of images are left out: 2 × .txt."),
    ],
)
def test_a_folder_without_images_is_refused_in_a_sentence(tmp_path, name, expected):
    make(tmp_path, {"file.jpg": RGB, "texts/a.txt": b"a", "texts/b/b.txt": b"b"})
    (tmp_path / "empty").mkdir()
    said = refused(ConfigError, tmp_path / name)
    assert said.startswith(f"root: '{tmp_path / name}' ")
    assert said.endswith(expected)


# What they are ---------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_upright_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274], tags[700], tags.tagtype[700] = 6, b"<x:xmpmeta/>", 1
    files = {"0.png": RGB, "1.tif": encoded(RGB, "TIFF", tiffinfo=tags), "9.bmp": RGB.crop((0, 0, 5, 7))}
    files |= {f"2.{kind}": encoded(RGB, kind, exif=exif) for kind in ("jpeg", "png", "webp")}
    data = Images(make(tmp_path / "root", files))
    upright = [ImageOps.exif_transpose(Image.open(tmp_path / "root" / file)).size[::-1] for file in data.files]
    assert list(map(tuple, data.sizes.tolist())) == upright
    assert upright.count((20, 30)) == 4
    assert [tuple(data[i][0].shape[1:]) for i in range(6)] == upright
    assert data.num_bytes == sum(height * width * 3 for height, width in upright)


def test_one_coloured_image_among_many_grey_ones_makes_all_of_them_rgb(tmp_path):
    root = make(tmp_path / "root", {f"{i:02}.png": GREY for i in range(70)})
    assert Images(root).decoder.channels == 1
    assert Images(root)[3][0].shape == (1, 30, 20)
    make(root, {"51.png": RGB})  # it is none of the 32 that other data sets look at
    data = Images(root)
    assert data.decoder.channels == 3
    assert data[3][0].shape == (3, 30, 20)
    assert Images(root, channels=1)[51][0].shape == (1, 30, 20)


def test_images_of_more_than_8_bits_need_levels(tmp_path):
    deep = Image.fromarray(COLOURS[:, :, 0].astype(np.uint16) * 4)
    floats = Image.fromarray(COLOURS[:, :, 1].astype(np.float32))
    root = make(tmp_path / "root", {"0.png": GREY, "1.png": deep, "2.tif": floats})
    said = refused(ConfigError, root)
    assert said.startswith("levels: '1.png' has more than 8 bits per channel, or floats, as 2 of 3 images in")
    assert "by levels: [low, high] of Images" in said
    data = Images(root, levels=[0, 1020])
    assert torch.equal((data[1][0] * 255).round(), torch.from_numpy(COLOURS[None, :, :, 0]).float())


# Labels ----------------------------------------------------------------------------------------------------------------


def test_labels_are_the_first_level_of_folders(root):
    data = Images(root, labels="folder")
    assert (data.classes, data.targets) == (["cat", "dog"], [0, 0, 1, 1])
    make(root, {"loose.png": RGB, ".hidden.png": RGB})
    assert refused(ConfigError, root, labels="folder").startswith("labels: 'loose.png' has no class, because it is in")


def test_labels_from_a_file_are_names_or_numbers_and_images_without_a_row_are_left_out(root, tmp_path, caplog):
    names = tmp_path / "names.csv"
    names.write_text('\ufefflabel,path,more\nzebra,dog/0.jpg,1\n"a, b",./cat/0.jpg,2\nzebra,cat/1.png,3\n')
    with caplog.at_level(logging.INFO, logger="stable_ssl"):
        data = Images(root, labels=names)
    assert data.files == ["cat/0.jpg", "cat/1.png", "dog/0.jpg"]
    assert (data.classes, data.targets) == (["a, b", "zebra"], [0, 1, 1])
    assert f"1 of 4 images have no row in '{names}', and are left out." in caplog.text
    (root / "numbers.csv").write_text("path,label\ncat/0.jpg,3\ndog/0.jpg,1\n")
    data = Images(root, labels="numbers.csv")  # it is found in the folder
    assert (data.classes, data.targets) == (["0", "1", "2", "3"], [3, 1])


def test_paths_and_labels_from_other_systems_are_taken_or_explained(tmp_path):
    photos, table = tmp_path / "photos", tmp_path / "labels.csv"
    names = ("a\u0308", "o\u0308", "\u00fc")  # ä and ö as macOS writes them, and ü as others do
    make(photos, {f"sub/{name}.png": RGB for name in names})
    table.write_text("path,label\nsub/\u00e4.png,x\nsub/u\u0308.png,y\nsub/o\u0308.png,x\n")
    images = Images(photos, table)
    assert images.files == ["sub/a\u0308.png", "sub/o\u0308.png", "sub/\u00fc.png"]
    assert images.targets == [0, 0, 1]
    for row, expected in (
        ("sub\\\u00fc.png,x".encode(), "line 2 ('sub\\\u00fc.png') must have / between folders and names, and not \\."),
        (
            b"sub/\xc3\xbc.png,K\xe4the",
            "must have a label in UTF-8, not 'K\\xe4the' for example: save the file as UTF-8.",
        ),
        (b"sub/\xfc.png,x", f"the path of an image in '{photos}'; its path is not UTF-8, so save the file as UTF-8."),
    ):
        table.write_bytes(b"path,label\n" + row)
        assert expected in refused(ConfigError, photos, table)


def test_images_with_an_empty_label_are_trained_on_and_never_held_out(tmp_path, caplog):
    root = make(tmp_path / "root", {f"{i:02}.png": RGB for i in range(30)})
    labels = {f"{i:02}.png": "ab"[i % 2] if i < 10 else "" for i in range(30)}
    (root / "labels.csv").write_text("path,label\n" + "".join(f"{file}, {label}\n" for file, label in labels.items()))
    with caplog.at_level(logging.INFO, logger="stable_ssl"):
        data = Images(root, "labels.csv")
    assert data.targets == [0, 1] * 5 + [-1] * 20
    assert data.classes == ["a", "b"]
    assert f"20 of 30 images have no label in '{root / 'labels.csv'}'." in caplog.messages
    test, train = (Images(root, "labels.csv", split=split) for split in ("test", "train"))
    assert (sorted(test.targets), sorted(train.targets)) == ([0, 1], [-1] * 20 + [0] * 4 + [1] * 4)
    (root / "labels.csv").write_text(
        "path,label\n" + "".join(f"{file},{label and 2}\n" for file, label in labels.items())
    )
    assert Images(root, "labels.csv").targets == [2] * 10 + [-1] * 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\ncat/0.jpg,1\ncat/9.jpg,1\n", "line 3 ('cat/9.jpg') must have the path of an image in"),
        ("path,label\ncat/0.jpg,1\n./cat/0.jpg,1\n", "line 3 ('./cat/0.jpg') must not repeat a path."),
        ("path,label\n/cat/0.jpg,1\n", "line 2 ('/cat/0.jpg') must have a path that is relative to root."),
        ("path,label\ncat/0.jpg\n", "line 2 ('cat/0.jpg') must have a path and a label, which may be empty."),
        ("path,label\ncat/0.jpg,\n", "has no label that is not empty. Set labels to none."),
        ("path,label\ncat/0.jpg,-1\n", "has the label -1. Labels that are numbers count the classes from 0"),
        ("path,label\ncat/0.jpg,2.0\n", "has the label 2.0. Labels that are numbers"),
        ("file,class\ncat/0.jpg,1\n", "must be path,label; it has file, class."),
        ("path,label\n", "has no rows below its first line."),
        ("", "must be path,label; it has nothing."),
        (None, "Labels are none, folder (each folder in '"),
    ],
)
def test_wrong_labels_are_refused_in_a_sentence(root, tmp_path, text, expected):
    path = tmp_path / "labels.csv"
    if text is not None:
        path.write_text(text)
    said = refused(ConfigError, root, labels=path)
    assert said.startswith("labels: ")
    assert str(path) in said
    assert expected in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "wrong",
    [{"labels": 3}, {"levels": [3, 1]}, {"channels": 2}, {"on_error": "ignore"}, {"in_memory": "yes"},
     {"in_memory": True, "transform": np.asarray}, {"transform": 3}],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(root, wrong):
    assert refused(ConfigError, root, **wrong).startswith(f"{next(iter(wrong))}: must be ")


# Files that can't be read ----------------------------------------------------------------------------------------------


def damaged(root):
    """Add files that can't be read, and some that look so but can."""
    whole = {kind: encoded(RGB, kind) for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP")}
    progressive = encoded(RGB, progressive=True)
    bad = {f"bad/{kind}.{kind.lower()}": content[: len(content) // 2] for kind, content in whole.items()}
    bad |= {"bad/end.jpg": whole["JPEG"][:-2], "bad/progressive.jpg": progressive[:-30], "bad/empty.png": b""}
    bad |= {"bad/text.jpg": b"<html>", "bad/huge.png": png_header(40_000, 40_000)}
    bad["bad/zeros.jpg"] = whole["JPEG"][:-200] + bytes(200)  # as after a crash; Pillow makes grey of them
    good = {"good/more.jpg": whole["JPEG"] + b"a trailer" * 2000, "good/end.png": whole["PNG"][:-12]}
    good |= {"good/png.jpg": whole["PNG"], "good/gif.png": encoded(RGB, "GIF")}
    make(root, bad | good)
    (root / "bad" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(root / "bad" / "pipe.jpg")
    return [*bad, "bad/gone.jpg", "bad/pipe.jpg"], list(good)


def test_all_files_that_can_not_be_read_are_named_at_once_or_left_out(root, caplog):
    before = Images(root).files
    bad, good = damaged(root)
    for file in good:
        Image.open(root / file).load()  # Pillow reads them all
    for _ in range(2):  # a failure is not kept
        said = refused(DataError, root).split("\n")
        assert {line.split("'")[1] for line in said[:-1]} == set(bad)
        assert said[-1].startswith(f"{len(bad)} of {len(bad) + 8} images in '{root}' can't be read. Remove or replace")
        assert "leave them out by on_error: skip of Images" in said[-1]
    reasons = {line.split("'")[1]: line.partition("can't be read: ")[2] for line in said[:-1]}
    assert reasons["bad/empty.png"] == "it is empty"
    assert reasons["bad/text.jpg"] == "it is no image, or its header is damaged"
    assert reasons["bad/gone.jpg"] == "No such file or directory"
    assert "40,000 × 40,000 = 1,600,000,000 pixels, and Pillow's limit is 178,956,970" in reasons["bad/huge.png"]
    assert "MAX_IMAGE_PIXELS" in reasons["bad/huge.png"]
    skipping = Images(root, on_error="skip")
    assert skipping.files == sorted([*before, *good])
    assert len(skipping.sizes) == len(skipping.targets) == len(skipping)
    assert f"{len(bad)} of {len(bad) + 8} images in '{root}' can't be read, and are left out:\n'bad/BMP" in caplog.text
    for file in before:
        (root / file).unlink()
    shutil.rmtree(root / "good")
    assert "nothing to load" in refused(DataError, root, on_error="skip")


def test_names_that_would_control_a_terminal_are_escaped(root, capsys):
    make(root, {"bad\n\x1b[31m\u202e.jpg": b"text"})
    for said in (refused(DataError, root), (main(["prepare", str(root)]), capsys.readouterr().err)[1]):
        assert r"'bad\n\x1b[31m\u202e.jpg' can't be read: it is no image" in said
        assert not set("\x1b\u202e") & set(said)


def test_what_may_not_be_read_is_named(cache):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        make(folder, {"a.jpg": RGB, "b.jpg": RGB, "closed/c.jpg": RGB})
        folder.chmod(0o755)
        (folder / "b.jpg").chmod(0)
        (folder / "closed").chmod(0)
        os.seteuid(65534)
        try:
            said = refused(DataError, folder)
            left = Images(folder, on_error="skip").files
            closed = refused(ConfigError, folder / "closed")
            below = refused(ConfigError, folder / "closed" / "below")
            labels = refused(ConfigError, folder, labels=folder / "closed" / "labels.csv")
        finally:
            os.seteuid(0)
        assert said.startswith("'b.jpg' can't be read: Permission denied\n'closed' can't be read: Permission denied\n2")
        assert left == ["a.jpg"]
        assert closed == f"root: '{folder}/closed' can't be listed: Permission denied."
        assert below == f"root: '{folder}/closed/below' does not exist, or may not be looked at."
        assert labels.startswith(f"labels: '{folder}/closed/labels.csv' can't be read: Permission denied.")
    finally:
        shutil.rmtree(folder)


def test_a_script_may_raise_the_limit_of_pixels_but_only_for_itself(tmp_path, monkeypatch):
    root = make(tmp_path / "root", {"0.png": RGB, "1.png": RGB.resize((40, 40))})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    assert "'1.png' can't be read: it has 40 × 40 = 1,600 pixels, and Pillow's limit is 1,400" in refused(
        DataError, root
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert len(Images(root)) == 2
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    assert "'1.png' can't be read" in refused(DataError, root)


# What an earlier scan found --------------------------------------------------------------------------------------------


def test_a_second_start_reads_no_file_that_has_its_size_and_time(root, tmp_path):
    first = Images(root)
    (root / "l.csv").write_text("path,label\ncat/0.jpg,1\n")
    Images(root, labels=root / "l.csv")  # a part of the images does not drop what is known of the others
    path = root / "dog" / "0.jpg"
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = Images(root)  # it would be an error if the file were read
    assert again.files == first.files
    assert np.array_equal(again.sizes, first.sizes)
    os.utime(path)
    assert refused(DataError, root).startswith("'dog/0.jpg' can't be read: it is no image")
    make(root, {"dog/0.jpg": GREY.resize((7, 9))})
    assert Images(root).sizes.tolist() == [[30, 20], [30, 20], [9, 7], [30, 20]]


def spoil(cache, how):
    (path,) = cache.rglob("*.npz")
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "text":
        path.write_text("x" * 100)
    else:
        with np.load(path) as saved:
            content = dict(saved)
        changes = {"version": 999} if how == "version" else {"rows": content["rows"][:2]}
        np.savez(path, **{**content, **changes})


@pytest.mark.parametrize("how", ["cut", "text", "version", "shorter"])
def test_a_cache_that_is_damaged_or_of_another_version_is_not_used(root, cache, how, caplog):
    sizes = Images(root).sizes
    spoil(cache, how)
    with caplog.at_level(logging.INFO, logger="stable_ssl"):
        assert np.array_equal(Images(root).sizes, sizes)
        assert len(caplog.messages) == 1
        Images(root)  # it is written anew
        assert len(caplog.messages) == 1
    assert "is not used" in caplog.text
    assert {path.suffix or path.name for path in cache.rglob("*.*")} == {".npz", ".lock"}


def test_a_full_disk_for_the_cache_costs_one_line(root, small_disk, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    cache_of(root).parent.mkdir(parents=True)
    with open(small_disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert len(Images(root)) == 4
    (line,) = caplog.messages
    assert line.startswith(f"What is known of '{root}' can't be kept in '{small_disk}/stable_ssl")
    assert "No space left on device" in line
    assert [path.name for path in cache_of(root).parent.iterdir()] in ([], [".lock"])
    (small_disk / "filler").unlink()
    Images(root)
    assert cache_of(root).exists()


def test_a_cache_that_may_not_be_written_costs_one_line(root, cache, caplog):
    cache.write_text("no folder")
    with caplog.at_level(logging.INFO, logger="stable_ssl"):
        assert len(Images(root)) == 4
    (line,) = caplog.messages
    assert "can't be kept" in line


def scan_in_process(root, queue):
    queue.put(Images(root).sizes.tolist())


def test_processes_that_scan_at_the_same_time_look_at_each_file_once(root, cache, monkeypatch):
    context = multiprocessing.get_context("fork")
    queue, looks, header = context.Queue(), context.Queue(), scanning._header

    def slowly(path):
        looks.put(path)
        time.sleep(0.2)
        return header(path)

    monkeypatch.setattr(scanning, "_header", slowly)
    processes = [context.Process(target=scan_in_process, args=(root, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    files = {looks.get(timeout=10) for _ in Images(root).files}
    assert found == [Images(root).sizes.tolist()] * 4
    assert len(files) == 4
    assert looks.empty()
    assert len([path for path in cache.rglob("*.*") if path.name != ".lock"]) == 1


def test_a_long_scan_tells_how_far_it_is(root, monkeypatch, caplog):
    monkeypatch.setattr(scanning, "SECONDS", 0)
    with caplog.at_level(logging.INFO, logger="stable_ssl"):
        Images(root)
    assert "2 images were found so far." in caplog.text
    assert "4 of 4 images were looked at." in caplog.text


# In a run --------------------------------------------------------------------------------------------------------------

VIEW = View([CenterCrop(8), Normalize([0.5] * 3, [0.5] * 3)])


class Reading(BaseTrainer):
    """Learns the labels; calls a function before each step."""

    act = staticmethod(lambda step: None)

    def forward(self, x):
        return self.module["backbone"](x)

    def predict(self):
        return self.forward(self.batch[0])

    def compute_loss(self):
        self.act(self.global_step)
        return nn.functional.cross_entropy(self.predict(), self.batch[1])


@pytest.fixture
def run(tmp_path):
    """A run over a folder, configured as a YAML file would."""

    def begin(root, name="run", act=None, level=50, branch_from=None, **options):
        options = {"labels": "folder", "in_memory": False, **options}
        dataset = {"_target_": "stable_ssl.data.Images", "root": str(root), **options}
        train = {"_target_": "stable_ssl.data.Loader", "dataset": dataset, "batch_size": 2, "views": VIEW}
        torch.manual_seed(0)
        trainer = Reading(
            {"train": train},
            {"backbone": nn.Sequential(nn.Flatten(), nn.Linear(192, 2))},
            {"device": "cpu"},
            {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 2},
            {"dump_path": tmp_path / name, "level": level},
            branch_from=branch_from,
        )
        trainer.act = act or (lambda step: None)
        trainer()
        return trainer

    return begin


@pytest.fixture
def numbered(tmp_path):
    files = {f"{'ab'[i % 2]}/{i:02}.png": Image.fromarray(COLOURS // (i + 1)) for i in range(16)}
    return make(tmp_path / "numbered", files)


@pytest.mark.parametrize("change", ["deleted", "cut"])
def test_a_file_that_fails_later_ends_the_run_with_its_name_and_the_state_saved(numbered, run, tmp_path, change):
    path = numbered / "b" / "13.png"
    content = path.read_bytes()

    def spoil(step):
        if step == 2:
            path.unlink() if change == "deleted" else path.write_bytes(content[:90])

    with pytest.raises(DataError, match=r"can't be read") as caught:
        run(numbered, act=spoil)
    assert f"('{path}') can't be read: " in str(caught.value)
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step_")) in range(5, 8)  # where its batch, the seventh, was asked for
    if change == "deleted":
        with pytest.raises(ConfigError, match="Once that is undone, the run goes on as before"):
            run(numbered)
        branch = run(numbered, "branch", branch_from=tmp_path / "run")
        assert (branch.epoch, len(branch.data["train"].dataset)) == (2, 15)
    path.write_bytes(content)
    steps = []
    went_on, alone = run(numbered, act=steps.append), run(numbered, "alone")
    assert steps == list(range(int(saved.name.removeprefix("step_")), 16))
    assert all(map(torch.equal, went_on.parameters(), alone.parameters()))


def test_a_run_goes_on_with_a_folder_that_was_moved_but_not_with_another_one(numbered, run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(numbered, act=lambda step: step == 9 and os.kill(os.getpid(), signal.SIGINT))
    other = make(tmp_path / "other", {f"{'ab'[i % 2]}/{i:02}.png": RGB for i in range(16)})
    with pytest.raises(ConfigError, match="root"):
        run(other)
    moved = numbered.rename(tmp_path / "moved")
    went_on, alone = run(moved, in_memory="auto"), run(moved, "alone")
    assert all(map(torch.equal, went_on.parameters(), alone.parameters()))


def test_names_that_are_no_utf_8_pass_through_a_run_its_config_and_its_logs(numbered, run, tmp_path, caplog):
    root = numbered.rename(os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9el"))
    (root / "b").rename(os.fsdecode(os.fsencode(root) + b"/\xe9t\xe9"))
    make(root, {os.fsdecode(b"a/\xff.jpg"): b"no image"})
    labels = tmp_path / "labels.csv"
    labels.write_bytes(b"path,label\na/00.png,x\n\xe9t\xe9/01.png,\xe9\n\xe9t\xe9/03.png,x\n")
    assert "'a/\\xff.jpg' can't be read" in refused(DataError, root)
    done = run(root, on_error="skip", level=20)
    assert "'a/\\xff.jpg' can't be read: it is no image" in (done.folder / "console.log").read_text()
    assert Images(root, labels="folder", on_error="skip").classes == ["a", os.fsdecode(b"\xe9t\xe9")]
    assert Images(root, labels=labels).targets == [0, 1, 0]
    written = read_config(done.folder)["trainer"]["data"]["train"]["dataset"]
    assert len(build(written, "dataset")) == 16


# Held in memory --------------------------------------------------------------------------------------------------------


def batch_of(dataset, **options):
    loader = Loader(dataset, 2, views=VIEW, **options)
    loader.prepare(torch.device("cpu"))
    batch = next(iter(loader))
    loader.close()
    return loader._held is not None, batch[0]


def test_in_memory_decides_whether_images_are_held(numbered, monkeypatch):
    size = Images(numbered).num_bytes
    assert size == 16 * 30 * 20 * 3
    for free, expected in ((10 * size, (True, True, False)), (2 * size, (False, True, False))):
        monkeypatch.setattr(in_memory, "free_memory", lambda free=free: free)
        found = [batch_of(Images(numbered, in_memory=wish)) for wish in ("auto", True, False)]
        assert tuple(is_held for is_held, _ in found) == expected
        assert all(torch.equal(views, found[0][1]) for _, views in found)
    monkeypatch.setattr(in_memory, "free_memory", lambda: size - 1)
    with pytest.raises(ConfigError, match=r"in_memory is true, but the images take about [\d.]+ kB"):
        batch_of(Images(numbered, in_memory=True))


def test_what_images_take_is_known_before_they_are_read(tmp_path, monkeypatch):
    files = {f"{i}.png": RGB.resize((100, 100) if i == 0 else (9, 9)) for i in range(9)}
    data = Images(make(tmp_path / "sizes", files))
    monkeypatch.setattr(
        in_memory, "free_memory", lambda: 6 * data.num_bytes
    )  # a quarter of it is less than nine times the first one
    assert batch_of(data)[0]


class Own(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return RGB, index


class Constant(Own):
    constant = True


class Undecided(Own):
    constant = "auto"


@pytest.mark.parametrize(("kind", "is_held"), [(Own, False), (Constant, True), (Undecided, False)])
def test_a_data_set_of_the_users_is_held_if_it_says_that_it_is_constant(kind, is_held):
    assert batch_of(kind())[0] == is_held
    assert batch_of(torch.utils.data.Subset(kind(), [1, 2]))[0] == is_held


class Drawn(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return np.where(np.random.rand() < 0.5, image, 255 - image), label


def test_a_subclass_of_images_that_may_draw_at_random_is_not_held(numbered):
    assert not batch_of(Drawn(numbered))[0]


def test_the_command_views_draws_them(numbered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = f"{{_target_: stable_ssl.data.Images, root: '{numbered}', channels: 1}}"
    train = f"trainer: {{data: {{train: {{batch_size: 4, dataset: {dataset}}}}}}}"
    (tmp_path / "own.yaml").write_text(f"defaults: [simclr_digits, _self_]\n{train}\n")
    inherited = [f"~trainer.data.train.dataset.{key}" for key in ("split", "size")]
    assert main(["views", "own.yaml", "--out", "views.png", *inherited]) == 0
    drawn = np.asarray(Image.open("views.png").convert("L"))
    assert drawn.shape[0] > 4 * 100
    assert len(np.unique(drawn)) > 100


def test_a_run_whose_images_were_relabelled_since_does_not_go_on(make_toy, tmp_path):
    folder = tmp_path / "images"
    for label, number in ((0, 0), (0, 1), (1, 2), (1, 3)):
        path = folder / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 2), 60 * number).save(path)

    def make(epochs):
        data = {"train": Loader(Images(folder, labels="folder"), 2, views=EvalView(2, mean=[0.5], std=[0.5]))}
        module = {"backbone": nn.Sequential(nn.Flatten(), nn.Linear(4, 2))}
        return make_toy(Toy, data, module, epochs=epochs, logger={"dump_path": tmp_path / "run"})

    make(1)()
    (folder / "0" / "1.png").rename(folder / "1" / "1.png")
    with pytest.raises(ConfigError, match="files, labels and sizes of the images, as a digest"):
        make(2)()
