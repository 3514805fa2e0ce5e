"""What is drawn: torchvision's distributions, from nothing but (seed, epoch, index, view)."""

import contextlib
import hashlib
import io
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from stable_ssl.augmentations import (
    Affine,
    BlockMasks,
    ColorJitter,
    Erasing,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    MultiView,
    RandomMask,
    RandomResizedCrop,
    SimCLRViews,
    Solarize,
    View,
)
from stable_ssl.augmentations.draw import _starts
from stable_ssl.augmentations.operations.boxes import exp, log
from stable_ssl.runtime.seeding import Stream, derive_seed

NUM_DRAWS = 20_000
NUM_DRAWS_OF_TORCHVISION = 6_000  # each takes a hundred times as long


def ours(operation, shape=(200, 300), seed=0):
    (drawn,) = View([operation]).parameters(seed, 0, range(NUM_DRAWS), shape)
    return {key.split(".")[-1]: values for key, values in drawn.items()}


def theirs(transform, shape=(200, 300)):
    torch.manual_seed(0)
    image = torch.empty(3, *shape)
    return [transform.make_params([image]) for _ in range(NUM_DRAWS_OF_TORCHVISION)]


def is_alike(a, b):
    return stats.ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.parametrize(
    ("shape", "scale", "ratio"), [((200, 300), (0.08, 1.0), (3 / 4, 4 / 3)), ((40, 400), (0.3, 1.0), (0.5, 2.0)), ((9, 7), (0.08, 1), (0.2, 3))]
)  # fmt: skip
def test_crops_are_torchvisions(shape, scale, ratio):
    drawn = ours(RandomResizedCrop(8, scale, ratio), shape)
    expected = theirs(v2.RandomResizedCrop(8, scale, ratio), shape)
    for side in ("top", "left", "height", "width"):
        assert is_alike(drawn[side], [params[side] for params in expected]), side
    assert is_alike(drawn["width"] / drawn["height"], [params["width"] / params["height"] for params in expected])
    assert (drawn["top"] >= 0).all()
    assert (drawn["top"] + drawn["height"] <= shape[0]).all()
    assert (drawn["left"] + drawn["width"] <= shape[1]).all()


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10), (1, 1), (20, 15)])
def test_where_no_crop_fits_the_middle_is_taken_as_by_torchvision(shape):
    operation = RandomResizedCrop(8, scale=(1.0, 1.0), ratio=(1.1, 1.2))
    expected = v2.RandomResizedCrop(8, (1.0, 1.0), (1.1, 1.2)).make_params([torch.empty(3, *shape)])
    drawn = ours(operation, shape)
    assert {side: int(drawn[side][0]) for side in expected} == expected


def test_changes_of_colour_are_torchvisions():
    drawn = ours(ColorJitter(0.8, (0.5, 3), 0.4, 0.2))
    expected = theirs(v2.ColorJitter(0.8, (0.5, 3), 0.4, 0.2))
    for name in ("brightness", "contrast", "saturation", "hue"):
        assert is_alike(drawn[name], [params[f"{name}_factor"] for params in expected]), name
    orders = Counter(map(tuple, drawn["order"].tolist()))
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3
    assert abs(drawn["is_applied"].mean() - 0.8) < 0.01


def test_erased_boxes_are_torchvisions():
    for shape in ((200, 300), (30, 4)):
        drawn = ours(Erasing(p=1.0), shape)
        expected = [params for params in theirs(v2.RandomErasing(p=1.0), shape) if params["v"] is not None]
        for ours_, theirs_ in zip(("top", "left", "height", "width"), "ijhw", strict=True):
            assert is_alike(drawn[ours_][drawn["is_applied"]], [params[theirs_] for params in expected])


def test_affine_maps_are_torchvisions():
    drawn = ours(Affine(25, (0.1, 0.3), (0.8, 1.1), (-5, 5, 1, 9)))
    expected = theirs(v2.RandomAffine(25, (0.1, 0.3), (0.8, 1.1), (-5, 5, 1, 9)))
    assert is_alike(drawn["angle"], [params["angle"] for params in expected])
    assert is_alike(drawn["scale"], [params["scale"] for params in expected])
    for axis, name in enumerate("xy"):
        assert is_alike(drawn[f"translate_{name}"], [params["translate"][axis] for params in expected])
        assert is_alike(drawn[f"shear_{name}"], [params["shear"][axis] for params in expected])


def test_sigmas_and_flips():
    assert stats.kstest(ours(GaussianBlur())["sigma"], "uniform", (0.1, 1.9)).pvalue > 1e-3
    assert abs(ours(HorizontalFlip(0.3))["is_applied"].mean() - 0.3) < 0.01


