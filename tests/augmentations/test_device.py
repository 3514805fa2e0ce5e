"""Views made by torch, on whatever device, are those of the CPU's loops but for one level in a few values."""

import numpy as np
import pytest
import torch
from reference import random_images
from test_parity import EXACT

from stable_ssl.augmentations import (
    Affine,
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
    SimCLRViews,
    Solarize,
    View,
)
from stable_ssl.augmentations import device as on_device

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
COLOURED = (ColorJitter, Grayscale)
SHAPES = [(32, 32, 3), (37, 51, 3), (64, 23, 1), (48, 40, 4)]
OPERATIONS = EXACT | {
    "blur": [GaussianBlur(9, p=0.6)],
    "affine": [Affine(20, (0.1, 0.1), (0.8, 1.2), 10, interpolation="bilinear")],
    "affine, nearest": [Affine(20, (0.1, 0.1), (0.8, 1.2), 10)],
}


def levels_off(view, images, device):
    """Return by how many levels of 255 each value differs from the CPU's."""
    key = 3, 5, list(range(len(images)))
    theirs = view.make(images, *key)
    ours = view.make(torch.from_numpy(images).to(device), *key)
    assert all(made.dtype == torch.float32 and made.is_contiguous() for made in ours)
    differences = []
    for one, a, b in zip(view.views, ours, theirs, strict=True):
        std = next((o.std for o in one.operations if isinstance(o, Normalize)), (1.0,))
        differences.append(((a.cpu() - b).abs() * 255 * torch.tensor(std).view(-1, 1, 1)).flatten())
    return torch.cat(differences)


def assert_within_a_level(view, images, device):
    differences = levels_off(view, images, device)
    assert differences.max() < 1.1
    assert (differences > 0.01).float().mean() < 1e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name, operations in OPERATIONS.items()
        for shape in SHAPES
        if shape[2] < 4 or not any(isinstance(operation, COLOURED) for operation in operations)
    ],
    ids=str,
)
def test_an_operation_is_within_a_level_of_the_cpus(name, shape, device):
    assert_within_a_level(View(OPERATIONS[name]), random_images(shape, 24, np.random.default_rng(len(name))), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("views", [SimCLRViews(64), SimCLRViews(32), DINOViews(64, 2, 32), EvalView(60)], ids=repr)
def test_ready_made_views_are_within_a_level_of_the_cpus(views, device):
    assert_within_a_level(views, random_images((80, 90, 3), 48, np.random.default_rng(0)), device)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 7, 300])
def test_strong_reductions_and_enlargements_are_within_a_level(size, interpolation):
    view = View([RandomResizedCrop(size, scale=(0.01, 1.0), interpolation=interpolation)])
    assert_within_a_level(view, random_images((200, 150, 1), 8, np.random.default_rng(0)), "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_an_image_has_the_same_view_in_any_batch(device):
    images = torch.from_numpy(random_images((40, 40, 3), 12, np.random.default_rng(0))).to(device)
    together = SimCLRViews(32, blur=True).make(images, 0, 0, list(range(12)))
    for view, alone in zip(together, SimCLRViews(32, blur=True).make(images[7:8], 0, 0, [7]), strict=True):
        assert torch.equal(view[7:8], alone)


def test_a_tensor_of_another_kind_is_refused():
    for images in (torch.rand(2, 8, 8, 3), torch.zeros(8, 8, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            EvalView(8).make(images, 0, 0, list(range(len(images))))


@pytest.mark.slow
def test_all_operations_compile_to_one_graph(monkeypatch):
    """As on CUDA, but for the CPU."""
    colours = [ColorJitter(0.4, 0.4, 0.4, 0.1), Grayscale(), GaussianBlur(5), Solarize()]
    crops = [RandomResizedCrop(28), RandomResizedCrop(24, interpolation="bicubic")]
    places = [*crops, HorizontalFlip(), Affine(10, interpolation="bilinear"), Erasing()]
    view = View([*places, *colours, Normalize(0.5, 0.2), Erasing()])
    images = torch.from_numpy(random_images((32, 32, 3), 8, np.random.default_rng(0)))
    plain = MultiView([view]).make(images, 0, 0, list(range(8)))[0]
    monkeypatch.setattr(on_device, "_pays_to_compile", lambda device: True)
    compiled = MultiView([view]).make(images, 0, 0, list(range(8)))[0]
    off = (plain - compiled).abs() * 0.2 * 255
    assert (off > 0.01).float().mean() <= 1e-3
    assert off.max() < 1.01
