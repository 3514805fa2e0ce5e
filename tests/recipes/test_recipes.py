"""Every recipe trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import stable_ssl
from stable_ssl.cli import main

RECIPES = sorted(path.stem for path in (Path(stable_ssl.__file__).parent / "recipes").glob("[!_]*.yaml"))


# CIFAR-10 can't be downloaded here: noise of its shape, and few samples.
NOISE = "{_target_: torchvision.datasets.FakeData, size: 4, image_size: [3, 32, 32], num_classes: 10}"
SMALL = [
    *(f"data.{name}.dataset={value}" for value in ("null", NOISE) for name in ("train", "test")),
    "data.train.batch_size=2",
    "logger.monitor.test.knn.k=3",
    "optim.max_steps=1",
]
SHALLOW = {"mae_cifar10", "ijepa_cifar10", "ijepa_digits"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_evaluates(name, tmp_path):
    folder, is_noise = tmp_path / "run", name.endswith("cifar10")
    assert (
        main(
            [
                "train",
                name,
                "optim.epochs=1",
                "optim.max_steps=3",
                "logger.log_every_step=1",
                f"logger.dump_path={folder}",
                *(SMALL if is_noise else []),
                *(["vit.depth=1", "patch_predictor.depth=1"] if name in SHALLOW else []),
            ]
        )
        == 0
    )
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss" in record for record in records)
    assert is_noise or 0 < records[-1]["test/accuracy"] <= 1
    assert "test/accuracy" in records[-1]
