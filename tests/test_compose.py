"""A configuration that does not compose is refused in words that name the key, the value and the remedy."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from stable_ssl import ConfigError, resolvers
from stable_ssl.cli.sweep import Sweep
from stable_ssl.compose import compose

PLAIN = "trainer: {optim: {epochs: 3}}\n"


def refusal(folder: Path, text: str, *overrides: str) -> str:
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        compose(str(folder / "mine.yaml"), overrides)
    return str(caught.value).replace(str(folder), "FOLDER")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("=3", "'=3': this override names no key; write key=value."),
        ("optim.epochs", "'optim.epochs': this override has no value; write optim.epochs=value."),
        (
            "name=a b[",
            "'name=a b[': the value of this override can't be read. If it is a text with special characters, quote it "
            "twice: \"name='a b['\".",
        ),
        (
            "optim.epochs=1,2",
            "'optim.epochs=1,2': this override has several values, which need --multirun; a list needs brackets.",
        ),
        ("optim.epochs=???", "'mine' does not compose: optim.epochs: '???' stands for a value that you must give."),
        (
            "optim.epochs=${nothing}",
            "'mine' does not compose: optim.epochs: '${nothing}' refers to a key that is not there.",
        ),
        ("hydra.wings=3", "'mine' does not compose: hydra.wings: there is no such key."),
        ("trainer=3", "trainer: 3 is not a dict of settings."),
    ],
)
def test_an_override_that_can_not_be_used(tmp_path, override, sentence):
    assert refusal(tmp_path, PLAIN, override) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("defaults: [simclr_digts]\n", "there is no 'simclr_digts'. Did you mean 'simclr_digits'?"),
        (
            f"defaults: [{{override /hydra/launcher: submitit_slrm}}]\n{PLAIN}",
            "there is no 'hydra/launcher/submitit_slrm'. Did you mean 'submitit_slurm'?",
        ),
        ("trainer: {a: '${trainer.b}'}\n", "a: '${trainer.b}' refers to a key that is not there."),
        ("trainer: {a: '${eval:x}'}\n", "a: '${eval:x}' has no value: eval: 'x' is not arithmetic on numbers."),
        ("trainer: {a: '${wings:x}'}\n", "a: '${wings:x}' calls a resolver that is not there."),
        ("trainer: {a: '${b'}\n", "a: the value can't be read; a reference to another key is ${key}."),
        ("trainer: {a: '${trainer.a}'}\n", "a: '${trainer.a}' refers to itself, or to a value that is missing."),
        (
            "trainer: {a: '${oc.env:WINGS_OF_NOBODY}'}\n",
            "a: '${oc.env:WINGS_OF_NOBODY}' has no value: Environment variable 'WINGS_OF_NOBODY' not found",
        ),
    ],
)
def test_a_file_that_does_not_compose(tmp_path, text, sentence):
    assert refusal(tmp_path, text) == f"'mine' does not compose: {sentence}"


def test_a_file_that_is_not_yaml_is_named_with_the_line(tmp_path):
    assert refusal(tmp_path, "trainer:\n  a: 1\n  a: 2\n").startswith(
        "'mine' does not compose: it is not YAML at line 3, column 3 of 'FOLDER/mine.yaml': "
    )
    assert refusal(tmp_path, "trainer: 3\n") == "trainer: 3 is not a dict of settings."
    assert refusal(tmp_path, "defaults: 3\n").startswith("'mine' does not compose: ")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["backbone=timm/resnet1"], "backbone.name: timm has no 'resnet1'. Similar names: 'timm/resnet18', 'timm/"),
        (["backbone=timm/wings"], "backbone.name: timm has no 'wings'."),
        (["data=webdataset", "root=FOLDER"], "data.train.dataset.path: no shard at 'FOLDER/train*.tar'."),
        (["data=prepared", "root=FOLDER/no"], "data.train.dataset.root: 'FOLDER/no' can't be read: No such file"),
        (["views=writting"], "there is no 'views/writting'. Did you mean 'writing'?"),
    ],
)
def test_what_a_recipe_can_t_be_given_is_said_without_its_inside(tmp_path, overrides, sentence):
    with pytest.raises(ConfigError) as caught:
        compose("simclr", [text.replace("FOLDER", str(tmp_path)) for text in overrides])
    said = str(caught.value).replace(str(tmp_path), "FOLDER")
    assert said == sentence if sentence.endswith(("'.", "?")) else said.startswith(sentence)


def test_several_values_are_for_sweeps(tmp_path):
    (tmp_path / "mine.yaml").write_text(PLAIN)
    points = Sweep(tmp_path, "mine", ["optim.epochs=1,2", "hardware.seed=5"]).points
    assert [(point.config["trainer"]["optim"], point.config["trainer"]["hardware"]) for point in points] == [
        ({"epochs": epochs}, {"seed": 5}) for epochs in (1, 2)
    ]


def test_a_recipe_that_is_not_there_is_named_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"^no recipe 'simclr_digts'\. Did you mean 'simclr_digits'\? There are: "):
        compose("simclr_digts")


def test_an_override_that_nothing_refers_to_is_named_and_others_are_not(caplog):
    compose(
        "simclr_digits", ["momentum=0.5", "size=8", "backbone.widths=[8,8,8,8]", "warmup_epochs=2", "num_classes=10"]
    )
    assert caplog.messages == ["'momentum=0.5' has no effect: nothing in this configuration refers to momentum."]


def test_resolvers_can_be_sent_to_other_processes():
    for resolver in (resolvers._feature_dim, resolvers._patch_side, resolvers._num_classes):
        assert pickle.loads(pickle.dumps(resolver)) is resolver
