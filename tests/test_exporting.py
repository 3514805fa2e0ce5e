"""`stable-ssl export`: the library of each format loads what was written, and computes what the run's backbone computes."""

from __future__ import annotations

import os
import re
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from runs_on_disk import features_of, network, pair, vit, write_run
from torch import nn

import stable_ssl
from stable_ssl import CheckpointError, ConfigError, exporting, load_backbone
from stable_ssl.augmentations import EvalView
from stable_ssl.cli import main
from stable_ssl.evaluation.presets import PROTOCOLS
from stable_ssl.evaluation.protocol import Figure
from stable_ssl.evaluation.results import record, save
from stable_ssl.evaluation.sources import open_source
from stable_ssl.exporting.backbone import read_backbone
from stable_ssl.weights.files import save_weights

TINY = {"image_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 4}
USERS = {"VisionTransformer of a user": {"_target_": "runs_on_disk.TinyVisionTransformer"}}
NETWORKS = {
    "resnet18 of grey images": network("resnet18", in_channels=1),
    "ResNet of bottlenecks": {"_target_": "runs_on_disk.narrow_resnet"},
    "resnet18 for small images": network("resnet18", low_resolution=True),
    "efficientnet_b0": network("efficientnet_b0"),
    "ViT of torchvision": {"_target_": "runs_on_disk.headless_vit"},
    "ResNet of timm": network("timm/resnet18", in_channels=1),
    "ViT of timm": network("timm/vit_tiny_patch16_224", **TINY),
    "DINOv2": network("timm/vit_small_patch14_dinov2", **{**TINY, "image_size": 28, "patch_size": 14}),
    "ViT": vit(),
    "ViT of grey images": vit(in_channels=1),
    "ViT with a class token": vit(class_token=True, norm_eps=1e-6),
    "ViT with a class token and the mean": vit(class_token=True, pooling="mean"),
    "rectangular ViT": vit(image_size=[32, 48]),
    **USERS,
}
SIZES = {"DINOv2": 28, "rectangular ViT": [64, 48]}  # the last is not the size that it was made for
HELD = {
    "torchvision": {"resnet18 of grey images", "resnet18 for small images", "efficientnet_b0", "ViT of torchvision"},
    "timm": {*NETWORKS} - {"resnet18 for small images", "efficientnet_b0", "ResNet of bottlenecks", *USERS},
    "huggingface": {*NETWORKS} - {"resnet18 for small images", "efficientnet_b0", *USERS},
}  # fmt: skip


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


def features_by(lines, images):
    """Run lines that load a network, and return its features of images."""
    names: dict = {"images": images}
    with torch.no_grad():
        exec("\n".join(lines), names)
    return torch.as_tensor(names["features"])


def assert_same(features, wanted):
    """Compare features relative to the largest: in another order of sums, the last digits of large ones differ."""
    assert features.shape == wanted.shape
    assert (features - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())


def some_images(made, size=32, number=2):
    channels = next(part for part in made.modules() if isinstance(part, nn.Conv2d)).in_channels
    return torch.randn(number, channels, *([size] * 2 if isinstance(size, int) else size))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_library_loads_the_backbone_that_it_can_hold_and_else_nothing_is_written(tmp_path, name):
    size = SIZES.get(name, 32)
    backbone = write_run(tmp_path / "run", {"backbone": NETWORKS[name]}, size)["backbone"]
    images = some_images(backbone, size)
    wanted = features_of(backbone, images)
    for to, held in HELD.items():
        out = tmp_path / f"new of {to}"
        if name in held:
            exported = stable_ssl.export(tmp_path / "run", to, out)
            assert_same(features_by(exported.lines, images), wanted)
            assert (out / "README.md").exists() == (to != "torchvision")
        else:
            with pytest.raises(
                ConfigError, match=r"export: (torchvision|timm|transformers|timm's|ResNetModel)[^\n]*onnx"
            ):
                stable_ssl.export(tmp_path / "run", to, out)
            assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "node",
    [
        network("resnet9", widths=[4, 4, 4, 8]),
        NETWORKS["ViT with a class token"],
        NETWORKS["ViT of torchvision"],
    ],
)
def test_onnx_takes_batches_of_any_size(tmp_path, node):
    backbone = write_run(tmp_path / "run", {"backbone": node})["backbone"]
    exported = stable_ssl.export(tmp_path / "run", "onnx")
    assert exported.path == tmp_path / "run" / "exports" / "onnx"
    for number in (1, 2, 5):
        images = some_images(backbone, number=number)
        wanted = features_of(backbone, images)
        assert_same(features_by(exported.lines, images), wanted)


