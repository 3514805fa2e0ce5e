"""Vision transformers of timm and torchvision where patches are hidden, and views of several sizes."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from stable_ssl import ConfigError, IJEPATrainer, MaskedTrainer, load_backbone, losses
from stable_ssl.augmentations import IJEPAViews, MAEViews
from stable_ssl.data import Loader
from stable_ssl.modules import PatchPredictor, ViT
from stable_ssl.modules.foreign_vit import as_vit
from stable_ssl.modules.vit import places_of

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48}
OF_TIMM = {
    "class token": {},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "mean of the patches": {"global_pool": "avg"},
    "no class token": {"class_token": False, "global_pool": "avg", "init_values": 0.1, "qk_norm": True},
}


def of_timm(**options):
    pytest.importorskip("timm", reason="timm is not installed: pip install '.[timm]'")
    torch.manual_seed(0)
    return load_backbone("timm/vit_tiny_patch16_224", **{**SMALL, **options}).eval()


def of_torchvision(size=32):
    """A small network of the class that `load_backbone` makes of torchvision's, whose own ones are large."""
    from torchvision.models import VisionTransformer

    from stable_ssl.modules.torchvision_vit import AnySizeVisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(32, 8, 2, 4, 48, 96)
    nn.init.normal_(network.encoder.pos_embedding)
    AnySizeVisionTransformer.of(network, (size, size) if isinstance(size, int) else size, is_pretrained=True)
    network.heads = nn.Identity()
    return network.eval()


