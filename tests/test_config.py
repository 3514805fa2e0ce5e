from __future__ import annotations

import functools
import re

import pytest
import torch

from stable_ssl import (
    ConfigError,
    DINOTrainer,
    HardwareConfig,
    JointEmbeddingTrainer,
    LoggerConfig,
    OptimConfig,
    SupervisedTrainer,
    instanciate_config,
)
from stable_ssl.arguments import _GONE
from stable_ssl.config import parse_config, with_defaults
from stable_ssl.exceptions import nearest
from stable_ssl.fields import WANDB_KEYS
from stable_ssl.nodes import build, check_nodes, describe

SECTIONS = {HardwareConfig: "hardware", OptimConfig: "optim", LoggerConfig: "logger"}
SGD = {"_target_": "torch.optim.SGD"}
UNREADABLE = {"_target_": "stable_ssl.data.Parquet", "path": "/nowhere/*.parquet"}  # an error if it is built


def problems_of(cls, **fields):
    problems = []
    parse_config(cls, fields, SECTIONS[cls], problems)
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
    ("cls", "fields", "sentence"),
    [
        (OptimConfig, {"epoch": 3}, "optim.epoch: unknown key (value 3). Did you mean 'epochs'?"),
        (OptimConfig, {"wings": 3}, "optim.wings: unknown key (value 3)."),
        (OptimConfig, {3: 4}, "optim.3: unknown key (value 4)."),
        (OptimConfig, {"seed": 3}, "optim.seed: unknown key (value 3). Did you mean 'hardware.seed'?"),
        (HardwareConfig, {"epochs": 3}, "hardware.epochs: unknown key (value 3). Did you mean 'optim.epochs'?"),
        (LoggerConfig, {"dump_path": ["a"]}, "logger.dump_path: ['a'] is not a folder, or null."),
        (LoggerConfig, {"lr": 1}, "logger.lr: unknown key (value 1). Did you mean 'optim.optimizer.lr'?"),
        (OptimConfig, {"lr": 0.1}, "optim.lr: unknown key (value 0.1). Did you mean 'optim.optimizer.lr'?"),
        (
            OptimConfig,
            {"dampening": 1, "optimizer": SGD},
            "optim.dampening: unknown key (value 1). Did you mean 'optim.optimizer.dampening'?",
        ),
        (
            OptimConfig,
            {"momentum": 0.9, "optimizer": functools.partial(torch.optim.SGD)},
            "optim.momentum: unknown key (value 0.9). Did you mean 'optim.optimizer.momentum'?",
        ),
        (OptimConfig, {"betas": 1, "optimizer": SGD}, "optim.betas: unknown key (value 1)."),
        (
            OptimConfig,
            {"gamma": 1, "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR"}},
            "optim.gamma: unknown key (value 1). Did you mean 'optim.scheduler.gamma'?",
        ),
        (OptimConfig, {"epochs": "ten"}, "optim.epochs: 'ten' is not a whole number of at least 1."),
        (OptimConfig, {"epochs": 0}, "optim.epochs: 0 is not a whole number of at least 1."),
        (OptimConfig, {"epochs": True}, "optim.epochs: True is not a whole number of at least 1."),
        (OptimConfig, {"epochs": 2.5}, "optim.epochs: 2.5 is not a whole number of at least 1."),
        (OptimConfig, {"epochs": None}, "optim.epochs: None is not a whole number of at least 1."),
        *(
            (
                OptimConfig,
                {"max_steps": value},
                f"optim.max_steps: {value!r} is not -1, a whole number of at least 1, or a fraction between 0 and 1.",
            )
            for value in (0, 1.5, "all", float("inf"))
        ),
        (OptimConfig, {"grad_max_norm": -1}, "optim.grad_max_norm: -1 is not a finite number above 0 or null."),
        (
            OptimConfig,
            {"nonfinite": "rais"},
            "optim.nonfinite: 'rais' is not 'raise' or 'skip'. Did you mean 'raise'?",
        ),
        *(
            (
                HardwareConfig,
                {"precision": value},
                f"hardware.precision: {value!r} is not 'fp32', 'bf16' or 'fp16'. Did you mean '{meant}'?",
            )
            for value, meant in (("bf17", "bf16"), ("FP16", "fp16"), (16, "fp16"), ("float32", "fp32"))
        ),
        *(
            (
                HardwareConfig,
                {"device": value},
                f"hardware.device: {value!r} is not 'auto', 'cpu', 'mps', 'cuda' or 'cuda:N' for the GPU with number N."
                f" Did you mean '{meant}'?",
            )
            for value, meant in (("gpu", "cuda"), ("gpu:1", "cuda:1"), (0, "cuda:0"), ("cdua", "cuda"), ("CPU", "cpu"))
        ),
        (HardwareConfig, {"seed": -1}, "hardware.seed: -1 is not a whole number of at least 0 or null."),
        (HardwareConfig, {"world_size": 0}, "hardware.world_size: 0 is not a whole number of at least 1."),
        (HardwareConfig, {"strategy": "zero"}, "hardware.strategy: 'zero' is not 'ddp', 'fsdp' or 'hsdp'."),
        (
            HardwareConfig,
            {"compile": "fast"},
            "hardware.compile: 'fast' is not true, false, 'default', 'reduce-overhead', 'max-autotune' or "
            "'max-autotune-no-cudagraphs'.",
        ),
        (
            HardwareConfig,
            {"float16": "ture"},
            "hardware.float16: 'ture' is not true or false. Did you mean 'true'?",
        ),
        (
            LoggerConfig,
            {"level": "INF"},
            "logger.level: 'INF' is not a whole number or one of DEBUG, INFO, WARNING, ERROR, CRITICAL. "
            "Did you mean 'INFO'?",
        ),
        (
            LoggerConfig,
            {"wandb": {"projct": "a"}},
            "logger.wandb.projct: unknown key (value 'a'). Did you mean 'project'?",
        ),
        (
            LoggerConfig,
            {"wandb": "offline"},
            "logger.wandb: 'offline' is not true, false, null or a dict of wandb.init's arguments: "
            f"{', '.join(WANDB_KEYS)}.",
        ),
        (LoggerConfig, {"metric": 3}, "logger.metric: 3 is not a dict with the names of data sets as keys."),
        (
            LoggerConfig,
            {"save_final_model": 3.5},
            "logger.save_final_model: 3.5 is not true, false or the name of a file, without a folder.",
        ),
    ],
)
def test_a_mistake_is_named_with_its_value_and_with_what_is_possible(cls, fields, sentence):
    problems = []
    parse_config(cls, fields, SECTIONS[cls], problems)
    assert problems == [sentence]


