"""Networks of early 2025: their keys, and their outputs from the same weights, as plain functions compute them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stable_ssl.modules import MLP, ConvMixer, Resnet9, TeacherStudentModule, load_backbone


def random_weights(network):
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) / value[0].numel() ** 0.5 + 0.01)
    return network.eval().state_dict()


class Plain:
    """Layers of a state dict, by their names."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, **options):
        return F.conv2d(x, self.state[f"{name}.0.weight"], self.state[f"{name}.0.bias"], **options)

    def norm_relu(self, name, x):
        parts = (self.state[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts).relu()

    def block(self, name, x, pool=False):
        x = self.norm_relu(name, self.conv(name, x, padding=1))
        return F.max_pool2d(x, 2) if pool else x

    def shortcut(self, name, x):
        return x + self.block(f"{name}.1", self.block(f"{name}.0", x))

    def linear(self, x):
        return F.linear(x, self.state["fc.weight"], self.state["fc.bias"])


@torch.no_grad()
def test_resnet9_without_widths_is_the_network_of_early_2025():
    network = Resnet9(1, 10)  # in_channels, num_classes
    plain = Plain(random_weights(network))
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    x = plain.block("conv2", plain.block("conv1", images), pool=True)
    x = plain.block("conv3", plain.shortcut("res1", x), pool=True)
    x = plain.shortcut("res2", plain.block("conv4", x, pool=True))
    x = plain.shortcut("res3", plain.block("conv5", x, pool=True))
    torch.testing.assert_close(network(images), plain.linear(x.amax((2, 3))), rtol=1e-6, atol=1e-6)
    assert list(network.state_dict())[:2] == ["conv1.0.weight", "conv1.0.bias"]
    assert sum(value.numel() for value in Resnet9().parameters()) == 30_348_918


def test_low_resolution_replaces_conv1_of_resnet9_as_it_did(caplog):
    network, dim = load_backbone("resnet9", low_resolution=True, weights=False, return_feature_dim=True)
    assert (type(network.conv1), network.conv1.bias, type(network.maxpool)) == (nn.Conv2d, None, nn.Identity)
    assert dim == 1028
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 1028)
    ours = load_backbone("resnet9", low_resolution=True, widths=[4, 4, 8, 8])
    assert "conv1.weight" not in ours.state_dict()
    assert not caplog.records


@torch.no_grad()
def test_conv_mixer_is_the_network_of_early_2025():
    network = ConvMixer(num_classes=5, depth=2)
    plain = Plain(random_weights(network))
    images = torch.rand(2, 3, 35, 35, generator=torch.Generator().manual_seed(1))
    x = plain.norm_relu("conv1", plain.conv("conv1", images, stride=7))
    for i in range(2):
        x = x + plain.norm_relu(f"blocks_a.{i}", plain.conv(f"blocks_a.{i}", x, groups=64, padding=4))  # kernel 9
        x = plain.norm_relu(f"blocks_b.{i}", plain.conv(f"blocks_b.{i}", x))
    torch.testing.assert_close(network(images), plain.linear(x.amax((2, 3))), rtol=1e-6, atol=1e-6)


def test_the_layers_of_an_mlp_may_be_read_and_replaced():
    class Scaled(MLP):
        def forward(self, x):
            return 2 * self.layers(x)

    network, x = Scaled([4, 8, 2], batch_norm=False), torch.rand(3, 4)
    torch.testing.assert_close(network(x), 2 * network[2](network[0](x).relu()))
    network.layers[1] = nn.Tanh()
    torch.testing.assert_close(network(x), 2 * network[2](network[0](x).tanh()))
    network.layers = nn.Sequential(*network.layers, nn.Sigmoid())
    torch.testing.assert_close(network(x), 2 * network[2](network[0](x).tanh()).sigmoid())
    assert [*network.state_dict()] == ["0.weight", "0.bias", "2.weight"]


def test_an_mlp_takes_the_keys_of_early_2025_alone_and_inside_others():
    projector = MLP([4, 8, 2])
    weights = {key: torch.rand_like(value, dtype=torch.float32) for key, value in projector.state_dict().items()}
    old = {f"layers.{key}": value for key, value in weights.items()}
    projector.load_state_dict(old)
    torch.testing.assert_close(projector.state_dict()["3.weight"], weights["3.weight"], rtol=0, atol=0)
    pair = nn.ModuleDict({"projector": TeacherStudentModule(MLP([4, 8, 2]))})
    pair.load_state_dict(
        {f"projector.{who}.{key}": value for who in ("student", "teacher") for key, value in old.items()}
    )
    torch.testing.assert_close(pair["projector"].teacher[0].weight, weights["0.weight"], rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        projector.load_state_dict({**old, "layers.9.weight": torch.zeros(1)})
