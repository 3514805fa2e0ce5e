"""What is found in the user's own code and in unusual values, and that good configurations get no warning."""

from __future__ import annotations

import textwrap

import pytest

from stable_ssl.compose import compose, importable, recipe_names
from stable_ssl.rehearsal.configuration.building import build_parts
from stable_ssl.rehearsal.configuration.settings import check_configuration
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.stage import Stage, maker_of

CODE = """
import torch
from stable_ssl import JointEmbeddingTrainer
from stable_ssl.monitors import Monitor

class Mine(JointEmbeddingTrainer):
    required_module = {"backbone": torch.nn.Module}
    margin: float = 0.5

    def befor_fit(self):
        self.befor_fit_was_called = True

    def after_epoch(self):
        pass

    def on_train_epoch_end(self):
        pass

    def on_fit_step(self):
        pass

    def compute_losses(self):
        return {}

    def _compute_loss(self):
        return self.alpha

    def compute_loss(self, batch):
        return self._compute_loss()

    def before_fit_step(self, batch_idx=0):
        yield batch_idx

    def after_fit(self, *args):
        super().after_fit()

    @staticmethod
    def after_fit_epoch():
        pass

    def before_eval():
        pass

class Net(torch.nn.Linear):
    def begin_epochs(self, epoch):
        pass

    def begin_step(self):
        pass

    def update_teacher(self, progress=None):
        pass

class Watcher(Monitor):
    def on_steps(self, trainer):
        pass

    def on_eval(self, trainer, batch):
        pass

class Broken(torch.nn.Linear):
    def __init__(self, dim):
        super().__init__(dim, {}["width"])
"""


def found(config, folder):
    """Return (level, text) of what is found without a step."""
    stage = Stage(config, maker_of(config), folder, Report())
    check_configuration(stage)
    build_parts(stage)
    return {(one.level, one.text) for one in stage.report.findings}


def test_hooks_attributes_and_constructors_of_the_user_are_looked_at(tmp_path):
    (tmp_path / "looked_at.py").write_text(textwrap.dedent(CODE))
    config = compose("simclr_digits")
    trainer = config["trainer"]
    trainer.update(_target_="looked_at.Mine", margin=0.2, alpha=1.0, beta=2.0, temperatur=0.1)
    trainer["module"]["projector"] = {"_target_": "looked_at.Broken", "dim": 128}
    trainer["module"]["other"] = {"_target_": "looked_at.Net", "in_features": 4, "out_features": 4}
    trainer["logger"]["monitor"]["test"]["watcher"] = {"_target_": "looked_at.Watcher"}
    with importable(tmp_path):
        findings = found(config, tmp_path)
    unread = "Mine.{}: nothing calls or reads it. Did you mean '{}'?"
    attribute = "{}: becomes an attribute of Mine, and nothing reads it."
    assert findings == {
        ("warning", unread.format("befor_fit", "before_fit")),
        ("warning", unread.format("after_epoch", "after_fit_epoch")),
        ("warning", unread.format("on_train_epoch_end", "after_fit_epoch")),
        ("warning", unread.format("on_fit_step", "before_fit_step' or 'after_fit_step")),
        ("warning", unread.format("compute_losses", "compute_loss")),
        ("warning", unread.format("required_module", "required_modules")),
        ("warning", f"{attribute.format('beta')} Did you mean 'optim.optimizer.betas'?"),
        ("warning", f"{attribute.format('temperatur')} Did you mean 'loss.temperature'?"),
        ("error", "Mine.compute_loss: it takes batch beside self, but a run calls it with nothing."),
        ("error", "Mine.before_fit_step: a call of it runs nothing, because it has `yield`. Remove that."),
        ("error", "Mine.before_eval: it has no parameter self. Write def before_eval(self)."),
        ("warning", "Net.begin_epochs: nothing calls or reads it. Did you mean 'begin_epoch'?"),
        ("error", "Net.begin_step: it takes nothing beside self, but a run calls it with one argument."),
        ("warning", "Watcher.on_steps: nothing calls or reads it. Did you mean 'on_step'?"),
        ("error", "Watcher.on_eval: it takes trainer, batch beside self, but a run calls it with one argument."),
        ("error", f"module.projector: looked_at.Broken failed: KeyError: 'width' ({tmp_path}/looked_at.py:63)"),
    }


def test_a_method_of_a_trainer_of_this_package_is_no_mistake(tmp_path):
    """Each method has three recipes; those of other data sets are tried in the slow test."""
    assert found(compose("moco_digits"), tmp_path) == set()


def test_a_misspelled_section_is_told_once_and_looked_at_as_it_was_meant(tmp_path):
    config = compose("moco_digits")
    trainer = config["trainer"]
    trainer.update(dta=trainer.pop("data"), loger={**trainer.pop("logger"), "level": "loud"})
    stage = Stage(config, maker_of(config), tmp_path, Report())
    check_configuration(stage)
    assert [finding.text.partition(" (")[0][:42] for finding in stage.report.findings] == [
        "dta: unknown argument. Did you mean 'data'",
        "loger: unknown argument. Did you mean 'log",
        "logger.level: 'loud' is not a whole number",
    ]


def test_what_the_package_writes_beside_the_trainer_is_no_attribute_without_a_reader(tmp_path):
    beside = {"pretrain": {"images": 5}, "import_from": [], "working_folder": "/", "behaviour": 1, "own": 1}
    config = {**compose("moco_digits"), **beside}
    stage = Stage(config, maker_of(config), tmp_path, Report())
    check_configuration(stage)
    own = "own: becomes an attribute of SelfDistillationTrainer, and nothing reads it."
    assert [finding.text.partition(" Did")[0] for finding in stage.report.findings] == [own]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipe_names())
def test_no_recipe_gets_a_warning(recipe, tmp_path):
    config = compose(recipe)
    stage = Stage(config, maker_of(config), tmp_path, Report())
    check_configuration(stage)
    assert stage.report.findings == []


def test_faults_of_all_parts_are_found_at_once_and_what_is_right_is_built(tmp_path):
    config = compose("simclr_digits", ["data.test.batch_size=0", "loss.temperature=0", "module.projector.sizes=[3]"])
    config["trainer"]["optim"]["optimizer"]["lr"] = -1.0
    stage = Stage(config, maker_of(config), tmp_path, Report())
    build_parts(stage)
    assert [one.text for one in stage.report.of("error")] == [
        "module.projector.sizes: [3] must have at least 2 widths: the input's and the output's.",
        "loss.temperature: 0 is not above 0.",
        "data.test.batch_size: must be a whole number of at least 1, or none, not 0.",
        "optim.optimizer.lr: -1.0 does not suit: ValueError: Invalid learning rate: -1.0",
    ]
    assert {"module.backbone", "data.train.dataset", "data.train", "logger.metric.test.accuracy"} <= stage.built.keys()
    assert len(stage.built["data.train"]) == 11
    assert list(tmp_path.iterdir()) == []


def test_a_set_without_a_batch_for_each_process_is_left_to_the_check_of_the_data(tmp_path):
    config = compose("simclr_digits", ["data.train.batch_size=512"])
    stage = Stage(config, maker_of(config), tmp_path, Report(), world_size=4)
    build_parts(stage)
    assert not stage.report.findings
