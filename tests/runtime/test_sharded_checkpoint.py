"""A checkpoint of sharded tensors: each rank writes and reads its parts, and one process reads the whole."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from stable_ssl.exceptions import CheckpointError
from stable_ssl.runtime import launchers
from stable_ssl.runtime.checkpoint import CheckpointStore, on_host, read_checkpoint
from stable_ssl.runtime.sharded import fitted, is_sharded, layout_of, outlined
from stable_ssl.runtime.world import World

SIZES = (5, 7, 1)  # neither two nor three ranks can divide them evenly
STEP_3, STEP_6 = "step_00000003", "step_00000006"


class Run:
    """A small network and AdamW, sharded over the ranks, which see the same samples; and its checkpoints."""

    def __init__(self, folder):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.world = World(launchers.find_place())
        # Four ranks are two groups that each have the whole.
        shape = (2, 2) if self.world.size == 4 else (self.world.size,)
        self.mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
        torch.manual_seed(0)
        layers = nn.Linear(SIZES[0], SIZES[1]), nn.BatchNorm1d(SIZES[1]), nn.Linear(SIZES[1], SIZES[2])
        self.model = fully_shard(nn.Sequential(*layers), mesh=self.mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.store = CheckpointStore(folder, 2, self.world.peers)

    def train(self, steps):
        for step in steps:
            images = torch.randn(6, SIZES[0], generator=torch.Generator().manual_seed(step))
            self.model(images).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def state(self):
        return {"modules": self.model.state_dict(), "parts": {"optimizer": self.optimizer.state_dict()}, "step": [1]}

    def save(self, step):
        self.store.save(step, self.state(), {"note": step})
        return self.store.wait()

    def load(self, state):
        own = self.model.state_dict()
        self.model.load_state_dict({key: fitted(value, own[key]) for key, value in state["modules"].items()})
        parameters, saved = list(self.model.parameters()), state["parts"]["optimizer"]
        for number, moments in saved["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = fitted(moments[name], parameters[number])
        self.optimizer.load_state_dict(saved)

    @property
    def layout(self):
        return layout_of(self.mesh)


def whole(state):
    """Return a state with whole tensors in place of the sharded ones."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    return state.full_tensor() if is_sharded(state) else on_host(state)


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def save_and_go_on(folder):
    run = Run(folder)
    for step in (3, 6):
        run.train(range(step - 3, step))
        assert run.save(step)
    saved = whole(run.state())
    run.train(range(6, 8))
    return saved, whole(run.state())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the folder with the checkpoints of two ranks, the whole last state, and the one two steps later."""
    from ranks import Ranks

    folder = tmp_path_factory.mktemp("written")
    return folder, *Ranks(save_and_go_on, folder).results()[0]


@pytest.fixture
def copied(written, tmp_path):
    """Return a copy of that folder."""
    return shutil.copytree(written[0], tmp_path / "checkpoints")


def resume(folder, plain, again):
    """Go on from the newest checkpoint, or from a plain state, which is saved again.

    Return the whole state of the checkpoint, of what was restored, two steps later, and of the plain state.
    """
    run = Run(folder)
    step, state, _ = run.store.load_newest(layout=run.layout)
    parts = {key: value.to_local().numel() for key, value in state["modules"].items() if is_sharded(value)}
    loaded = whole(state)
    run.load(state)
    restored = whole(run.state())
    run.train(range(6, 8))
    later = whole(run.state())
    run.load(pickle.loads(plain))  # as ranks that each train a whole model have written it
    run.store = run.store.of(again)
    assert run.save(9)
    return step.name, parts, loaded, restored, later, whole(run.state())


def read_in_two_steps(folder):
    """Return the shapes of a checkpoint's tensors before its parts are read, and the whole state after."""
    run = Run(folder)
    path, state, _ = run.store.read()
    tensors = [value for value in state["modules"].values() if isinstance(value, torch.Tensor)]
    forms = {key: tuple(value.shape) for key, value in outlined(state)["modules"].items()}
    state = run.store.with_shards(path, state, run.layout)
    parts = sum(value.to_local().numel() for value in state["modules"].values() if is_sharded(value))
    return sum(tensor.numel() for tensor in tensors), forms, parts, whole(state)


def test_ranks_know_the_shapes_before_they_read_their_parts(written, start_ranks):
    folder, saved, _ = written
    ranks = start_ranks(read_in_two_steps, folder).results()
    assert [forms for _, forms, _, _ in ranks] == 2 * [{key: tuple(v.shape) for key, v in saved["modules"].items()}]
    assert [first for first, *_ in ranks] == [15, 15]  # the statistics of batch normalisation, which are not sharded
    assert sum(parts for _, _, parts, _ in ranks) == sum(saved["modules"][key].numel() for key in ranks[0][1]) - 15
    assert all(same(state, saved) for *_, state in ranks)


def written_files(folder):
    files = json.loads((folder / STEP_6 / "meta.json").read_text())["files"]
    return [found for name, found in files.items() if name.endswith(".distcp")]