@pytest.mark.parametrize("cls", SECTIONS)
def test_each_field_says_in_words_what_it_takes(cls):
    takes_anything = {"optimizer", "scheduler", "dump_path"}
    keys = [key for key in cls.model_fields if key not in takes_anything]
    problems = problems_of(cls, **{key: object() for key in keys})
    assert len(problems) == len(keys)
    for key, problem in zip(keys, problems, strict=True):
        assert re.fullmatch(rf"{SECTIONS[cls]}\.{key}: <object .*> is not [^.].+\.", problem)


@pytest.mark.parametrize(
    ("name", "valid", "sentence"),
    [
        ("Loder", ["loader", "Loader"], " Did you mean 'Loader'?"),
        ("loadr", ["Loader", "loader"], " Did you mean 'loader'?"),
        ("FP16", ["fp32", "fp16"], " Did you mean 'fp16'?"),
        ("wings", ["fp32", "fp16"], ""),
        ("wings", [], ""),
    ],
)
def test_the_nearest_name_is_suggested_if_one_is_near(name, valid, sentence):
    assert nearest(name, valid) == sentence


def test_what_is_right_is_converted_once():
    assert OptimConfig(epochs="5", max_steps=0.5).epochs == 5
    assert OptimConfig(max_steps=3.0).max_steps == 3
    assert OptimConfig(max_steps=-2).max_steps == -1
    off = LoggerConfig(save_final_model=None, checkpoint_frequency=0)
    assert (off.save_final_model, off.checkpoint_frequency) == (False, None)
    assert LoggerConfig(level="warning").level == 30


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (
            {"_target_": "stable_ssl.modules.load_bakbone"},
            "x._target_: 'stable_ssl.modules.load_bakbone' can't be found: stable_ssl.modules has no 'load_bakbone'. "
            "Did you mean 'load_backbone'?",
        ),
        ({"_target_": "stabel_ssl.MLP"}, "no module named 'stabel_ssl'"),
        (
            {"_target_": "stable_ssl.modules.MLP", "size": [1, 2], "sizes": [1, 2]},
            "x.size: MLP has no such argument (value [1, 2]). Did you mean 'sizes'?",
        ),
        ({"_target_": "stable_ssl.modules.MLP"}, "x.sizes: missing; MLP needs it."),
        ({"_target_": "torch.nn.Linear", "_args_": [1] * 6}, "x._args_: Linear takes at most 5 of them, not 6."),
        (
            {"_target_": "torch.nn.Linear", "_args_": [1, 2], "in_features": 3},
            "x.in_features: given twice, by this name and in _args_.",
        ),
        ({"_target_": "stable_ssl.__version__"}, "can't be called"),
        ({"_target_": "not a path"}, "not an import path"),
        ({"_target_": 3}, "x._target_: 3 is not an import path."),
        ({"a": [{"_target_": "stable_ssl.nope"}]}, "x.a[0]._target_"),
    ],
)
def test_a_node_that_can_not_be_built_is_found_without_building(node, words):
    problems = []
    check_nodes(node, "x", problems)
    assert words in " ".join(problems)


