"""Files of early 2025: YAML files, weights, folders of runs and command lines, in the form that they had then."""

from __future__ import annotations

import functools
import json
import logging
import os

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from wandb_files import all_records, wandb_run

from stable_ssl import CheckpointError, ConfigError
from stable_ssl.cli import main
from stable_ssl.compose import compose
from stable_ssl.modules import MLP
from stable_ssl.runtime.status import read_status
from stable_ssl.weights.loading import load_weights


@pytest.fixture
def old_run(tmp_path):
    """The folder of a run of early 2025 that was preempted, and the weights in it."""
    folder = tmp_path / "outputs" / "then"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("trainer: {_target_: stable_ssl.SupervisedTrainer}\n")
    (folder / "logs_rank_0.jsonl").write_text('{"train/loss": 2.3, "epoch": 0, "step": 0, "rank": 0}\n')
    generator = torch.Generator().manual_seed(0)
    shapes = {"layers.0.weight": (16, 8), "layers.1.weight": (16,), "layers.1.bias": (16,), "layers.3.weight": (2, 16)}
    shapes |= {"layers.1.running_mean": (16,), "layers.1.running_var": (16,)}
    weights = {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}
    weights["layers.1.num_batches_tracked"] = torch.tensor(5)
    state = {
        "loss": {"bn.weight": torch.ones(2)},
        "module": {
            f"{name}.{key}": value for name in ("backbone", "projector.module") for key, value in weights.items()
        },
        "epoch": 3,
    }
    torch.save(state, folder / "tmp_checkpoint.ckpt")
    return folder, weights


def test_weights_of_early_2025_begin_a_run_and_the_log_says_how_many(old_run, caplog):
    folder, weights = old_run
    caplog.set_level(logging.INFO, "stable_ssl")
    for name in ("backbone", "projector"):  # the second was in DistributedDataParallel
        module = MLP([8, 16, 2])
        load_weights(folder / "tmp_checkpoint.ckpt", module, name)
        for key, value in weights.items():
            assert torch.equal(module.state_dict()[key.removeprefix("layers.")], value), key
    assert f"module.projector: all its 7 tensors are from '{folder / 'tmp_checkpoint.ckpt'}'" in caplog.text
    with pytest.raises(
        CheckpointError, match=r"no weights of a module 'head'. Its modules are \['backbone', 'projector'\]"
    ):
        load_weights(folder / "tmp_checkpoint.ckpt", module, "head")
    with pytest.raises(CheckpointError, match="does not fit module 'backbone'.*"):
        load_weights(folder / "tmp_checkpoint.ckpt", MLP([8, 4, 2]), "backbone")


def test_other_files_of_torch_are_read_or_it_is_said_why_not(tmp_path):
    made, read = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / "weights.pth"
    for content in (
        made.state_dict(),
        {"state_dict": {f"module.{k}": v for k, v in made.state_dict().items()}, "lr": 1},
    ):
        nn.init.zeros_(read.weight)
        torch.save(content, path)
        load_weights(path, read, "backbone")
        assert torch.equal(read.weight, made.weight)
    torch.save(made, path)
    with pytest.raises(CheckpointError, match="weights.pth' can't be read: .*objects whose code would run"):
        load_weights(path, read, "backbone")
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"holds no state dict, but its keys are \['epoch'\]"):
        load_weights(path, read, "backbone")
    path.write_bytes(b"no weights at all")
    with pytest.raises(CheckpointError, match="weights.pth' can't be read"):
        load_weights(path, read, "backbone")


def test_a_run_of_early_2025_is_refused_by_name_wherever_it_is_given(old_run, make_toy, capsys):
    folder, _ = old_run
    why = r"holds a run of stable-ssl of early 2025, which can't be resumed.*module_init=\{backbone: '.*tmp_checkpoint.ckpt'"
    with pytest.raises(ConfigError, match=rf"logger.dump_path: '{folder}' {why}"):
        make_toy(logger={"dump_path": folder})()
    with pytest.raises(CheckpointError, match=why):
        load_weights(folder, MLP([8, 16, 2]), "backbone")
    for command in ("resume", "branch"):
        assert main([command, str(folder)]) == 2
        assert "holds a run of stable-ssl of early 2025" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [
        ".hydra",
        ".lock",
        "logs_rank_0.jsonl",
        "tmp_checkpoint.ckpt",
    ]


