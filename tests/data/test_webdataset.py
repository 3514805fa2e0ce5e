"""WebDataset shards: every sample is found where it is, and a shard that is damaged is named."""

from __future__ import annotations

import bz2
import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from stable_ssl import ConfigError, DataError
from stable_ssl.augmentations import HorizontalFlip, View
from stable_ssl.data import Loader, WebDataset
from stable_ssl.data.encoded import as_encoded


def picture(value, size=(6, 5), kind="PNG", mode="RGB"):
    out = io.BytesIO()
    Image.new(mode, size, (value, 2, 3) if mode == "RGB" else value).save(out, kind)
    return out.getvalue()


def write_shard(path, members, kind=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(numbers, label=lambda number: b"%d\n" % (number % 3), folder=""):
    for number in numbers:
        yield f"{folder}{number:04d}.png", picture(number)
        yield f"{folder}{number:04d}.cls", label(number)
        yield f"{folder}{number:04d}.json", b"{}"


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_samples_are_those_that_are_in_the_tar_files(tmp_path, kind):
    long = "a" * 90 + "/" + "ä" * (20 if kind == tarfile.USTAR_FORMAT else 80) + "/"
    names = [("0003.v.PNG", picture(9)), ("README", b""), (".hidden.png", b""), ("__meta__/a.png", b"")]
    write_shard(tmp_path / "b.tar", [*samples([7, 8], folder=long), *names[1:]], kind)
    write_shard(tmp_path / "a.tar", [*samples([1, 2]), ("x/0003.Png", picture(3))], kind)
    found = WebDataset(tmp_path)
    assert [os.fsdecode(key) for key in found.keys] == ["0001", "0002", "x/0003", f"{long}0007", f"{long}0008"]
    assert [round(float(image[0, 0, 0]) * 255) for image, _ in found] == [1, 2, 3, 7, 8]
    assert found.targets == [1, 2, -1, 1, 2]
    # The same by Python's own reader of tar files.
    for shard in ("a", "b"):
        with tarfile.open(tmp_path / f"{shard}.tar") as tar:
            for member in (one for one in tar if one.name.lower().endswith("png") and one.size):
                at = [os.fsdecode(key) for key in found.keys].index(member.name[:-4])
                assert found.source(at) == tar.extractfile(member).read()


def test_samples_are_those_that_the_webdataset_library_writes_and_reads(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pixels = np.random.default_rng(0).integers(0, 255, (7, 4, 5, 3), dtype=np.uint8)
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"s-{shard}.tar")) as writer:
            for number in range(shard * 4, shard * 3 + 4):
                key = f"{'long/' * 30 * (number % 2)}{number}"
                writer.write({"__key__": key, "png": Image.fromarray(pixels[number]), "cls": number % 3})
    found = WebDataset(tmp_path / "s-{0..1}.tar")
    urls = [str(file) for file in found.files]
    known = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls", "__key__"))
    assert len(found) == len(known) == 7
    for number, (image, label, key) in enumerate(known):
        assert os.fsdecode(found.keys[number]) == key
        assert np.array_equal((found[number][0].permute(1, 2, 0) * 255).round().byte().numpy(), np.asarray(image))
        assert found[number][1] == label


def test_a_hard_link_is_the_file_that_it_leads_to(tmp_path):
    write_shard(tmp_path / "a.tar", [("0.png", picture(5))])
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0.png"
        tar.addfile(link)
    found = WebDataset(tmp_path / "a.tar")
    assert found.source(1) == found.source(0) == picture(5)


def test_labels_may_be_names_and_other_members(tmp_path):
    members = [
        *samples([0, 1], label=lambda number: [b"cat", b"dog"][number]),
        ("0000.kind", b" 5 "),
        ("0001.kind", b"6"),
    ]
    write_shard(tmp_path / "a.tar", members)
    assert WebDataset(tmp_path, classes=["dog", "cat"]).targets == [1, 0]
    assert WebDataset(tmp_path, label="kind").targets == [5, 6]
    assert WebDataset(tmp_path, label=None).targets == [-1, -1]


