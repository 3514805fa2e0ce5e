"""Images of every kind mean the same in every data set, and no level is lost without a word."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as torchvisions

from stable_ssl import ConfigError
from stable_ssl.augmentations import CenterCrop, View
from stable_ssl.data import HuggingFaceDataset, ImageFolder, Loader, Parquet
from stable_ssl.data.images import ImageDecoder
from stable_ssl.exceptions import DataError

SIZE = 12
VIEW = View([CenterCrop(SIZE)])
COLOURS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
RGB, GREY = Image.fromarray(COLOURS), Image.fromarray(COLOURS[:, :, 0])
DEEP = np.random.default_rng(1).integers(2000, 60000, (SIZE, SIZE, 3)).astype(np.uint16)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(image):
    """A JPEG that is stored lying on its side; its EXIF says how to turn it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90° clockwise
    return encoded(image, "JPEG", exif=exif, quality=95)


def png_of_16_bits(pixels):
    """A PNG of 16-bit colours, which PIL can't write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of_16_bits(pixels):
    """A TIFF of 16-bit colours, which PIL can't write either."""
    height, width = pixels.shape[:2]
    first, bits = 8 + 2 + 9 * 12 + 4 + 6, 8 + 2 + 9 * 12 + 4  # where the pixels and the bits per channel begin
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
            (273, 4, 1, first), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, pixels.nbytes)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = (
        b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + struct.pack("<HHH", 16, 16, 16)
    )
    return head + pixels.astype("<u2").tobytes()


def folder_of(path, files):
    (path / "images" / "a").mkdir(parents=True)
    for number, content in enumerate(files):
        suffix = {b"\x89P": "png", b"\xff\xd8": "jpg"}.get(content[:2], "tif")
        (path / "images" / "a" / f"{number:03}.{suffix}").write_bytes(content)
    return path / "images"


def parquet_of(path, files):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": content, "path": None} for content in files], "label": [0] * len(files)}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path / "some.parquet")
    return path / "some.parquet"


def hugging_face(path, files, **options):
    source = str(parquet_of(path, files))
    return HuggingFaceDataset(
        "parquet", data_files=source, split="train", x="image", y="label", cache_dir=path, **options
    )


DATA_SETS = {
    "ImageFolder": lambda path, files, **options: ImageFolder(folder_of(path, files), **options),
    "Parquet": lambda path, files, **options: Parquet(parquet_of(path, files), **options),
    "HuggingFaceDataset": hugging_face,
    "torchvision's folder": lambda path, files: torchvisions.ImageFolder(folder_of(path, files)),
    "PIL images": lambda path, files: [(Image.open(io.BytesIO(content)), 0) for content in files],
}
OURS = list(DATA_SETS)[:3]


def levels(dataset):
    """The pixels of a batch of all images, (images, channels, height, width), as levels from 0 to 255."""
    images, _ = next(iter(Loader(dataset, len(dataset), views=VIEW)))
    return (images * 255).round().to(torch.uint8).numpy()


@pytest.mark.parametrize("name", DATA_SETS)
def test_palettes_inks_transparency_and_orientation_mean_the_same_in_every_data_set(tmp_path, name):
    palette = RGB.quantize(16)
    rgba = RGB.copy()
    rgba.putalpha(GREY)
    grey_alpha = GREY.copy()
    grey_alpha.putalpha(GREY)
    inks = RGB.convert("CMYK")
    damaged = encoded(RGB, "JPEG", exif=b"Exif\0\0no EXIF")
    files = {
        "palette": (encoded(palette), palette.convert("RGB")),
        "transparent palette": (encoded(palette, transparency=bytes(range(16))), palette.convert("RGB")),
        "inks": (encoded(inks, "TIFF"), inks.convert("RGB")),
        "transparency": (encoded(rgba), RGB),
        "grey with transparency": (encoded(grey_alpha), GREY.convert("RGB")),
        "two levels": (encoded(GREY.convert("1")), GREY.convert("1").convert("RGB")),
        "on its side": (turned(RGB), Image.open(io.BytesIO(turned(RGB))).transpose(Image.Transpose.ROTATE_270)),
        "damaged EXIF": (damaged, Image.open(io.BytesIO(damaged))),
    }
    expected = np.stack([np.asarray(image).transpose(2, 0, 1) for _, image in files.values()])
    np.testing.assert_array_equal(
        levels(DATA_SETS[name](tmp_path, [content for content, _ in files.values()])), expected
    )


DEEP_FILES = {
    "16 bits": (encoded(Image.fromarray(DEEP[:, :, 0])), DEEP[:, :, :1]),
    "floats": (encoded(Image.fromarray(DEEP[:, :, 0].astype(np.float32)), "TIFF"), DEEP[:, :, :1]),
    "colours of 16 bits": (png_of_16_bits(DEEP), DEEP),
}


