"""Runs that earlier versions began go on and end as they would have ended there, unless their behaviour was another one.

`tests/data/runs/<name>/preempted` is the folder of a short run that was preempted, `ending` what the same run, left
alone, ended with. Both were written by the version that `config.yaml` and `meta.json` name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from stable_ssl import ConfigError, instanciate_config
from stable_ssl.compose import compose
from stable_ssl.runtime.behaviour import CHANGES, behaviour

RUNS = Path(__file__).parent.parent / "data" / "runs"
BEHAVIOURS = {  # of each folder
    path.name: OmegaConf.load(path / "preempted" / "config.yaml").get("behaviour", 1) for path in sorted(RUNS.iterdir())
}


def go_on(name, folder):
    shutil.copytree(RUNS / name / "preempted", folder)
    return instanciate_config(compose(str(folder / "config.yaml"), [f"logger.dump_path={folder}"]))


def records(path: Path) -> list[dict]:
    lines = map(json.loads, path.read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


@pytest.mark.parametrize("name", [name for name, number in BEHAVIOURS.items() if number == behaviour()])
def test_a_run_that_an_earlier_version_began_ends_as_it_would_have_there(name, tmp_path):
    folder, ending = tmp_path / "run", RUNS / name / "ending"
    trainer = go_on(name, folder)
    begun = records(folder / "metrics.jsonl")
    trainer()
    found, expected = records(folder / "metrics.jsonl"), records(ending / "metrics.jsonl")
    assert 0 < len(begun) < len(expected)
    assert found[: len(begun)] == begun
    assert [record.keys() for record in found] == [record.keys() for record in expected]
    for record, known in zip(found, expected, strict=True):
        assert record == pytest.approx(known, rel=1e-3)  # another processor may round differently
    weights, known = load_file(folder / "weights" / "final.safetensors"), load_file(ending / "final.safetensors")
    assert weights.keys() == known.keys()
    # Some, such as a bias before a batch normalization, have no gradient but the rounding of the processor.
    other = sum(int((~weights[key].isclose(value, rtol=1e-3, atol=1e-4)).sum()) for key, value in known.items())
    assert other <= 0.01 * sum(value.numel() for value in known.values())


@pytest.mark.parametrize("name", [name for name, number in BEHAVIOURS.items() if number < behaviour()])
def test_a_run_of_an_earlier_behaviour_is_refused_with_all_that_has_changed_since(name, tmp_path):
    with pytest.raises(ConfigError) as caught:
        go_on(name, tmp_path / "run")()
    for number in range(BEHAVIOURS[name] + 1, behaviour() + 1):
        assert f"Behaviour {number}: {CHANGES[number]}" in str(caught.value)
