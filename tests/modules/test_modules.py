from __future__ import annotations

import pytest
import torch
from torch import nn

from stable_ssl.modules import MLP, ConvMixer, Resnet9, load_backbone


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet18", 512), ("resnet9", 1028), ("Resnet9", 1028), ("ConvMixer", 64), ("mobilenet_v3_small", 1024),
        ("efficientnet_b0", 1280), ("convnext_tiny", 768), ("densenet121", 1024), ("vgg11", 4096), ("swin_t", 768),
    ],
)  # fmt: skip
def test_without_classes_the_output_is_the_representation(name, width):
    network, dim = load_backbone(name, return_feature_dim=True)
    assert dim == width
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, width)


def test_timms_models_are_there_under_their_names():
    pytest.importorskip("timm", reason="timm is not installed: pip install '.[timm]'")
    network, dim = load_backbone("timm/vit_tiny_patch16_224", img_size=32, patch_size=8, return_feature_dim=True)
    with torch.no_grad():
        assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, dim) == (2, 192)
        small = load_backbone("timm/resnet18", num_classes=7, low_resolution=True).eval()
        assert small(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert small.conv1.stride == (1, 1)
    with pytest.raises(ValueError, match="timm has no 'resnet19'. Similar names: .*timm/resnet18"):
        load_backbone("timm/resnet19")


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "resnet9", "timm/resnet10t"])
@pytest.mark.parametrize("in_channels", [1, 4])
def test_a_backbone_takes_images_of_any_number_of_channels(name, in_channels):
    network = load_backbone(name, in_channels=in_channels, low_resolution=name == "resnet18").eval()
    with torch.no_grad():
        assert network(torch.zeros(1, in_channels, 32, 32)).isfinite().all()


def test_a_vision_transformer_of_timm_takes_views_of_several_sizes():
    pytest.importorskip("timm", reason="timm is not installed: pip install '.[timm]'")
    torch.manual_seed(0)
    network = load_backbone("timm/vit_tiny_patch16_224", image_size=32, depth=1).eval()
    torch.manual_seed(0)
    fixed = load_backbone("timm/vit_tiny_patch16_224", img_size=32, depth=1).eval()
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(network(images), fixed(images))
        assert network(torch.zeros(2, 3, 48, 48)).shape == network(torch.zeros(2, 3, 12, 12)).shape == (2, 192)


@pytest.mark.parametrize("name", ["resnet18", "resnet9", "ConvMixer", "vit_b_16"])
def test_with_classes_the_last_layer_has_their_number(name):
    size = 224 if name.startswith("vit") else 32
    with torch.no_grad():
        assert load_backbone(name, num_classes=7).eval()(torch.zeros(1, 3, size, size)).shape == (1, 7)


def test_low_resolution_keeps_the_size_through_the_stem():
    network = load_backbone("resnet18", low_resolution=True)
    assert (network.conv1.kernel_size, network.conv1.stride) == ((3, 3), (1, 1))
    assert isinstance(network.maxpool, nn.Identity)
    assert network.conv1(torch.zeros(1, 3, 32, 32)).shape[-1] == 32


def test_low_resolution_leaves_another_family_as_it_is_and_warns(caplog):
    network = load_backbone("vgg11", low_resolution=True)
    assert "low_resolution: vgg11 has no conv1 to adapt" in caplog.text
    assert network.state_dict().keys() == load_backbone("vgg11").state_dict().keys()


def test_an_unknown_backbone_names_the_nearest():
    with pytest.raises(ValueError, match="no backbone 'resnet_18'. Similar names: .*'resnet18'"):
        load_backbone("resnet_18")


@pytest.mark.parametrize("make", [lambda: Resnet9(1, 10), lambda: ConvMixer(1, 10)])
def test_small_networks_take_grey_images_of_16_pixels(make):
    assert make()(torch.zeros(2, 1, 16, 16)).shape == (2, 10)


def test_mlp_has_the_documented_layers():
    layers = [type(layer).__name__ for layer in MLP([8, 16, 16, 4])]
    assert layers == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert MLP([8, 16, 4])[-1].bias is None
    assert MLP([8, 16, 4], batch_norm=False, activation="GELU")[0].bias is not None


@pytest.mark.parametrize(("args", "words"), [(([8],), "sizes"), (([8, 4], "Relu"), "activation: .*'Relu'.*'ReLU'")])
def test_mlp_refuses_what_it_can_not_build(args, words):
    with pytest.raises(ValueError, match=words):
        MLP(*args)