@pytest.mark.parametrize("name", list(DATA_SETS)[:4])
@pytest.mark.parametrize("kind", DEEP_FILES)
def test_more_than_8_bits_are_scaled_by_declared_levels_or_refused_by_name(tmp_path, name, kind):
    content, pixels = DEEP_FILES[kind]
    (tmp_path / "undeclared").mkdir()
    with pytest.raises(DataError, match=r"(some\.parquet|000\.(png|tif))' has .*levels=\(low, high\)"):
        levels(DATA_SETS[name](tmp_path / "undeclared", [content]))
    if name in OURS:
        low, high = 3000, 50000
        expected = np.rint((np.clip(pixels.astype(float), low, high) - low) / (high - low) * 255)
        made = levels(DATA_SETS[name](tmp_path, [content], levels=[low, high]))[0]
        np.testing.assert_array_equal(
            made.transpose(1, 2, 0), np.broadcast_to(expected, made.shape[1:] + made.shape[:1])
        )
        assert 0 < made.mean() < 255


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "has values that are not finite"),
        (tiff_of_16_bits(DEEP), "has colours of 16 bits, which are read from PNG files only"),
    ],
)
def test_what_levels_can_not_mend_is_refused_by_name(tmp_path, content, words):
    with pytest.raises(DataError, match=f"000.tif' {words}"):
        levels(ImageFolder(folder_of(tmp_path, [content]), levels=(0, 65535)))


@pytest.mark.parametrize("name", ["Parquet", "HuggingFaceDataset", "PIL images"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_grey_image_among_colours_becomes_rgb(tmp_path, name, place):
    files = [encoded(RGB)] * 4
    files[place] = encoded(GREY)
    dataset = DATA_SETS[name](tmp_path, files)
    made = levels(dataset)
    assert made.shape == (4, 3, SIZE, SIZE)
    np.testing.assert_array_equal(made[place], np.broadcast_to(np.asarray(GREY), (3, SIZE, SIZE)))
    if name in OURS:  # without views, the data set itself makes tensors of one shape
        assert next(iter(Loader(dataset, 4)))[0].shape == made.shape


@pytest.mark.parametrize(("name", "channels"), [("ImageFolder", 3), ("Parquet", 1), ("HuggingFaceDataset", 1)])
def test_only_grey_images_stay_as_they_were_and_channels_decides_otherwise(tmp_path, name, channels):
    files, mixed = [encoded(GREY)] * 2, [encoded(GREY), encoded(RGB)]
    options = [(files, {}, channels), (files, {"channels": 4 - channels}, 4 - channels),
               (files, {"channels": None}, 1), (mixed, {"channels": None}, 3)]  # fmt: skip
    for number, (images, given, expected) in enumerate(options):
        (tmp_path / str(number)).mkdir()
        assert levels(DATA_SETS[name](tmp_path / str(number), images, **given)).shape[1] == expected


def test_a_colour_that_nobody_saw_among_grey_images_is_an_error_that_names_the_option(tmp_path):
    files = [encoded(GREY)] * 100
    files[1] = encoded(RGB)
    with pytest.raises(DataError, match="sample 1 is RGB.*channels=3"):
        levels(Parquet(parquet_of(tmp_path, files)))
    assert levels(Parquet(tmp_path / "some.parquet", channels=3)).shape[1] == 3


def test_wrong_options_are_named_with_their_values(tmp_path):
    folder = folder_of(tmp_path, [encoded(RGB)])
    with pytest.raises(
        ConfigError, match=r"levels: must be two numbers .* not \(5, 5\)\.\nchannels: must be 1, 3 or none, not 4"
    ):
        ImageFolder(folder, levels=(5, 5), channels=4)
    with pytest.raises(ConfigError, match="levels: must be none, since loader decodes the images"):
        ImageFolder(folder, levels=(0, 5), loader=Image.open)


def test_deep_images_of_netpbm_are_read_by_their_own_levels_or_refused(tmp_path):
    decode = ImageDecoder(levels=(0, 4095))
    grey, colours = tmp_path / "grey.pgm", tmp_path / "colours.ppm"
    grey.write_bytes(b"P5 8 8 4095\n" + np.full((8, 8), 2048, ">u2").tobytes())
    colours.write_bytes(b"P6 8 8 4095\n" + np.full((8, 8, 3), 2048, ">u2").tobytes())
    assert np.asarray(decode(grey)).max() == round(2048 / 4095 * 255)
    with pytest.raises(DataError, match=r"colours.ppm' has colours of 16 bits.*convert it to PNG"):
        decode(colours)


def test_a_folder_names_the_files_that_it_leaves_out(tmp_path, caplog):
    (tmp_path / "cats").mkdir()
    image = Image.new("RGB", (4, 4))
    for name in ("1.png", "2.gif", "3.GIF", ".DS_Store.gif"):
        image.save(tmp_path / "cats" / name)
    assert len(ImageFolder(tmp_path)) == 1
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "Files whose endings are not those of images are left out: 2 × .gif." in record.message
    caplog.clear()
    assert len(ImageFolder(tmp_path, is_valid_file=lambda path: path.lower().endswith("f"))) == 3
    assert not caplog.records
    (tmp_path / "cats" / "1.png").unlink()
    with pytest.raises(ConfigError, match="left out: 2 × .gif"):
        ImageFolder(tmp_path)
