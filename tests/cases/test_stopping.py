"""Early stopping: by `BreakAllEpochs` in any hook, and by `logger.best`."""

import functools
import json
import os
import signal

import pytest
import torch
from torch import nn
from torchmetrics import Metric

from stable_ssl import BreakAllEpochs, ConfigError, Loader
from tests.toys import Toy, toy_dataset

HOOKS = [
    "before_fit", "before_fit_epoch", "before_fit_step", "compute_loss", "before_optimizer_step", "after_fit_step",
    "after_fit_epoch", "before_eval", "before_eval_step", "after_eval_step", "after_eval", "after_fit",
]  # fmt: skip
WHEN = {"before_fit_epoch": 1, "after_fit": 2}  # epoch


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def make(trainer, folder, epochs, accumulation=1, **logger):
    return trainer(
        data={"train": Loader(toy_dataset(), 5, shuffle=True), "test": Loader(toy_dataset(8, seed=1), 4)},
        module={"backbone": network()},
        hardware={"device": "cpu"},
        optim={
            "optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
            "epochs": epochs,
            "accumulation_steps": accumulation,
        },
        logger={"dump_path": folder, "save_final_model": True, "level": 40, **logger},
    )


def stopping(hook, when):
    """Return a trainer that stops in a hook if `when(trainer)`."""

    def stop(self, *args):
        if when(self):
            raise BreakAllEpochs("Enough.")
        return getattr(Toy, hook)(self, *args)

    return type("Stopping", (Toy,), {hook: stop})


def state(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.parameters()])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_run_that_a_hook_stopped_keeps_its_state_and_goes_on_if_it_gets_more_epochs(tmp_path, hook, accumulation):
    whole = make(type("Stopping", (Toy,), {}), tmp_path / "whole", 3, accumulation)
    whole()
    is_in_steps = hook.endswith(("fit_step", "loss", "optimizer_step"))
    when = (lambda t: t.batch_idx >= 3) if is_in_steps else (lambda t: t.epoch == WHEN.get(hook, 0))
    stopped = make(stopping(hook, when), tmp_path / "run", 2, accumulation)
    stopped()
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["status"] == "stopped"
    assert status["progress"]["global_step"] == stopped.global_step < whole.global_step
    assert (tmp_path / "run/weights/final.safetensors").exists()
    assert (tmp_path / f"run/checkpoints/step_{stopped.global_step:08d}/meta.json").exists()

    again = make(stopping(hook, lambda t: False), tmp_path / "run", 2, accumulation)
    records = (tmp_path / "run/metrics.jsonl").read_text()
    again()
    assert torch.equal(state(again), state(stopped))
    assert (tmp_path / "run/metrics.jsonl").read_text() == records
    assert json.loads((tmp_path / "run/status.json").read_text()) == status

    more = make(stopping(hook, lambda t: False), tmp_path / "run", 3, accumulation)
    more()
    assert torch.equal(state(more), state(whole))


@pytest.mark.parametrize("hook", ["after_eval_step", "after_fit_step"])
def test_a_signal_at_the_moment_of_a_stop_does_not_undo_it(tmp_path, hook):
    def when(trainer):
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    stopped = make(stopping(hook, when), tmp_path, 3)
    stopped()
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "stopped"
    again = make(stopping(hook, lambda trainer: False), tmp_path, 3)
    again()
    assert torch.equal(state(again), state(stopped))
    if hook == "after_fit_step":  # its step is in the log
        assert [record["global_step"] for record in again.get_logs()] == [1]


class Falling(Metric):
    """A value that falls from one epoch to the next, by what `values` says."""

    full_state_update = False
    higher_is_better = True

    def __init__(self, *values):
        super().__init__()
        self.values, self.number = values, -1
        self.add_state("seen", torch.tensor(0))

    def update(self, predictions, labels):
        self.seen += 1

    def compute(self):
        self.number += 1
        return torch.tensor(self.values[self.number])


