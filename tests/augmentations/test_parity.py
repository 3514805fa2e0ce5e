"""Views are what torchvision makes of uint8 tensors, bit by bit."""

import itertools
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from reference import alone, differences, make, random_images
from torchvision.transforms.v2 import functional as F

from stable_ssl.augmentations import (
    Affine,
    CenterCrop,
    ColorJitter,
    DINOViews,
    Erasing,
    EvalView,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    MultiView,
    Normalize,
    RandomResizedCrop,
    Resize,
    SimCLRViews,
    Solarize,
    VerticalFlip,
    View,
)

SHAPES = [(32, 32, 3), (37, 51, 3), (64, 23, 1), (1, 1, 3), (1, 9, 1)]
EXACT = {
    "crop": [RandomResizedCrop(32)],
    "crop enlarging": [RandomResizedCrop((40, 77), scale=(0.05, 0.3))],
    "crop shrinking": [RandomResizedCrop((5, 3))],
    "whole image": [RandomResizedCrop(32, scale=(1, 1), ratio=(1, 1))],
    "one pixel": [RandomResizedCrop(1)],
    "bicubic crop": [RandomResizedCrop(32, interpolation="bicubic")],
    "bicubic crop enlarging": [RandomResizedCrop((40, 77), scale=(0.05, 0.3), interpolation="bicubic")],
    "bicubic crop shrinking": [RandomResizedCrop((5, 3), interpolation="bicubic")],
    "bicubic, one pixel": [RandomResizedCrop(1, interpolation="bicubic")],
    "bicubic resize": [Resize((19, 33), interpolation="bicubic")],
    "bicubic resize of the shorter side": [Resize(11, interpolation="bicubic"), CenterCrop(9)],
    "resize": [Resize((19, 33))],
    "resize shorter side": [Resize(11), CenterCrop(9)],
    "horizontal flip": [HorizontalFlip()],
    "vertical flip": [VerticalFlip()],
    "brightness": [ColorJitter(brightness=0.9, p=1)],
    "brightness without bounds": [ColorJitter(brightness=(0, 1e12), p=1)],
    "contrast": [ColorJitter(contrast=0.9, p=1)],
    "saturation": [ColorJitter(saturation=0.9, p=1)],
    "hue": [ColorJitter(hue=0.5, p=1)],
    "hue by a little": [ColorJitter(hue=(0.001, 0.001), p=1)],
    "jitter": [ColorJitter(0.8, 0.8, 0.8, 0.2)],
    "jitter without contrast": [ColorJitter(0.8, 0, 3.0, 0.2)],
    "grey": [Grayscale(0.5)],
    "solarize": [Solarize(p=0.7)],
    "solarize between levels": [Solarize(threshold=99.5, p=0.7)],
    "solarize all": [Solarize(threshold=0, p=0.7)],
    "erasing levels": [Erasing(value=77)],
    "normalize": [Normalize(0.4, 0.3)],
    "erasing after": [RandomResizedCrop(16), Normalize(0.4, 0.3), Erasing(p=1.0, value=-1.5)],
    "flip, crop, flip": [HorizontalFlip(), RandomResizedCrop(20), VerticalFlip(), HorizontalFlip()],
    "nothing": [],
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_an_operation_is_bit_equal_to_torchvision(name, shape):
    images = random_images(shape, 24, np.random.default_rng(len(name)))
    for seed in range(3):
        ours = View(EXACT[name]).make(images, seed, 5, list(range(24)))[0]
        assert torch.equal(ours, make(View(EXACT[name]), images, seed, 5))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 17), (5, 600), (33, 33), (1, 2)], ids=str)
def test_a_strong_reduction_is_bit_equal(size, interpolation):
    """Weights get more bits there than torch's int16 has at first sight."""
    images = random_images((600, 450, 1), 4, np.random.default_rng(0))
    assert differences(alone(Resize(size, interpolation)), images).max() == 0


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (31, 64), (33, 97), (130, 26)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_bicubic_crops_of_hard_edges_are_bit_equal(size, channels):
    """Beside an edge a cubic goes beyond black and white, which torch cuts off after each axis."""
    crop = RandomResizedCrop(size, scale=(0.001, 1), ratio=(0.1, 10), interpolation="bicubic")
    images = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (60, 67, 301, channels))
    images[:30] = images[:30, ::25, ::25].repeat(25, 1).repeat(25, 2)[:, :67, :301]
    assert differences(alone(crop), images).max() == 0
    assert differences(alone(Resize(size, "bicubic")), images[:, :2, :3, :1]).max() == 0


def test_a_large_batch_is_normalised_as_torchvision_does_it():
    """It is written past the caches."""
    images = random_images((128, 128, 3), 24, np.random.default_rng(0))
    view = View([Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))])
    assert torch.equal(view.make(images, 0, 0, list(range(24)))[0], make(view, images))


def test_all_colours_turn_as_torchvision_turns_them():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, 52 * 52, 52, 3)
    for hue in (-0.5, -0.13, 0.2, 0.5):
        assert differences(alone(ColorJitter(hue=(hue, hue), p=1)), colours).max() == 0