@pytest.mark.parametrize("kind", OF_TIMM)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_with_all_patches_a_network_of_timm_computes_what_it_computes_by_itself(kind, size):
    network = of_timm(**OF_TIMM[kind])
    adapted, images = as_vit(network), torch.randn(2, 3, *size)
    mask = torch.ones(2, size[0] * size[1] // 64, dtype=torch.bool)
    with torch.no_grad():
        wanted = network.forward_features(images)
        for tokens in (
            adapted.forward_tokens(images),
            adapted.forward_tokens(images, *adapted.places_of(mask, images)),
        ):
            torch.testing.assert_close(tokens, wanted, atol=1e-6, rtol=0)
            torch.testing.assert_close(adapted.pool(tokens), network(images), atol=1e-6, rtol=0)


def test_with_all_patches_a_network_of_torchvision_computes_what_it_computes_by_itself():
    from torchvision.models import VisionTransformer

    network, images = of_torchvision(), torch.randn(2, 3, 32, 32)
    adapted, mask = as_vit(network), torch.ones(2, 16, dtype=torch.bool)
    with torch.no_grad():
        wanted = VisionTransformer.forward(network, images)
        for tokens in (
            adapted.forward_tokens(images),
            adapted.forward_tokens(images, *adapted.places_of(mask, images)),
        ):
            torch.testing.assert_close(adapted.pool(tokens), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [of_timm, lambda: of_timm(**OF_TIMM["mean of the patches"]), of_torchvision])
def test_hidden_patches_and_padding_have_no_influence(make):
    adapted, images = as_vit(make()), torch.randn(2, 3, 32, 32)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, [1, 5, 6]] = mask[1, [2]] = True
    places, is_real = places_of(mask)
    changed = images.clone()
    changed[1, :, :8, :8] = 9.0  # patch 0, which is hidden in both images and pads the second one
    with torch.no_grad():
        kept = adapted.forward_tokens(images, places, is_real)
        outputs = adapted.pool(kept, is_real)
        torch.testing.assert_close(adapted.pool(adapted.forward_tokens(changed, places, is_real), is_real), outputs)
        alone = adapted.forward_tokens(
            images[1:], places[1:, :1]
        )  # the only patch of the second image, without padding
        torch.testing.assert_close(adapted.pool(alone), outputs[1:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(adapted.patches_of(alone), adapted.patches_of(kept)[1:, :1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [of_timm, of_torchvision, lambda: ViT((16, 48), 8, 48, 1, 3)])
@pytest.mark.parametrize("method", ["mae", "ijepa"])
def test_rectangular_images_train(make, method, tmp_path):
    size, grid = (16, 48), (2, 6)
    predictor = functools.partial(PatchPredictor, grid, 48, hidden_dim=12, depth=1)
    if method == "mae":
        cls, loss, views = MaskedTrainer, losses.MAELoss(), MAEViews(size, 8)
        modules = {"backbone": make(), "decoder": predictor(out_dim=192)}
    else:
        cls, loss, views = IJEPATrainer, losses.IJEPALoss(), IJEPAViews(size, 8, min_context=2)
        modules = {"context_encoder": make(), "target_encoder": make(), "predictor": predictor(out_dim=48)}
    encoder = next(iter(modules))
    keys = list(modules[encoder].state_dict())
    before = next(modules[encoder].parameters()).detach().clone()
    trainer = cls(
        data={"train": Loader(torch.randint(256, (8, 3, 20, 60), dtype=torch.uint8), 8, views=views)},
        module=modules,
        hardware={"seed": 0, "device": "cpu"},
        optim={"epochs": 1, "optimizer": functools.partial(torch.optim.SGD, lr=0.1)},
        logger={"dump_path": tmp_path / "run", "level": 50},
        loss=loss,
    )
    trainer()
    assert not torch.equal(next(trainer.module[encoder].parameters()), before)
    assert list(trainer.module[encoder].state_dict()) == keys
    assert trainer.forward(torch.zeros(2, 3, *size)).shape == (2, 48)


def test_a_grid_that_is_the_views_turned_by_a_quarter_is_refused(tmp_path):
    trainer = MaskedTrainer(
        data={"train": Loader(torch.zeros(4, 3, 16, 48, dtype=torch.uint8), 4, views=MAEViews((16, 48), 8))},
        module={"backbone": ViT((48, 16), 8, 24, 1, 3), "decoder": PatchPredictor((6, 2), 24, 192, 12)},
        hardware={"device": "cpu"},
        optim={"epochs": 1, "optimizer": torch.optim.SGD},
        logger={"dump_path": tmp_path, "level": 50},
        loss=losses.MAELoss(),
    )
    with pytest.raises(
        ConfigError, match=r"module.decoder.grid: \(6, 2\), but the views have 2 × 6 patches of 8 pixels"
    ):
        trainer()


@pytest.mark.parametrize(
    "name", ["resnet9", "ConvMixer", "resnet18", "timm/resnet10t", "timm/swin_tiny_patch4_window7_224"]
)
def test_a_network_that_is_no_vision_transformer_is_refused_in_a_sentence(name):
    words = "need a ViT. ViTs are: backbone=vit_tiny, .*timm/vit_small_patch16_224"
    with torch.device("meta"):
        with pytest.raises(ConfigError, match=words):
            load_backbone(name, norm_eps=1e-6)
        with pytest.raises(ConfigError, match="module.backbone: the method hides patches, so it needs a ViT"):
            as_vit(load_backbone(name))


@pytest.mark.parametrize("make", [lambda: of_timm(patch_size=16), lambda: of_torchvision((32, 32))])
def test_views_of_several_sizes_go_through_one_network(make):
    network = make()
    with torch.no_grad():
        assert [network(torch.zeros(2, 3, side, side)).shape for side in (32, 16, 48)] == [(2, 48)] * 3


def test_vision_transformers_of_torchvision_are_made_for_a_size():
    with torch.device("meta"):
        network, dim = load_backbone("vit_b_16", image_size=(32, 64), in_channels=5, return_feature_dim=True)
        assert network.encoder.pos_embedding.shape == (1, 9, dim)
        assert network(torch.zeros(2, 5, 32, 64)).shape == network(torch.zeros(2, 5, 96, 96)).shape == (2, dim)
        assert load_backbone("vit_b_16", image_size=32).seq_length == 5


NETWORKS = [
    "resnet9", "ConvMixer", "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s",
    "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "swin_t", "swin_v2_t", "vgg11", "vit_b_16", "wide_resnet50_2",
    "timm/resnet18", "timm/convnext_atto", "timm/vit_tiny_patch16_224", "timm/efficientnet_b0", "timm/mixer_s32_224",
]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_backbone_takes_other_channels(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="timm is not installed: pip install '.[timm]'")
    with torch.device("meta"), torch.no_grad():
        for channels in (1, 13):
            network, dim = load_backbone(name, in_channels=channels, return_feature_dim=True)
            side = 299 if name.startswith("inception") else 224
            assert network.eval()(torch.zeros(2, channels, side, side)).shape == (2, dim)
