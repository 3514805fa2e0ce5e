"""`~` in paths is the home folder, wherever a path is given."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import stable_ssl
from stable_ssl.cli import main
from stable_ssl.cli.sweep import Sweep
from stable_ssl.compose import compose
from stable_ssl.data import HuggingFaceDataset, ImageFolder, Parquet
from stable_ssl.runtime.folder import RunFolder
from stable_ssl.weights.files import save_weights
from stable_ssl.weights.loading import load_weights


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    yield home
    assert not any(elsewhere.iterdir())


def test_runs_and_weights(home):
    layer = torch.nn.Linear(2, 1)
    save_weights(
        home / "run" / "weights" / "final.safetensors", {f"net.{k}": v for k, v in layer.state_dict().items()}, {}
    )
    for source in ("~/run", "~/run/weights/final.safetensors"):
        loaded = torch.nn.Linear(2, 1)
        load_weights(source, loaded, "net")
        assert torch.equal(loaded.weight, layer.weight)
    assert RunFolder("~/run", "Toy").path == home / "run"


def test_data(home):
    datasets = pytest.importorskip("datasets")
    image = Image.new("RGB", (4, 4), (255, 0, 0))
    (home / "folder" / "cat").mkdir(parents=True)
    image.save(home / "folder" / "cat" / "0.png")
    saved = datasets.Dataset.from_dict({"image": [image], "label": [0]}).cast_column("image", datasets.Image())
    saved.save_to_disk(home / "saved")
    saved.to_parquet(home / "one.parquet")
    found = [
        ImageFolder("~/folder"), Parquet("~/one.parquet"), Parquet("~/*.parquet"), Parquet("~"),
        HuggingFaceDataset("~/saved", x="image", y="label"),
    ]  # fmt: skip
    assert [len(data) for data in found] == [1] * 5


def test_the_command_line(home, capsys):
    recipe = "defaults: [supervised_digits, _self_]\n"
    (home / "own.yaml").write_text(recipe)
    assert main(["views", "~/own.yaml", "--out", "~/views.png", "--samples", "1"]) == 0
    assert (home / "views.png").exists()
    (home / "a=b.yaml").write_text(recipe)
    few = ["optim.epochs=1", "optim.max_steps=1", "hardware.device=cpu"]
    assert main(["train", "~/a=b.yaml", *few, "hydra.run.dir='~/first'"]) == 0
    assert main(["branch", "~/first", "--out", "~/branch", "optim.epochs=2"]) == 0
    assert (home / "branch" / "branch.json").exists()
    assert main(["train", "--config-path", "~", "--config-name", "absent"]) == 2
    assert main(["resume", "~/run"]) == 2
    said = capsys.readouterr().err
    assert f"no file '{home / 'absent.yaml'}'" in said
    assert f"'{home / 'run'}' holds no run" in said


def test_folders_of_sweeps_and_of_hydra(home):
    (home / "own.yaml").write_text("trainer: {_target_: stable_ssl.SupervisedTrainer, hardware: {seed: 0}, logger: {}}")

    def folders(*overrides):
        return [point.folder for point in Sweep(home, "own", ["hardware.seed=1,2", *overrides]).points]

    points = ["hardware.seed=1", "hardware.seed=2"]
    assert folders("hydra.sweep.dir='~/sweep'") == [home / "sweep" / point for point in points]
    assert folders("hydra.sweep.dir=a", "hydra.sweep.subdir='~/${hydra.job.num}'") == [home / "0", home / "1"]
    assert folders("logger.dump_path='~/${trainer.hardware.seed}'") == [home / "1", home / "2"]
    note = ["hydra.run.dir='~/run'", "+trainer.note=${hydra:runtime.output_dir}"]
    assert compose(str(home / "own.yaml"), note)["trainer"]["note"] == str(home / "run")


def test_the_import_says_that_windows_is_not_supported():
    code = "import sys; sys.platform = 'win32'; import stable_ssl"
    where = {"PYTHONPATH": str(Path(stable_ssl.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=where, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: stable_ssl does not support Windows" in done.stderr