LOADER = {"_target_": "stable_ssl.data.Loader", "dataset": [1]}
TORCH_LOADER = {"_target_": "torch.utils.data.DataLoader", "dataset": [1]}
ERASING = {"_target_": "torchvision.transforms.v2.RandomErasing"}


def takes_words_by_default_numbers(temperature=0.1, is_warm=False, kind="a", limit=None, *, either: float | bool = 0.1):
    """Have `temperature` as a number or as 'auto'."""


OWN = {"_target_": takes_words_by_default_numbers}


@pytest.mark.parametrize(
    ("node", "key", "value", "expected"),
    [
        (SGD, "weight_decay", "abc", "a number, which SGD expects here."),
        (SGD, "lr", "0.1", "a number, which SGD expects here."),  # a number or a tensor
        (SGD, "momentum", True, "a number, which SGD expects here."),
        (SGD, "nesterov", "ture", "true or false, which SGD expects here. Did you mean 'true'?"),
        (LOADER, "shuffle", "maybe", "true or false, which Loader expects here."),
        (LOADER, "drop_last", 3, "true or false, which Loader expects here."),
        (LOADER, "batch_size", "big", "a whole number, which Loader expects here."),
        (TORCH_LOADER, "shuffle", "maybe", "true or false, which DataLoader expects here."),
        (TORCH_LOADER, "drop_last", 3, "true or false, which DataLoader expects here."),
        (ERASING, "p", "often", "a number, which RandomErasing expects here."),
        (OWN, "temperature", "warm", "a number, which takes_words_by_default_numbers expects here."),
        (OWN, "is_warm", "maybe", "true or false, which takes_words_by_default_numbers expects here."),
        (OWN, "either", "abc", "a number or true or false, which takes_words_by_default_numbers expects here."),
    ],
)
def test_an_argument_of_a_kind_that_can_not_be_meant_is_found_before_building(node, key, value, expected):
    problems = []
    check_nodes({**node, key: value}, "x", problems, partial=True)
    assert problems == [f"x.{key}: {value!r} is not {expected}"]


@pytest.mark.parametrize(
    ("node", "arguments"),
    [
        (SGD, {"lr": 1, "weight_decay": None, "nesterov": 1, "momentum": 0, "foreach": None}),
        (SGD, {"lr": torch.tensor(0.1)}),
        ({"_target_": "torch.optim.AdamW"}, {"lr": 1e-3, "betas": [0.9, 0.95]}),
        ({"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR"}, {"T_max": 1e3, "eta_min": 0}),
        (LOADER, {"batch_size": None, "shuffle": True, "views": "later", "timeout": 1}),
        (ERASING, {"value": "random"}),  # annotated as a float
        ({"_target_": "torch.nn.Conv2d"}, {"kernel_size": 3, "padding": "same"}),
        ({"_target_": "torchvision.transforms.v2.Resize"}, {"size": [3, 4], "interpolation": 2}),
        (OWN, {"temperature": "auto", "is_warm": 2, "kind": 3, "limit": "any", "either": False}),
        (OWN, {"temperature": True, "kind": False, "is_warm": None}),
    ],
)
def test_an_argument_of_another_kind_that_may_be_meant_is_left_alone(node, arguments):
    problems = []
    check_nodes({**node, **arguments}, "x", problems, partial=True)
    assert problems == []


