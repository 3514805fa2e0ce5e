"""The demo shows what it promises: pretraining without labels beats raw pixels and the untrained network."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_pretraining_beats_pixels_and_the_untrained_network(tmp_path, seed):
    import demo

    start = time.monotonic()
    rows, folder = demo.run([f"hardware.seed={seed}", f"logger.dump_path={tmp_path}"])
    pixels, untrained, pretrained = (accuracies.mean() for accuracies in rows.values())
    assert pretrained > pixels + 0.005
    assert pretrained > untrained + 0.005
    assert time.monotonic() - start < 180  # 90 s of training on two free cores
    assert folder == tmp_path
