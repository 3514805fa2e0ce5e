"""What the reference page of `BaseTrainer` promises, where no other test holds it."""

from __future__ import annotations

import functools
import os
import signal

import pytest
import torch
from endings import ending, same, status_of
from torchmetrics.classification import MulticlassAccuracy
from toys import Toy, toy_dataset

from stable_ssl import BreakAllEpochs, Preempted
from stable_ssl.data import Loader


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
