"""Weights from files of other libraries: what is found, what is dropped, resampled and adapted, and what is refused."""

from __future__ import annotations

import argparse
import copy
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import stable_ssl
from stable_ssl import CheckpointError, ConfigError, load_backbone
from stable_ssl.data import Loader
from stable_ssl.modules import TeacherStudentModule
from stable_ssl.weights.loading import load_weights
from stable_ssl.weights.resampling import resample_positions
from stable_ssl.weights.sources import parse_source, read_source


def small(num_classes=None, in_channels=3, widths=(4, 4, 4, 8)):
    return load_backbone("resnet9", num_classes, in_channels=in_channels, widths=list(widths))


def tiny_vit(**options):
    pytest.importorskip("timm", reason="timm is not installed: pip install '.[timm]'")
    options = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, **options}
    return load_backbone("timm/vit_tiny_patch16_224", **options).eval()


def below(prefix, module):
    return {f"{prefix}{key}": value for key, value in module.state_dict().items()}


def same(module, other):
    theirs = other.state_dict()
    return all(
        torch.equal(value, theirs[key]) for key, value in module.state_dict().items() if not key.startswith("fc")
    )


def mark(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


LAYOUTS = {
    "plain": lambda a, b: a.state_dict(),
    "Lightning": lambda a, b: {"state_dict": below("model.backbone.", a), "epoch": 3, "hyper_parameters": {"lr": 1}},
    "solo-learn": lambda a, b: {"state_dict": {**below("momentum_backbone.", b), **below("backbone.", a)}},
    "MoCo": lambda a, b: {"state_dict": {**below("module.encoder_q.", a), **below("module.encoder_k.", b)}},
    "DINO": lambda a, b: {
        "student": below("module.backbone.", b), "teacher": below("backbone.", a), "args": argparse.Namespace(lr=1),
    },
    "I-JEPA": lambda a, b: {"encoder": below("module.", b), "target_encoder": below("module.", a)},
    "MAE": lambda a, b: {"model": {**a.state_dict(), "decoder_embed.weight": torch.ones(2), "mask_token": torch.ones(1)}},
    "SwAV": lambda a, b: {**below("module.", a), "module.prototypes.weight": torch.ones(3, 2)},
    "compiled": lambda a, b: below("_orig_mod.module.", a),
    "early stable-ssl": lambda a, b: {"module": {**below("backbone.", a), **below("projector.", nn.Linear(8, 4))}},
    "timm with averages": lambda a, b: {"state_dict": b.state_dict(), "state_dict_ema": a.state_dict()},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_backbone_is_found_in_the_files_of_other_libraries(layout, tmp_path):
    wanted, other = small(num_classes=7), small(num_classes=7)
    path = mark(tmp_path, LAYOUTS[layout](wanted, other))
    assert same(load_backbone("resnet9", widths=[4, 4, 4, 8], weights=str(path)), wanted)


def test_the_log_says_what_was_dropped_adapted_and_resampled(tmp_path, caplog):
    caplog.set_level(logging.INFO, "stable_ssl")
    vit = tiny_vit(num_classes=5)
    save_file(below("teacher.", vit), tmp_path / "vit.safetensors")
    load = {"weights": tmp_path / "vit.safetensors", "img_size": (16, 48), "in_channels": 1, "num_classes": 3}
    loaded = tiny_vit(**load)
    said = caplog.messages[-1]
    for words in (
        "backbone: 30 of its 32 tensors are from", "below 'teacher'", "pos_embed was resampled from 4 × 4 to 2 × 6 patches",
        "patch_embed.proj.weight was adapted from 3 to 1 channels", "none that fit for head.weight, head.bias, so these are new",
    ):  # fmt: skip
        assert words in said, said
    assert torch.equal(loaded.blocks[1].attn.qkv.weight, vit.blocks[1].attn.qkv.weight)
    grey = torch.randn(2, 1, 16, 48)
    with torch.no_grad():  # timm itself resamples and adds in the same way
        torch.testing.assert_close(
            loaded.forward_features(grey), vit.forward_features(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5
        )
    load_backbone(
        "resnet9",
        widths=[4, 4, 4, 8],
        weights=mark(tmp_path, {**small(7).state_dict(), "projector.0.bias": torch.ones(1)}),
    )
    assert "Left out of the file: fc (2), projector (1)" in caplog.messages[-1]


def test_position_embeddings_are_resampled_as_timm_does():
    layers = pytest.importorskip("timm.layers", reason="timm is not installed: pip install '.[timm]'")
    table = torch.randn(1, 1 + 16, 8, generator=torch.Generator().manual_seed(0))
    theirs = layers.resample_abs_pos_embed(table, [2, 7], [4, 4], num_prefix_tokens=1)
    assert torch.equal(resample_positions(table[:, 1:], (4, 4), (2, 7)), theirs[:, 1:])


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 13])
def test_the_first_convolution_is_adapted_as_timm_does(channels, tmp_path):
    manipulate = pytest.importorskip("timm.models._manipulate", reason="timm is not installed: pip install '.[timm]'")
    made = small()
    loaded = small(in_channels=channels)
    load_weights(mark(tmp_path, made.state_dict()), loaded, "backbone")
    theirs = manipulate.adapt_input_conv(channels, made.features[0][0].weight.detach().clone())
    torch.testing.assert_close(loaded.features[0][0].weight.detach(), theirs)


def test_vision_transformers_of_torchvision_timm_and_transformers_take_each_others_weights(tmp_path):
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    vit = tiny_vit(num_heads=4)
    other = VisionTransformer(32, 8, 2, 4, 48, 192).eval()
    nn.init.normal_(other.encoder.pos_embedding)
    images = torch.randn(2, 3, 32, 32)
    load_weights(mark(tmp_path, vit.state_dict()), other, "backbone")
    other.heads = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(other(images), vit(images))
    back = tiny_vit(num_heads=4)
    load_weights(mark(tmp_path, {"model": other.state_dict()}), back, "backbone")
    assert same(back, vit)
    load_weights(
        mark(tmp_path, {f"vit.{key}": value for key, value in in_transformers(vit).items()}), other, "backbone"
    )
    with torch.no_grad():
        torch.testing.assert_close(other(images), vit(images))


def in_transformers(vit):
    """Return timm's weights with the names of transformers' ViTModel."""
    names = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "cls_token": "embeddings.cls_token"}
    names |= {"pos_embed": "embeddings.position_embeddings", "norm": "layernorm"}
    in_blocks = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    in_blocks |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    result = {"pooler.dense.weight": torch.ones(2, 2)}
    for key, value in vit.state_dict().items():
        name, _, kind = key.rpartition(".") if key.endswith((".weight", ".bias")) else (key, "", "")
        ending = f".{kind}" if kind else ""
        if not name.startswith("blocks."):
            result[names[name] + ending] = value
            continue
        _, number, part = name.split(".", 2)
        start = f"encoder.layer.{number}."
        if part == "attn.qkv":
            for one, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                result[f"{start}attention.attention.{one}{ending}"] = piece
        else:
            result[start + in_blocks[part] + ending] = value
    return result


