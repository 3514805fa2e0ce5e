"""`stable-ssl prepare` and `Prepared`: pixels, stops, changed sources, full disks, damaged files, and training."""

from __future__ import annotations

import io
import os
import pickle
import shlex
import shutil
import signal
import struct
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from test_decoding import CORPUS, encoded, folder_of, photo
from torch.utils.data import Subset
from toys import Toy

from stable_ssl import ConfigError, DataError
from stable_ssl.augmentations import RandomResizedCrop, View
from stable_ssl.cli import main
from stable_ssl.data import Images, Loader, Prepared
from stable_ssl.data.encoded import as_encoded
from stable_ssl.data.encoding import FolderToPrepare
from stable_ssl.data.views import as_read

# Stops the process in the middle of the eighth image, as SIGKILL and as a disk that is full do.
STOPPED = """
import os, resource, signal, sys
from stable_ssl.cli import main
how, command = sys.argv[1], sys.argv[2:]
write = os.pwrite
def dies(descriptor, content, place):
    dies.calls += 1
    if dies.calls < 16:
        return write(descriptor, content, place)
    write(descriptor, content[: len(content) // 2], place)
    os.kill(os.getpid(), signal.SIGKILL)
dies.calls = 0
if how == "killed":
    os.pwrite = dies
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(how), resource.RLIM_INFINITY))
sys.exit(main(command))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """Return a folder of two classes with six photographs each."""
    for number in range(12):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(50 + number, 40, number)))
    return tmp_path / "photos"


def prepare(folder, *options, out, status=0):
    assert main(["prepare", str(folder), "--out", str(out), *map(str, options)]) == status
    return Prepared(out, transform=np.asarray) if not status else None


def pixels_of(prepared):
    """Return the pixels of all images, read one by one; they must be those that threads read."""
    images = as_encoded(as_read(prepared), prepared.channels)
    alone = [prepared[index][0] for index in range(len(prepared))]
    for index, image in enumerate(alone):
        np.testing.assert_array_equal(images.read(index).squeeze(), image.squeeze())
        assert images.size(index) == image.shape[:2] == tuple(prepared.sizes[index])
    return alone


@pytest.mark.parametrize("channels", [3, 1])
def test_raw_pixels_of_images_that_keep_their_size_are_the_folder_s(tmp_path, channels):
    folder = folder_of(tmp_path / "photos", CORPUS.values())
    options = ("--channels", channels, "--size", 0)
    found = pixels_of(prepare(folder, "--format", "raw", *options, out=tmp_path / "raw"))
    images = Images(folder, channels=channels, transform=np.asarray)
    assert len(found) == len(CORPUS)
    for index, (pixels, name) in enumerate(zip(found, CORPUS, strict=True)):
        np.testing.assert_array_equal(pixels, images[index][0], err_msg=name)
    # JPEGs without loss are those that need no change.
    jpegs = prepare(folder, *options, out=tmp_path / "jpeg")
    kept = [name for i, name in enumerate(CORPUS) if bytes(jpegs.file.read(i)) == CORPUS[name]]
    others = {"inks", "png", "palette", "webp", "png on its side", "grey on its side"}
    upright = {name for name in CORPUS if name not in others and not name.startswith("orientation")}
    assert set(kept) == (upright if channels == 3 else {"grey"})


def test_a_jpeg_is_decoded_as_pillow_does_and_made_smaller_with_antialiasing(root, tmp_path):
    prepared = prepare(root, "--size", 30, "--quality", 100, "--subsampling", 444, out=tmp_path / "some")
    assert prepared.sizes[:, 0].tolist() == [30] * 12
    assert prepared.sizes[:2].tolist() == [[30, 38], [30, 39]]
    images = Images(root)
    for index, pixels in enumerate(pixels_of(prepared)):
        written = Image.open(io.BytesIO(prepared.file.read(index)))
        np.testing.assert_array_equal(pixels, np.asarray(written))
        source = images.decoder(images.path_of(index))
        expected = np.asarray(source.resize(written.size, Image.Resampling.BICUBIC)).astype(int)
        assert abs(pixels - expected).mean() < 1
    assert prepare(root, "--size", 30, "--quality", 60, out=tmp_path / "small").root.stat().st_size < (
        prepared.root.stat().st_size / 2
    )


def test_planes_are_pillow_s_and_give_its_colours_but_for_one_level(tmp_path):
    root = folder_of(tmp_path / "photos", CORPUS.values())
    prepared = prepare(root, "--format", "yuv", "--size", 0, out=tmp_path / "some")
    images = Images(root)
    for index, pixels in enumerate(pixels_of(prepared)):
        source = images.decoder(images.path_of(index))
        luma, *colours = source.convert("YCbCr").split()
        halves = [colour.reduce(2) for colour in colours]
        assert bytes(prepared.file.read(index)) == b"".join(one.tobytes() for one in (luma, *halves))
        wide = [np.asarray(half).repeat(2, 0).repeat(2, 1)[: luma.height, : luma.width] for half in halves]
        together = Image.merge("YCbCr", [luma, *map(Image.fromarray, wide)]).convert("RGB")
        assert abs(pixels.astype(int) - np.asarray(together)).max() <= 1
    grey = folder_of(tmp_path / "grey", [encoded(photo(31, 20).convert("L"), "PNG")])
    (levels,) = pixels_of(prepare(grey, "--format", "yuv", out=tmp_path / "levels"))
    np.testing.assert_array_equal(levels, np.asarray(photo(31, 20).convert("L")))


def test_labels_and_held_out_images(root, tmp_path):
    prepared = prepare(root, "--labels", "folder", out=tmp_path / "some")
    assert (prepared.classes, prepared.targets) == (["a", "b"], [0] * 6 + [1] * 6)
    assert prepared.names == Images(root).files
    test, train = (Prepared(prepared.root, split) for split in ("test", "train"))
    assert sorted(test.names + train.names) == prepared.names
    assert test.targets == [0, 1]
    whole = dict(zip(prepared.names, pixels_of(prepared), strict=True))
    for part in (test, train):
        images = as_encoded(as_read(Subset(part, [1])), 3)
        np.testing.assert_array_equal(images.read(0), whole[part.names[1]])
        assert images.rest(0) == [part.targets[1]]


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_a_file_that_was_cut_short_becomes_the_same_as_in_one_go(root, tmp_path, capsys, form):
    whole, part = tmp_path / "whole", tmp_path / "some.part"
    prepare(root, "--format", form, out=whole)
    command = ["prepare", str(root), "--format", form, "--out", str(tmp_path / "some")]
    stopped = [sys.executable, "-c", STOPPED]
    assert processes.run([*stopped, "killed", *command]).returncode == -signal.SIGKILL
    size = part.stat().st_size
    assert 0 < size < whole.stat().st_size
    full = processes.run([*stopped, str(size + 3000), *command])
    assert full.returncode == 1
    assert "File too large. What is written stays, and the same line goes on with it." in full.stderr
    assert part.stat().st_size == size + 3000
    content = bytearray(part.read_bytes())
    content[size - 9] ^= 1  # a disk that lost what was written last
    part.write_bytes(content)
    assert main(["prepare", str(root), "--format", "yuv", *command[4:]]) == 2
    assert f"'{part}' is there already, but" in capsys.readouterr().err
    assert main(command) == 0
    assert (tmp_path / "some").read_bytes() == whole.read_bytes()
    assert not part.exists()
    assert main(command) == 0
    assert "finished already: 12 images" in capsys.readouterr().out


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_source_that_changed_is_noticed(root, tmp_path, capsys, is_complete):
    out = tmp_path / "some"
    prepare(root, "--labels", "folder", out=out)
    if not is_complete:
        shutil.move(out, tmp_path / "some.part")
    (root / "a" / "00.jpg").unlink()
    os.utime(root / "a" / "02.jpg", ns=(1, 1))
    shutil.copy(root / "b" / "01.jpg", root / "c.jpg")
    labels = [f"{name},{'a' if '/01' in name or name < 'b' else 'b'}" for name in Images(root).files]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *labels]))
    prepare(root, "--labels", tmp_path / "labels.csv", "--size", 32, out=out, status=2)
    said = capsys.readouterr().err
    for what in (
        "size was 256, now 32", "1 file was added, such as 'c.jpg'", "1 file was removed, such as 'a/00.jpg'",
        "1 file was changed, such as 'a/02.jpg'", "1 file was given another label, such as 'b/01.jpg'",
        "Remove it to prepare the images anew, or choose another --out.\n",
    ):  # fmt: skip
        assert what in said


def test_too_little_space_is_refused_before_anything_is_written(tmp_path, capsys):
    Image.new("1", (13000, 13000)).save(tmp_path / "large.png")
    (tmp_path / "photos").mkdir()
    free = shutil.disk_usage(tmp_path).free
    for number in range(free // (3 * 13000**2) + 1):
        (tmp_path / "photos" / f"{number}.png").symlink_to(tmp_path / "large.png")
    prepare(tmp_path / "photos", "--format", "raw", "--size", 0, out=tmp_path / "some", status=2)
    assert "GB more, and its disk has" in capsys.readouterr().err
    assert not list(tmp_path.glob("some*"))


def test_a_small_lack_of_space_is_told_in_small_units(root, small_disk, capsys):
    Image.new("RGB", (900, 700)).save(root / "large.png")
    prepare(root, "--format", "raw", "--size", 0, out=small_disk / "some", status=2)
    assert "some.part' needs about 2.0 MB more, and its disk has 1.0 MB left. Make room" in capsys.readouterr().err


def test_if_nothing_can_be_written_that_is_said(root, small_disk, capsys, monkeypatch):
    monkeypatch.setattr(FolderToPrepare, "num_bytes", lambda self: 0)  # as if the disk filled up after the check
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "full").write_bytes(bytes(1 << 21))
    prepare(root, out=small_disk / "some", status=1)
    assert "some.part' can't be written: No space left on device. Nothing was written." in capsys.readouterr().err
    assert [path.name for path in small_disk.iterdir()] == ["full"]


def test_a_file_that_can_not_be_made_is_refused_and_leaves_nothing(root, tmp_path, capsys):
    (tmp_path / "file").touch()
    Images(root)  # writes the cache
    before = sorted(tmp_path.rglob("*"))
    for place, said in (
        ("file/some", f"'{tmp_path}/file/some' can't be made: File exists: '{tmp_path}/file'. Choose another"),
        ("photos/all.JPG", "photos/all.JPG' is the name of an image; give it another ending."),
    ):
        prepare(root, out=tmp_path / place, status=2)
        assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_file_may_be_in_the_folder_that_it_is_made_of(root, capsys):
    out = root / "a" / "some"
    prepare(root, out=out)
    out.rename(out.with_name("some.part"))  # as if it had been stopped
    for said in ("12 images, ", "finished already: 12 images, "):
        prepare(root, out=out)
        assert f"{out}: {said}" in capsys.readouterr().out.splitlines()[-2]


def test_two_processes_do_not_write_one_file(root, tmp_path, capsys):
    script = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX);"
        "open(sys.argv[1] + '.locked', 'w'); time.sleep(100)"
    )
    other = processes.start([sys.executable, "-c", script, tmp_path / "some.part"])
    try:
        while not (tmp_path / "some.part.locked").exists():
            assert other.poll() is None
        prepare(root, out=tmp_path / "some", status=2)
    finally:
        other.kill()
    assert "some.part' is being written by another process" in capsys.readouterr().err


def test_a_file_that_can_t_be_read_is_named_and_what_is_written_stays(root, damaged, tmp_path, capsys):
    path = damaged
    prepare(root, "--format", "raw", out=tmp_path / "some", status=1)
    assert f"'{path}' can't be prepared: " in capsys.readouterr().err
    assert (tmp_path / "some.part").stat().st_size > 5000
    path.write_bytes(b"none")
    prepare(root, out=tmp_path / "other", status=1)
    assert len(prepare(root, "--on-error", "skip", out=tmp_path / "other")) == 11


@pytest.fixture
def damaged(root):
    """Return an image whose header and end are good, so that only decoding tells that it is damaged."""
    content = encoded(photo(50, 40), "PNG")
    (root / "b" / "07.jpg").write_bytes(flipped(content, len(content) // 2))
    return root / "b" / "07.jpg"


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_an_image_that_can_t_be_decoded_is_left_out_if_asked(root, damaged, tmp_path, capsys, caplog, form):
    options = ("--format", form, "--labels", "folder")
    whole = prepare(root, *options, "--on-error", "skip", out=tmp_path / "whole")
    said = capsys.readouterr()
    assert f"1 of 12 images can't be decoded, and are left out:\n'{damaged}' can't be prepared: " in caplog.text
    assert f"{tmp_path}/whole: 11 images" in said.out
    content = whole.root.read_bytes()
    part = tmp_path / "some.part"
    part.write_bytes(content[: int(whole.file.index["place"][10]) + 9])  # stopped after it, in another image
    stopped = part.read_bytes()
    prepare(root, *options, out=tmp_path / "some", status=1)
    assert part.read_bytes() == stopped
    said = capsys.readouterr().err
    assert f"'{damaged}' can't be prepared: " in said
    assert "leave such images out by --on-error skip." in said
    again = prepare(root, *options, "--on-error", "skip", out=tmp_path / "some")
    assert again.root.read_bytes() == content
    assert main(["prepare", "--verify", str(again.root)]) == 0
    prepare(root, *options, out=tmp_path / "some", status=1)  # it is complete, and yet not what is asked for
    assert "some' is complete but for them. Give --on-error skip" in capsys.readouterr().err
    damaged.unlink()
    others = Images(root, "folder", split="train")
    found = Prepared(again.root, "train", transform=np.asarray)
    assert (found.names, found.targets) == (others.files, others.targets)
    np.testing.assert_array_equal(found.sizes, others.sizes)
    assert len(pixels_of(found)) == len(others)


@pytest.fixture
def made(root, monkeypatch):
    """Return a list that gets the name of each image that is decoded."""
    names, encode = [], FolderToPrepare.encoded

    def noted(self, number):
        names.append(self.plan.names[number])
        return encode(self, number)

    monkeypatch.setattr(FolderToPrepare, "encoded", noted)
    monkeypatch.setattr(FolderToPrepare, "num_bytes", lambda self: 0)  # it encodes some images to estimate the size
    return names


def stopped(folder, *options, out, part):
    """Prepare images, and leave them as if that had been stopped before the end."""
    prepare(folder, *options, out=out)
    out.rename(part)


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_images_are_taken_over_if_another_file_changes(root, damaged, tmp_path, caplog, made, change):
    out = tmp_path / "some"
    stopped(root, "--on-error", "skip", out=out, part=tmp_path / "some.part")
    damaged.unlink()
    if change == "replaced":
        damaged.write_bytes(encoded(photo(44, 40, 99), "PNG"))
    expected = prepare(root, out=tmp_path / "anew").root.read_bytes()
    made.clear()
    assert prepare(root, out=out).root.read_bytes() == expected
    assert made == ["b/07.jpg"] * (change == "replaced")
    what = {"replaced": "changed", "removed": "removed"}[change]
    assert f"1 file was {what}, such as 'b/07.jpg'. It is begun anew, and takes over" in caplog.text
    assert sorted(path.name for path in tmp_path.glob("some*")) == ["some"]


@pytest.mark.parametrize("other", ["settings", "images"])
def test_images_are_taken_over_from_the_file_that_has_more_of_them(root, tmp_path, made, other):
    part, earlier = tmp_path / "some.part", tmp_path / "some.part.earlier"
    stopped(root, out=tmp_path / "some", part=part)
    if other == "settings":
        stopped(root, "--format", "raw", out=tmp_path / "other", part=earlier)
    else:
        same_names = shutil.copytree(root, tmp_path / "larger")
        for name in Images(root).files:
            (same_names / name).write_bytes(encoded(photo(200, 200)))
        stopped(same_names, out=tmp_path / "other", part=earlier)
    assert earlier.stat().st_size > part.stat().st_size
    (root / "a" / "00.jpg").unlink()
    made.clear()
    prepare(root, out=tmp_path / "some")
    assert made == []


def test_images_are_taken_over_if_a_class_is_added(root, tmp_path, caplog, made):
    out, options = tmp_path / "some", ("--labels", "folder")
    stopped(root, *options, out=out, part=tmp_path / "some.part")
    (root / "0").mkdir()  # the first of the classes, so all others get another label
    shutil.copy(root / "a" / "00.jpg", root / "0" / "new.jpg")
    expected = prepare(root, *options, out=tmp_path / "anew").root.read_bytes()
    made.clear()
    assert prepare(root, *options, out=out).root.read_bytes() == expected
    assert made == ["0/new.jpg"]
    assert "was begun with other files or labels: classes have other names; 1 file was added" in caplog.text


def test_an_image_that_was_left_out_is_made_if_it_can_be_decoded_by_now(root, damaged, tmp_path, made):
    stopped(root, "--on-error", "skip", out=tmp_path / "some", part=tmp_path / "some.part")
    shutil.copy(tmp_path / "some.part", tmp_path / "other.part")
    time = damaged.stat().st_mtime_ns
    damaged.write_bytes(encoded(photo(50, 40), "PNG"))
    os.utime(damaged, ns=(time, time))  # as if a newer decoder could decode the file of before
    expected = prepare(root, out=tmp_path / "anew").root.read_bytes()
    made.clear()
    assert len(prepare(root, "--on-error", "skip", out=tmp_path / "other")) == 11
    assert made == []
    assert prepare(root, out=tmp_path / "some").root.read_bytes() == expected


def test_an_earlier_file_that_can_t_be_opened_is_named(root, tmp_path, capsys):
    (tmp_path / "some.part.earlier").mkdir()
    prepare(root, out=tmp_path / "some", status=2)
    assert "some.part.earlier' can't be read: Is a directory. Remove it, and give" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("some*")] == ["some.part.earlier"]


@pytest.mark.parametrize(("labels", "channels"), [("folder", 3), ("none", 1)])
def test_the_line_to_train_on_a_small_file_works(root, tmp_path, capsys, labels, channels):
    prepare(root, "--labels", labels, "--channels", channels, out=tmp_path / "some")
    (line,) = (text for text in capsys.readouterr().out.splitlines() if text.startswith("Train on it: stable-ssl "))
    quick = ["backbone=resnet9", "hardware.precision=fp32", "optim.epochs=1", f"logger.dump_path={tmp_path}/run"]
    assert main([*shlex.split(line)[4:], *quick]) == 0
    assert (tmp_path / "run" / "weights" / "final.safetensors").exists()


def damage(content, prepared):
    """Yield what is wrong, a damaged content, and what the error says."""
    place = int(prepared.file.index["place"][7])
    yield "an image", flipped(content, place + 50), r"the bytes of 'b/03.jpg' are not those"
    yield "the index", flipped(content, len(content) - 5), "its index does not have the checksum"
    yield "the plan", flipped(content, 90), "its list of images does not have the checksum"
    yield "its end", content[:-1000], rf"it has {len(content) - 1000:,} bytes instead of {len(content):,}"
    yield "its beginning", content[:40], "it ends within its first bytes"
    yield "nothing", b"", "is no file of prepared images"
    yield "another file", Path(__file__).read_bytes(), "is no file of prepared images"
    yield (
        "a newer version",
        content[:16] + struct.pack("<I", 99) + content[20:],
        "made by a newer version of stable-ssl",
    )
    yield "the file before its end", content[: place + 5], "bytes instead of"


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_damaged_file_is_refused_in_a_sentence(root, tmp_path, capsys):
    out = tmp_path / "some"
    prepared = prepare(root, "--format", "raw", out=out)
    content = out.read_bytes()
    for name, bad, said in damage(content, prepared):
        out.write_bytes(bad)
        with pytest.raises(DataError, match=said):
            pixels_of(Prepared(out))
        assert main(["prepare", "--verify", str(out)]) == 1, name
        assert f"stable-ssl: '{out}'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="can't be read: No such file or directory"):
        Prepared(tmp_path / "none")
    out.write_bytes(content)
    assert main(["prepare", "--verify", str(out)]) == 0
    assert "12 images, all as they were written." in capsys.readouterr().out
    # The file is cut while it is used: an error that names the image, which a run turns into its own.
    views = Loader(Prepared(out, in_memory=False), 2, views=View([RandomResizedCrop(8)])).batches(0)
    next(views)
    os.truncate(out, len(content) // 2)
    with pytest.raises(DataError, match=r"sample 11 \('b/11.jpg in .*some'\) can't be read: .*some' is damaged"):
        list(views)


def test_workers_open_the_file_anew_and_tell_if_it_was_replaced(root, tmp_path):
    prepared = prepare(root, out=tmp_path / "some")
    copied = pickle.dumps(prepared)
    assert len(copied) < 3000
    np.testing.assert_array_equal(pickle.loads(copied)[3][0], prepared[3][0])
    prepare(root, "--size", 20, out=tmp_path / "other").root.rename(tmp_path / "some")
    np.testing.assert_array_equal(prepared[3][0].shape[:2], (40, 56))  # which is still open
    with pytest.raises(DataError, match="has been replaced by another one"):
        pickle.loads(copied)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_run_resumes_exactly(make_toy, root, tmp_path, in_memory):
    class Ours(Toy):
        def compute_loss(self):
            images, labels = self.batch
            return torch.nn.functional.cross_entropy(self.forward(images.flatten(1)), labels)

    class Stopped(Ours):
        def after_fit_step(self):
            if self.global_step == 5:
                raise KeyboardInterrupt

    prepare(root, "--labels", "folder", "--size", 30, out=tmp_path / "some")
    Stopped.__name__, Stopped.__qualname__ = Ours.__name__, Ours.__qualname__

    def make(folder, cls=Ours):
        dataset = Prepared(tmp_path / "some", in_memory=in_memory)
        data = {"train": Loader(dataset, 4, views=View([RandomResizedCrop(8)]), shuffle=True)}
        torch.manual_seed(0)
        module = {"backbone": torch.nn.Linear(192, 2)}
        return make_toy(cls, data, module, logger={"dump_path": tmp_path / folder, "level": 20})

    alone = make("alone")
    alone()
    said = (tmp_path / "alone" / "console.log").read_text()
    assert ("12 images are held in memory" if in_memory else "decoded and views made in threads") in said
    with pytest.raises(KeyboardInterrupt):
        make("stopped", Stopped)()
    resumed = make("stopped")
    resumed()
    assert torch.equal(resumed.module["backbone"].weight, alone.module["backbone"].weight)
