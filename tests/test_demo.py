"""The demo shows what it promises: pretraining without labels beats raw pixels and the untrained network."""

from __future__ import annotations

import time

import pytest


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_pretraining_beats_pixels_and_the_untrained_network(tmp_path, seed):
    import demo

    begun = time.process_time()
    shorter = ["optim.epochs=16"] if seed == 0 else []  # the slow ones train as long as the demo does
    rows, folder = demo.run([f"hardware.seed={seed}", f"logger.dump_path={tmp_path}", *shorter])
    pixels, untrained, pretrained = (accuracies.mean() for accuracies in rows.values())
    assert pretrained > pixels + 0.005
    assert pretrained > untrained + 0.005
    assert time.process_time() - begun < 180
    assert folder == tmp_path