FILE = """# @package _global_
defaults:
  - metrics
  - override /hydra/launcher: submitit_local
trainer:
  _target_: stable_ssl.trainers.SupervisedTrainer
  data:
    _num_classes: 10
    train:
      _target_: torch.utils.data.DataLoader
      batch_size: 64
      drop_last: True
      shuffle: True
      dataset: {_target_: stable_ssl.data.Digits, split: test, size: 8}
    test:
      _target_: torch.utils.data.DataLoader
      batch_size: 64
      dataset: ${trainer.data.train.dataset}
  module:
    backbone:
      _target_: torch.nn.Sequential
      _args_: [{_target_: torch.nn.Flatten}, {_target_: torch.nn.Linear, in_features: 64, out_features: 10}]
  optim:
    epochs: 1
    max_steps: -2
    optimizer: {_target_: stable_ssl.optimizers.LARS, _partial_: True, lr: 0.1}
    scheduler: {_target_: stable_ssl.schedulers.LinearWarmupCosineAnnealing, _partial_: True, total_steps: 5}
  hardware: {seed: 0, float16: false, device: cpu}
  logger: {checkpoint_frequency: 0, save_final_model: null}
"""
METRICS = """# @package _global_
trainer:
  logger:
    metric:
      test: {acc1: {_target_: torchmetrics.classification.MulticlassAccuracy, num_classes: 10}}
      tests: {acc1: {_target_: torchmetrics.classification.MulticlassAccuracy, num_classes: 100}}
    monitor:
      val: {rankme: {_target_: stable_ssl.monitors.RankMe}}
"""


@pytest.fixture
def old_file(tmp_path, monkeypatch):
    """A folder of experiments that share a file of metrics; it is the working folder."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.yaml").write_text(FILE)
    (tmp_path / "configs" / "metrics.yaml").write_text(METRICS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


OLD_FORM = ["--config-path", "configs", "--config-name", "small"]


def test_metrics_of_other_sets_are_left_out_of_a_file_and_refused_as_overrides(old_file, capsys):
    assert main([*OLD_FORM, "hydra.run.dir=run"]) == 0
    said = (old_file / "run" / "console.log").read_text()
    assert "logger.metric.tests: there is no such set in data, so it has no effect. Did you mean 'test'?" in said
    assert "logger.monitor.val: there is no such set in data" in said
    records = [json.loads(line) for line in (old_file / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(key for key in record if key.startswith("test")) for record in records if "test/acc1" in record] == [
        ["test/acc1"]
    ]
    assert max(record["global_step"] for record in records) == 5  # max_steps: -2 is all of them
    assert not any((old_file / "run" / "weights").glob("*"))
    given = (
        "++trainer.logger.metric.tset.acc1={_target_: torchmetrics.classification.MulticlassAccuracy, num_classes: 10}"
    )
    for override in (given, "logger.monitor={tset: {}}"):
        assert main([*OLD_FORM, override]) == 2
        assert "tset: there is no such set in data. Did you mean 'test'?" in capsys.readouterr().err
    assert main([*OLD_FORM, "-m", given, "hardware.seed=0,1"]) == 2


def sweep(folder, monkeypatch, **values):
    """Give values to the runs of this process as W&B's agent does."""
    from wandb.sdk.lib.config_util import save_config_file_from_dict

    save_config_file_from_dict(
        str(folder / "config-abc123.yaml"), {key: {"value": value} for key, value in values.items()}
    )
    for name, value in {
        "SWEEP_ID": "s1",
        "RUN_ID": "abc123",
        "SWEEP_PARAM_PATH": folder / "config-abc123.yaml",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))


def wandb_start(folder):
    """Return the id of the run of W&B in a folder, and the configuration that W&B shows."""
    run = wandb_run(folder)
    return run.run_id, {item.key: json.loads(item.value_json) for item in run.config.update}