def test_draws_do_not_depend_on_each_other():
    """Neither across samples, views, epochs, seeds, places in the view, nor within an operation."""
    views = MultiView([View([GaussianBlur(), GaussianBlur(), ColorJitter(0.5, 0.5, 0.5, 0.5)])] * 2)
    columns = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        for number, drawn in enumerate(views.parameters(seed, epoch, range(NUM_DRAWS), (64, 64))):
            for name, values in drawn.items():
                if values.dtype == np.float64:
                    columns[seed, epoch, number, name] = values
    table = np.array(list(columns.values()))
    correlations = np.corrcoef(np.concatenate([table[:, :-1], table[:, 1:]])) - np.eye(2 * len(table))
    assert np.abs(correlations).max() < 5 / np.sqrt(NUM_DRAWS)


def test_a_sample_s_stream_starts_where_derive_seed_says():
    indices = [0, 1, 12345, 2**40]
    assert _starts(7, 3, indices).tolist() == [derive_seed(7, Stream.VIEWS, 3, index) for index in indices]


def test_what_is_drawn_never_changes():
    """A run goes on with another version of this library, or on another machine."""
    (drawn,) = View([RandomResizedCrop(32)]).parameters(1, 2, [3, 4], (200, 300))
    assert {name: values.tolist() for name, values in drawn.items()} == EXPECTED


EXPECTED = {
    "0.RandomResizedCrop.top": [10, 1],
    "0.RandomResizedCrop.left": [134, 29],
    "0.RandomResizedCrop.height": [171, 182],
    "0.RandomResizedCrop.width": [140, 177],
}


def test_nothing_that_is_drawn_ever_changes():
    operations = [
        RandomResizedCrop(32),
        HorizontalFlip(),
        Affine(25, (0.1, 0.3), (0.8, 1.1), (-5, 5, 1, 9), p=0.5),
        ColorJitter(0.8, 0.8, 0.8, 0.2),
        Grayscale(),
        GaussianBlur(),
        Solarize(),
        Erasing(),
    ]
    digest = hashlib.sha256()
    for drawn in MultiView([View(operations)] * 2).parameters(1, 2, range(50), (200, 300)):
        for name, values in sorted(drawn.items()):
            digest.update(name.encode() + values.astype(np.float64).tobytes())
    for number, mask in enumerate((RandomMask((8, 8), 0.75), BlockMasks((8, 8)))):
        for hidden in mask.make(number, 1, 2, range(50)):
            digest.update(hidden.numpy().tobytes())
    assert digest.hexdigest() == DIGEST


DIGEST = "63f7be91b27edba6a65fa3d7c2e87935aab4f9242e23cfef04b38caccc754199"


def test_exp_and_log_are_those_of_mathematics():
    x = np.linspace(-7, 7, 1001)
    np.testing.assert_allclose(exp(x), np.exp(x), rtol=1e-13)
    for value in (1e-3, 0.3, 0.75, 1.0, 4 / 3, 1e3):
        assert log(value) == pytest.approx(np.log(value), abs=1e-12)


def test_views_do_not_depend_on_batch_size_order_or_earlier_calls():
    images = np.random.default_rng(0).integers(0, 256, (9, 40, 30, 3), dtype=np.uint8)
    views = SimCLRViews(24, blur=True)
    whole = views.make(images, 5, 6, list(range(9)))
    for i in reversed(range(9)):
        for alone in (views.make(images[i : i + 1], 5, 6, [i]), views.make([images[i]], 5, 6, np.array([i]))):
            assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, whole, strict=True))
    order = [4, 4, 0, 8]
    again = views.make(images[order], 5, 6, order)
    assert all(torch.equal(a, b[order]) for a, b in zip(again, whole, strict=True))
    for key in ((6, 6), (5, 7)):
        assert not torch.equal(views.make(images, *key, list(range(9)))[0], whole[0])
    assert not torch.equal(whole[0], whole[1])


def test_views_do_not_depend_on_the_process():
    code = """
import hashlib, numpy as np
from stable_ssl.augmentations import SimCLRViews
images = np.random.default_rng(0).integers(0, 256, (5, 40, 30, 3), dtype=np.uint8)
views = SimCLRViews(24, blur=True).make(images, 5, 6, list(range(5)))
print(hashlib.sha256(b"".join(view.numpy().tobytes() for view in views)).hexdigest())
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert len(said.getvalue()) > 60
    assert said.getvalue() == other.stdout