def test_a_change_is_skipped_where_its_range_is_neutral():
    images = random_images((9, 9, 3), 8, np.random.default_rng(0))
    made = alone(ColorJitter(p=1.0)).make(images, 0, 0, list(range(8)))[0]
    assert torch.equal(made, torch.from_numpy(images).permute(0, 3, 1, 2).float() * np.float32(1 / 255))


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
@pytest.mark.parametrize("sigma", [(0.1, 2.0), (0.02, 0.03), (4, 20)], ids=str)
def test_a_blur_is_off_by_a_level_in_one_of_a_thousand_values_at_most(kernel_size, sigma):
    for shape in [(32, 32, 3), (51, 12, 1), (12, 40, 4)]:
        # Without the checkerboard: its values lie between two levels.
        images = np.delete(random_images(shape, 32, np.random.default_rng(1)), 2, axis=0)
        off = differences(alone(GaussianBlur(kernel_size, sigma)), images)
        assert off.max() < 1.01
        assert (off > 0).float().mean() <= 1e-3


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_a_blur_without_kernel_size_is_pils_whose_kernel_follows_from_sigma(sigma):
    """PIL makes its Gaussian of boxes, so a few levels differ. For a sigma of 2, those of 5 taps differ ten times as much."""
    images = random_images((32, 32, 3), 16, np.random.default_rng(0))[3:]
    ours = View([GaussianBlur(None, (sigma, sigma))]).make(images, 0, 0, list(range(13)))[0] * 255
    blurred = [Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)) for image in images]
    theirs = torch.from_numpy(np.stack([np.asarray(image) for image in blurred])).permute(0, 3, 1, 2)
    assert (ours - theirs).abs()[..., 6:-6, 6:-6].mean() < 1


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_an_affine_map_is_torchvisions_but_for_ties(interpolation):
    operation = Affine(30, (0.2, 0.1), (0.7, 1.4), (-10, 10, -5, 5), p=0.8, interpolation=interpolation)
    off = differences(alone(operation), random_images((41, 32, 3), 48, np.random.default_rng(2))[3:])
    assert (off > 0).float().mean() <= 1e-3
    assert interpolation == "nearest" or off.max() < 1.01
    for quarter in (90, 180, -90):
        square = random_images((16, 16, 2), 4, np.random.default_rng(3))
        assert differences(alone(Affine((quarter, quarter), interpolation=interpolation)), square).max() == 0


def without_normalize(view):
    return View([operation for operation in view.operations if not isinstance(operation, Normalize)])


@pytest.mark.parametrize(
    "recipe",
    [SimCLRViews(32, interpolation="bicubic"), DINOViews(48, num_local=2, local_size=24), EvalView(24)],
    ids=["SimCLR", "DINO", "eval"],
)
def test_whole_views_are_torchvisions(recipe):
    images = random_images((70, 61, 3), 32, np.random.default_rng(4))
    off = differences(MultiView([without_normalize(view) for view in recipe.views]), images)
    assert (off > 0).float().mean() <= (0 if recipe != DINOViews(48, num_local=2, local_size=24) else 1e-3)
    images = images[:8]
    made = recipe.make(images, 3, 1, list(range(8)))
    for number, view in enumerate(made):
        expected = make(recipe, images, 3, 1, number)
        blurred = any(isinstance(operation, GaussianBlur) for operation in recipe.views[number].operations)
        assert torch.equal(view, expected) or (blurred and ((view - expected) != 0).float().mean() < 1e-3)


def test_images_of_different_sizes_and_channels_more_than_three():
    generator = np.random.default_rng(5)
    view = View([RandomResizedCrop(16), HorizontalFlip(), Solarize(p=0.5), Normalize([0.1] * 5, [0.2] * 5), Erasing()])
    images = [generator.integers(0, 256, (*generator.integers(8, 60, 2), 5), dtype=np.uint8) for _ in range(12)]
    assert torch.equal(view.make(images, 1, 1, list(range(12)))[0], make(view, images, 1, 1))


def test_make_leaves_the_images_as_they_are():
    images = random_images((12, 12, 1), 6, np.random.default_rng(6))
    before = images.copy()
    View([HorizontalFlip(1.0), Solarize(p=1.0), Erasing(p=1.0)]).make(images, 0, 0, list(range(6)))
    assert np.array_equal(images, before)


def test_memory_is_not_used_again_while_anybody_has_it():
    images = random_images((24, 24, 3), 16, np.random.default_rng(9))
    views, indices = SimCLRViews(16), list(range(16))
    kept = [views.make(images, 0, epoch, indices) for epoch in range(12)]
    rows = [pair[0][3].numpy() for pair in kept]
    expected = [pair[0].clone() for pair in kept]
    del kept[::2]
    for epoch in range(100, 110):
        views.make(images, 0, epoch, indices)
    assert all(torch.equal(torch.from_numpy(row), view[3]) for row, view in zip(rows, expected, strict=True))
    addresses = {view.data_ptr() for view in views.make(images, 0, 0, indices)}
    others = [np.empty(rows[0].size * 16, np.float32) for _ in range(8)]  # these would be given what is not kept
    assert addresses <= {view.data_ptr() for _ in range(8) for view in views.make(images, 0, 0, indices)}
    del others