def test_positional_arguments_of_a_node_have_kinds_too():
    problems = []
    check_nodes({"_target_": "torch.nn.Linear", "_args_": ["a", 2]}, "x", problems)
    assert problems == ["x._args_[0]: 'a' is not a whole number, which Linear expects here."]


class Own(SupervisedTrainer):
    """A user's trainer."""

    bare: int
    temperature: float = 0.1


class OwnConstructor(SupervisedTrainer):
    def __init__(self, *args, seed=3, **kwargs):
        super().__init__(*args, seed=seed, **kwargs)


def trainer_of(cls, **attributes):
    optim = {"optimizer": {**SGD, "lr": 0.1}}
    return cls({"train": LOADER}, {"backbone": torch.nn.Linear(1, 1)}, {}, optim, {}, **attributes)


@pytest.mark.parametrize(
    ("cls", "attributes", "sentence"),
    [
        (SupervisedTrainer, {"epochs": 3}, "epochs: unknown argument. Did you mean 'optim.epochs'?"),
        (SupervisedTrainer, {"seed": 3}, "seed: unknown argument. Did you mean 'hardware.seed'?"),
        (SupervisedTrainer, {"lr": 3}, "lr: unknown argument. Did you mean 'optim.optimizer.lr'?"),
        (SupervisedTrainer, {"batch_size": 3}, "batch_size: unknown argument. Did you mean 'data.train.batch_size'?"),
        (SupervisedTrainer, {"backbone": 3}, "backbone: unknown argument. Did you mean 'module.backbone'?"),
        (Own, {"optimizer": 3}, "optimizer: unknown argument. Did you mean 'optim.optimizer'?"),
        (Own, {"modul": 3}, "modul: unknown argument. Did you mean 'module'?"),
        (Own, {"temprature": 3}, "temprature: unknown argument. Did you mean 'temperature'?"),
        (Own, {"epoch": 3}, "epoch: BaseTrainer uses this name itself; choose another."),
        (Own, {"temperature": "warm"}, "temperature: 'warm' is not a number, which Own expects here."),
        (DINOTrainer, {"temperature_student": "warm"}, "'warm' is not a number, which DINOTrainer expects here."),
        (DINOTrainer, {"warmup_epochs_temperature_teacher": -1}, "-1 is not a count, a whole number of at least 0."),
        (DINOTrainer, {"warmup_epochs_temperature_teacher": 1.5}, "1.5 is not a count, a whole number of at least 0."),
    ],
)
def test_a_mistaken_argument_of_a_trainer_is_refused(cls, attributes, sentence):
    with pytest.raises(ConfigError) as caught:
        trainer_of(cls, **attributes)
    assert any(problem.endswith(sentence) for problem in caught.value.problems), caught.value.problems


def test_an_attribute_of_a_user_s_trainer_is_left_alone(caplog):
    trainer = trainer_of(Own, bare=-1, temperature=2)
    assert (trainer.bare, trainer.temperature, trainer_of(OwnConstructor, seed=4).seed) == (-1, 2, 4)
    assert not caplog.records
    assert trainer_of(Own, seed=3).seed == 3
    assert "seed: becomes an attribute of Own and is no setting. Did you mean 'hardware.seed'?" in caplog.text


@pytest.mark.parametrize(
    ("cls", "name", "advice"),
    [
        (SupervisedTrainer, "_build_modules", "Define prepare_modules(modules) instead."),
        (
            SupervisedTrainer,
            "_build",
            "Define initialize_modules() for first values, or check_setup() for checks, instead.",
        ),
        (SupervisedTrainer, "_backward", "Define side_losses() or before_optimizer_step() instead."),
        (SupervisedTrainer, "_optimizer_step", "Define before_optimizer_step() instead."),
        (SupervisedTrainer, "_build_optimization", "Define side_optimizers() instead."),
        (SupervisedTrainer, "_save", "It was internal and can no longer be overridden."),
        (JointEmbeddingTrainer, "_check_loss", "Define check_setup() instead."),
        (DINOTrainer, "_labels", "It was internal and can no longer be overridden."),
    ],
)
def test_a_user_s_override_of_a_private_method_that_is_gone_is_refused(cls, name, advice):
    mixin = type("Mixin", (), {name: lambda self: None})
    for own in (type("Own", (cls,), {name: lambda self: None}), type("Child", (mixin, cls), {})):
        owner = "Own" if own.__name__ == "Own" else "Mixin"
        with pytest.raises(ConfigError) as caught:
            trainer_of(own)
        assert f"{owner}.{name}: this method of a base class is gone. {advice}" in caught.value.problems


