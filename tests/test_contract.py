"""What the reference page of `BaseTrainer` promises, where no other test holds it. `docs/contract.md` goes through it."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import processes
import pytest
import torch
from endings import ending, same, status_of
from torchmetrics.classification import MulticlassAccuracy
from toys import Toy, toy_dataset

from stable_ssl import BreakAllEpochs, Preempted
from stable_ssl.data import Loader
from stable_ssl.weights.files import read_weights

ROOT = Path(__file__).parent.parent


def sets():
    return {"train": Loader(toy_dataset(), 8, shuffle=True), "test": Loader(toy_dataset(20, seed=1), 8)}


def make(make_toy, cls, folder, data=None, **options):
    """Return a run with 3 optimizer steps per epoch; `options` of its logger and of its optimizer."""
    optim = {key: options.pop(key) for key in ("epochs", "accumulation_steps", "max_steps") if key in options}
    logger = {"metric": {"test": {"accuracy": MulticlassAccuracy(2)}}, "dump_path": folder, **options}
    return make_toy(cls, data or sets(), logger=logger, **optim)


def evaluated(trainer):
    """Return the steps whose evaluation is in the log."""
    return [record["global_step"] for record in trainer.get_logs() if "test/accuracy" in record]


# Construction and hooks -----------------------------------------------------------------------------------------------


def test_the_arguments_are_attributes_and_launch_alone_sets_up_and_cleans_up(make_toy, tmp_path):
    class Scored(Toy):
        def compute_loss(self):
            return self.loss(self.predict(), self.batch[1]) * self.weight

    assert make_toy().loss is None
    backbone, loss = torch.nn.Linear(8, 2), torch.nn.CrossEntropyLoss()
    trainer = make_toy(functools.partial(Scored, weight=2.0), sets(), {"backbone": backbone}, loss=loss, epochs=1)
    assert isinstance(trainer, torch.nn.Module)
    assert (trainer.loss, trainer.weight, trainer.module["backbone"]) == (loss, 2.0, backbone)
    assert (trainer.hardware["device"], trainer.optim["epochs"], trainer.logger["level"]) == ("cpu", 1, 50)
    trainer.launch()
    assert trainer.global_step == 3
    for _ in range(2):  # the folder is free, and with no training set each launch evaluates
        test = make(make_toy, Toy, tmp_path / "test", data={"test": sets()["test"]})
        test.launch()
        assert evaluated(test) == [0]
        assert status_of(test) == "finished"


def test_batches_are_ready_and_teachers_have_followed_before_the_hooks_of_steps(make_toy):
    class Teacher(torch.nn.Linear):
        followed = 0

        def update_teacher(self, progress):
            self.followed += 1

    class Watching(Toy):
        ready = 0

        def look(self):
            assert self.batch[0].is_contiguous(memory_format=torch.channels_last)
            self.ready += 1

        before_fit_step = before_eval_step = look

        def after_fit_step(self):
            assert self.stepped
            assert self.module["teacher"].followed == self.global_step

    images = torch.utils.data.TensorDataset(torch.randn(16, 3, 8, 8), torch.zeros(16, dtype=torch.long))
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten())
    modules = {"backbone": backbone, "teacher": Teacher(2, 2).requires_grad_(False)}
    data = {"train": Loader(images, 8), "test": Loader(images, 8)}
    trainer = make_toy(Watching, data, modules, {"channels_last": True}, epochs=1)
    trainer()
    assert trainer.ready == 4
    assert all({"perf/time", "perf/images_per_s", "perf/data_wait_s"} <= record.keys() for record in trainer.get_logs())


# Evaluation -----------------------------------------------------------------------------------------------------------


class Ending(Toy):
    """Has an end of its own, which evaluates nothing."""

    ends = 0

    def after_fit(self):
        self.ends += 1


@pytest.mark.parametrize(
    ("epochs", "options", "in_loop", "at_end"),
    [
        (1, {}, [3], []),
        (3, {}, [3, 6, 9], []),
        (3, {"eval_every_epoch": 2}, [6], [9]),
        (2, {"eval_every_epoch": 0}, [], [6]),
        (2, {"max_steps": 2}, [2, 4], []),
        (2, {"eval_at_start": True}, [0, 3, 6], []),
    ],
)
def test_each_epoch_is_evaluated_once_if_due_the_last_one_too(make_toy, tmp_path, epochs, options, in_loop, at_end):
    """Whoever overrides `after_fit`, which evaluates the last step only if the loop has not."""
    plain, own = (make(make_toy, cls, tmp_path / cls.__name__, epochs=epochs, **options) for cls in (Toy, Ending))
    plain()
    own()
    assert evaluated(plain) == in_loop + at_end
    assert evaluated(own) == in_loop
    assert own.ends == 1
    again = make(make_toy, Toy, tmp_path / "Toy", epochs=epochs, **options)
    again()
    assert evaluated(again) == in_loop + at_end


class Stopped(Toy):
    """Gets a signal in the last evaluation, or at the beginning of training."""

    where = None

    def before_eval_step(self):
        self.stop(("last evaluation", self.global_step))

    def before_fit_epoch(self):
        self.stop(("begin", self.global_step))

    def stop(self, where):
        if self.where == where:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("where", [("last evaluation", 6), ("last evaluation", 0), ("begin", 0)])
@pytest.mark.parametrize("every", [1, 0])
def test_a_signal_in_the_first_or_last_evaluation_or_between_them_loses_and_repeats_nothing(
    make_toy, tmp_path, every, where
):
    options = {"eval_at_start": True, "eval_every_epoch": every}
    alone, stopped, again = (
        make(make_toy, Stopped, tmp_path / name, **options) for name in ("alone", "stopped", "stopped")
    )
    alone()
    stopped.where = where
    with pytest.raises(Preempted):
        stopped()
    again()
    assert same(ending(again.folder), ending(alone.folder))
    assert status_of(again) == "finished"
    before, again_before = (read_weights(run.folder / "weights/initial.safetensors") for run in (alone, again))
    assert same(before, again_before)
    assert not same(before, dict(alone.module.state_dict()))


def test_a_run_that_an_earlier_version_left_in_its_last_evaluation_goes_on(make_toy, tmp_path):
    """It was made after training was over and its last state was saved; now it is a part of the last epoch."""
    alone = make(make_toy, Stopped, tmp_path / "alone")
    alone()
    before = make(make_toy, Stopped, tmp_path / "before", eval_every_epoch=0)
    before.where = ("last evaluation", 6)
    with pytest.raises(Preempted):
        before()
    after = make(make_toy, Stopped, tmp_path / "before")
    after()
    assert evaluated(after) == [6]
    assert after.get_logs()[-1] == alone.get_logs()[-1]
    assert status_of(after) == "finished"


def test_a_stop_in_the_last_evaluation_leaves_a_stopped_run_that_more_epochs_go_on_with(make_toy, tmp_path):
    class Breaking(Ending):
        breaks = True

        def after_eval(self):
            if self.breaks and self.global_step == 6:
                raise BreakAllEpochs("Enough.")

    def run(name, breaks, epochs):
        trainer = make(make_toy, Breaking, tmp_path / name, epochs=epochs)
        trainer.breaks = breaks
        trainer()
        return trainer

    stopped = run("run", True, 2)
    assert (status_of(stopped), stopped.epoch, stopped.ends) == ("stopped", 2, 0)
    records = stopped.get_logs()
    assert run("run", False, 2).get_logs() == records
    assert same(ending(run("run", False, 3).folder), ending(run("whole", False, 3).folder))


def test_patience_that_runs_out_in_the_last_epoch_lets_the_run_finish(make_toy, tmp_path):
    best = {"metric": "test/accuracy", "mode": "max", "patience": 1}

    class Worse(Toy):
        def predict(self):  # right at first, then always wrong
            return torch.nn.functional.one_hot(self.batch[1] if self.global_step < 4 else 1 - self.batch[1], 2)

        def compute_loss(self):
            return torch.nn.functional.cross_entropy(self.forward(self.batch[0]), self.batch[1])

    trainer = make(make_toy, Worse, tmp_path / "run", best=best)
    trainer()
    assert evaluated(trainer) == [3, 6]
    assert status_of(trainer) == "finished"


class Count:
    """A monitor that counts the batches that it has seen."""

    seen = 0

    def on_step(self, trainer): ...

    def on_eval(self, trainer):
        self.seen += 1

    def compute(self, trainer):
        return float(self.seen)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


@pytest.mark.parametrize("every", [1, 0])
def test_a_monitor_of_an_evaluation_set_remembers_the_last_evaluation(make_toy, tmp_path, every):
    def run(epochs):
        monitor = {"test": {"count": Count()}}
        make(make_toy, Toy, tmp_path / "run", epochs=epochs, eval_every_epoch=every, monitor=monitor)()
        return monitor["test"]["count"].seen

    assert run(1) == 3  # batches per evaluation
    assert run(2) == 6


def test_a_run_that_dies_in_after_fit_calls_it_again_and_evaluates_and_logs_nothing_twice(make_toy, tmp_path):
    class Dying(Toy):
        dies = True

        def after_fit(self):
            super().after_fit()
            self.log("end", 1)
            if self.dies:
                raise SystemExit

    with pytest.raises(SystemExit):
        make(make_toy, Dying, tmp_path / "run", save_final_model=True)()
    assert (tmp_path / "run/weights/final.safetensors").exists()
    Dying.dies = False
    again = make(make_toy, Dying, tmp_path / "run", save_final_model=True)
    again()
    assert evaluated(again) == [3, 6]
    assert [record["global_step"] for record in again.get_logs() if "train/end" in record] == [6]


# checkpoint() ---------------------------------------------------------------------------------------------------------


class Asking(Toy):
    """Asks for a checkpoint in a hook, in its second epoch, and may be killed when it has it."""

    asks_in, dies = None, False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("count", torch.zeros(()))

    def ask(self, hook):
        self.log(hook, self.global_step)
        if hook != "before_fit_epoch":  # which runs again in a run that goes on
            self.count += 1
        if hook == self.asks_in and self.epoch == 1 and (hook != "after_fit_step" or self.global_step == 5):
            self.checkpoint()
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)

    def before_fit_epoch(self):
        self.ask("before_fit_epoch")

    def after_fit_step(self):
        self.ask("after_fit_step")

    def after_fit_epoch(self):
        self.ask("after_fit_epoch")


def asking(make_toy, folder, hook, dies=False):
    trainer = make(make_toy, Asking, folder, epochs=3, checkpoint_every_minutes=999)
    trainer.asks_in, trainer.dies = hook, dies
    return trainer


KILLED = """
import sys
from pathlib import Path
from conftest import make_toy
from test_contract import asking
folder, hook = Path(sys.argv[1]), sys.argv[2]
asking(make_toy.__wrapped__(folder), folder, hook, dies=True)()
"""


@pytest.mark.parametrize(
    ("hook", "step", "phase"),
    [("before_fit_epoch", 3, "fit"), ("after_fit_step", 5, "fit"), ("after_fit_epoch", 6, "evaluate")],
)
def test_a_run_that_is_killed_after_it_asked_for_a_checkpoint_goes_on_from_there(make_toy, tmp_path, hook, step, phase):
    folder = tmp_path / "killed"
    path = os.pathsep.join([*sys.path, os.path.dirname(__file__)])
    killed = processes.run([sys.executable, "-c", KILLED, folder, hook], env={**os.environ, "PYTHONPATH": path})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    found = json.loads((folder / f"checkpoints/step_{step:08d}/meta.json").read_text())["progress"]
    assert (found["epoch"], found["phase"]) == (1, phase)
    again, alone = asking(make_toy, folder, hook), asking(make_toy, tmp_path / "alone", hook)
    again.setup()
    assert again.global_step == step
    again()
    alone()
    assert same(ending(folder), ending(alone.folder))


def test_a_checkpoint_before_the_first_step_is_written_and_what_a_hook_logs_after_one_is_not_lost(make_toy, tmp_path):
    class Early(Toy):
        def before_fit(self):
            self.log("begun", 1)
            self.checkpoint()
            assert (self.folder / "checkpoints/step_00000000/meta.json").exists()

        def after_fit_step(self):
            self.log("before", 1)
            self.checkpoint()
            self.log("after", 2)

    trainer = make(make_toy, Early, tmp_path / "run", epochs=1)
    trainer()
    names = [{name for name in record if name.startswith("train/")} for record in trainer.get_logs()]
    assert names[0] == {"train/begun"}
    assert names[1:7] == [{"train/loss", "train/lr", "train/before"}, {"train/after"}] * 3


class Within(Toy):
    """Asks once for a checkpoint where the run is not between two steps: in the way that `by` says."""

    by, has_asked = "call", False

    def call(self):
        before = self.newest()
        self.checkpoint()
        assert self.newest() == before
        self.has_asked = True

    def newest(self):
        return sorted((self.folder / "checkpoints").glob("step_*"))

    def ask(self, by):
        if self.by == by and not self.has_asked and self.global_step == 4:
            if by == "signal handler":
                signal.raise_signal(signal.SIGALRM)
            elif by == "thread":
                thread = threading.Thread(target=self.call)
                thread.start()
                thread.join()
            else:
                self.call()

    def compute_loss(self):
        self.ask("call")
        self.ask("signal handler")
        return super().compute_loss()

    def after_fit_step(self):
        self.ask("thread")
        if not self.stepped:
            self.ask("group")

    def after_eval(self):
        self.ask("evaluation")


@pytest.mark.parametrize(
    ("by", "accumulation", "step"),
    [("call", 1, 5), ("signal handler", 1, 5), ("thread", 1, 4), ("group", 2, 5), ("evaluation", 2, 4)],
)
def test_a_checkpoint_asked_for_within_a_step_is_written_at_the_next_boundary(
    make_toy, tmp_path, by, accumulation, step
):
    """Never at once: neither by a call, nor by the handler of a signal, nor by another thread."""
    trainer = make(make_toy, Within, tmp_path, checkpoint_keep=9, epochs=3, accumulation_steps=accumulation)
    trainer.by = by
    before = signal.signal(signal.SIGALRM, lambda *_: trainer.call())
    try:
        trainer()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert trainer.has_asked
    written = json.loads((tmp_path / f"checkpoints/step_{step:08d}/meta.json").read_text())["progress"]
    assert (written["epoch"], written["phase"]) == (2 if accumulation == 2 else 1, "fit")


class OneAsks(Ending):
    """Asks for a checkpoint on one rank only."""

    def after_fit_step(self):
        if self.rank == 1 and self.global_step == 1:
            self.checkpoint()


def ask_on_one_rank(folder):
    from conftest import make_toy

    data = {**sets(), "train": Loader(toy_dataset(48), 8)}  # 3 steps on two ranks
    trainer = make(make_toy.__wrapped__(folder), OneAsks, folder, data, epochs=1)
    trainer()
    return evaluated(trainer), sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_one_of_two_ranks_may_ask_for_a_checkpoint_and_the_last_epoch_is_evaluated(start_ranks, tmp_path):
    (steps, checkpoints), _ = start_ranks(ask_on_one_rank, tmp_path / "run").results()
    assert steps == [3]
    assert checkpoints == ["step_00000002", "step_00000003"]  # the other rank learns of it at the end of step 1


def test_what_checkpoint_returns_goes_on_from_what_it_wrote(make_toy, tmp_path):
    class Leaving(Toy):
        leaves, submission = False, None

        def after_fit_step(self):
            if self.global_step == 5 and self.leaves:
                type(self).submission = self.checkpoint("as", called=True)
                raise SystemExit

    alone = make(make_toy, Leaving, tmp_path / "alone")
    alone()
    leaving = make(make_toy, Leaving, tmp_path / "run")
    assert isinstance(leaving.checkpoint().function, Leaving)
    assert not (tmp_path / "run").exists()  # before the set-up there is nothing to save
    leaving.leaves = True
    with pytest.raises(SystemExit):
        leaving()
    fresh = Leaving.submission.function
    fresh.setup()
    assert fresh.global_step == 5
    fresh()
    assert same(ending(leaving.folder), ending(alone.folder))


# The page -------------------------------------------------------------------------------------------------------------


def test_each_test_that_the_page_of_the_contract_names_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/contract.md").read_text())
    assert len(named) > 40
    for path, name in named:
        functions = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
        assert name in functions, f"{path} has no {name}"
