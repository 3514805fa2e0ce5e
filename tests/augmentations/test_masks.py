"""Masks: as many patches as asked for, in the shapes of the papers, from nothing but (seed, epoch, index)."""

import numpy as np
import pytest
import torch
from scipy import stats

from stable_ssl.augmentations import BlockMasks, IJEPAViews, MAEViews, MultiView, RandomMask, View
from stable_ssl.data import Digits, Loader


def test_a_random_mask_hides_as_many_patches_of_each_image_and_each_as_often():
    (hidden,) = RandomMask((4, 8), 0.75).make(1, 0, 0, range(4000))
    assert hidden.dtype == torch.bool
    assert (hidden.sum(1) == 24).all()
    assert stats.chisquare(hidden.sum(0).numpy()).pvalue > 1e-3
    pairs = np.corrcoef(hidden.T.numpy())[~np.eye(32, dtype=bool)]  # a fixed number makes them repel by 1 / 31
    assert np.abs(pairs + 1 / 31).max() < 0.08


def test_blocks_are_rectangles_of_the_areas_and_ratios_asked_for():
    grid = (14, 14)
    context, targets = BlockMasks(grid).make(1, 0, 0, range(500))
    assert context.shape == (500, 196)
    assert targets.shape == (500, 4, 196)
    for block in targets.flatten(0, 1).view(-1, *grid):
        rows, columns = block.any(1), block.any(0)
        height, width = int(rows.sum()), int(columns.sum())
        assert torch.equal(block, rows[:, None] & columns)
        assert rows.nonzero().max() - rows.nonzero().min() + 1 == height  # in one piece
        assert 0.15 * 196 - 7 <= height * width <= 0.2 * 196 + 7
        assert 0.75 * 0.75 <= height / width <= 1.5 * 1.35
    assert not (context & targets.any(1)).any()
    assert (context.sum(1) >= 10).all()
    assert targets.any(0).all()  # every place can be a target's


def test_a_context_that_targets_would_fill_is_the_largest_of_those_drawn():
    masks = BlockMasks((4, 4), num_targets=8, target_scale=(0.3, 0.5), min_context=9)
    context, _ = masks.make(1, 0, 0, range(50))
    assert (context.sum(1) < 9).any()
    assert context.sum() > BlockMasks((4, 4), 8, (0.3, 0.5), min_context=0).make(1, 0, 0, range(50))[0].sum()


@pytest.mark.parametrize("mask", [RandomMask((6, 6), 0.5), BlockMasks((6, 6))])
def test_masks_depend_on_seed_epoch_and_index_alone(mask):
    together = mask.make(1, 7, 3, range(20))
    for one, all_of_them in zip(mask.make(1, 7, 3, [11]), together, strict=True):
        assert torch.equal(one[0], all_of_them[11])
    for other in (mask.make(1, 8, 3, range(20)), mask.make(1, 7, 4, range(20)), mask.make(2, 7, 3, range(20))):
        assert not torch.equal(other[0], together[0])
    assert len({tuple(row.tolist()) for row in together[0]}) > 15


def test_the_loader_gives_masks_after_the_views():
    loader = Loader(Digits("test", size=16), 8, views=MAEViews(16, 4, 0.6, mean=[0.5], std=[0.5]))
    (images, hidden), labels = next(iter(loader))
    assert images.shape == (8, 1, 16, 16)
    assert hidden.sum(1).tolist() == [10] * 8
    assert len(labels) == 8
    loader = Loader(Digits("test", size=16), 8, views=IJEPAViews(16, 2, 3, mean=[0.5], std=[0.5]), num_workers=0)
    images, context, targets = next(iter(loader))[0]
    assert (context.shape, targets.shape) == ((8, 64), (8, 3, 64))


def test_blocks_lie_at_the_last_row_and_column_as_often_as_at_the_first():
    for mask in BlockMasks((14, 14)).make(1, 0, 0, list(range(10_000))):
        patches = mask.view(-1, 14, 14).double().mean(0)
        for shares in (patches.sum(0).tolist(), patches.sum(1).tolist()):
            assert shares[-1] == pytest.approx(shares[0], rel=0.1)


def test_views_with_other_masks_are_other_views():
    assert MAEViews(16, 4, 0.5) == MAEViews(16, 4, 0.5)
    assert MAEViews(16, 4, 0.5) != MAEViews(16, 4, 0.75)
    assert hash(BlockMasks([4, 4], target_scale=[0.15, 0.2])) == hash(BlockMasks((4, 4)))
    assert "RandomMask" in repr(MultiView([View([])], [RandomMask((2, 2), 0.5)]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MAEViews(16, 4, ratio=0.0), "ratio 0.0 hides 0 of 16 patches"),
        (lambda: MAEViews(16, 4, ratio=1.0), "ratio 1.0 hides 16 of 16 patches"),
        (lambda: MAEViews(224, 15), "patch_size: 15 does not divide the view's size of 224"),
        (lambda: IJEPAViews(16, 0), "patch_size: 0"),
        (lambda: BlockMasks((4, 4), target_scale=(0.5, 0.2)), "target_scale must be"),
        (lambda: BlockMasks((4, 4), num_targets=0), "num_targets must be at least 1"),
        (lambda: MultiView([View([])], ["half"]), "masks must be a list of masks such as RandomMask"),
    ],
)
def test_masks_that_hide_nothing_or_all_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
