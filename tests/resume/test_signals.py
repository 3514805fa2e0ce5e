"""Wherever a signal finds a run, it saves and ends soon, and goes on later as if left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from test_resume import assert_same_ending, ending
from toys import Toy, toy_dataset

from stable_ssl import Preempted
from stable_ssl.data import Loader
from stable_ssl.runtime.preemption import StopRequest

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT]


class Slow(torch.utils.data.Dataset):
    """Has a sample that takes a minute to read, while `armed`."""

    armed = True

    def __init__(self, slow_index):
        self.dataset, self.slow_index = toy_dataset(), slow_index

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        if index == self.slow_index and type(self).armed:
            time.sleep(60)
        return self.dataset[index]


def loaders(num_workers, slow=None):
    slow_train = slow == "train"
    return {
        "train": Loader(Slow(13 if slow_train else None), 4, num_workers=num_workers, shuffle=True),
        "test": Loader(Slow(9 if slow == "test" else None), 4, num_workers=num_workers),
    }


class Stopping(Toy):
    """Gets a signal in a step of training or of evaluation."""

    where, signum = "nowhere", signal.SIGTERM

    def before_fit_step(self):
        if (self.epoch, self.batch_idx) == (0, 2):
            self.stop("train")

    def before_eval_step(self):
        if (self.epoch, self.batch_idx) == (0, 2):
            self.stop("test")

    def stop(self, where):
        if self.where == where:
            type(self).where = "nowhere"
            os.kill(os.getpid(), self.signum)


def make(make_toy, folder, data, **optim):
    trainer = make_toy(Stopping, data, logger={"dump_path": folder}, **optim)
    return trainer


def expected_end(signum):
    return KeyboardInterrupt if signum == signal.SIGINT else Preempted


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("where", ["train", "test"])
@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_a_signal_in_a_step_is_survived(make_toy, tmp_path, signum, where, num_workers):
    Stopping.where, Stopping.signum = where, signum
    with pytest.raises(expected_end(signum)) as stop:
        make(make_toy, tmp_path / "stopped", loaders(num_workers))()
    assert Stopping.where == "nowhere"
    if signum != signal.SIGINT:
        assert stop.value.code == 128 + signum
    again = make(make_toy, tmp_path / "stopped", loaders(num_workers))
    again.setup()
    assert (again.global_step, again.epoch) == ((3, 0) if where == "train" else (6, 0))
    again()
    alone = make(make_toy, tmp_path / "alone", loaders(0))
    alone()
    assert_same_ending(ending(again), ending(alone))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("where", ["train", "test"])
def test_a_signal_while_the_run_waits_for_data_ends_it_at_once(make_toy, tmp_path, where, num_workers):
    Slow.armed = True
    trainer = make(make_toy, tmp_path / "stopped", loaders(num_workers, slow=where))
    sender = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
    begun = time.monotonic()
    sender.start()
    with pytest.raises(Preempted):
        trainer()
    sender.join()
    assert 2 <= time.monotonic() - begun < 20
    Slow.armed = False
    again = make(make_toy, tmp_path / "stopped", loaders(num_workers))
    again.setup()
    assert (again.global_step, again.epoch) == (trainer.global_step, 0)
    again()
    alone = make(make_toy, tmp_path / "alone", loaders(0))
    alone()
    assert_same_ending(ending(again), ending(alone))


class Eventful(Stopping):
    """Skips a step, leaves out a mini-batch, and counts in a state of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.history = []

    def get_extra_state(self):
        return {"history": self.history}

    def set_extra_state(self, state):
        self.history = state["history"]

    def before_fit_step(self):
        from stable_ssl import BreakStep

        super().before_fit_step()
        if self.batch_idx == 4:
            raise BreakStep

    def compute_loss(self):
        self.history = [*self.history, self.global_step]
        loss = super().compute_loss() * (1 + 0.1 * len(self.history))
        return loss * float("nan") if self.batch_idx == 1 else loss


@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_skipped_steps_and_a_state_of_its_own_are_survived(make_toy, tmp_path, accumulation_steps):
    options = {"nonfinite": "skip", "accumulation_steps": accumulation_steps}
    Eventful.where, Eventful.signum = "train", signal.SIGTERM
    logger = {"dump_path": tmp_path / "stopped"}
    with pytest.raises(Preempted):
        make_toy(Eventful, loaders(0), logger=logger, **options)()
    again = make_toy(Eventful, loaders(0), logger=logger, **options)
    again()
    alone = make_toy(Eventful, loaders(0), logger={"dump_path": tmp_path / "alone"}, **options)
    alone()
    assert again.history == alone.history
    states = [{k: v for k, v in t.state_dict().items() if torch.is_tensor(v)} for t in (again, alone)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert ending(again)[2] == ending(alone)[2]


class Stream(torch.utils.data.IterableDataset):
    """Has no length, and is read by torch's own loader."""

    def __iter__(self):
        yield from map(toy_dataset().__getitem__, range(20))


@pytest.mark.parametrize("persistent", [False, True])
def test_a_signal_to_all_processes_leaves_a_torch_loaders_workers_alone(make_toy, tmp_path, persistent):
    class Shot(Toy):
        def before_fit_step(self):
            if (self.epoch, self.batch_idx) == (1, 1):
                self.workers = set(multiprocessing.active_children()) - others
                for process in self.workers:
                    os.kill(process.pid, signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

    others = set(multiprocessing.active_children())
    data = {
        "train": torch.utils.data.DataLoader(Stream(), 4, num_workers=1, persistent_workers=persistent),
        "test": torch.utils.data.DataLoader(Stream(), 4),
    }
    trainer = make_toy(Shot, data, max_steps=5)
    with pytest.raises(Preempted):
        trainer()
    assert len(trainer.workers) == 1
    assert not any(worker.is_alive() for worker in trainer.workers)
    assert trainer.global_step == 7


def test_a_second_ctrl_c_does_not_wait_whatever_came_before():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason(stop.request) == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_submitits_signal_holds_whichever_came_first():
    for signals in ([signal.SIGTERM, signal.SIGUSR2], [signal.SIGUSR2, signal.SIGTERM]):
        with StopRequest() as stop:
            for signum in signals:
                os.kill(os.getpid(), signum)
            assert stop.reason(stop.request) == "SIGUSR2"