def test_a_part_of_the_weights_needs_strict_false(tmp_path, caplog):
    made = small()
    content = {key: value for key, value in made.state_dict().items() if not key.startswith("features.5.")}
    path = str(mark(tmp_path, {**content, "extra.weight": torch.ones(2)}))
    loaded = small()
    before = copy.deepcopy(loaded)
    with pytest.raises(CheckpointError, match=r"The file lacks features.5.*The network lacks extra.*strict: false"):
        load_weights(path, loaded, "backbone")
    assert same(loaded, before)
    load_weights({"source": path, "strict": False}, loaded, "backbone")
    assert torch.equal(loaded.features[1][0].weight, made.features[1][0].weight)
    assert "The file lacks features.5" in caplog.text
    wide = small(widths=(4, 8, 8, 8))
    with pytest.raises(CheckpointError, match=r"features.1.0.weight is \(4, 4, 3, 3\) there, and \(8, 4, 3, 3\) here"):
        load_weights(path, wide, "backbone")


@pytest.mark.parametrize("strict", [True, False])
def test_nothing_that_matches_is_an_error_with_examples_of_both_sides(strict, tmp_path):
    path = mark(tmp_path, {"trunk.stem.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"keys such as trunk.stem.weight, and the network features.0.0.weight"):
        load_weights({"source": path, "strict": strict}, small(), "backbone")


def test_weights_of_a_run_that_do_not_fit_are_named_with_the_lines_that_load_them(make_toy, tmp_path):
    samples = torch.utils.data.TensorDataset(torch.randn(8, 3, 16, 16), torch.arange(8) % 2)
    options = {"name": "resnet9", "num_classes": 2, "widths": [4, 4, 4, 8], "weights": None}
    backbone = {"_target_": "stable_ssl.modules.load_backbone", **options}
    trainer = make_toy(data={"train": Loader(samples, 8)}, module={"backbone": backbone}, epochs=1)
    trainer()
    for place in (tmp_path / "run", *(tmp_path / "run" / "checkpoints").glob("step_*")):
        for name in ("resnet9", "resnet18"):
            with pytest.raises(CheckpointError, match="What fits this run: ") as caught:
                load_backbone(name, weights=str(place))
            lines = str(caught.value).rpartition("What fits this run: ")[2].removesuffix(".").split(", or ")
            networks = [eval(line, {"stable_ssl": stable_ssl, "load_backbone": load_backbone}) for line in lines]
            assert len(networks) == 2
            for network in networks:
                assert all(map(torch.equal, network.parameters(), trainer.module["backbone"].parameters()))
    for damaged in ("{", "trainer: null"):
        (tmp_path / "run" / "config.yaml").write_text(damaged)
        with pytest.raises(CheckpointError, match="no key is the same"):
            load_backbone("resnet18", weights=str(tmp_path / "run"))


def test_student_and_teacher_get_the_weights_of_one_network_and_give_the_teachers(tmp_path):
    made, pair = small(), TeacherStudentModule(small())
    load_weights(mark(tmp_path, made.state_dict()), pair, "backbone")
    assert same(pair.student, made)
    assert same(pair.teacher, made)
    nn.init.ones_(pair.teacher.features[0][0].weight)
    path = mark(tmp_path, below("backbone.", pair))
    assert same(load_backbone("resnet9", widths=[4, 4, 4, 8], weights=path), pair.teacher)
    given = {"source": path, "prefix": "backbone.student"}
    assert same(load_backbone("resnet9", widths=[4, 4, 4, 8], weights=given), made)


@pytest.mark.parametrize("word", ["true", "yes", "False", "none", ""])
def test_a_text_is_a_source_and_never_true(word):
    with pytest.raises(ConfigError, match="weights: .* is a text, and a text names a source"):
        load_backbone("resnet18", weights=word)
    with pytest.raises(ConfigError, match="module_init.backbone: .* is a text"):
        parse_source(word, "module_init.backbone")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sorce": "x"}, r"its keys are \['sorce'\], but must be source.* Did you mean 'source'"),
        ({"source": "x", "strict": "no"}, "strict must be true or false"),
        (3, "3 is no source of weights. Sources are"),
        ("IMAGENET1K_V3", "no file 'IMAGENET1K_V3', and of resnet18 torchvision has .* Did you mean 'IMAGENET1K_V1'"),
        (True, "true is for timm. torchvision has names of weights; of resnet18 these: .*DEFAULT"),
    ],
)
def test_what_is_no_source_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        load_backbone("resnet18", weights=given)


