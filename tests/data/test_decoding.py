"""Images that are decoded in threads: their pixels, their batches, and what goes wrong."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from stable_ssl.augmentations import CenterCrop, EvalView, MAEViews, MultiView, RandomResizedCrop, Resize, View
from stable_ssl.augmentations.images import ORIENTATION
from stable_ssl.data import ImageFolder, Images, Loader, Parquet, threads
from stable_ssl.data import encoded as encoding
from stable_ssl.data.encoded import as_encoded
from stable_ssl.data.images import ImageDecoder, open_content
from stable_ssl.data.views import as_read
from stable_ssl.exceptions import DataError


def photo(width, height, seed=0):
    """Something smooth with noise and edges, on which ways to scale and to convert colours would differ."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    pixels = np.asarray(small).astype(int) + rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image, kind="JPEG", orientation=1, **options):
    if orientation != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


CORPUS = {
    **{f"subsampling {number}": encoded(photo(37, 23, number), subsampling=number) for number in range(3)},
    "odd": encoded(photo(1, 3)),
    "progressive": encoded(photo(61, 40), progressive=True, quality=40),
    "rgb": encoded(photo(33, 17), keep_rgb=True),
    "optimized": encoded(photo(16, 16), optimize=True, quality=100),
    "restarts": encoded(photo(70, 50), restart_marker_blocks=3),
    "grey": encoded(photo(19, 24).convert("L")),
    "inks": encoded(photo(20, 31).convert("CMYK")),
    **{f"orientation {n}": encoded(photo(31, 18, n), orientation=n) for n in range(2, 9)},
    "grey on its side": encoded(photo(12, 30).convert("L"), orientation=6),
    "damaged EXIF": encoded(photo(9, 9), exif=b"Exif\0\0no EXIF"),
    "two pictures": encoded(photo(32, 24), "MPO", save_all=True, append_images=[photo(8, 8)]),
    "png": encoded(photo(21, 14), "PNG"),
    "palette": encoded(photo(21, 14).quantize(16), "PNG"),
    "webp": encoded(photo(25, 12), "WEBP", lossless=True),
    "png on its side": encoded(photo(22, 13), "PNG", orientation=8),
}


def folder_of(path, files):
    (path / "a").mkdir(parents=True)
    for number, content in enumerate(files):
        (path / "a" / f"{number:03}.jpg").write_bytes(content)
    return path


@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_are_those_of_pillow(tmp_path, channels):
    images = as_encoded(as_read(ImageFolder(folder_of(tmp_path, CORPUS.values()), channels=channels)), channels)
    with_pillow = ImageDecoder(channels=channels)
    for number, (name, content) in enumerate(CORPUS.items()):
        expected = np.asarray(with_pillow(content)).reshape(*images.size(number), channels)
        found = np.zeros_like(expected)
        images.decode(number, found)
        np.testing.assert_array_equal(found, expected, err_msg=name)


VIEWS = {
    "two views": MultiView([View([RandomResizedCrop(12)]), View([Resize(20), CenterCrop(16)])]),
    "one view": EvalView(8),
    "a mask": MAEViews(size=16, patch_size=4),
}


@pytest.mark.parametrize("views", VIEWS)
def test_batches_are_those_of_workers_for_any_number_of_threads(tmp_path, monkeypatch, views):
    monkeypatch.setattr("stable_ssl.data.in_memory.SHARE_OF_MEMORY", 0)
    monkeypatch.setattr("stable_ssl.augmentations.cpu.PIECE_BYTES", 9_000)  # some images
    data = ImageFolder(folder_of(tmp_path, CORPUS.values()))
    data = Subset(data, range(len(data) - 1, 3, -1))

    def read(start=0, **options):
        loader = Loader(data, 7, views=VIEWS[views], shuffle=True, **options)
        return [
            torch.cat([part.flatten().double() for part in (*images, labels)])
            for _, (images, labels) in loader.batches(2, start)
        ]

    expected = read(worker_init_fn=lambda number: None)  # the user's code, which runs in no thread
    for options in ({}, {"num_workers": 1}, {"num_workers": 5}):
        assert all(map(torch.equal, read(**options), expected))
    assert all(map(torch.equal, read(start=2), expected[2:]))


