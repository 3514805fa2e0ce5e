from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import yaml

from stable_ssl import ConfigError
from stable_ssl.cli import main
from stable_ssl.compose import complete_override, recipe_names
from stable_ssl.resolvers import arithmetic

COMMAND = Path(sys.executable).with_name("stable-ssl")
TINY = [
    "optim.epochs=1",
    "optim.max_steps=1",
]


def run(*args, cwd):
    return processes.run([COMMAND, *args], cwd=cwd)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_help_is_quick_and_imports_nothing_heavy(tmp_path):
    seconds = []
    for _ in range(2):
        before = os.times()
        done = subprocess.run([COMMAND, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        seconds.append(os.times().children_user - before.children_user)  # of the processor: others may be at work
    assert done.returncode == 0
    assert "recipes" in done.stdout
    assert min(seconds) < 0.5
    code = "import sys; from stable_ssl.cli import make_parser; make_parser(); print([m for m in ('torch', 'hydra') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("command", ["pretrain", "train", "resume", "branch", "views"])
def test_the_usage_says_that_settings_may_follow(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "[key=value ...]" in capsys.readouterr().out.split("\n\n")[0]


def test_recipes_are_listed_and_shown(tmp_path):
    listed = run("recipes", cwd=tmp_path)
    assert all(name in listed.stdout for name in recipe_names())
    shown = run("recipes", "show", "simclr_digits", "optim.epochs=7", cwd=tmp_path)
    assert "epochs: 7" in shown.stdout


def test_a_reader_that_leaves_gets_no_traceback():
    command = [sys.executable, "-m", "stable_ssl", "recipes", "show", "simclr_digits"]
    read, write = os.pipe()
    os.close(read)  # whoever reads has left already
    with os.fdopen(write, "wb") as nobody:
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("name", ["supervised_digits", "simclr_digits", "ijepa_digits"])
def test_a_run_trains_anew_from_its_own_configuration(tmp_path, name):
    few = ["backbone.depth=1", "patch_predictor.depth=1"] if name == "ijepa_digits" else []
    done = run("train", name, *TINY, *few, "logger.dump_path=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any("train/loss" in r or "test/accuracy" in r for r in records(tmp_path / "run"))
    again = run("train", "run/config.yaml", "logger.dump_path=anew", cwd=tmp_path)
    assert again.returncode == 0, again.stderr

    def learned(folder):
        return [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in records(tmp_path / folder)]

    assert learned("run") == learned("anew")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "simclr_digts"], "Did you mean 'simclr_digits'"),
        (["train"], "which recipe?"),
        (["train", "none.yaml"], "no file 'none.yaml'"),
        (["train", "simclr_digits", "optim.epoch=1", "hardware.sed=1"], "hardware.sed: unknown key"),
        (["train", "simclr_digits", "optim.epochs=[1"], "'optim.epochs=[1': the value of this override can't be read"),
        (["train", "--bogus"], "unknown option --bogus"),
    ],
)
def test_a_bad_request_has_status_2_and_no_traceback(tmp_path, args, words):
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


MINE = """
import stable_ssl
class MyTrainer(stable_ssl.SupervisedTrainer):
    def before_fit(self):
        if getattr(self, "fails", False):
            raise stable_ssl.CheckpointError("as asked")
"""
SHARED = """# @package _global_
trainer:
  _target_: my_trainer.MyTrainer
  data:
    _num_train_samples: 640
    train:
      _target_: torch.utils.data.DataLoader
      batch_size: 64
      shuffle: true
      dataset: {_target_: stable_ssl.data.Digits, size: 8}
  module:
    backbone:
      _target_: torch.nn.Sequential
      _args_: [{_target_: torch.nn.Flatten}, {_target_: torch.nn.Linear, in_features: 64, out_features: 10}]
  optim:
    epochs: 2
    max_steps: 2
    optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 1e-1}
    scheduler:
      _target_: stable_ssl.schedulers.LinearWarmup
      _partial_: true
      total_steps: ${eval:'${trainer.optim.epochs} * ${trainer.data._num_train_samples} // ${trainer.data.train.batch_size}'}
  hardware: {device: "cuda:0", float16: true}
  logger: {dump_path: run}
"""
CHILD = """# @package _global_
defaults:
  - shared_config
  - override /hydra/launcher: submitit_local
trainer:
  optim: {epochs: 1}
"""


@pytest.fixture
def old_files(tmp_path):
    (tmp_path / "my_trainer.py").write_text(MINE)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "shared_config.yaml").write_text(SHARED)
    (tmp_path / "configs" / "child.yaml").write_text(CHILD)
    return tmp_path


