"""A run that was stopped or killed, and started again, ends where one that was left alone ends: to the bit."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import time

import endings
import processes
import pytest
import torch
from chaos import Chaos
from endings import status_of
from toys import Toy, toy_backbone, toy_dataset

from stable_ssl import BreakEpoch, CheckpointError, ConfigError, Preempted
from stable_ssl.augmentations import Affine, MultiView, View
from stable_ssl.data import Digits, Loader
from stable_ssl.losses import NTXEntLoss
from stable_ssl.monitors import RankMe
from stable_ssl.trainers import JointEmbeddingTrainer


def ending(trainer):
    """Everything that a run ends with: weights, optimizer state, and the log without `perf/`."""
    state = {**trainer.state_dict(), "step": trainer.global_step}
    momenta = [s["momentum_buffer"] for s in trainer.optim["optimizer"].state.values()]
    records = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in trainer.get_logs()]
    return state, momenta, json.dumps(records)


def assert_same_ending(one, other):
    for a, b in zip(one[0].items(), other[0].items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(torch.as_tensor(a[1]), torch.as_tensor(b[1])), a[0]
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))
    assert one[2] == other[2]


def stopping(at_step, signum=signal.SIGTERM):
    """A trainer that gets a signal while it does its step `at_step` for the first time."""

    class Stopping(Toy):
        armed = True

        def compute_loss(self):
            if type(self).armed and self.global_step + 1 == at_step:
                type(self).armed = False
                os.kill(os.getpid(), signum)
            return super().compute_loss()

    return Stopping


OPTIONS = {
    "plain": {},
    "schedule and accumulation": {
        "accumulation_steps": 2,
        "scheduler": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6),
    },
    "max_steps": {"max_steps": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("at_step", [1, 2, 4])
def test_a_preempted_run_ends_as_one_left_alone(make_toy, tmp_path, options, at_step):
    def make(cls, name):
        data = {"train": Loader(toy_dataset(), 8, shuffle=True), "test": Loader(toy_dataset(), 8)}
        return make_toy(cls, data, logger={"dump_path": tmp_path / name}, **options)

    alone = make(Toy, "alone")
    alone()
    cls = stopping(at_step)
    with pytest.raises(Preempted) as stop:
        make(cls, "stopped")()
    assert stop.value.code == 128 + signal.SIGTERM
    again = make(cls, "stopped")
    again.setup()
    assert again.global_step == at_step
    again()
    assert_same_ending(ending(alone), ending(again))


@pytest.mark.parametrize("at_step", [1, 4])
def test_a_self_supervised_run_with_probes_and_rankme_goes_on_as_if_left_alone(tmp_path, at_step):
    x, y = toy_dataset().tensors
    views = torch.utils.data.StackDataset(torch.utils.data.StackDataset(x, x + 0.1), y)

    class Stopping(JointEmbeddingTrainer):
        armed = False

        def before_fit_step(self):
            if type(self).armed and self.global_step + 1 == at_step:
                type(self).armed = False
                os.kill(os.getpid(), signal.SIGTERM)

    def make(name):
        modules = {
            "backbone": toy_backbone(),
            "projector": torch.nn.Linear(2, 4),
            "backbone_classifier": torch.nn.Linear(2, 2),
            "projector_classifier": torch.nn.Linear(4, 2),
        }
        return Stopping(
            {"train": Loader(views, 8, shuffle=True)},
            modules,
            {"device": "cpu"},
            {"optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), "epochs": 2},
            {"dump_path": tmp_path / name, "level": 50, "monitor": {"train": {"rankme": RankMe(limit=70)}}},
            NTXEntLoss(),
        )

    torch.manual_seed(0)
    alone = make("alone")
    alone()
    Stopping.armed = True
    with pytest.raises(Preempted):
        make("stopped")()
    again = make("stopped")
    again()
    assert again.global_step == 6
    assert_same_ending(ending(alone), ending(again))
    saved = [endings.ending(trainer.folder)[0] for trainer in (alone, again)]
    assert saved[0]["parts"]["probe_optimizer"]["state"]
    assert endings.same(*saved)


def test_workers_may_differ_when_a_run_goes_on(make_toy, tmp_path):
    def make(cls, name, num_workers):
        train = {
            "_target_": "stable_ssl.data.Loader",
            "batch_size": 8,
            "shuffle": True,
            "num_workers": num_workers,
        }
        return make_toy(cls, {"train": {**train, "dataset": toy_dataset()}}, logger={"dump_path": tmp_path / name})

    alone = make(Toy, "alone", 0)
    alone()
    cls = stopping(2)
    with pytest.raises(Preempted):
        make(cls, "stopped", 2)()
    again = make(cls, "stopped", 0)
    again()
    assert_same_ending(ending(alone), ending(again))


def test_ctrl_c_saves_and_raises_keyboard_interrupt(make_toy):
    cls = stopping(2, signal.SIGINT)
    trainer = make_toy(cls)
    with pytest.raises(KeyboardInterrupt):
        trainer()
    assert status_of(trainer) == "preempted"
    again = make_toy(cls)
    again.setup()
    assert again.global_step == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_time_limit_ends_with_status_75_and_goes_on(make_toy):
    class Slow(Toy):
        def compute_loss(self):
            time.sleep(0.05)
            return super().compute_loss()

    with pytest.raises(Preempted) as stop:
        make_toy(Slow, hardware={"time_limit": 0.1 / 60})()
    assert stop.value.code == 75
    again = make_toy(Slow, hardware={"time_limit": 10})
    again()
    assert again.global_step == 6


def test_a_finished_run_started_again_says_so_and_logs_nothing(make_toy, capsys):
    first = make_toy()
    first()
    again = make_toy(logger={"level": 20})
    again()
    assert "is finished" in capsys.readouterr().err
    assert again.get_logs() == first.get_logs()


def test_more_epochs_go_on_with_a_finished_run(make_toy):
    make_toy(epochs=2)()
    longer = make_toy(epochs=3)
    longer()
    assert longer.global_step == 9
    assert [r["global_step"] for r in longer.get_logs() if "train/loss" in r] == list(range(1, 10))


def test_another_configuration_is_refused_and_listed(make_toy):
    make_toy()()
    with pytest.raises(ConfigError, match=r"optim.grad_max_norm: the run in the folder has None, this one 1.0"):
        make_toy(grad_max_norm=1.0)()


@pytest.mark.parametrize("damage", ["a flipped bit", "truncated"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(make_toy, damage):
    trainer = make_toy(logger={"checkpoint_every_step": 1})
    trainer()
    newest = trainer.folder / "checkpoints" / "step_00000006" / "state.pt"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged if damage == "a flipped bit" else newest.read_bytes()[:-1])
    (trainer.folder / "status.json").unlink()
    again = make_toy(logger={"checkpoint_every_step": 1, "level": 40})
    again()
    assert "step_00000006/state.pt' is damaged" in (again.folder / "console.log").read_text()
    assert_same_ending(ending(trainer), ending(again))


def test_with_no_valid_checkpoint_it_stops_instead_of_starting_over(make_toy):
    trainer = make_toy()
    trainer()
    for state in trainer.folder.glob("checkpoints/*/state.pt"):
        state.write_bytes(b"not a checkpoint")
    with pytest.raises(
        CheckpointError, match=r"None of the checkpoints(.|\n)*state.pt' is damaged: it has [\d,]+ bytes ins"
    ):
        make_toy()()


def test_a_damaged_checkpoint_does_not_push_out_the_valid_ones(make_toy):
    from stable_ssl.runtime.checkpoint import CheckpointStore

    trainer = make_toy(logger={"checkpoint_every_step": 1, "checkpoint_keep": 2})
    trainer()
    folder = trainer.folder / "checkpoints"
    (folder / "step_00000006" / "state.pt").write_bytes(b"damaged")
    store = CheckpointStore(folder, keep=1)
    path, state, _ = store.load_newest()
    assert path.name == "step_00000005"
    store.save(5, state, {})
    assert store.wait()
    assert CheckpointStore(folder).load_newest()[0].name == "step_00000005"
    assert (folder / "invalid_step_00000006" / "state.pt").read_bytes() == b"damaged"


def test_a_run_that_failed_before_its_first_checkpoint_may_be_configured_anew(make_toy):
    with pytest.raises(ConfigError, match="optim.optimizer.lr: -1.0 does not suit: ValueError: Invalid learning rate"):
        make_toy(optimizer=functools.partial(torch.optim.SGD, lr=-1.0))()
    make_toy(optimizer=functools.partial(torch.optim.SGD, lr=0.1), epochs=1)()


def test_a_monitor_may_be_added_when_a_run_goes_on(make_toy):
    class Counting:
        def on_step(self, trainer):
            pass

        def compute(self, trainer):
            return 1.0

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    make_toy(epochs=1)()
    trainer = make_toy(epochs=2, logger={"monitor": {"train": {"counting": Counting()}}})
    trainer()
    assert [r["global_step"] for r in trainer.get_logs() if "train/counting" in r] == [4, 5, 6]


def test_a_trainer_whose_run_ended_can_not_be_launched_again(make_toy):
    trainer = make_toy(stopping(2))
    with pytest.raises(Preempted):
        trainer()
    before = trainer.get_logs()
    with pytest.raises(RuntimeError, match="a new trainer"):
        trainer.launch()
    assert trainer.get_logs() == before


def test_a_signal_in_the_first_evaluation_finds_a_checkpoint(make_toy):
    class Stopping(Toy):
        armed = True

        def before_eval_step(self):
            if type(self).armed:
                type(self).armed = False
                os.kill(os.getpid(), signal.SIGTERM)

    data = {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(16, seed=1), 8)}
    stopped = make_toy(Stopping, data)
    with pytest.raises(Preempted):
        stopped()
    again = make_toy(Stopping, data)
    again.setup()
    assert (again.global_step, again.epoch) == (3, 0)
    again()
    alone = make_toy(Stopping, data, logger={"dump_path": again.folder.parent / "alone"})
    alone()
    assert_same_ending(ending(again), ending(alone))


class NoisyStream:
    """Draws its batches from the global generator, and knows where it is."""

    position = 0

    def __len__(self):
        return 4

    def __iter__(self):
        while self.position < 4:
            self.position += 1
            yield torch.randn(8, 8), torch.randint(2, (8,))
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


@pytest.mark.parametrize("at_step", [2, 4, 7])
def test_a_stateful_stream_resumes_exactly(make_toy, tmp_path, at_step):
    alone = make_toy(Toy, {"train": NoisyStream()}, logger={"dump_path": tmp_path / "alone"})
    alone()
    cls = stopping(at_step)
    with pytest.raises(Preempted):
        make_toy(cls, {"train": NoisyStream()})()
    again = make_toy(cls, {"train": NoisyStream()})
    again()
    assert_same_ending(ending(again), ending(alone))


def test_a_malicious_pickle_is_not_executed(make_toy, tmp_path):
    import hashlib

    trainer = make_toy(logger={"checkpoint_keep": 1})
    trainer()
    (folder,) = (trainer.folder / "checkpoints").iterdir()
    proof = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    torch.save({"progress": Malicious()}, folder / "state.pt")
    meta = json.loads((folder / "meta.json").read_text())
    data = (folder / "state.pt").read_bytes()
    meta["files"]["state.pt"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="can't be loaded"):
        make_toy()()
    assert not proof.exists()


@pytest.mark.parametrize(
    ("kills", "workers", "ranks", "strategy"),
    [
        (10, 0, 1, "ddp"),
        (3, 1, 1, "ddp"),
        pytest.param(3, 1, 2, "ddp", marks=pytest.mark.slow),
        pytest.param(3, 0, 2, "fsdp", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(tmp_path, kills, workers, ranks, strategy):
    def start(command, **options):
        # The run that is left alone has a hash seed of its own.
        is_alone = str(tmp_path / "alone") in command
        return (subprocess.Popen if is_alone else processes.start)(command, **options)

    row = Chaos(tmp_path, kills, workers, ranks, strategy, epochs=5, start_process=start).run()
    assert row["kills that hit"] == kills
    assert row["same ending to the bit"] == "yes"


def test_a_live_loader_with_other_batches_is_refused(make_toy, tmp_path):
    with pytest.raises(Preempted):
        make_toy(stopping(2))()
    with pytest.raises(
        ConfigError, match=r"other data(.|\n)*an epoch: the run in the folder has 3, this one 6(.|\n)*has 8, this one 4"
    ):
        make_toy(stopping(2), {"train": Loader(toy_dataset(), 4, shuffle=True)})()


def test_another_rate_of_a_live_optimizer_is_refused(make_toy):
    make_toy()()
    other = functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    with pytest.raises(ConfigError, match=r"optim.optimizer.lr: the run in the folder has 0.1, this one 0.5"):
        make_toy(optimizer=other)()


def test_other_views_of_a_live_loader_are_refused(tmp_path):
    def run(degrees, epochs):
        view = View([Affine(degrees)])
        JointEmbeddingTrainer(
            {"train": Loader(Digits(size=8), 256, views=MultiView([view, view]), shuffle=True, drop_last=True)},
            {
                "backbone": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8)),
                "projector": torch.nn.Identity(),
            },
            {"device": "cpu"},
            {"epochs": epochs, "optimizer": functools.partial(torch.optim.SGD, lr=0.1)},
            {"dump_path": tmp_path / "run", "level": 50},
            NTXEntLoss(),
        )()

    run(10, epochs=1)
    with pytest.raises(ConfigError, match=r"data.train: views: the run in the folder has .*10.*, this one .*90"):
        run(90, epochs=2)
    run(10, epochs=2)


def test_an_epoch_that_was_broken_off_after_a_save_stays_broken_off(make_toy, tmp_path):
    class Short(stopping(1)):
        def after_fit_step(self):
            if self.batch_idx == 1:
                raise BreakEpoch

    options = {"checkpoint_every_step": 1, "checkpoint_keep": 99}
    Short.armed = False
    alone = make_toy(Short, logger={"dump_path": tmp_path / "alone", **options})
    alone()
    assert alone.global_step == 4
    # As if it had been killed right after the save of step 2.
    folder = tmp_path / "killed"
    shutil.copytree(alone.folder, folder)
    for path in (folder / "checkpoints").iterdir():
        if path.name > "step_00000002":
            shutil.rmtree(path)
    (folder / "status.json").write_text(json.dumps({"status": "running"}))
    again = make_toy(Short, logger={"dump_path": folder, **options})
    again()
    assert_same_ending(ending(again), ending(alone))


class Restarting:
    """A stream of ten batches that begins anew, unless a state was loaded since."""

    def __init__(self):
        self.place, self.is_loaded = 0, False

    def __iter__(self):
        self.place, self.is_loaded = self.place if self.is_loaded else 0, False
        while self.place < 10:
            self.place += 1
            generator = torch.Generator().manual_seed(self.place)
            yield torch.randn(4, 8, generator=generator), torch.tensor([0, 1, 0, 1])

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place, self.is_loaded = state["place"], True


@pytest.mark.parametrize("at_step", [2, 4, 5])
def test_a_stateful_stream_that_max_steps_cuts_short_resumes_exactly(make_toy, tmp_path, at_step):
    def make(cls, name):
        return make_toy(cls, {"train": Restarting()}, logger={"dump_path": tmp_path / name}, max_steps=4)

    alone = make(Toy, "alone")
    alone()
    cls = stopping(at_step)
    with pytest.raises(Preempted):
        make(cls, "stopped")()
    again = make(cls, "stopped")
    again()
    assert_same_ending(ending(alone), ending(again))
