"""Corruptions, and the other names that `stable_ssl.augmentations` had in early 2025."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import stable_ssl.data.augmentations
from stable_ssl import augmentations
from stable_ssl.augmentations import (
    Contrast,
    CustomGaussianNoise,
    Fog,
    GaussianBlur,
    JPEGCompression,
    Pixelate,
    ShotNoise,
    SpeckleNoise,
    TransformConfig,
    TransformsConfig,
    ZoomBlur,
    plasma_fractal,
)
from stable_ssl.config import build
from stable_ssl.data import Digits, Loader

CORRUPTIONS = [CustomGaussianNoise, ShotNoise, SpeckleNoise, ZoomBlur, Fog, Contrast, JPEGCompression, Pixelate]
EARLY = {
    **{kind.__name__: ["severity"] for kind in CORRUPTIONS},
    "Pixelate": ["size", "severity"],
    "GaussianBlur": ["kernel_size", "sigma"],
    "TransformConfig": ["name", "args", "kwargs", "p"],
    "TransformsConfig": ["name", "transforms"],
    "get_interpolation_mode": ["mode_str"],
    "plasma_fractal": ["mapsize", "wibbledecay"],
    "clipped_zoom": ["img", "zoom_factor"],
}


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 100 * np.sin(x / 9 + i) * np.cos(y / 7) for i in range(3)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("name", EARLY)
def test_every_name_of_early_2025_is_there_with_its_arguments(name):
    parameters = inspect.signature(getattr(augmentations, name)).parameters
    assert list(parameters)[: len(EARLY[name])] == EARLY[name]
    assert getattr(stable_ssl.data.augmentations, name) is getattr(augmentations, name)
    if isinstance(getattr(augmentations, name), type) and "severity" in EARLY[name]:
        assert build({"_target_": f"stable_ssl.data.augmentations.{name}", "severity": 2}, "x").severity == 2


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_returns_the_kind_of_image_that_it_gets(corruption):
    array = smooth(32, 32)
    for image in (array, array[:, :, 0], torch.from_numpy(array).movedim(2, 0), Image.fromarray(array[:, :, 0])):
        np.random.seed(0)
        made = v2.Compose([corruption(severity=3)])(image)
        assert type(made) is type(image)
        assert np.asarray(made).shape == np.asarray(image).shape
        assert not np.array_equal(np.asarray(made), np.asarray(image))
        assert corruption(severity=0)(image) is image
    with pytest.raises(ValueError, match=f"{corruption.__name__}: severity must be a whole number from 0 to 5, not 6"):
        corruption(severity=6)
    with pytest.raises(ValueError, match="must be a uint8 image"):
        corruption()(array / 255)


@pytest.mark.parametrize(
    ("corruption", "deviation"),
    [
        (CustomGaussianNoise(1), 0.08),
        (CustomGaussianNoise(2), 0.12),
        (ShotNoise(1), (0.5 / 60) ** 0.5),
        (ShotNoise(2), (0.5 / 25) ** 0.5),
        (SpeckleNoise(1), 0.5 * 0.15),
        (SpeckleNoise(2), 0.5 * 0.2),
    ],
)
def test_noise_has_its_deviation(corruption, deviation):
    noisy = corruption(np.full((100, 100, 3), 128, np.uint8)) / 255
    assert noisy.std() == pytest.approx(deviation, rel=0.03)
    assert noisy.mean() == pytest.approx(0.5, abs=0.01)


def test_speckles_of_black_are_black_and_photons_of_black_are_none():
    for corruption in (SpeckleNoise(5), ShotNoise(5)):
        assert not corruption(np.zeros((9, 9, 3), np.uint8)).any()


def test_contrast_leaves_the_means_and_a_part_of_the_differences():
    image = smooth(40, 50)
    made = Contrast(2)(image).astype(float)
    means = image.mean((0, 1))
    assert np.abs(made - (means + 0.3 * (image - means))).max() <= 1


def test_a_zoom_averages_enlargements_of_the_middle():
    """torch's bilinear interpolation between corner pixels is that of SciPy."""
    image = smooth(32, 32)
    values = torch.from_numpy(image).movedim(2, 0)[None].float()
    total, factors = values.clone(), [1 + 0.02 * i for i in range(11)]
    for factor in factors:
        kept = int(np.ceil(32 / factor))
        first = (32 - kept) // 2
        middle = values[..., first : first + kept, first : first + kept]
        large = torch.nn.functional.interpolate(
            middle, (round(kept * factor),) * 2, mode="bilinear", align_corners=True
        )
        first = (large.shape[-1] - 32) // 2
        total += large[..., first : first + 32, first : first + 32]
    expected = (total / 12)[0].movedim(0, 2).numpy()
    assert np.abs(ZoomBlur(3)(image) - expected).max() <= 1