def test_a_source_that_is_not_there_is_named_with_what_sources_are(tmp_path):
    for place in (tmp_path / "gone.pth", tmp_path):
        with pytest.raises(CheckpointError, match=f"'{place}' .*Sources of weights are a run's folder"):
            load_weights(place, small(), "backbone")


@pytest.mark.parametrize("weights", ["DEFAULT", "timm/resnet18.a1_in1k"])
def test_low_resolution_would_throw_pretrained_weights_away(weights):
    with pytest.raises(ConfigError, match="low_resolution: it replaces the first convolution"):
        load_backbone("resnet18", weights=weights, low_resolution=True)


def test_weights_of_timm_are_taken_from_its_cache(tmp_path, monkeypatch):
    """A cache as the hub makes it stands for a download, which no test may need."""
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install '.[timm]'")
    hub = pytest.importorskip("huggingface_hub.constants")
    made = timm.create_model("resnet10t", num_classes=1000)
    repo = tmp_path / "models--timm--resnet10t.c3_in1k"
    (repo / "snapshots" / "1").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("1")
    save_file(made.state_dict(), repo / "snapshots" / "1" / "model.safetensors")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    loaded = load_backbone("timm/resnet10t", in_channels=1, weights="timm/resnet10t.c3_in1k")
    assert torch.equal(loaded.layer1[0].conv1.weight, made.layer1[0].conv1.weight)
    torch.testing.assert_close(loaded.conv1[0].weight, made.conv1[0].weight.sum(1, keepdim=True))
    with pytest.raises(CheckpointError, match="timm has no weights 'resnet10t.c4_in1k'. Did you mean"):
        load_backbone("timm/resnet10t", weights="timm/resnet10t.c4_in1k")
    with pytest.raises(CheckpointError, match="timm can't get the weights 'resnet14t.c3_in1k'"):
        load_backbone("timm/resnet14t", weights="timm/resnet14t.c3_in1k")


