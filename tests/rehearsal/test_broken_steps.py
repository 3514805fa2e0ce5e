"""Each configuration that only a step shows to be broken is told in one line that says what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_steps import STEPS, changed

from stable_ssl.rehearsal.offline import offline
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.stage import Stage, maker_of
from stable_ssl.rehearsal.step.small_run import check_small_run


@pytest.mark.parametrize("name", STEPS)
def test_a_broken_step_is_told_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    base, changes, line = STEPS[name]
    config, report = {"trainer": changed(base(), changes)}, Report()
    stage = Stage(config, maker_of(config), tmp_path, report)

    with offline():
        check_small_run(stage)

    texts = [finding.text for finding in report.of("warning" if name.endswith("(warning)") else "error")]
    assert [text for text in texts if text.startswith(line)] == texts[:1], texts
    assert len(texts) == 1
    assert "\n" not in texts[0]
