"""An operation is one file: nothing else in the room knows it by name."""

import ast
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import random_images

from stable_ssl.augmentations import (
    CenterCrop,
    Erasing,
    MAEViews,
    MultiView,
    Normalize,
    Operation,
    RandomResizedCrop,
    Resize,
    View,
    operations,
)
from stable_ssl.augmentations.draw import below
from stable_ssl.augmentations.operations.base import Sometimes, choose, per_image

ROOM = Path(operations.__file__).parent.parent


@dataclass(frozen=True)
class Darken(Sometimes):
    """Divides by a drawn whole number; a user's own."""

    most: int = 4
    p: float = 0.5

    num_draws = 2
    channels = (3,)
    least_size = (4, 6)

    def draw(self, numbers, sizes):
        return super().draw(numbers, sizes) | {"divisor": 1 + below(np.array(self.most), numbers[1])}

    def on_cpu(self, drawn, pixels):
        divisors = np.where(drawn["is_applied"], drawn["divisor"], 1).astype(np.uint8)
        return pixels // divisors[:, None, None, None]

    def on_device(self, rows, pixels):
        return choose(rows[0], (pixels / per_image(rows[1])).floor(), pixels)


def test_an_operation_of_a_user_s_needs_no_change_elsewhere():
    images = random_images((20, 30, 3), 64, np.random.default_rng(0))
    indices = list(range(64))
    plain, dark = View([RandomResizedCrop(8)]), View([RandomResizedCrop(8), Darken()])
    levels, darkened = (view.make(images, 0, 0, indices)[0] * 255 for view in (plain, dark))
    (drawn,) = dark.parameters(0, 0, indices, (20, 30))
    divisors = np.where(drawn["1.Darken.is_applied"], drawn["1.Darken.divisor"], 1)
    assert set(divisors) == {1, 2, 3, 4}
    assert torch.equal(darkened.round(), (levels.round() / torch.tensor(divisors)[:, None, None, None]).floor())
    on_device = dark.make(torch.from_numpy(images), 0, 0, indices)[0] * 255
    assert (on_device - darkened).abs().max() < 1.01
    assert MultiView([dark, plain]).sizes() == [(8, 8), (8, 8)]
    assert torch.equal(
        Darken(2, p=0)(torch.from_numpy(images[3]).movedim(2, 0)).movedim(0, 2), torch.from_numpy(images[3])
    )


def test_what_an_operation_needs_is_asked_of_it():
    with pytest.raises(ValueError, match=r"view 0: Darken.* needs images of 3 channels, not of 1"):
        View([Darken()]).check(1)
    with pytest.raises(ValueError, match=r"sample 7 has only 8 × 5 pixels; Darken.* needs at least 4 × 6"):
        View([Darken()]).make(np.zeros((1, 8, 5, 3), np.uint8), 0, 0, [7])
    with pytest.raises(ValueError, match="View: Darken can't follow Normalize, which makes float32 values"):
        View([Normalize(0.5, 0.5), Darken()])
    with pytest.raises(ValueError, match=r"Darken: p must be between 0 and 1, not -1"):
        Darken(p=-1)
    with pytest.raises(ValueError, match=r"Erasing.*: before Normalize, value must be a level"):
        Erasing(value=-1.5)(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(NotImplementedError, match="Operation has no on_cpu"):
        Operation()(np.zeros((8, 8, 3), np.uint8))


def test_views_have_the_text_that_checkpoints_hold():
    """A resume compares it with that of the run."""
    crop = "RandomResizedCrop(size=(16, 16), scale=(0.2, 1.0), ratio=(0.75, 1.3333333333333333)"
    view = f"View([{crop}), HorizontalFlip(p=0.5), Normalize(mean=(0.5,), std=(0.25,))])"
    assert repr(MAEViews(16, 4, mean=0.5, std=0.25)) == f"MultiView([{view}], [RandomMask(grid=(4, 4), ratio=0.75)])"
    assert repr(View([Resize(9), CenterCrop(8)])) == "View([Resize(size=9), CenterCrop(size=(8, 8))])"
    assert repr(RandomResizedCrop(16, (0.2, 1), interpolation="bicubic")) == f"{crop}, interpolation='bicubic')"


def test_no_other_file_names_a_single_operation():
    single = {name for name, value in vars(operations).items() if isinstance(value, type)} - {"Operation"}
    assert {"ColorJitter", "Normalize"} < single
    files = [path for path in ROOM.rglob("*.py") if path.parent.name != "operations" and path.name != "recipes.py"]
    assert len(files) > 10
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.name for node in nodes if isinstance(node, ast.alias)}
        assert not names & single, path
