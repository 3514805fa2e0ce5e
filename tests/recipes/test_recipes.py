"""Every recipe trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import stable_ssl
from stable_ssl.cli import main

RECIPES = sorted(path.stem for path in (Path(stable_ssl.__file__).parent / "recipes").glob("[!_]*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_evaluates(name, tmp_path):
    folder = tmp_path / "run"
    assert (
        main(
            [
                "train",
                name,
                "optim.epochs=1",
                "optim.max_steps=3",
                "logger.log_every_step=1",
                f"logger.dump_path={folder}",
            ]
        )
        == 0
    )
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss" in record for record in records)
    assert 0 < records[-1]["test/accuracy"] <= 1