def test_one_image_of_any_kind_gives_the_same_view():
    array = random_images((40, 50, 3), 4, np.random.default_rng(7))[3]
    views = SimCLRViews(32)
    made = []
    for image in (array, Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)):
        torch.manual_seed(0)
        made.append(views(image))
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))
    assert made[0][0].shape == (3, 32, 32)
    assert made[0][0].dtype == torch.float32
    assert not torch.equal(views(array)[0], made[0][0])
    assert View([Resize(8)])(array[:, :, 0]).shape == (1, 8, 10)


def test_an_operation_alone_changes_an_image_into_one_of_its_kind():
    array = random_images((30, 30, 3), 4, np.random.default_rng(8))[3]
    torch.manual_seed(0)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    picture = GaussianBlur()(Image.fromarray(array))
    assert isinstance(picture, Image.Image)
    assert not np.array_equal(np.asarray(picture), array)
    assert GaussianBlur()(Image.fromarray(array[:, :, 0])).mode == "L"
    assert torch.equal(HorizontalFlip(1.0)(tensor), F.horizontal_flip(tensor))
    assert np.array_equal(VerticalFlip(1.0)(array[:, :, 0]), array[::-1, :, 0])
    assert Normalize(0.5, 0.5)(array).dtype == torch.float32


SUM_OF_VIEWS = """
import hashlib, numpy as np
from stable_ssl.augmentations import DINOViews, MultiView, RandomResizedCrop, Resize, View
from stable_ssl.augmentations.kernels.vectors import BEST
made = hashlib.sha256()
for shape in [(40, 51, 3), (300, 260, 3), (64, 23, 1), (9, 7, 5)]:
    images = np.random.default_rng(0).integers(0, 256, (6, *shape), dtype=np.uint8)
    crops = [RandomResizedCrop((33, 48), interpolation=kind) for kind in ("bilinear", "bicubic")]
    views = [View([crop]) for crop in (*crops, Resize((3, 5)), Resize((3, 5), "bicubic"))]
    views = [*views, *(DINOViews(32).views if shape[2] == 3 else [])]
    for view in MultiView(views).make(images, 0, 0, range(6)):
        made.update(view.numpy().tobytes())
print(BEST and BEST.feature, made.hexdigest())
"""
PROCESSORS = {
    "+avx512vbmi": ("icelake-server", "+avx512vbmi,+avx512bw,+avx512vl,+avx512dq,+avx512f,+avx2,+fma"),
    "+avx2": ("haswell", "+avx2,+fma"),
    "None": ("x86-64", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("feature", PROCESSORS)
def test_views_are_the_same_with_the_instructions_of_other_processors(feature, tmp_path):
    if feature.startswith("+") and feature[1:] not in known_features():
        pytest.skip(f"this processor has no {feature[1:]}")
    name, features = PROCESSORS[feature] if platform.machine() == "x86_64" else ("generic", "")
    other = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    here, there = (
        subprocess.run(
            [sys.executable, "-c", SUM_OF_VIEWS],
            env=os.environ | env | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        for env in ({}, other)
    )
    assert there.returncode == 0, there.stderr
    assert there.stdout.split()[0] == feature
    assert there.stdout.split()[1] == here.stdout.split()[1]


def known_features():
    from llvmlite import binding

    return [name for name, is_there in binding.get_host_cpu_features().items() if is_there]


def test_resizing_looks_no_further_than_its_memory_reaches():
    """The last windows and taps without weight reach beyond the end of a line; `crop_and_resize` makes space for that."""
    from stable_ssl.augmentations.kernels import resizing as r

    lengths = [*range(1, 70), 224, 256, 500, 1999]
    for old, new, is_cubic in itertools.product(lengths, [1, 2, 3, 31, 32, 33, 96, 224], [False, True]):
        first, weights, precision = r._taps(old, new, is_cubic)
        num_taps = weights.shape[1]
        assert (first >= 0).all()
        assert (first < old).all()
        assert first.max() + num_taps <= 2 * old + (old == 1)
        assert int(255 * weights.astype(np.int64).sum(1).max() + (1 << precision >> 1)) >> precision == 255
        if num_taps == 2 and weights.min() >= 0:
            assert precision in (14, 15)
        if r.WIDTH:
            _, starts, _, factors = r._windows((first, weights, precision))
            if len(factors):
                assert starts.max() + 2 * (len(factors) - 1) + r.WINDOW <= 2 * old + 64


def test_grey_of_a_large_white_image_is_white():
    from stable_ssl.augmentations.kernels.colours import _mean_grey

    white = np.full((3, 17_000_000), 255, np.uint8)
    assert _mean_grey(white) == np.float32(_mean_grey(white[:, :9].copy()))
    assert _mean_grey(white[:1]) == 255
