"""Short runs on digits, and a folder of coloured images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stable_ssl.cli import main

FEW = ["optim.epochs=1", "optim.max_steps=2", "logger.level=40", "hardware.device=cpu", "logger.eval_every_epoch=0"]


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """Return a function that trains a recipe on digits for two steps, once, and returns the run's folder."""
    made = {}

    def run(recipe, *overrides):
        if (recipe, overrides) not in made:
            folder = tmp_path_factory.mktemp(recipe) / "run"
            assert main(["train", recipe, *FEW, *overrides, f"logger.dump_path={folder}"]) == 0
            made[recipe, overrides] = folder
        return made[recipe, overrides]

    return run


@pytest.fixture
def photos(tmp_path):
    """Thirty images of three colours, in a folder per colour."""
    rng = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / "photos" / ("red", "green", "blue")[number % 3] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (18, 16, 3)).astype(np.uint8)
        pixels[..., number % 3] += 120
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"