def test_the_values_of_a_sweep_replace_those_of_the_file(old_file, offline, monkeypatch, capsys, request):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it reads the environment once per process
    request.addfinalizer(wandb.teardown)
    dotted = {"trainer.optim.optimizer.lr": 0.25, "hardware.seed": 3, "data.train.batch_size": 32}
    nested = {"trainer": {"optim": {"epochs": 2, "scheduler": {"total_steps": 22}}}}
    sweep(old_file, monkeypatch, **dotted, **nested)
    monkeypatch.chdir(old_file.parent)  # the process of W&B begins in another folder than the run
    wandb.init(mode="offline", dir=str(old_file / "before")).finish()
    monkeypatch.chdir(old_file)
    assert main([*OLD_FORM, "logger.wandb={}", "hydra.run.dir=run"]) == 0
    config = OmegaConf.to_container(OmegaConf.load(old_file / "run" / "config.yaml"))["trainer"]
    assert (config["optim"]["optimizer"]["lr"], config["optim"]["epochs"], config["hardware"]["seed"]) == (0.25, 2, 3)
    assert (config["data"]["train"]["batch_size"], config["optim"]["scheduler"]["total_steps"]) == (32, 22)
    assert config["optim"]["optimizer"]["_target_"] == "stable_ssl.optimizers.LARS"
    assert read_status(old_file / "run")["progress"]["global_step"] == 22  # of 355 images
    assert "The W&B sweep sets trainer.optim.optimizer.lr to 0.25." in (old_file / "run" / "console.log").read_text()
    identity, shown = wandb_start(old_file / "run")
    assert (identity, shown["trainer.optim.optimizer.lr"]) == ("abc123", 0.25)
    # The run goes on without the agent, under the same id, and a sweep with other values is refused.
    sweep(old_file, monkeypatch, **dotted | {"hardware.seed": 4}, **nested)
    assert main([*OLD_FORM, "logger.wandb={}", "hydra.run.dir=run"]) == 2
    assert "hardware.seed: the run in the folder has 3, this one 4" in capsys.readouterr().err
    for name in ("SWEEP_ID", "RUN_ID", "SWEEP_PARAM_PATH"):
        monkeypatch.delenv(f"WANDB_{name}")
    assert main(["resume", "run", "optim.epochs=3", "logger.wandb={id: null}"]) == 0
    assert {record.run.run_id for record in all_records(old_file / "run") if record.HasField("run")} == {"abc123"}


def test_values_of_a_sweep_that_are_for_nothing_are_refused_by_name(make_toy, tmp_path, monkeypatch):
    sweep(tmp_path, monkeypatch, lr=1.0, **{"optim.optimizer.lrr": 1, "module.backbone.dim": 3, "data.trane.x": 1})
    logger = {"wandb": {"mode": "disabled"}}
    with pytest.raises(ConfigError) as caught:
        make_toy(logger=logger)
    said = "\n".join(caught.value.problems)
    assert "sets lr to 1.0, but there is no such setting. Did you mean 'optim.optimizer.lr'?" in said
    assert "optim.optimizer has no argument 'lrr'. Did you mean 'lr'?" in said
    assert "module.backbone is a Sequential, of which a sweep can't set parts" in said
    assert "data has no 'trane'. Did you mean 'train'?" in said
    sweep(tmp_path, monkeypatch, **{"optim.epoch": 3})
    with pytest.raises(ConfigError, match="optim.epoch: unknown key .value 3.. Did you mean 'epochs'?"):
        make_toy(logger=logger)
    sweep(tmp_path, monkeypatch, **{"optim.optimizer.lr": 0.5})
    assert make_toy(logger=logger).get_config()["trainer"]["optim"]["optimizer"]["lr"] == 0.5
    trainer = make_toy(logger={"level": 20}, epochs=1)
    trainer()
    assert "no effect, because logger.wandb is off" in (trainer.folder / "console.log").read_text()
    assert trainer.optim["optimizer"].param_groups[0]["lr"] == 0.1


def test_a_single_run_is_where_hydra_says_with_its_environment(old_file, monkeypatch):
    with open(old_file / "configs" / "small.yaml", "a") as file:
        file.write(
            "hydra: {run: {dir: 'out/${trainer.hardware.seed}'}, job: {chdir: True, env_set: {MY_DATA: here}}}\n"
        )
        file.write("home: ${hydra:runtime.output_dir}\n")
    seen = []
    monkeypatch.setattr(
        "stable_ssl.base.BaseTrainer.before_fit", lambda self: seen.append((os.getcwd(), os.environ["MY_DATA"]))
    )
    assert main([*OLD_FORM, "trainer.note='${home}'"]) == 0
    run = old_file / "out" / "0"
    assert seen == [(str(run), "here")]
    assert (os.getcwd(), "MY_DATA" in os.environ) == (str(old_file), False)
    assert OmegaConf.load(run / "config.yaml").trainer.note == str(run)
    assert (run / "metrics.jsonl").is_file()