def test_a_single_layer_is_not_taken_from_another_part(tmp_path):
    path, layer = mark(tmp_path, below("backbone.head_proj.", nn.Linear(4, 4))), nn.Linear(4, 4)
    with pytest.raises(CheckpointError, match=r"no weights of a module 'predictor'.*prefix: backbone.head_proj"):
        load_weights(str(path), layer, "predictor")
    load_weights({"source": str(path), "prefix": "backbone.head_proj"}, layer, "predictor")


def test_a_file_that_fits_as_it_is_changes_nothing(tmp_path, caplog):
    caplog.set_level("INFO", "stable_ssl")
    network = small()
    load_weights(str(mark(tmp_path, network.state_dict())), network, "backbone")
    assert "all its" in caplog.text
    assert "adapted" not in caplog.text


def test_a_checkpoint_counts_if_it_is_newer_than_all_files_of_weights(make_toy, tmp_path):
    """As of a run that was killed: it has its first weights, and checkpoints."""
    trainer = make_toy(logger={"eval_at_start": True, "save_final_model": False})
    trainer()
    run = tmp_path / "run"
    assert [path.name for path in (run / "weights").iterdir()] == ["initial.safetensors"]
    name, tensors, _ = read_source(parse_source(str(run), "weights"))
    assert Path(name).parent == run / "checkpoints"
    for key, value in trainer.module.state_dict().items():
        assert torch.equal(tensors[key], value)
    shutil.copy(run / "weights" / "initial.safetensors", run / "weights" / "epoch_0001.safetensors")  # of step 0
    assert read_source(parse_source(str(run), "weights"))[0] == name
    for path in run.glob("checkpoints/*/state.pt"):
        path.write_bytes(b"")
    assert Path(read_source(parse_source(str(run), "weights"))[0]).name == "epoch_0001.safetensors"
    (run / "weights" / "epoch_0001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="None of the checkpoints"):
        read_source(parse_source(str(run), "weights"))