def test_the_methods_that_stand_in_for_private_ones_exist():
    advice = [sentence for family in _GONE.values() for sentence in family]
    names = {name for sentence in advice for name in re.findall(r"(\w+)\(", sentence)} - {
        "update_teacher"
    }  # of modules
    assert len(names) > 8
    assert all(hasattr(JointEmbeddingTrainer, name) for name in names)


def test_a_private_name_is_refused_only_where_a_method_of_this_name_was():
    own = type("Own", (SupervisedTrainer,), {"_labels": lambda self: None, "_state": 3, "_fit_step": lambda self: None})
    assert trainer_of(own)._state == 3


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
    with pytest.raises(ConfigError, match=r"^module.backbone.sizes: \[1\] must have at least 2 widths"):
        build({"_target_": "stable_ssl.modules.MLP", "sizes": [1]}, "module.backbone")
    with pytest.raises(ConfigError, match=r"^module.backbone: torch.nn.Linear failed: RuntimeError: Trying to create"):
        build({"_target_": "torch.nn.Linear", "in_features": -1, "out_features": 1}, "module.backbone")


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
    with pytest.raises(ConfigError, match="run that script again"):
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


class OwnArgument(SupervisedTrainer):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)


def test_the_arguments_of_a_user_s_constructor_are_checked_too():
    node = {
        "_target_": OwnArgument,
        "data": {"test": LOADER},
        "module": {"backbone": {"_target_": "torch.nn.Identity"}},
        "hardware": None,
        "optim": {},
        "logger": None,
    }
    with pytest.raises(ConfigError, match=r"^trainer\.width: missing; OwnArgument needs it\.$"):
        instanciate_config(node)
    assert instanciate_config({**node, "width": 3}).hardware["seed"] == 0


def test_a_setting_that_an_earlier_run_did_not_have_gets_its_default_and_a_section_is_not_made_up():
    assert with_defaults({"optim": {"epochs": 3}, "width": 8})["optim"].items() >= {"epochs": 3, "groups": {}}.items()
    assert with_defaults({"width": 8}) == {"width": 8}


@pytest.mark.parametrize(
    ("section", "value", "sentence"),
    [
        ("optim", {"optimizer": "torch.optim.SGD"}, "optim.optimizer: 'torch.optim.SGD' is neither a node nor"),
        ("optim", {"optimizer": {**SGD, "lr": -1.0}}, "optim.optimizer.lr: -1.0 does not suit: ValueError: Invalid"),
        ("optim", {"optimizer": SGD, "scheduler": "cosine"}, "optim.scheduler: 'cosine' is neither a node nor"),
        (
            "optim",
            {"optimizer": SGD, "scheduler": {"_target_": "stable_ssl.schedulers.LinearWarmup", "peak_step": -1}},
            "optim.scheduler.peak_step: -1 must be a fraction",
        ),
        ("data", {"train": {"_target_": "stable_ssl.data.Loader", "dataset": UNREADABLE, "batch_size": 0}}, "data.train.batch_size: must be"),
        ("data", {"train": {"_target_": "stable_ssl.data.Loader", "dataset": UNREADABLE, "views": {"_target_": "stable_ssl.augmentations.View", "operations": 3}}}, "data.train.views.operations: 3 is not a list of Operations, which View"),
        ("data", {"train": "photos"}, "data.train: 'photos' is no loader."),
        ("loss", "ntxent", "loss: 'ntxent' is no loss."),
        (
            "logger",
            {"metric": {"test": {"accuracy": {"_target_": "torchmetrics.classification.MulticlassAccuracy", "num_classes": 1}}}},
            "logger.metric.test.accuracy: torchmetrics.classification.MulticlassAccuracy failed",
        ),
    ],
)  # fmt: skip
def test_a_value_that_a_constructor_refuses_is_named_before_data_are_read(section, value, sentence):
    arguments = {
        "data": {"train": [], "test": []}, "module": {"backbone": torch.nn.Linear(1, 1)}, "hardware": {},
        "optim": {"optimizer": SGD}, "logger": {}, "loss": None,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        SupervisedTrainer(**{**arguments, section: value})
    assert [problem[: len(sentence)] for problem in caught.value.problems] == [sentence]