def test_the_command_prints_lines_that_load_the_network_that_the_run_is_evaluated_by(tmp_path, capsys):
    modules = {"context_encoder": vit(in_channels=1), "target_encoder": vit(in_channels=1)}
    made = write_run(tmp_path / "ijepa", modules)
    pairs = write_run(tmp_path / "byol", {"backbone": pair(network("resnet18"))}, evaluate_with="student")
    for run, options, wanted in (
        ("ijepa", ["--to", "huggingface"], made["target_encoder"]),
        ("ijepa", ["--to", "timm", "--network", "student"], made["context_encoder"]),
        ("byol", ["--to", "torchvision"], pairs["backbone"].student),
        ("byol", ["--to", "timm", "--network", "teacher"], pairs["backbone"].teacher),
    ):
        assert main(["export", str(tmp_path / run), *options]) == 0
        first, _, *lines = capsys.readouterr().out.splitlines()
        assert "loaded back: its features differ by at most" in first
        images = some_images(wanted)
        printed = textwrap.dedent("\n".join(lines)).splitlines()
        assert_same(features_by(printed, images), features_of(wanted, images))


def test_a_run_of_mae_is_exported_from_its_weights_and_from_its_checkpoint(tmp_path):
    few = ["optim.epochs=1", "optim.max_steps=1", "logger.monitor={}", "logger.metric={}", "logger.level=40"]
    few += ["backbone.depth=1", "hardware.device=cpu", f"logger.dump_path={tmp_path / 'run'}"]
    assert main(["train", "mae_digits", *few]) == 0
    backbone = stable_ssl.load(tmp_path / "run")["backbone"]
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    images = some_images(backbone, 16)
    for place in (tmp_path / "run" / "weights" / "final.safetensors", checkpoint):
        exported = stable_ssl.export(place, "timm", tmp_path / place.name)
        assert "(batch, 1, 16, 16)" in exported.lines[0]
        assert_same(features_by(exported.lines, images), features_of(backbone, images))


@pytest.mark.parametrize(
    ("node", "to"),
    [
        (network("resnet18", num_classes=3), "torchvision"),
        ({"_target_": "torchvision.models.resnet18", "num_classes": 3}, "torchvision"),
        ({"_target_": "timm.create_model", "model_name": "resnet18", "num_classes": 3}, "timm"),
    ],
)
def test_a_classifier_is_exported_without_its_last_layer_which_evaluation_leaves_out_too(tmp_path, node, to):
    pytest.importorskip(to)
    backbone = write_run(tmp_path / "run", {"backbone": node})["backbone"]
    backbone.fc = nn.Identity()
    images = some_images(backbone)
    exported = stable_ssl.export(tmp_path / "run", to)
    assert_same(features_by(exported.lines, images), features_of(backbone, images))
    assert_same(features_of(open_source(tmp_path / "run").network, images), features_of(backbone, images))


@pytest.mark.parametrize(("size", "of_image"), [(24, (24, 40)), ([32, 48], (60, 40))])
def test_images_are_prepared_as_the_runs_evaluation_prepares_them(tmp_path, size, of_image):
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    view = EvalView(size, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.2])
    write_run(tmp_path / "run", {"backbone": vit(image_size=size)}, size)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*of_image, 3), dtype=np.uint8))
    path = stable_ssl.export(tmp_path / "run", "huggingface").path
    prepared = transformers.AutoImageProcessor.from_pretrained(path)(image, return_tensors="pt")
    torch.testing.assert_close(prepared["pixel_values"][0], view(image), atol=1e-5, rtol=1e-5)
    model = timm.create_model(f"local-dir:{stable_ssl.export(tmp_path / 'run', 'timm').path}", pretrained=True)
    of_timm = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    level = 1.001 / 255 / 0.2  # PIL, by which timm resizes, rounds some pixels to the other of two levels
    torch.testing.assert_close(of_timm(image), view(image), atol=level, rtol=0)