def test_fog_lightens_towards_white_and_is_smooth():
    heights = plasma_fractal(64, 2)
    assert (heights.min(), heights.max()) == (0, 1)
    steps = [np.abs(heights - np.roll(heights, 1, axis)).mean() for axis in (0, 1)]
    assert max(steps) < 0.05 < 0.5 * np.abs(heights - np.roll(heights, 32, 0)).mean()
    made = Fog(1)(np.full((32, 32, 3), 255, np.uint8))
    assert (made.min(), made.max()) == (int(255 / 2.5), 255)
    assert (made == made[:, :, :1]).all()
    with pytest.raises(ValueError, match="power of two, not 48"):
        plasma_fractal(48)


def test_pixels_become_blocks_of_their_means():
    image = smooth(32, 32)
    blocks = image.reshape(16, 2, 16, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    assert np.abs(Pixelate(severity=2)(image) - blocks).max() <= 1


@pytest.mark.parametrize(("severity", "quality"), [(1, 25), (5, 7)])
def test_a_compression_is_that_of_torchvision(severity, quality):
    image = torch.from_numpy(smooth(40, 48)).movedim(2, 0)
    off = JPEGCompression(severity)(image).int() - v2.functional.jpeg(image, quality).int()
    assert off.abs().float().mean() < 1


def test_large_images_become_224_pixels():
    for corruption in (ZoomBlur(1), Fog(1), Pixelate(severity=1)):
        assert corruption(Image.fromarray(smooth(90, 70))).size == (224, 224)
    assert CustomGaussianNoise()(Image.fromarray(smooth(90, 70))).size == (70, 90)


def batches(seed):
    transform = v2.Compose([v2.ToPILImage(), CustomGaussianNoise(), v2.RandomApply([Fog(2)], 0.5), v2.ToImage()])
    loader = Loader(Digits("test", size=32), 4, views=[transform], shuffle=True, num_workers=0)
    loader.bind(seed, "train")
    return [next(iter(loader.batches(epoch)))[1][0][0] for epoch in (0, 0, 1)]


def test_a_loader_makes_corruptions_reproducible():
    first, again, later = batches(0)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(later, batches(0)[2])


def test_transforms_are_made_by_name():
    image = Image.fromarray(smooth(32, 32))
    config = TransformsConfig(
        transforms=[
            {"name": "Resize", "args": [16], "kwargs": {"interpolation": "bicubic"}},
            {"name": "Contrast", "kwargs": {"severity": 2}},
            {"name": "GaussianBlur", "p": 0.0},
            {"name": None},
        ]
    )
    resized = v2.functional.resize(image, 16, v2.InterpolationMode.BICUBIC)
    expected = v2.functional.to_dtype(v2.functional.to_image(Contrast(2)(resized)), torch.float32, scale=True)
    assert torch.equal(config(image), expected)
    assert isinstance(TransformConfig("GaussianBlur", kwargs={"kernel_size": None})._transform, GaussianBlur)
    with pytest.raises(ValueError, match=r"'Contrasts' is no transform\. Did you mean 'Contrast'\?"):
        TransformConfig("Contrasts")
    with pytest.raises(ValueError, match="p: 0.5 belongs into the kwargs of RandomHorizontalFlip"):
        TransformConfig("RandomHorizontalFlip", p=0.5)
    with pytest.raises(ValueError, match=r"'cubic' is no interpolation mode.*Did you mean 'bicubic'\?"):
        augmentations.get_interpolation_mode("cubic")