def test_the_best_weights_are_kept_and_patience_ends_the_run(tmp_path):
    from safetensors.torch import load_file

    kept = {}

    class Watching(Toy):
        def after_eval(self):
            kept[self.epoch] = self.module["backbone"][0].weight.detach().clone()

    metric = Falling(0.1, 0.5, 0.3, 0.5, 0.9)
    best = {"metric": "test/value", "patience": 2}
    trainer = make(Watching, tmp_path, 10, metric={"test": {"value": metric}}, best=best)
    trainer()
    assert trainer.epoch == 4
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "stopped"
    assert torch.equal(load_file(tmp_path / "weights/best.safetensors")["backbone.0.weight"], kept[1])
    assert not torch.equal(load_file(tmp_path / "weights/final.safetensors")["backbone.0.weight"], kept[1])


def test_a_value_in_the_dict_of_a_metric_can_be_the_best(tmp_path):
    class Parts(Falling):
        def compute(self):
            return {"low": super().compute()}

    best = {"metric": "test/value_low", "patience": None}
    trainer = make(Toy, tmp_path, 2, metric={"test": {"value": Parts(0.5, 0.4)}}, best=best, level=30)
    trainer()
    assert trainer._evaluation._best.value == pytest.approx(0.5)
    assert not (tmp_path / "console.log").exists()


@pytest.mark.parametrize(("first", "last"), [((0.5, 0.1), 4), ((0.1, 0.5), 5)])
def test_a_run_that_goes_on_remembers_the_best_value(tmp_path, first, last):
    best = {"metric": "test/value", "patience": 3}
    make(Toy, tmp_path, 2, metric={"test": {"value": Falling(*first)}}, best=best)()
    trainer = make(Toy, tmp_path, 9, metric={"test": {"value": Falling(0.4, 0.3, 0.2)}}, best=best)
    trainer()
    assert trainer.epoch == last  # the third evaluation that was not better, that of the shorter run's end included
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "stopped"


def test_a_run_that_is_killed_after_its_last_evaluation_was_saved_does_not_evaluate_again(tmp_path):
    class Killed(Toy):
        dies = True

        def before_fit(self):
            def save_and_die(save=self._saver.save_evaluated):
                save()
                if self.dies:
                    raise SystemExit

            self._saver.save_evaluated = save_and_die

    best = {"metric": "test/value", "patience": 9}
    with pytest.raises(SystemExit):
        make(Killed, tmp_path, 2, metric={"test": {"value": Falling(0.5, 0.1)}}, best=best)()
    records = (tmp_path / "metrics.jsonl").read_text()
    Killed.dies = False
    again = make(Killed, tmp_path, 2, metric={"test": {"value": Falling()}}, best=best)
    again()
    assert (tmp_path / "metrics.jsonl").read_text() == records
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "finished"
    longer = make(Killed, tmp_path, 3, metric={"test": {"value": Falling(0.3)}}, best=best)
    longer()
    assert longer._evaluation._best.evaluations_since == 2
    assert (tmp_path / "metrics.jsonl").read_text().startswith(records)


@pytest.mark.parametrize(
    ("best", "sentence"),
    [
        ({"metric": "test/valu"}, "Did you mean 'test/value'"),
        ({"metric": "tset/value"}, "Did you mean 'test'"),
        ({"metric": "test/value", "mod": "max"}, "Did you mean 'mode'"),
        ({"patience": 2}, "logger.best.metric: missing"),
        ({"metric": "test/value", "patience": 2}, "set eval_every_epoch"),
        ({"metric": "test/plain"}, "set max or min"),
    ],
)
def test_a_mistake_in_best_is_found_at_set_up(tmp_path, best, sentence):
    plain = type("Plain", (Falling,), {"higher_is_better": None})(0.1)
    with pytest.raises(ConfigError, match=sentence):
        make(
            Toy, tmp_path, 2, metric={"test": {"value": Falling(0.1), "plain": plain}}, best=best, eval_every_epoch=0
        ).setup()


def test_a_hook_after_training_that_leaves_out_the_last_evaluation_is_told(tmp_path):
    after_fit = type("Ending", (Toy,), {"after_fit": lambda self: None})
    for name, trainer, every, is_told in (
        ("without", after_fit, 2, True),
        ("due", after_fit, 1, False),
        ("with", Toy, 2, False),
    ):
        options = {"metric": {"test": {"value": Falling(0.1)}}, "level": 30, "eval_every_epoch": every}
        make(trainer, tmp_path / name, 1, **options)()
        log = tmp_path / name / "console.log"
        assert is_told == (log.exists() and "left out the last evaluation" in log.read_text())
