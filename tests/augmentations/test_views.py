"""How views are declared, what they refuse, and what importing them costs."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

from stable_ssl import augmentations
from stable_ssl.augmentations import (
    Affine,
    BarlowViews,
    BYOLViews,
    CenterCrop,
    ColorJitter,
    DINOViews,
    Erasing,
    EvalView,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    MoCoViews,
    MultiView,
    Normalize,
    RandomResizedCrop,
    Resize,
    SimCLRViews,
    Solarize,
    SwAVViews,
    VICRegViews,
    View,
)
from stable_ssl.config import build


def images(*shape):
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop(0), "RandomResizedCrop: size must be one or two counts of pixels, not 0"),
        (
            lambda: RandomResizedCrop(8, scale=(0.5, 0.1)),
            "scale must be two numbers from 0 to 1, the smaller one first",
        ),
        (lambda: RandomResizedCrop(8, ratio=2), "ratio must be two numbers"),
        (
            lambda: RandomResizedCrop(8, interpolation="cubic"),
            r"RandomResizedCrop: interpolation must be 'bilinear' or 'bicubic', not 'cubic'\. Did you mean 'bicubic'\?",
        ),
        (lambda: Resize(8, interpolation=None), "Resize: interpolation must be 'bilinear' or 'bicubic', not None"),
        (lambda: Resize(8, interpolation=InterpolationMode.LANCZOS), "must be 'bilinear' or 'bicubic', not <Interp"),
        (lambda: RandomResizedCrop(8, interpolation=1), "must be 'bilinear' or 'bicubic', not 1"),
        (lambda: CenterCrop([3, 3, 3]), "size must be"),
        (lambda: HorizontalFlip(1.5), "p must be between 0 and 1, not 1.5"),
        (lambda: ColorJitter(brightness=-1), "brightness must be two numbers of at least 0"),
        (lambda: ColorJitter(hue=0.7), "hue must be two numbers from -0.5 to 0.5"),
        (lambda: GaussianBlur(4), "kernel_size must be an odd count of taps, not 4"),
        (lambda: GaussianBlur(0), "kernel_size must be an odd count of taps, not 0"),
        (lambda: GaussianBlur(sigma=(0, 1)), "sigma must be"),
        (lambda: Solarize(300), "threshold must be a level from 0 to 255, not 300"),
        (lambda: Erasing(value="random"), "value must be a number"),
        (lambda: Affine(interpolation="cubic"), "interpolation must be 'nearest' or 'bilinear'"),
        (lambda: Affine(shear=(1, 2, 3)), "shear must be 1, 2 or 4 angles"),
        (lambda: Normalize([0.5], [0.0]), "std must be above 0"),
        (lambda: Normalize([0.5] * 3, [0.5]), "std must be 3 numbers"),
        (lambda: View([lambda image: image]), "operations must be instances of Operation"),
        (
            lambda: View([Normalize(0.5, 0.5), Solarize()]),
            "View: Solarize can't follow Normalize, which makes float32 values",
        ),
        (lambda: MultiView([]), "one View or more"),
        (lambda: MultiView([Solarize()]), "one View or more"),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_declared(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_interpolations_have_the_names_of_torchvision_and_pil_too(name):
    for constant in (
        name,
        InterpolationMode(name),
        Image.Resampling[name.upper()],
        int(Image.Resampling[name.upper()]),
    ):
        assert RandomResizedCrop(8, interpolation=constant) == RandomResizedCrop(8, interpolation=name)
        assert repr(Resize(8, constant)) == repr(Resize(8, name))
    assert Affine(interpolation=Image.Resampling.NEAREST) == Affine(interpolation=InterpolationMode.NEAREST) == Affine()


@pytest.mark.parametrize("recipe", [name for name in augmentations.__all__ if name.endswith(("Views", "EvalView"))])
def test_every_ready_made_set_resizes_as_it_is_told(recipe):
    make = getattr(augmentations, recipe)
    for options, expected in (({}, "bilinear"), ({"interpolation": "bicubic"}, "bicubic")):
        found = {vars(one).get("interpolation") for view in make(224, **options).views for one in view.operations}
        assert found - {None} == {expected}
        assert ("bicubic" in repr(make(224, **options))) == (expected == "bicubic")


@pytest.mark.parametrize("size", [4, 8, 16, 32, 96, 109, 110, 160, 224])
def test_blurs_of_ready_made_sets_cover_three_standard_deviations_at_every_size(size):
    views = [SimCLRViews(size, blur=True), BYOLViews(size), VICRegViews(size), DINOViews(224, 1, size)]
    blurs = [one for view in views for one in view.views[-1].operations if isinstance(one, GaussianBlur)]
    assert len(blurs) == 4
    for blur in blurs:
        assert blur.kernel_size // 2 >= min(3 * blur.sigma[1], size - 1)
        assert size < 110 or blur.kernel_size == round(size / 20) * 2 + 1  # SimCLR: a tenth of the image
    assert views[0].make(images(2, 9, 9, 3), 0, 0, [0, 1])[0].shape == (2, 3, size, size)


@pytest.mark.parametrize(
    ("batch", "indices", "message"),
    [
        (np.zeros((2, 8, 8, 3)), [0, 1], r"uint8 array \(batch, height, width, channels\), not float64"),
        (images(8, 8, 3), range(8), r"not uint8 \(8, 8, 3\)"),
        ([images(8, 8, 3), np.zeros((8, 8, 3))], [4, 9], "sample 9 must be a uint8 image"),
        ([images(8, 8, 3), images(8, 8)], [4, 9], "sample 9 must be a uint8 image"),
        ([images(8, 8, 3), images(8, 8, 1)], [4, 9], "sample 9 has 1 channels, and sample 4 has 3"),
        (images(2, 8, 8, 3), [1], "2 images and 1 indices"),
        (images(2, 8, 8, 4), [0, 1], "view 0: ColorJitter.* needs images of 1 or 3 channels, not of 4"),
        ([images(8, 8, 3), images(4, 9, 3)], [4, 9], "sample 9 has only 4 × 9 pixels; CenterCrop"),
    ],
)
def test_images_that_are_not_as_expected_are_named(batch, indices, message):
    with pytest.raises(ValueError, match=message):
        View([CenterCrop(8), ColorJitter(0.5)]).make(batch, 0, 0, indices)


def test_images_too_small_for_a_blur_and_views_that_make_no_batch():
    with pytest.raises(ValueError, match="sample 5 has only 8 × 8 pixels; GaussianBlur.* needs at least 12 × 12"):
        View([Resize((8, 8)), GaussianBlur(23)]).make(images(1, 30, 30, 3), 0, 0, [5])
    with pytest.raises(ValueError, match="views of 8 × 8 and of 8 × 16 pixels make no batch"):
        View([Resize(8)]).make([images(4, 4, 1), images(4, 8, 1)], 0, 0, [0, 1])


def test_channels_are_checked_before_there_is_an_image():
    view = View([RandomResizedCrop(8), Grayscale(), Normalize([0.5] * 3, [0.5] * 3)])
    view.check(3)
    for channels in (1, 2):
        with pytest.raises(ValueError, match="needs images of"):
            view.check(channels)
    View([RandomResizedCrop(8), Solarize(), Normalize(0.5, 0.5)]).check(7)


@pytest.mark.parametrize(
    ("views", "sizes"),
    [
        (SimCLRViews(32), [(32, 32)] * 2),
        (MoCoViews(), [(224, 224)] * 2),
        (BYOLViews(64), [(64, 64)] * 2),
        (BarlowViews(64), [(64, 64)] * 2),
        (VICRegViews(64), [(64, 64)] * 2),
        (SwAVViews(), [(224, 224)] * 2 + [(96, 96)] * 6),
        (DINOViews(num_local=3), [(224, 224)] * 2 + [(96, 96)] * 3),
        (EvalView(32), [(32, 32)]),
    ],
)
def test_recipes_make_views_of_their_sizes_and_can_be_sent_to_workers(views, sizes):
    assert views.sizes() == sizes
    copy = pickle.loads(pickle.dumps(views))
    assert copy == views
    made = copy.make(images(2, 40, 50, 3), 0, 0, [0, 1])
    assert [tuple(view.shape) for view in made] == [(2, 3, *size) for size in sizes]
    assert all(view.dtype == torch.float32 and view.is_contiguous() for view in made)


def test_small_images_get_the_settings_of_cifar():
    kinds = [type(operation).__name__ for operation in SimCLRViews(32).views[0].operations]
    assert "GaussianBlur" not in kinds
    assert SimCLRViews(32).views[0].operations[2].brightness == (0.6, 1.4)
    assert SimCLRViews(224).views[0].operations[4] == GaussianBlur(23, (0.1, 2.0), 0.5)


def test_views_are_built_from_a_configuration():
    node = {"_target_": "stable_ssl.augmentations.View", "operations": [
        {"_target_": "stable_ssl.augmentations.RandomResizedCrop", "size": [8, 9], "scale": [0.2, 1]},
        {"_target_": "stable_ssl.augmentations.Normalize", "mean": [0.5], "std": [0.25]},
    ]}  # fmt: skip
    views = build({"_target_": "stable_ssl.augmentations.MultiView", "views": [node, node]}, "views")
    assert views.sizes() == [(8, 9)] * 2
    assert views.views[0].operations[0] == RandomResizedCrop((8, 9), (0.2, 1))
    assert View([Resize(5)]).sizes() == [None]
    assert View([Resize(5)]).views[0].operations == (Resize(5),)


def test_a_view_is_no_multi_view_but_may_stand_for_one():
    view, image = View([Resize((4, 5))]), images(9, 8, 3)
    assert not isinstance(view, MultiView)
    assert view != MultiView([view])
    assert view == View([Resize((4, 5))])
    assert view(image).shape == (3, 4, 5)
    assert [made.shape for made in MultiView([view])(image)] == [(3, 4, 5)]
    one, listed = view.make([image], 0, 0, [0]), MultiView([view]).make([image], 0, 0, [0])
    assert torch.equal(*one, *listed)
    assert view.sizes() == MultiView([view]).sizes()


def test_numba_is_imported_by_the_first_view_only():
    code = "import sys, stable_ssl.augmentations as a; views = a.SimCLRViews(32); print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_every_public_name_is_there():
    assert all(getattr(augmentations, name) for name in augmentations.__all__)