def test_images_are_those_of_the_evaluation_whatever_says_so_in_the_configuration(tmp_path):
    target = "stable_ssl.augmentations."
    resize = {"_target_": f"{target}Resize", "size": 40, "interpolation": "bicubic"}
    normalize = {"_target_": f"{target}Normalize", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2]}
    operations = [resize, {"_target_": f"{target}CenterCrop", "size": 32}, normalize]
    view = {"_target_": f"{target}View", "operations": operations}
    write_run(
        tmp_path / "view", {"backbone": vit()}, data={"test": {"_target_": "stable_ssl.data.Loader", "views": view}}
    )
    subject, images = open_source(tmp_path / "view"), read_backbone(tmp_path / "view").images
    assert (images.size, images.mean, images.std) == (subject.size, [*subject.mean], [*subject.std])
    assert (images.resize, images.interpolation, images.channels) == (40, "bicubic", 3)
    timm_vit = {"_target_": "timm.create_model", "model_name": "vit_tiny_patch16_224", "img_size": 64, "depth": 1}
    write_run(tmp_path / "script", {"backbone": timm_vit}, data={"train": "<live Loader>"})
    images = read_backbone(tmp_path / "script").images
    assert (images.size, images.mean) == ((64, 64), None)


def test_what_was_written_can_begin_a_run_again_and_be_adapted_by_timm(tmp_path):
    timm = pytest.importorskip("timm")
    backbone = write_run(tmp_path / "run", {"backbone": network("resnet18")})["backbone"]
    exported = stable_ssl.export(tmp_path / "run", "timm")
    again = load_backbone("resnet18", weights=exported.path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in backbone.state_dict().items())
    adapted = timm.create_model(f"local-dir:{exported.path}", pretrained=True, num_classes=7, in_chans=1)
    assert adapted.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert torch.equal(adapted.layer4[1].conv2.weight, backbone.layer4[1].conv2.weight)


def test_the_card_has_the_figures_with_their_protocols(tmp_path):
    write_run(tmp_path / "run", {"backbone": vit()})
    subject = open_source(tmp_path / "run")
    figures = {0: [Figure("knn", 0.91, "representation")], 1: [Figure("knn", 0.914, "representation")]}
    sets = {"name": "images /home/me/secret project/photos", "train": 9, "test": 9, "classes": 2}
    made = record(subject, PROTOCOLS["knn"], sets, (16, 16), figures, {}, "line")
    save(made, tmp_path / "run" / "evaluations")
    save({**made, "weights": "weights/initial.safetensors", "global_step": 0}, tmp_path / "run" / "evaluations")
    card = (stable_ssl.export(tmp_path / "run", "timm").path / "README.md").read_text()
    assert "| knn | knn | 91.20 ± 0.28 % | photos | representation | 10 % of train | 2 |" in card
    assert card.count("| knn | knn |") == 1
    assert "license" not in card
    assert "- Step: 7" in card
    assert str(tmp_path) not in card
    assert "secret" not in card


def test_the_card_has_no_figures_of_other_networks_and_steps(tmp_path):
    made = write_run(tmp_path / "run", {"backbone": pair(vit())}, optim={"epochs": 100})
    early = tmp_path / "run" / "weights" / "epoch_0001.safetensors"
    save_weights(early, made.state_dict(), {"global_step": 3, "epoch": 1})
    for name, accuracy in (("teacher", 0.91), ("student", 0.82)):
        figures = {0: [Figure("knn", accuracy, "representation")]}
        sets = {"name": "digits", "train": 9, "test": 9, "classes": 2}
        subject = open_source(tmp_path / "run", network=name)
        save(record(subject, PROTOCOLS["knn"], sets, (16, 16), figures, {}, name), tmp_path / "run" / "evaluations")
    place = tmp_path / "run" / "weights" / "final.safetensors"
    for source, name, percent, epoch in (
        (tmp_path / "run", None, {"91.00 %"}, False),
        (place, "student", {"82.00 %"}, False),
        (early, "student", set(), True),
    ):
        exported = stable_ssl.export(source, "timm", tmp_path / f"{source.name} {name}", name)
        card = (exported.path / "README.md").read_text()
        assert {*re.findall(r"\d+\.\d\d %", card)} == percent
        assert ("- Epoch: 1\n- Step: 3" in card) == epoch


def test_only_an_earlier_export_of_the_same_command_is_replaced(tmp_path):
    write_run(tmp_path / "run", {"backbone": pair(vit())})
    export = lambda out, **options: stable_ssl.export(tmp_path / "run", "timm", out, **options)
    first = export(tmp_path / "out")
    before = (first.path / "config.json").stat().st_ino
    assert export(tmp_path / "out") == first
    assert (first.path / "config.json").stat().st_ino != before
    with pytest.raises(ConfigError, match="holds an export of backbone.teacher of '.*run', which is not overwritten"):
        export(tmp_path / "out", network="student")
    for name in ("notes", "file"):
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / name / "export.json" if name == "notes" else tmp_path / name).write_text("[1]")
        with pytest.raises(ConfigError, match="holds something else, which is not overwritten"):
            export(tmp_path / name)
    assert (tmp_path / "notes" / "export.json").read_text() == "[1]"