@pytest.mark.parametrize(("world_size", "sizes"), [(2, [20, 15]), (3, [15, 15, 5]), (4, [20, 15, 20, 15])])
def test_ranks_go_on_from_a_sharded_checkpoint_whatever_their_number(written, start_ranks, tmp_path, world_size, sizes):
    folder, saved, later = written
    ranks = start_ranks(resume, folder, pickle.dumps(saved), tmp_path, world_size=world_size).results()
    for name, _, loaded, restored, then, from_plain in ranks:
        assert name == STEP_6
        assert same(loaded, saved)
        assert same(restored, saved)
        assert same(from_plain, saved)
        if world_size == 2:
            assert same(then, later)
    assert [found[1]["0.weight"] for found in ranks] == sizes
    again, meta = read_checkpoint(tmp_path / "step_00000009")
    assert same(again, saved)
    files = [meta["files"][f"shards/__{rank}_0.distcp"]["bytes"] for rank in range(world_size)]
    assert sum(files) < 1.5 * sum(found["bytes"] for found in written_files(folder))  # no part is written twice


def test_one_process_reads_the_whole_or_only_the_modules(written):
    folder, saved, _ = written
    state, meta = read_checkpoint(folder / STEP_6)
    assert same(state, saved)
    assert meta["note"] == 6
    assert sorted(meta["files"]) == ["shards/.metadata", "shards/__0_0.distcp", "shards/__1_0.distcp", "state.pt"]
    assert same(read_checkpoint(folder / STEP_6, ["modules"])[0], {"modules": saved["modules"]})
    assert CheckpointStore(folder).load_newest()[0].name == STEP_6


def test_no_code_of_a_checkpoint_runs(written, copied):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(copied / "ran"),)

    place = copied / STEP_6 / "shards" / ".metadata"
    place.write_bytes(pickle.dumps(Code()))
    meta = json.loads((copied / STEP_6 / "meta.json").read_text())
    del meta["files"]["shards/.metadata"]
    (copied / STEP_6 / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=r"posix.mkdir"):
        read_checkpoint(copied / STEP_6)
    assert not (copied / "ran").exists()


DAMAGES = ("a byte", "a part", ".metadata", "meta.json", "state.pt")


def damage(folder, how):
    """Damage a checkpoint, and return what its error names."""
    part = folder / "shards" / "__1_0.distcp"
    if how == "a byte":
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
        return f"'{part}' is damaged: its bytes are not those that were written."
    place = {"a part": part, ".metadata": folder / "shards" / ".metadata"}.get(how, folder / how)
    place.unlink()
    return place.name


def load_each(folders):
    run, found = Run(folders[0]), []
    for folder in folders:
        path, state, _ = run.store.of(folder).load_newest(layout=run.layout)
        found.append((path.name, whole(state)))
    # Rank 1 is elsewhere, as on a machine that does not share the disk.
    os.chdir(folders[0].parent if run.world.is_main else "/")
    with pytest.raises(CheckpointError) as unseen:
        run.store.of(Path(folders[0].name)).load_newest()
    return found, str(unseen.value)


def test_ranks_agree_on_the_newest_checkpoint_that_is_whole(written, start_ranks, tmp_path, capfd):
    folders = [shutil.copytree(written[0], tmp_path / f"{number}") for number in range(len(DAMAGES))]
    reasons = [damage(folder / STEP_6, how) for folder, how in zip(folders, DAMAGES, strict=True)]
    (one, unseen), (other, unseen_too) = start_ranks(load_each, folders).results()
    said = capfd.readouterr().err
    for (name, state), (other_name, other_state), folder, reason in zip(one, other, folders, reasons, strict=True):
        assert name == other_name == STEP_3
        assert same(state, other_state)
        assert said.count(reason) >= 2, (reason, said)  # on both ranks
        assert (folder / f"invalid_{STEP_6}").is_dir()
    assert unseen == unseen_too
    assert "Rank 1 does not see" in unseen


def save_beside_a_full_disk(folder):
    run, found = Run(folder), []
    for step in range(1, 4):
        if step == 2 and run.world.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
        is_written = run.save(step)
        run.world.smallest(0)  # rank 0 has removed what is half-written
        found.append((is_written, sorted(path.name for path in folder.iterdir())))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        run.world.smallest(0)
    return found


def test_if_the_disk_of_one_rank_is_full_no_rank_has_that_checkpoint(start_ranks, tmp_path, capfd):
    one, other = start_ranks(save_beside_a_full_disk, tmp_path).results()
    steps = [f"step_0000000{step}" for step in (1, 3)]
    assert one == other == [(True, steps[:1]), (False, steps[:1]), (True, steps)]
    said = capfd.readouterr().err
    assert said.count("The checkpoint of step 2 could not be written") == 2
    assert said.count(os.strerror(errno.EFBIG)) >= 2
    assert "rank 1: " in said


def die(folder):
    run = Run(folder)
    assert run.save(3)
    if run.world.is_main:
        kill_at_second = iter([None, lambda: os.kill(os.getpid(), signal.SIGKILL)])  # in its part of the shards
        os.fsync = lambda descriptor: (next(kill_at_second) or int)()
    return run.save(4)


def test_what_a_rank_that_dies_leaves_is_no_checkpoint_and_is_removed(start_ranks, tmp_path):
    ranks = start_ranks(die, tmp_path)
    statuses = ranks.join(30)
    assert statuses[0] == -signal.SIGKILL
    assert (tmp_path / ".step_00000004.part" / "shards").is_dir()
    store = CheckpointStore(tmp_path)
    path, state, _ = store.load_newest()
    assert path.name == STEP_3
    store.save(5, state, {})
    assert sorted(os.listdir(tmp_path)) == [STEP_3, "step_00000005"]
