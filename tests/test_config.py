from __future__ import annotations

import functools

import pytest
import torch

from stable_ssl import (
    ConfigError,
    HardwareConfig,
    LoggerConfig,
    OptimConfig,
    SupervisedTrainer,
    instanciate_config,
)
from stable_ssl.config import parse_config
from stable_ssl.nodes import build, check_nodes, describe


def problems_of(cls, **fields):
    problems = []
    parse_config(cls, fields, "x", problems)
    return problems


def test_defaults_are_the_documented_ones():
    hardware, optim, logger = HardwareConfig(), OptimConfig(), LoggerConfig()
    assert (hardware.seed, hardware.device, hardware.precision, hardware.world_size) == (0, "auto", "fp32", 1)
    assert (optim.epochs, optim.max_steps, optim.accumulation_steps, optim.nonfinite) == (
        1000,
        -1,
        1,
        "raise",
    )
    assert (
        logger.level,
        logger.eval_every_epoch,
        logger.checkpoint_every_minutes,
        logger.checkpoint_keep,
    ) == (20, 1, 10, 2)


def test_float16_is_an_old_name_that_precision_overrides():
    assert HardwareConfig(float16=True).precision == "fp16"
    assert HardwareConfig(float16=True, precision="bf16").precision == "bf16"


@pytest.mark.parametrize(
    ("cls", "fields", "words"),
    [
        (OptimConfig, {"epoch": 3}, "x.epoch: unknown key (value 3). Did you mean 'epochs'?"),
        (OptimConfig, {"epochs": "ten"}, "x.epochs: 'ten' will not do"),
        (OptimConfig, {"epochs": 0}, "x.epochs: 0 will not do"),
        (OptimConfig, {"epochs": True}, "expected a number, not a yes or no"),
        (OptimConfig, {"epochs": 2.5}, "x.epochs: 2.5 will not do"),
        (OptimConfig, {"max_steps": 0}, "expected -1, a count of at least 1, or a fraction in (0, 1)"),
        (OptimConfig, {"max_steps": 1.5}, "expected -1, a count"),
        (OptimConfig, {"grad_max_norm": -1}, "x.grad_max_norm: -1 will not do"),
        (OptimConfig, {"nonfinite": "rais"}, "Did you mean 'raise'?"),
        (HardwareConfig, {"precision": "fp8"}, "'fp32', 'bf16' or 'fp16'"),
        (HardwareConfig, {"device": "gpu"}, "x.device: 'gpu' will not do"),
        (HardwareConfig, {"world_size": 0}, "greater than or equal to 1"),
        (HardwareConfig, {"strategy": "fsdp"}, "'ddp'"),
        (LoggerConfig, {"level": "INF"}, "one of"),
        (LoggerConfig, {"wandb": {"projct": "a"}}, "unknown key 'projct'. Did you mean 'project'?"),
        (LoggerConfig, {"metric": 3}, "x.metric: 3 will not do"),
    ],
)
def test_a_mistake_is_named_with_its_value_and_what_was_expected(cls, fields, words):
    (problem,) = problems_of(cls, **fields)
    assert words in problem


def test_what_is_right_is_converted_once():
    assert OptimConfig(epochs="5", max_steps=0.5).epochs == 5
    assert OptimConfig(max_steps=3.0).max_steps == 3
    assert LoggerConfig(level="warning").level == 30


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (
            {"_target_": "stable_ssl.modules.load_bakbone"},
            "has no 'load_bakbone'. Did you mean 'load_backbone'?",
        ),
        ({"_target_": "stabel_ssl.MLP"}, "no module named 'stabel_ssl'"),
        ({"_target_": "stable_ssl.modules.MLP", "size": [1, 2]}, "x.size: MLP has no such argument"),
        ({"_target_": "stable_ssl.modules.MLP"}, "missing a required argument: 'sizes'"),
        ({"_target_": "stable_ssl.__version__"}, "can't be called"),
        ({"_target_": "not a path"}, "not an import path"),
        ({"a": [{"_target_": "stable_ssl.nope"}]}, "x.a[0]._target_"),
    ],
)
def test_a_node_that_can_not_be_built_is_found_without_building(node, words):
    problems = []
    check_nodes(node, "x", problems)
    assert words in " ".join(problems)


def test_nodes_are_built_as_hydra_builds_them():
    from hydra.utils import instantiate

    nodes = {
        "partial": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        "nested": {
            "_target_": "torch.nn.Sequential",
            "_args_": [{"_target_": "torch.nn.Linear", "_args_": [2, 3]}],
        },
        "list": [{"_target_": "builtins.complex", "real": 1, "imag": 2}, 5],
    }
    ours, theirs = build(nodes, "x"), instantiate(nodes)
    assert isinstance(ours["partial"], functools.partial)
    assert ours["partial"].keywords == theirs["partial"].keywords
    assert str(ours["nested"]) == str(theirs["nested"])
    assert ours["list"] == list(theirs["list"])


def test_an_error_in_a_constructor_names_the_key():
    with pytest.raises(ConfigError, match=r"module.backbone: stable_ssl.modules.MLP failed: ValueError: sizes"):
        build({"_target_": "stable_ssl.modules.MLP", "sizes": [1]}, "module.backbone")


def test_live_objects_are_described_by_their_class_and_lists_of_them_as_one():
    assert describe({"a": torch.nn.Linear(1, 1), "b": [1, 2], "c": [torch.zeros(1)] * 3}) == {
        "a": "<live Linear>", "b": [1, 2], "c": "<live list>",
    }  # fmt: skip


def test_a_partial_is_described_by_the_node_that_builds_it():
    made = functools.partial(torch.optim.SGD, lr=0.1, foreach=None)
    described = describe({"optimizer": made})["optimizer"]
    assert described == {"_target_": "torch.optim.sgd.SGD", "_partial_": True, "lr": 0.1, "foreach": None}
    again = build(described, "optimizer")
    assert (again.func, again.keywords) == (made.func, made.keywords)
    nowhere = describe(functools.partial(lambda lr: None, torch.zeros(1)))
    assert nowhere["_target_"].startswith("<live ")
    assert nowhere["_args_"] == "<live list>"


def test_a_configuration_of_a_run_with_live_objects_says_to_run_the_script():
    with pytest.raises(ConfigError, match="run that code again"):
        instanciate_config(
            {"trainer": {"_target_": "stable_ssl.SupervisedTrainer", "data": {"train": "<live Loader>"}}}
        )


def test_omegaconf_and_plain_dicts_give_the_same_trainer():
    from omegaconf import OmegaConf

    node = {
        "trainer": {
            "_target_": "stable_ssl.SupervisedTrainer",
            "data": {"_n": 3, "test": {"_target_": "stable_ssl.data.Loader", "dataset": [1], "batch_size": "${trainer.data._n}"}},
            "module": {"backbone": {"_target_": "torch.nn.Identity"}},
            "hardware": None,
        }
    }  # fmt: skip
    trainer = instanciate_config(OmegaConf.create(node))
    assert isinstance(trainer, SupervisedTrainer)
    assert trainer.data["test"]["batch_size"] == 3
    assert trainer.hardware["seed"] == 0