def test_views_are_made_of_jpegs_as_of_the_same_images_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    content = []
    for number in range(5):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (9, 8, 3), dtype=np.uint8)).save(out, "JPEG")
        content += [(f"{number}.jpg", out.getvalue()), (f"{number}.cls", b"%d" % number)]
    write_shard(tmp_path / "a.tar", content[:4])
    write_shard(tmp_path / "b.tar", content[4:])
    shards = WebDataset(tmp_path)
    encoded = as_encoded(WebDataset(tmp_path, transform=np.asarray), 3)
    images = [Image.open(io.BytesIO(data)) for name, data in content if name.endswith("jpg")]
    assert all(np.array_equal(encoded.read(number), np.asarray(image)) for number, image in enumerate(images))
    plain = [(np.asarray(image), number) for number, image in enumerate(images)]
    one, other = (Loader(data, 2, shuffle=True, views=View([HorizontalFlip()])) for data in (shards, plain))
    for (_, (views, labels)), (_, (known, numbers)) in zip(one.batches(3), other.batches(3), strict=True):
        assert labels.tolist() == numbers.tolist()
        assert np.array_equal(views, known)


def cut(at):
    return lambda content: content[:at]


GOOD = [*samples([0, 1])]
SIZE = 512 * (len(GOOD) + sum(-(-len(content) // 512) for _, content in GOOD))
FAULTS = {
    "cut in a member": (cut(560), "'.*a.tar' is cut short within '0000.png': it has 560 bytes, and 5"),
    "cut between members": (cut(SIZE), "'.*a.tar' is cut short after '0001.json': it lacks the empty block"),
    "of no bytes": (cut(0), "'.*a.tar' is empty"),
    "without members": (lambda content: bytes(10240), "'.*a.tar' holds no sample"),
    "damaged": (
        lambda content: content[:1024] + b"\7" + content[1025:],
        r"'.*a.tar' is no tar file, or is damaged, after '0000.png' \(byte 1024\)",
    ),
    "compressed": (bz2.compress, "'.*a.tar' is compressed by bzip2, so no sample has a place"),
    "a short text": (lambda content: b"hello", "'.*a.tar' is no tar file: it has 5 bytes, and the smallest has 1,024"),
    "something else": (lambda content: b"hello" * 300, "is no tar file, or is damaged, at its beginning"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_shards_are_all_named_with_what_is_wrong(tmp_path, fault):
    change, words = FAULTS[fault]
    for name in ("a.tar", "b.tar"):
        path = write_shard(tmp_path / name, GOOD)
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        WebDataset(tmp_path)
    assert "b.tar' " in str(caught.value)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([*GOOD, *GOOD[:1]], "DataError: '.*a.tar' has '0000.png' twice"),
        ([*GOOD, ("2.txt", b"")], r"ConfigError: image: 1 of 3 samples .*'2' in '.*a.tar' has \['txt'\]"),
        (samples([0], lambda n: b"cat"), "ConfigError: label: the 'cls' of 1 samples is no number.*'0000' in .*a.tar' has 'cat'"),
    ],
)  # fmt: skip
def test_samples_that_can_not_be_used_are_named(tmp_path, members, words):
    write_shard(tmp_path / "a.tar", members)
    with pytest.raises((ConfigError, DataError)) as caught:
        WebDataset(tmp_path)
    assert __import__("re").search(words, f"{type(caught.value).__name__}: {caught.value}")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{}/none-*.tar", "no shard at '.*none-"),
        ("{}/a{{0..1}}.tar", "no shard at '.*a1.tar'"),
        ("{}/empty", r"no \*.tar in the folder"),
        ("https://example.org/a.tar", "is no file of this machine"),
        (["{}/a0.tar", "{}/a*.tar"], "stand there twice"),
    ],
)
def test_shards_that_are_not_there_are_named(tmp_path, path, words):
    (tmp_path / "empty").mkdir()
    write_shard(tmp_path / "a0.tar", GOOD)
    path = [one.format(tmp_path) for one in path] if isinstance(path, list) else path.format(tmp_path)
    with pytest.raises(ConfigError, match=words):
        WebDataset(path)


def test_an_image_that_is_damaged_is_named_with_its_shard_and_member(tmp_path):
    write_shard(tmp_path / "a.tar", [*GOOD, ("7.png", b"nothing")])
    for views in (View([HorizontalFlip()]), None):
        with pytest.raises(
            DataError, match=r"2 \('.*a.tar/7.png'\) can't be read: DataError: '.*a.tar/7.png' is no image, or"
        ):
            list(Loader(WebDataset(tmp_path), 1, views=views))


def test_a_shard_that_changes_while_it_is_read_is_named(tmp_path):
    path = write_shard(tmp_path / "a.tar", GOOD)
    found = WebDataset(tmp_path)
    write_shard(path, samples([4, 5]))
    os.utime(path, ns=(1, 1))
    with pytest.raises(
        DataError, match=r"sample 1 \('.*a.tar/0001.png'\) can't be read: DataError: '.*a.tar' was changed"
    ):
        list(Loader(found, 1, views=View([HorizontalFlip()])))
