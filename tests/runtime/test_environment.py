"""A checkpoint names what its last bits depend on, and differences from it are told in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy
import torch

import stable_ssl
from stable_ssl.runtime.checkpoint import CheckpointStore
from stable_ssl.runtime.environment import environment, environment_changes

CPU = torch.device("cpu")


def test_the_environment_names_versions_and_hardware_and_can_be_written_as_json():
    found = environment(CPU)
    assert found["torch"] == torch.__version__
    assert found["numpy"] == numpy.__version__
    assert found["stable_ssl"] == stable_ssl.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == torch.get_num_threads()
    assert found["device_model"]
    assert json.loads(json.dumps(found)) == found


def test_the_vector_width_is_the_one_torch_was_told_to_use():
    code = (
        "import torch; from stable_ssl.runtime.environment import environment\n"
        "print(environment(torch.device('cpu'))['vector_width'])"
    )
    env = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "DEFAULT\n"


def test_each_difference_is_one_sentence_and_python_counts_without_its_last_number():
    before = {key: f"1.{place}.0" for place, key in enumerate(environment(CPU))}
    assert environment_changes(before, {**before, "python": "1.0.9"}) == []
    changes = environment_changes(before, {key: "2.0.0" for key in before})
    assert len(changes) == len(before) == 7
    assert changes[0] == "Python was 1.0.0 before and is 2.0.0 now."


def test_a_checkpoint_of_today_is_read_whatever_it_lacks(tmp_path):
    CheckpointStore(tmp_path).save(1, {}, {"world": {"size": 2, "device": "cuda:0", "threads": 64}})
    meta = json.loads((tmp_path / "step_00000001" / "meta.json").read_text())
    now = {**environment(CPU), "threads": 4}
    assert environment_changes(meta, now) == ["The number of threads was 64 before and is 4 now."]
    assert environment_changes({**meta, "environment": {"device_model": "an abacus"}}, now) == [
        f"The device was an abacus before and is {now['device_model']} now.",
        "The number of threads was 64 before and is 4 now.",
    ]
    assert environment_changes({}, now) == []
