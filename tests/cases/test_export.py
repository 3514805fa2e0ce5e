"""A ViT that is exported or traced before its first forward pass, and the other ViTs of its size."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, export

from stable_ssl.modules import PatchPredictor, ViT

DIMS = itertools.count(12, 12)  # a width that no other test uses: nothing is known of it before the export
ANY_SIZE = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)


def new_vit(dim):
    return ViT(image_size=16, patch_size=4, dim=dim, depth=1, num_heads=3, class_token=True).eval()


@pytest.mark.parametrize(
    ("exported", "size"),
    [
        (lambda vit, x: export(vit, (x,)).module(), (2, 3, 16, 16)),
        (lambda vit, x: export(vit, (x,), dynamic_shapes=ANY_SIZE).module(), (3, 3, 32, 24)),
        (lambda vit, x: torch.jit.trace(vit, (x,)), (2, 3, 16, 16)),
    ],
    ids=["export", "export for any size", "trace"],
)
def test_a_vit_exported_before_its_first_pass_computes_the_same_and_leaves_others_alone(exported, size):
    dim = next(DIMS)
    vit, other = new_vit(dim), new_vit(dim)
    made = exported(vit, torch.rand(2, 3, 16, 16))
    images = torch.rand(size)
    torch.testing.assert_close(made(images), vit(images), atol=1e-6, rtol=0)
    other(images).sum().backward()
    assert type(other.embed.weight.grad) is torch.Tensor
    assert vit(images).detach().numpy().shape == (len(images), dim)


@pytest.mark.parametrize("is_fake_first", [True, False])
def test_passes_with_fake_tensors_and_with_real_ones_do_not_meet(is_fake_first):
    dim = next(DIMS)

    def fake_pass():
        with FakeTensorMode():
            return new_vit(dim)(torch.rand(2, 3, 16, 16)), predictor(dim)

    def real_pass():
        return new_vit(dim)(torch.rand(2, 3, 16, 16)), predictor(dim)

    for is_fake in (is_fake_first, not is_fake_first):
        for output in fake_pass() if is_fake else real_pass():
            assert (type(output) is torch.Tensor) is not is_fake


def predictor(dim):
    made = PatchPredictor((4, 4), dim, out_dim=8, hidden_dim=dim, depth=1)
    places, is_real = torch.tensor([[0, 5]]), torch.ones(1, 2, dtype=torch.bool)
    return made(torch.rand(1, 2, dim), places, is_real, places, is_real)


def test_a_pass_in_inference_mode_or_under_another_default_device_leaves_a_table_that_training_can_use():
    from stable_ssl.modules.vit import _table

    dim = next(DIMS)
    with torch.inference_mode():
        kept = _table((4, 4), (4, 4), dim, torch.rand(1))
    assert not kept.is_inference()
    with torch.device("meta"):
        assert _table((4, 4), (4, 4), dim, torch.rand(1, device="cpu", dtype=torch.float64)).device.type == "cpu"
