"""A checkpoint is whole or it is not there, wherever the process ends while it is written."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import processes
import pytest
import torch

from stable_ssl.runtime.checkpoint import CheckpointStore, on_host

SAVE = """
import os, shutil, sys
from pathlib import Path
from stable_ssl.runtime.checkpoint import CheckpointStore

folder, step, ends_at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
calls = 0

def counted(name, function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == ends_at:
            print(name, flush=True)
            os._exit(9)
        return function(*args, **kwargs)
    return call

os.fsync = counted("fsync", os.fsync)
Path.rename = counted("rename", Path.rename)
Path.unlink = counted("unlink", Path.unlink)
shutil.rmtree = counted("rmtree", shutil.rmtree)
store = CheckpointStore(Path(folder), keep=1)
store.save(step, {"value": "new"}, {})
store.wait()
"""


def save_until(folder, step, call):
    """Save in a process that ends right before its `call`-th file operation; say which, or "" if there are fewer."""
    done = processes.run([sys.executable, "-c", SAVE, folder, step, call])
    assert done.returncode in (0, 9), done.stderr
    assert (done.returncode == 9) == bool(done.stdout)
    return done.stdout.strip()


@pytest.mark.parametrize("step", [1, 2], ids=["replacing", "beside"])
def test_a_process_that_ends_between_two_file_operations_leaves_one_whole_checkpoint(tmp_path, step):
    died_at = []
    for call in range(1, 30):
        folder = tmp_path / str(call)
        CheckpointStore(folder, keep=1).save(1, {"value": "old"}, {})
        died_at.append(save_until(folder, step, call))
        found = CheckpointStore(folder, keep=1).load_newest()
        assert found is not None
        assert found[1]["value"] in ("old", "new")
        if not died_at[-1]:
            break
        # The next save is not bothered by what was left.
        CheckpointStore(folder, keep=1).save(3, {"value": "next"}, {})
        assert CheckpointStore(folder, keep=1).load_newest()[1] == {"value": "next"}
    assert died_at[-1] == ""
    assert found[1]["value"] == "new"
    assert {"fsync", "rename", "unlink", "rmtree"} <= set(died_at)


def test_the_first_save_is_waited_for_however_fast_it_was_read_back(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    submit, rename = store._writer.submit, Path.rename

    def submit_and_fall_asleep(*args):
        future = submit(*args)
        while not store._read_back:  # the writer is ahead of the one who asked
            time.sleep(0.001)
        return future

    def slow_rename(self, target):
        time.sleep(0.2)
        return rename(self, target)

    monkeypatch.setattr(store._writer, "submit", submit_and_fall_asleep)
    monkeypatch.setattr(Path, "rename", slow_rename)
    store.save(1, {"value": 1}, {})
    assert CheckpointStore(tmp_path).load_newest()[1] == {"value": 1}


@pytest.mark.parametrize("missing", ["meta.json", "state.pt"])
def test_a_checkpoint_without_one_of_its_files_is_passed_over(tmp_path, missing, caplog):
    store = CheckpointStore(tmp_path, keep=2)
    store.save(1, {"value": 1}, {})
    store.save(2, {"value": 2}, {})
    store.wait()
    os.unlink(tmp_path / "step_00000002" / missing)
    assert store.load_newest()[1] == {"value": 1}
    assert missing in caplog.text


def test_what_changes_while_a_checkpoint_is_written_is_not_in_it(tmp_path):
    store = CheckpointStore(tmp_path)
    weight = torch.zeros(1 << 22)
    for step in range(1, 6):
        weight += 1
        store.save(step, {"modules": {"weight": weight}, "parts": [(weight, "text")]}, {})
        weight += 1000
        weight -= 1000
    weight.fill_(-1)
    assert store.wait()
    _, state, _ = store.load_newest()
    assert (state["modules"]["weight"] == 5).all()
    assert (state["parts"][0][0] == 5).all()


def test_a_copy_in_memory_that_is_used_again_is_that_of_a_new_one():
    def state(step):
        generator = torch.Generator().manual_seed(step)
        weight = torch.randn(4, 3, 2, 2, generator=generator)
        return {
            "weight": torch.nn.Parameter(weight),
            "laid out otherwise": weight.to(memory_format=torch.channels_last) if step % 2 else weight,
            "half": weight.bfloat16(),
            "transposed": weight.transpose(0, 1),
            "slice": weight[:, 1],
            "expanded": weight[:1].expand(4, 3, 2, 2),
            "step": torch.tensor(float(step)),
            "grows": [torch.full((step,), 1.0), (weight > 0, "text")] + [weight] * step,
            "another type": weight.double() if step == 2 else weight,
            **({"comes late": weight} if step > 1 else {}),
            "empty": torch.empty(0),
        }

    earlier = None
    for step in range(1, 4):
        earlier, fresh = on_host(state(step), earlier), on_host(state(step))
        for copy, new, original in zip(*map(tensors_of, (earlier, fresh, state(step))), strict=True):
            assert torch.equal(copy, original)
            assert (copy.dtype, copy.stride()) == (new.dtype, new.stride())
            assert not copy.requires_grad
    address = earlier["weight"].data_ptr()
    assert on_host(state(4), earlier)["weight"].data_ptr() == address


def tensors_of(state):
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        state = list(state.values())
    return [tensor for value in state for tensor in tensors_of(value)] if isinstance(state, list | tuple) else []


def test_the_checksum_is_that_of_the_file(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"weight": torch.randn(1 << 20), "text": "x" * 100_000}, {})
    data = (tmp_path / "step_00000001" / "state.pt").read_bytes()
    meta = json.loads((tmp_path / "step_00000001" / "meta.json").read_text())
    assert meta["files"]["state.pt"] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