def test_a_file_that_refers_to_hydras_folder_has_its_run_there(old_file):
    composed = compose("small", ["trainer.logger.wandb={dir: '${hydra:runtime.output_dir}'}"], "configs")["trainer"]
    assert composed["logger"]["dump_path"] == composed["logger"]["wandb"]["dir"]
    assert composed["logger"]["dump_path"].startswith(str(old_file / "outputs"))
    assert "dump_path" not in compose("small", [], "configs")["trainer"]["logger"]


def test_options_of_hydra_show_the_configuration(old_file, capsys):
    root = logging.getLogger()
    before = [*root.handlers], root.level
    assert main(["--cfg", "job", *OLD_FORM, "-p", "trainer.optim", "--resolve", "++trainer.optim.epochs=7"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.epochs, shown.optimizer.lr) == (7, 0.1)
    assert main([*OLD_FORM, "-c", "hydra"]) == 0
    assert "LocalLauncher" in capsys.readouterr().out
    assert main(["--hydra-help"]) == 0
    assert ([*root.handlers], root.level) == before
    assert "Hydra (" in capsys.readouterr().out
    assert main(["train", "simclr_digits", "--cfg", "job", "optim.epochs=3"]) == 0
    assert OmegaConf.create(capsys.readouterr().out).trainer.optim.epochs == 3
    assert not (old_file / "runs").exists()


def test_a_file_finds_the_folders_of_its_search_path(old_file):
    (old_file / "elsewhere" / "net").mkdir(parents=True)
    (old_file / "elsewhere" / "net" / "tiny.yaml").write_text("# @package trainer\nnote: tiny\n")
    head = f"# @package _global_\ndefaults: [small, net: tiny]\nhydra: {{searchpath: ['file://{old_file / 'elsewhere'}']}}\n"
    (old_file / "configs" / "child.yaml").write_text(head)
    assert compose("child", [], "configs")["trainer"]["note"] == "tiny"


def test_keys_beside_the_trainer_are_attributes_of_the_resumed_run_too(tmp_path):
    from stable_ssl import instanciate_config
    from stable_ssl.compose import compose

    (tmp_path / "mine.yaml").write_text("defaults: [supervised_digits, _self_]\ntrainer: {optim: {max_steps: 1}}\n")
    config = compose(str(tmp_path / "mine.yaml"), ["optim.epochs=1", f"logger.dump_path={tmp_path / 'run'}"])
    trainer = instanciate_config({**config, "note": {"who": "me"}, "tag": 3})
    trainer()
    again = instanciate_config(compose(str(tmp_path / "run" / "config.yaml")))
    assert (again.note.who, again.tag) == (trainer.note.who, trainer.tag) == ("me", 3)


def test_a_function_of_the_users_own_makes_the_optimizer_from_parameters(make_toy):
    def make(parameters, lr):
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        return torch.optim.SGD([{"params": trained[:1], "weight_decay": 0.1}, {"params": trained[1:]}], lr=lr)

    trainer = make_toy(optimizer=functools.partial(make, lr=0.1), epochs=1)
    trainer()
    assert [group["weight_decay"] for group in trainer.optim["optimizer"].param_groups] == [0.1, 0]


def test_eval_knows_a_few_functions_and_a_folder_may_name_the_job(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "hydra: {run: {dir: 'runs/${hydra:job.name}/x'}}\ntrainer: {_target_: stable_ssl.SupervisedTrainer, logger: {}, "
        "n: \"${eval:'max(int(0.5 * 7), round(2.6), 1)'}\"}\n"
    )
    composed = compose(str(tmp_path / "mine.yaml"))["trainer"]
    assert (composed["n"], composed["logger"]["dump_path"]) == (3, "runs/mine/x")


def test_options_that_belong_to_another_are_refused_without_it(capsys):
    for option in (["--package", "trainer.optim"], ["--resolve"]):
        assert main(["train", "supervised_digits", *option]) == 2
        assert "--package and --resolve belong to --cfg, as in --cfg job --resolve." in capsys.readouterr().err
