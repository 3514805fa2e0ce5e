"""`load_backbone(weights=RUN)`: the network that a run is evaluated by, from its configuration and its weights."""

from __future__ import annotations

import functools

import pytest
import torch
from runs_on_disk import network, pair, vit, write_run
from torch import nn

from stable_ssl import CheckpointError, ConfigError, load_backbone
from stable_ssl.data import Loader

NARROW = network("resnet9", in_channels=1, widths=[4, 4, 4, 8])


def same(found, wanted):
    theirs = wanted.state_dict()
    return found.state_dict().keys() == theirs.keys() and all(
        torch.equal(value, theirs[key]) for key, value in found.state_dict().items()
    )


@pytest.mark.parametrize(
    ("modules", "options", "path"),
    [
        ({"backbone": NARROW, "projector": NARROW}, {}, "backbone"),
        ({"backbone": pair(NARROW)}, {}, "backbone.teacher"),
        ({"backbone": pair(NARROW)}, {"evaluate_with": "student"}, "backbone.student"),
        ({"context_encoder": vit(), "target_encoder": vit()}, {}, "target_encoder"),
        ({"context_encoder": vit(), "target_encoder": vit()}, {"evaluate_with": "student"}, "context_encoder"),
    ],
)
def test_it_is_the_network_that_the_run_is_evaluated_by(tmp_path, modules, options, path):
    made = write_run(tmp_path / "run", modules, **options)
    before = torch.get_rng_state()
    for place in (tmp_path / "run", str(tmp_path / "run" / "weights" / "final.safetensors")):
        found, dim = load_backbone(weights=place, return_feature_dim=True)
        assert same(found, made.get_submodule(path))
        assert dim in (8, 48)
        assert found.training  # as all that `load_backbone` makes
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_the_other_of_two_networks_can_be_named(tmp_path, name):
    made = write_run(tmp_path / "pair", {"backbone": pair(NARROW)})
    encoders = write_run(tmp_path / "encoders", {"context_encoder": vit(), "target_encoder": vit()})
    encoder = {"teacher": "target_encoder", "student": "context_encoder"}[name]
    for folder, wanted in (("pair", made["backbone"].get_submodule(name)), ("encoders", encoders[encoder])):
        assert same(load_backbone(weights={"source": str(tmp_path / folder), "prefix": name}), wanted)


def test_a_classifier_loses_its_last_layer_or_gets_a_new_one(tmp_path):
    made = write_run(tmp_path / "run", {"backbone": {**NARROW, "num_classes": 10}})
    found = load_backbone(weights=tmp_path / "run")
    assert isinstance(found.fc, nn.Identity)
    assert same(found.features, made["backbone"].features)
    assert load_backbone(weights=tmp_path / "run", num_classes=3).fc.out_features == 3


def test_a_checkpoint_of_a_real_run_gives_its_backbone(make_toy, tmp_path):
    samples = torch.utils.data.TensorDataset(torch.randn(8, 1, 16, 16), torch.arange(8) % 2)
    trainer = make_toy(data={"train": Loader(samples, 8)}, module={"backbone": {**NARROW, "num_classes": 2}}, epochs=1)
    trainer()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    for place in (checkpoint, tmp_path / "run"):
        assert same(load_backbone(weights=place, num_classes=2), trainer.module["backbone"])


def test_what_it_cannot_give_is_said_with_a_way_out(make_toy, tmp_path):
    load = functools.partial(load_backbone, weights=tmp_path / "run")
    make_toy()()
    with pytest.raises(
        ConfigError, match=r"a Python script made it.*stable_ssl.load\('.*', module=\{'backbone': ...\}\)"
    ):
        load()
    with pytest.raises(CheckpointError, match="has no config.yaml"):
        load_backbone(weights=tmp_path)
    with pytest.raises(ConfigError, match="name: it is missing"):
        load_backbone()
    with pytest.raises(ConfigError, match="in_channels: the network is the run's"):
        load(in_channels=1)
    write_run(tmp_path / "other", {"encoder": NARROW})
    with pytest.raises(ConfigError, match="no module 'backbone'. Its modules are encoder"):
        load_backbone(weights=tmp_path / "other")
    assert load_backbone(weights={"source": str(tmp_path / "other"), "prefix": "encoder"}).num_features == 8
    write_run(tmp_path / "two", {"backbone": pair(NARROW), "encoder": NARROW})
    for wrong in ("encodr", "encoder.features", "backbone.studnt"):
        words = (
            f"'{wrong}' is none of the run's networks, which are backbone.teacher, backbone.student, encoder. Did you"
        )
        with pytest.raises(ConfigError, match=words):
            load_backbone(weights={"source": str(tmp_path / "two"), "prefix": wrong})
    write_run(tmp_path / "single", {"backbone": NARROW})
    with pytest.raises(ConfigError, match="the run has no teacher"):
        load_backbone(weights={"source": str(tmp_path / "single"), "prefix": "teacher"})