def test_an_export_that_came_first_meanwhile_is_left_alone(tmp_path, monkeypatch):
    for run in ("slow", "quick"):
        write_run(tmp_path / run, {"backbone": vit()})
    compared = exporting._compared

    def meanwhile(*args):
        monkeypatch.setattr(exporting, "_compared", compared)
        stable_ssl.export(tmp_path / "quick", "timm", tmp_path / "out")
        return compared(*args)

    monkeypatch.setattr(exporting, "_compared", meanwhile)
    with pytest.raises(ConfigError, match="holds an export of backbone of '.*quick', which is not overwritten"):
        stable_ssl.export(tmp_path / "slow", "timm", tmp_path / "out")


def test_others_can_read_the_files_if_the_user_lets_them_read_files(tmp_path):
    write_run(tmp_path / "run", {"backbone": vit()})
    (tmp_path / "file").touch()
    files = [*stable_ssl.export(tmp_path / "run", "timm").path.iterdir()]
    assert len(files) == 4
    assert {file.stat().st_mode for file in files} == {(tmp_path / "file").stat().st_mode}


def test_nothing_wrong_is_written(tmp_path, monkeypatch):
    write_run(tmp_path / "run", {"backbone": vit()})
    from stable_ssl.exporting import plain_vit

    monkeypatch.setitem(plain_vit._OF_LAYERS, "norm1.", "norm2.")
    monkeypatch.setitem(plain_vit._OF_LAYERS, "norm2.", "norm1.")
    for to in ("timm", "huggingface"):
        with pytest.raises(ConfigError, match="its features would differ by .* Nothing was written"):
            stable_ssl.export(tmp_path / "run", to)
    assert os.listdir(tmp_path / "run" / "exports") == []
    images = torch.ones(1, 3)
    for libraries, advice in (({"timm"}, "; onnx holds most networks."), ({"onnxruntime"}, ".")):
        with pytest.raises(ConfigError, match=f"Nothing was written{re.escape(advice)}$"):
            exporting._compared(["features = images + 1"], images, images, libraries)
    with pytest.raises(ConfigError, match="RuntimeError: Error in loading: Missing key"):
        exporting._compared(["raise RuntimeError('Error in loading:\\n\\tMissing key')"], images, images, {"timm"})


def test_without_the_library_it_is_written_and_the_text_says_that_nothing_was_compared(tmp_path, monkeypatch):
    write_run(tmp_path / "run", {"backbone": vit()})
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert (
        "not loaded back, because transformers is not installed"
        in stable_ssl.export(tmp_path / "run", "huggingface").told
    )
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"export: onnx needs `pip install 'stable-ssl\[onnx\]'`."):
        stable_ssl.export(tmp_path / "run", "onnx")


def test_what_can_not_be_exported_is_told_in_a_line(tmp_path, capsys, make_toy):
    write_run(tmp_path / "good", {"backbone": vit()})
    write_run(tmp_path / "weightless", {"backbone": vit()})
    (tmp_path / "weightless" / "weights" / "final.safetensors").unlink()
    write_run(tmp_path / "linear", {"backbone": {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 2}})
    write_run(tmp_path / "fixed", {"backbone": {"_target_": "runs_on_disk.fixed_network"}}, data={"train": "<live a>"})
    make_toy()()
    for run, to, words, status in (
        (
            "good",
            "timn",
            "there is no format 'timn'; there are torchvision, timm, huggingface, onnx. Did you mean 'timm'?",
            2,
        ),
        ("nothing", "timm", "is not of a run", 1),
        ("weightless", "timm", "has no weights, and no checkpoint either", 1),
        ("linear", "timm", "module.backbone can't take images of 32 × 32", 2),
        ("fixed", "onnx", "or 224 × 224 if it names none: RuntimeError: mat1 and mat2 shapes cannot be multiplied", 2),
        ("run", "timm", "because a Python script made it", 2),
    ):
        assert main(["export", str(tmp_path / run), "--to", to]) == status
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    with pytest.raises(CheckpointError):
        exporting.export(tmp_path, "timm")