def test_a_table_of_encoded_images_is_decoded_in_threads(tmp_path, monkeypatch, caplog):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": c, "path": None} for c in CORPUS.values()], "label": [*range(len(CORPUS))]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "some.parquet")
    caplog.set_level("INFO", "stable_ssl")
    monkeypatch.setattr("stable_ssl.data.in_memory.SHARE_OF_MEMORY", 0)
    images, labels = next(iter(Loader(Parquet(tmp_path / "some.parquet"), len(CORPUS), views=EvalView(16))))
    assert "images are decoded and views made in threads" in caplog.text
    assert labels.tolist() == rows["label"]
    expected = [EvalView(16)(ImageDecoder(channels=3)(content)) for content in CORPUS.values()]
    assert torch.equal(images, torch.stack(expected))


def test_a_file_is_opened_once_for_each_batch_from_the_first_on(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "images", [encoded(photo(40, 30, number)) for number in range(4)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loader = Loader(Images(root, in_memory=False), 4, views=EvalView(8), num_workers=1)
    loader.prepare(torch.device("cpu"))  # it reads the first image
    opened = []
    monkeypatch.setattr(encoding, "open_content", lambda path, name: opened.append(path) or open_content(path, name))
    for epoch in (0, 1):
        list(loader.batches(epoch))
        assert sorted(Path(path).name for path in opened if isinstance(path, str)) == [
            f"{number:03}.jpg" for number in range(4)
        ]
        opened.clear()


def test_what_runs_code_of_the_user_s_is_not_decoded_in_threads(tmp_path):
    class Own(ImageFolder):
        pass

    root = folder_of(tmp_path, [CORPUS["png"]])
    assert as_encoded(as_read(ImageFolder(root)), 3) is not None
    for dataset in (
        Own(root),
        ImageFolder(root, transform=lambda image: image),
        ImageFolder(root, target_transform=lambda label: label),
        ImageFolder(root, loader=lambda path: Image.open(path)),
    ):
        assert as_encoded(as_read(dataset), 3) is None


def test_a_damaged_file_is_named_and_a_file_that_changes_is_read_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("stable_ssl.data.in_memory.SHARE_OF_MEMORY", 0)
    root = folder_of(tmp_path, [encoded(photo(40, 30, number)) for number in range(6)])
    loader = Loader(ImageFolder(root), 3, views=EvalView(8))
    before = [images for _, (images, _) in loader.batches(0)]
    other = photo(24, 50, 9)
    (root / "a" / "004.jpg").write_bytes(encoded(other, "PNG"))
    first, second = (images for _, (images, _) in loader.batches(0))
    assert torch.equal(first, before[0])
    assert torch.equal(second[1], EvalView(8)(other))
    (root / "a" / "005.jpg").write_bytes(encoded(photo(40, 30))[:-200])
    (root / "a" / "001.jpg").unlink()
    with pytest.raises(DataError, match=r"(?s)sample 1 .*001\.jpg.*sample 5 .*005\.jpg.*truncated"):
        list(loader.batches(1))


def test_views_on_a_device_get_the_decoded_images(tmp_path, monkeypatch):
    monkeypatch.setattr("stable_ssl.data.in_memory.SHARE_OF_MEMORY", 0)
    root = folder_of(tmp_path, [encoded(photo(40, 30, number)) for number in range(5)])

    def read(**options):
        return [images for images, _ in Loader(ImageFolder(root), 3, views=EvalView(8), on="device", **options)]

    assert all(map(torch.equal, read(), read(worker_init_fn=lambda number: None)))


def test_a_thread_that_hangs_does_not_keep_a_script_from_ending():
    script = (
        "import runpy, sys, time; pool = runpy.run_path(sys.argv[1])['Threads'](1, 'some');"
        "hangs = pool.submit(time.sleep, 1000); later = pool.submit(print, 'never');"
        "time.sleep(0.2); pool.close(wait=False); print(later.cancelled())"
    )
    command = [sys.executable, "-c", script, str(Path(threads.__file__))]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "True\n"


def test_a_script_that_ends_while_threads_work_for_it_ends_in_silence():
    script = (
        "import ctypes, runpy, sys\n"
        "ctypes.pythonapi.Py_IncRef(ctypes.py_object(sys.modules['__main__']))\n"  # so that its variables go last
        "def results(pool):\n"
        "    try:\n"
        "        yield from pool.map(str, range(9), ahead=2)\n"
        "    finally:\n"
        "        pool.close()\n"
        "kept = results(runpy.run_path(sys.argv[1])['Threads'](1, 'some'))\n"
        "print(next(kept))"
    )
    command = [sys.executable, "-c", script, str(Path(threads.__file__))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
