"""A branch goes on from a checkpoint of another run under another configuration; a resume refuses what only it may do."""

from __future__ import annotations

import functools
import json
import os
import signal

import pytest
import torch
from omegaconf import OmegaConf
from toys import Toy, toy_backbone, toy_dataset

from stable_ssl import ConfigError, NanError, Preempted
from stable_ssl.data import Loader
from stable_ssl.runtime import behaviour
from stable_ssl.runtime.folder import how_to_branch, how_to_resume
from stable_ssl.schedulers import LinearWarmupCosineAnnealing

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a trainer: 3 optimizer steps per epoch, a checkpoint after each."""

    def make(name, branch_from=None, cls=Toy, batch_size=8, num_samples=24, module=None, logger=None, **optim):
        data = {"train": Loader(toy_dataset(num_samples), batch_size, shuffle=True)}
        optim = {"optimizer": SGD, "scheduler": LinearWarmupCosineAnnealing, "epochs": 4, **optim}
        logger = {"checkpoint_every_step": 1, "checkpoint_keep": 20, "level": 30, **(logger or {})}
        logger["dump_path"] = tmp_path / name
        module = module or {"backbone": toy_backbone()}
        return cls(data, module, {"device": "cpu"}, optim, logger, branch_from=branch_from)

    return make


def begun(trainer):
    trainer.setup()
    return trainer


def learned(trainer, after=0):
    records = [r for r in trainer.get_logs() if r["global_step"] > after]
    return [{key: value for key, value in r.items() if not key.startswith("perf/")} for r in records]


def momenta(trainer):
    return [state["momentum_buffer"] for state in trainer.optim["optimizer"].state.values()]


def content(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def rates(trainer):
    return [r["train/lr"] for r in trainer.get_logs() if "train/lr" in r]


def test_a_branch_without_changes_equals_the_parent_to_the_bit_and_leaves_its_folder_alone(make):
    parent = make("parent")
    parent()
    before = content(parent.folder)
    branch = make("branch", {"run": parent.folder, "step": 5})
    branch()
    assert learned(branch) == learned(parent, after=5)
    for key, value in parent.state_dict().items():
        assert torch.equal(branch.state_dict()[key], value), key
    assert all(map(torch.equal, momenta(branch), momenta(parent)))
    assert content(parent.folder) == before
    record = json.loads((branch.folder / "branch.json").read_text())
    assert (record["run"], record["step"], record["changes"]) == (str(parent.folder), 5, [])


def test_a_branch_that_is_killed_goes_on_as_one_left_alone(make, tmp_path):
    class Stopping(Toy):
        armed = False

        def compute_loss(self):
            if type(self).armed and self.global_step == 10:
                type(self).armed = False
                os.kill(os.getpid(), signal.SIGTERM)
            return super().compute_loss()

    parent = make("parent", cls=Stopping)
    parent()
    change = {"cls": Stopping, "batch_size": 4, "grad_max_norm": 1.0}
    alone = make("alone", {"run": parent.folder, "step": 5}, **change)
    alone()
    Stopping.armed = True
    with pytest.raises(Preempted):
        make("stopped", {"run": parent.folder, "step": 5}, **change)()
    parent.folder.rename(tmp_path / "moved")  # it is needed no more
    again = make("stopped", {"run": parent.folder}, **change)
    again()
    assert learned(again) == learned(alone)
    assert again.global_step == 5 + 2 * 6


@pytest.mark.parametrize(
    "change", [{"optimizer": functools.partial(SGD, lr=0.01)}, {"grad_max_norm": 1.0}, {"nonfinite": "skip"}]
)
def test_a_smaller_rate_clipping_and_skip_go_on_in_the_middle_of_the_epoch(make, change):
    parent = make("parent")
    parent()
    with pytest.raises(ConfigError, match=r"nothing was done(.|\n)*start the script of the run .*parent' and another"):
        make("parent", **change)()
    branch = begun(make("branch", parent.folder / "checkpoints" / "step_00000005", **change))
    assert (branch.global_step, branch.epoch) == (5, 1)
    there = torch.load(parent.folder / "checkpoints/step_00000005/state.pt")["parts"]["optimizer"]["state"]
    assert all(map(torch.equal, momenta(branch), (state["momentum_buffer"] for state in there.values())))
    branch()
    factor = 0.1 if "optimizer" in change else 1
    assert rates(branch) == pytest.approx([rate * factor for rate in rates(parent)[5:]])
    assert branch.global_step == 12


@pytest.mark.parametrize(
    ("change", "steps"), [({"batch_size": 4}, 6), ({"num_samples": 48}, 6), ({"accumulation_steps": 2}, 2)]
)
def test_another_batch_size_or_data_set_begins_with_the_next_epoch_at_its_place_of_the_schedule(make, change, steps):
    parent = make("parent")
    parent()
    branch = begun(make("branch", {"run": parent.folder, "step": 5}, **change))
    assert (branch.global_step, branch.epoch) == (5, 2)
    assert json.loads((branch.folder / "branch.json").read_text())["changes"]
    branch()
    assert branch.global_step == 5 + 2 * steps
    whole = make("whole", **change)
    whole()
    assert rates(branch) == pytest.approx(rates(whole)[2 * steps :])


def test_a_schedule_begins_anew_for_the_epochs_that_are_left_if_asked_to(make):
    parent = make("parent")
    parent()
    where = {"run": parent.folder, "step": 6, "restart_schedule": True}
    branch = make("branch", where)
    branch()
    whole = make("whole", epochs=2)
    whole()
    assert rates(branch) == pytest.approx(rates(whole))
    longer = make("branch", where, epochs=5)
    assert begun(longer).optim["total_steps"] == 9


def test_what_does_not_fit_is_named_and_begins_anew(make):
    parent = make("parent")
    parent()
    adam = make("adam", {"run": parent.folder, "step": 6}, optimizer=functools.partial(torch.optim.AdamW, lr=1e-3))
    adam()
    said = (adam.folder / "console.log").read_text()
    assert "Not taken over: optimizer: its state, since its class is another one." in said
    assert rates(adam) == pytest.approx([rate / 100 for rate in rates(parent)[6:]])
    wider = torch.nn.Sequential(*toy_backbone()[:4], torch.nn.Linear(16, 3))
    other = begun(make("other", {"run": parent.folder, "step": 6}, module={"backbone": wider}))
    said = (other.folder / "console.log").read_text()
    assert "module.backbone.4.weight, module.backbone.4.bias" in said
    assert "optimizer: the state of 2 of its 6 parameters" in said
    assert len(momenta(other)) == 4
    with pytest.raises(ConfigError, match="no value of .* fits"):
        make("none", parent.folder, module={"encoder": toy_backbone()}, epochs=9)()


def test_a_branch_is_begun_once_in_a_folder_of_its_own(make):
    parent = make("parent")
    parent()
    change = {"grad_max_norm": 1.0}
    for folder, where, options, words in [
        ("parent", parent.folder, {}, "is the folder of this run itself"),
        ("new", "elsewhere", {}, "has no checkpoints"),
        ("new", {"run": parent.folder, "step": 99}, {}, r"no checkpoint of step 99; .* there are: \[1, 2, 3,"),
        ("new", {"run": parent.folder, "stp": 9}, {}, "branch_from.stp: unknown key. Did you mean 'step'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            make(folder, where, **options)()
        assert [path.name for path in parent.folder.parent.iterdir()] == ["parent"]  # no empty folder is left
    with pytest.raises(ConfigError, match="optim.epochs: 4, but the branch would begin after epoch 4"):
        make("new", parent.folder)()
    step_6 = {"run": parent.folder, "step": 6}
    make("branch", step_6, **change)()
    done = begun(make("branch", parent.folder, **change))
    assert done.global_step == 12
    done()  # which ends it
    for where, options, words in [
        ({"run": parent.folder, "step": 7}, change, "step: the branch in the folder has 6, this one 7"),
        (step_6, {"grad_max_norm": 2.0}, r"optim.grad_max_norm: the run in the folder has 1.0, this one 2.0"),
        (done.folder.parent / "new", change, "holds another run"),
    ]:
        with pytest.raises(ConfigError, match=words):
            make("branch", where, **options)()


def test_the_error_of_a_loss_that_is_not_finite_names_the_branch_that_goes_on(make):
    class Overflowing(Toy):
        def compute_loss(self):
            return super().compute_loss() * (float("nan") if self.global_step == 5 else 1.0)

    parent = make("parent", cls=Overflowing)
    with pytest.raises(NanError, match=rf"branch_from='{parent.logger['dump_path']}'"):
        parent()
    branch = make("branch", parent.folder, cls=Overflowing, nonfinite="skip")
    branch()
    assert [r["global_step"] for r in learned(branch)] == list(range(6, 13))
    early = make("early", cls=Overflowing, logger={"checkpoint_every_step": None})
    early.before_fit = lambda: vars(early)["_progress"].go_to({**early._progress.as_dict(), "global_step": 5})
    with pytest.raises(NanError, match="has no checkpoint yet"):
        early()


def test_any_failure_of_a_run_with_a_checkpoint_says_how_to_go_on(make):
    class Failing(Toy):
        def compute_loss(self):
            if self.global_step == 4:
                raise ValueError("a corrupt file")
            return super().compute_loss()

    failing = make("failing", cls=Failing)
    with pytest.raises(ValueError, match="corrupt"):
        failing()
    said = (failing.folder / "console.log").read_text()
    assert "The script of this run goes on with it, if it is started again." in said
    assert f"branch_from='{failing.folder}'" in said
    described = failing.folder.parent / "a run"  # started from a file
    described.mkdir()
    assert how_to_resume(described) == f"`stable-ssl resume '{described}'` goes on as before."
    assert f"`stable-ssl branch '{described}' key=value`" in how_to_branch(described)


def test_a_resume_compares_with_the_checkpoint_and_not_with_the_edited_file(make):
    parent = make("parent")
    parent()
    file = parent.folder / "config.yaml"
    file.write_text(file.read_text().replace("momentum: 0.9", "momentum: 0.5"))
    begun(make("parent", epochs=5))
    file.write_text(file.read_text().replace("momentum: 0.9", "momentum: 0.5"))
    with pytest.raises(ConfigError, match=r"optim.optimizer.momentum: the run in the folder has 0.9, this one 0.5"):
        make("parent", optimizer=functools.partial(SGD, momentum=0.5))()


def test_the_rate_of_an_optimizer_that_no_configuration_describes_is_compared_too(make):
    def run(lr):
        backbone = toy_backbone()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=lr)
        make("run", module={"backbone": backbone}, optimizer=optimizer, scheduler=None)()

    run(0.1)
    run(0.1)
    with pytest.raises(ConfigError, match=r"optimizer: lr of group 0: the run in the folder has 0.1, this one 0.2"):
        run(0.2)


def test_what_decides_where_a_run_ends_may_not_differ(make):
    make("run")()
    with pytest.raises(ConfigError, match=r"logger.best: the run in the folder has None"):
        make("run", logger={"best": {"metric": "test/accuracy", "mode": "max"}})()


def test_a_run_of_another_behaviour_is_refused_by_name_and_branches(make, monkeypatch):
    parent = make("parent")
    parent()
    newest = parent.folder / "checkpoints/step_00000012/meta.json"
    now = behaviour.behaviour()
    assert OmegaConf.load(parent.folder / "config.yaml").behaviour == json.loads(newest.read_text())["behaviour"] == now
    monkeypatch.setitem(behaviour.CHANGES, now + 1, "Something is counted in another way.")
    with pytest.raises(
        ConfigError, match=rf"another behaviour(.|\n)*Behaviour {now + 1}: Something(.|\n)*branch_from='"
    ):
        make("parent", epochs=5)()
    branch = begun(make("branch", parent.folder, epochs=5))
    assert f"Behaviour {now + 1}: Something is counted" in (branch.folder / "branch.json").read_text()
    del branch
    monkeypatch.delitem(behaviour.CHANGES, now + 1)
    with pytest.raises(ConfigError, match="update stable-ssl"):
        make("branch", epochs=5)()


class Numbers(torch.utils.data.Dataset):
    """Numbers in a file, as a stand-in for a folder of images."""

    def __init__(self, root):
        self.values = json.loads(open(f"{root}/numbers.json").read())

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return torch.full((8,), self.values[index]), index % 2


def test_data_may_be_at_another_place_if_they_are_the_same(make, tmp_path):
    def run(place, values, epochs, name="run", branch_from=None):
        root = tmp_path / place
        root.mkdir(exist_ok=True)
        (root / "numbers.json").write_text(json.dumps(values))
        dataset = {"_target_": f"{__name__}.Numbers", "root": str(root)}
        train = {"_target_": "stable_ssl.data.Loader", "dataset": dataset, "batch_size": 8}
        trainer = make(name, branch_from, epochs=epochs)
        trainer.data = {"train": train}
        vars(trainer)["_captured"][0][0]["train"] = train
        trainer()
        return trainer

    values = [float(value) for value in range(24)]
    run("here", values, 1)
    for meta in tmp_path.glob("run/checkpoints/*/meta.json"):  # as an early version wrote it
        known = json.loads(meta.read_text())
        meta.write_text(json.dumps({key: known[key] for key in known if key not in ("config", "sets", "optimizers")}))
    run("there", values, 2)
    assert "Its checkpoint is an early one" in (tmp_path / "run" / "console.log").read_text()
    run("here", values, 3)
    with pytest.raises(ConfigError, match="data.train: samples: the run in the folder has 24, this one 23"):
        run("here", values[:-1], 4)  # which makes as many mini-batches
    for others in (values[:-1], [*values[:-1], 99.0]):
        with pytest.raises(ConfigError, match=r"root: .*here.*elsewhere.* samples are not known to be the same"):
            run("elsewhere", others, 4)
    branch = run("elsewhere", values[:16], 3, "branch", {"run": tmp_path / "run", "step": 5})
    assert branch.global_step == 5 + 2