def test_the_older_form_trains_older_files(old_files):
    done = run("--config-path", "configs", "--config-name", "child", "++trainer.optim.max_steps=3", cwd=old_files)
    assert done.returncode == 0, done.stderr
    assert records(old_files / "run")[-1]["global_step"] == 3
    assert "no CUDA device" in done.stderr


def test_a_file_trains_with_a_trainer_of_the_working_folder_and_fails_with_status_1(old_files):
    done = run("train", "configs/child.yaml", "+trainer.fails=true", cwd=old_files)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "CheckpointError: as asked" in done.stderr
    assert json.loads((old_files / "run" / "status.json").read_text())["status"] == "failed"


def test_a_sweep_runs_each_point_in_a_folder_of_its_own(old_files):
    done = run(
        "train", "configs/shared_config.yaml", "-m", "optim.epochs=1", "optim.max_steps=3", "hardware.seed=1,2",
        "logger.dump_path=null",
        cwd=old_files,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = sorted(old_files.glob("multirun/**/metrics.jsonl"))
    assert len(runs) == 2
    losses = [records(path.parent)[0]["train/loss"] for path in runs]
    assert losses[0] != losses[1]


def test_a_signal_saves_and_has_its_status(old_files):
    process = processes.start([COMMAND, "train", "configs/child.yaml", "optim.epochs=100000"], cwd=old_files)
    deadline = time.monotonic() + 60
    while not (old_files / "run" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert list((old_files / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [("trainer:\n  a: [1\n", "is not YAML"), ("data:\n  a: 1\n", "has no key 'trainer'")],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, words):
    (tmp_path / "file.yaml").write_text(text)
    for more in ([], ["-m", "optim.epochs=1,2"]):
        done = run("train", "file.yaml", *more, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_resume_goes_on_with_the_newest_unfinished_run(tmp_path):
    options = ["hardware.device=cpu", "hardware.time_limit=0.0001"]  # stops at the first step boundary
    for name in ("first", "second"):
        done = run("train", "supervised_digits", *TINY, *options, f"logger.dump_path=runs/{name}", cwd=tmp_path)
        assert done.returncode == 75, done.stderr
    resumed = run("resume", "hardware.time_limit=null", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    status = {n: json.loads((tmp_path / "runs" / n / "status.json").read_text())["status"] for n in ("first", "second")}
    assert status == {"first": "preempted", "second": "finished"}
    assert run("resume", "runs/first", "hardware.time_limit=null", cwd=tmp_path).returncode == 0
    none = run("resume", cwd=tmp_path)
    assert (none.returncode, none.stderr) == (
        2,
        "stable-ssl: resume: no unfinished run in 'runs'; give a run's folder.\n",
    )
    wrong = run("resume", "runs/first", "optim.accumulation_steps=2", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "optim.accumulation_steps: the run in the folder has 1, this one 2." in wrong.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data.train.batch_size=2", "++trainer.data.train.batch_size=2"),
        ("optim.epochs=2", "++trainer.optim.epochs=2"),
        ("trainer.optim.epochs=2", "++trainer.optim.epochs=2"),
        ("+optim.new=1", "+trainer.optim.new=1"),
        ("~optim.scheduler", "~trainer.optim.scheduler"),
        ("hydra/launcher=submitit_local", "hydra/launcher=submitit_local"),
        ("view.degrees=3", "++view.degrees=3"),
        ("backbone=resnet", "backbone=resnet"),
    ],
)
def test_overrides_may_leave_out_the_trainer(text, expected):
    assert complete_override(text, {"trainer": {}, "view": {}}, {"backbone", "data"}) == expected


def test_an_override_below_a_key_that_stands_for_another_sets_that():
    config = {
        "trainer": {"module": {"backbone": "${backbone}", "both": {"student": "${backbone}"}}, "views": ["${view}"]},
        "backbone": {"name": "resnet9", "head": "${head}"},
        "head": {"width": 3},
    }
    for text, expected in {
        "module.backbone.name=x": "++backbone.name=x",
        "~module.both.student.name": "~backbone.name",
        "module.backbone.head.width=4": "++head.width=4",
        "module.backbone=null": "++trainer.module.backbone=null",
    }.items():
        assert complete_override(text, config, set()) == expected
    with pytest.raises(ConfigError, match=r"trainer\.views is a list, and items of a list can't be set one by one"):
        complete_override("views.0.degrees=3", config, set())


def test_a_typo_in_a_trainer_s_own_parameter_and_a_key_beside_the_trainer_are_refused(tmp_path):
    typo = run("train", "moco_digits", "symetric=true", cwd=tmp_path)
    assert typo.returncode == 2
    assert "symetric: unknown argument. Did you mean 'symmetric'?" in typo.stderr
    (tmp_path / "beside.yaml").write_text("defaults: [simclr_digits, _self_]\noptim: {epochs: 1}\n")
    beside = run("train", "beside.yaml", cwd=tmp_path)
    assert beside.returncode == 2
    assert "optim: stands beside 'trainer', where nothing looks at it; put it below, as trainer.optim." in beside.stderr


def test_a_recipe_s_backbone_is_set_where_it_is_shown(tmp_path):
    options = ["optim.epochs=1", "optim.max_steps=1", "logger.dump_path=run"]
    found = run("train", "byol_digits", *options, "module.backbone.student.widths=[4,4,4,128]", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    student = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["module"]["backbone"]["student"]
    assert student["widths"] == [4, 4, 4, 128]


def test_eval_is_arithmetic_only():
    assert arithmetic("2 * (3 + 4) // 5 - -1") == 3
    for text in ("__import__('os')", "a", "[1]", "2 ** 9", "1 if a else 2", "'a'"):
        with pytest.raises(ValueError, match="not arithmetic"):
            arithmetic(text)


def test_views_draws_samples_and_what_was_drawn_for_them(tmp_path):
    from PIL import Image

    done = run("views", "simclr_digits", "--samples", "2", "--out", "grid.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "grid.png") as picture:
        assert done.stdout == f"grid.png: {picture.width} × {picture.height} pixels\n"
        assert picture.width == 3 * (192 + 12)
        assert len(picture.convert("L").getcolors()) > 50
    assert not (tmp_path / "runs").exists()


def test_captions_say_how_an_image_was_resized():
    from stable_ssl.augmentations import HorizontalFlip, RandomResizedCrop, View
    from stable_ssl.cli.views import _captions

    view = View([RandomResizedCrop(8, scale=(1, 1), ratio=(1, 1), interpolation="bicubic"), HorizontalFlip(1.0)])
    (drawn,) = view.parameters(0, 0, [0], (9, 9))
    crop = "RandomResizedCrop bicubic top 0 left 0 height 9 width 9"
    assert _captions(drawn, view.operations, 1) == [[crop, "HorizontalFlip"]]


def test_views_draws_masks_too(tmp_path):
    (tmp_path / "masked.yaml").write_text("""
trainer:
  _target_: stable_ssl.trainers.SupervisedTrainer
  data:
    train:
      _target_: stable_ssl.data.Loader
      dataset: {_target_: stable_ssl.data.Digits, split: train, size: 32}
      batch_size: 8
      views: {_target_: stable_ssl.augmentations.IJEPAViews, size: 32, patch_size: 4, mean: [0.5], std: [0.5]}
  module: {backbone: {_target_: torch.nn.Flatten}}
""")
    from PIL import Image

    done = run("views", "masked.yaml", "--samples", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.width == 4 * (192 + 12)  # the image, its view, context and targets


def test_views_of_a_sample_that_can_not_be_used_has_a_sentence_and_no_traceback(tmp_path, monkeypatch, capsys):
    (tmp_path / "pairs.py").write_text(
        "import torch\n"
        "class Pairs(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, index): return {'left': torch.zeros(3, 8, 8), 'right': torch.zeros(3, 8, 8)}\n"
    )
    (tmp_path / "pairs.yaml").write_text("""
trainer:
  data:
    train:
      _target_: stable_ssl.data.Loader
      dataset: {_target_: pairs.Pairs}
      batch_size: 4
      views:
        _target_: stable_ssl.augmentations.MultiView
        views:
          - _target_: stable_ssl.augmentations.View
            operations: [{_target_: stable_ssl.augmentations.HorizontalFlip}]
""")
    monkeypatch.chdir(tmp_path)
    assert main(["views", "pairs.yaml"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("stable-ssl: ")
    assert "Traceback" not in said


def test_ctrl_c_while_the_configuration_is_composed_has_its_status_whatever_becomes_of_it(monkeypatch, capsys):
    import omegaconf

    key = omegaconf.Node._key

    def interrupted(self):
        if sys._getframe(1).f_code.co_name == "_set_item_impl":  # where OmegaConf then raises an UnboundLocalError
            raise KeyboardInterrupt
        return key(self)

    monkeypatch.setattr(omegaconf.Node, "_key", interrupted)
    assert main(["recipes", "show", "simclr_digits"]) == 130
    assert capsys.readouterr() == ("", "")


def test_views_of_what_has_none_shows_the_images(tmp_path):
    done = run("views", "supervised_digits", "--samples", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "views.png").exists()
    assert run("views", "simclr_digits", "--samples", "0", cwd=tmp_path).returncode == 2
