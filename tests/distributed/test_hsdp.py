"""Two machines of two ranks each: the ranks of a machine divide the model, and the machines have copies of it."""

from __future__ import annotations

import pytest
import torch
from endings import ending, same
from methods import train
from ranks import Ranks

NAMES = ["simclr", "mae"]
pytestmark = pytest.mark.slow


def of_four(*args):
    return Ranks(train, *args, world_size=4, machines=2)


@pytest.fixture(scope="module")
def four_alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four_alone")
    of_four(NAMES, folder, 4, None, "hsdp").results(timeout=120)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_four_ranks_on_quarters_learn_what_one_does_on_the_whole_batch(four_alone, tmp_path, name):
    Ranks(train, [name], tmp_path, 16, world_size=1).results()
    expected = torch.load(tmp_path / name / "rank_0.pt")
    for rank in range(4):
        found = torch.load(four_alone / name / f"rank_{rank}.pt")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=f"rank {rank}: {key}")


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_of_two_machines_ends_as_one_left_alone(four_alone, tmp_path, name):
    assert of_four([name], tmp_path, 4, 3, "hsdp").join(120) == [-9] * 4
    of_four([name], tmp_path, 4, None, "hsdp").results(timeout=120)
    assert any(tmp_path.glob("*/checkpoints/step_*/shards/*.distcp"))
    for rank in range(4):
        ours, alone = (torch.load(folder / name / f"rank_{rank}.pt") for folder in (tmp_path, four_alone))
        assert same(ours, alone)
    assert same(ending(tmp_path / name), ending(four_alone / name))
