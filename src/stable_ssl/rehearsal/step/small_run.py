"""Real steps with few samples on the CPU: the run's own life, from its set-up to its end, in a temporary folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from torch import nn

from ...data.in_memory import free_memory
from ...engine.building import data_sets
from ...exceptions import some_of
from ...loggers.jsonl import read_metrics
from ..sections import section
from ..stage import Stage
from .groups import table_of_groups
from .half import check_in_half
from .hearing import Heard, left_as_it_was
from .instead import batch_of_run
from .observations import observations
from .others import check_other_samples
from .read_back import differences, lost, unsaved
from .room import BYTES_PER_PARAMETER, count_parameters, has_room
from .schedules import odd_schedule
from .tries import SmallRun, Tries, set_up


def check_small_run(stage: Stage) -> None:
    """Take two optimizer steps with few samples, evaluate, save, and read the checkpoint back.

    The run does what it would do in reality, its hooks included, on the CPU and in fp32. It has 2 samples. If that
    fails, it is tried again with 4, with 8, and with the whole batch, since a method may need more of them.

    `stage.batch` and `stage.trainer` are set. Nothing else is left behind. If this machine has no room for a step, the
    batch is read all the same, and there is no trainer.
    """
    if _waits_for_data(stage):
        return
    modules = [part for key, part in stage.built.items() if isinstance(part, nn.Module) and key.startswith("module.")]
    if not stage.lacks_room and has_room(stage, modules):
        _take_steps(stage)
    if stage.lacks_room and stage.batch is None:
        stage.batch = batch_of_run(stage)


def _take_steps(stage: Stage) -> None:
    """Take the steps, and report what they show."""
    heard, run = Heard(), None
    with left_as_it_was(), ExitStack() as last:
        tries = Tries(stage, last, heard)
        with heard.listening():
            run = tries.made()
            if run is not None:
                stage.trainer = run.trainer
                _tell_of(stage, run)
                _read_back(stage, run, last)
                check_other_samples(stage, run)
        if run is not None:
            check_in_half(stage, run, tries)
    known = {finding.text for finding in stage.report.findings}
    for text in heard.texts(is_whole=run is not None):
        if text not in known:
            stage.report.warn("step", text)


def _waits_for_data(stage: Stage) -> bool:
    """Return whether a data set could not be built, as one that is not here and is not downloaded. It was reported."""
    return bool(stage.built) and any(f"data.{name}" not in stage.built for name in data_sets(section(stage, "data")))


def _tell_of(stage: Stage, run: SmallRun) -> None:
    """Report the figures of a run that came to its end, and what is odd about it."""
    losses, metrics = values_of(run)
    stage.report.tell(
        "step",
        batch_size=run.size,
        loss=losses,
        metrics=metrics,
        seconds_per_step=run.watch.seconds,
        seconds_of_checkpoint=run.seconds_of_checkpoint,
    )
    for text in observations(run, metrics, stage.batch and stage.batch[1]):
        stage.report.warn("step", text)


def values_of(run: SmallRun) -> tuple[dict[str, float], dict[str, float]]:
    """Return the parts of the first loss, and the newest values of metrics and monitors, by name."""
    named = run.watch.losses if isinstance(run.watch.losses, Mapping) else {}
    losses: dict[str, float] = {}
    metrics: dict[str, float] = {}
    for record in read_metrics(run.trainer.folder / "metrics.jsonl"):
        for key, value in record.items():
            kind, _, name = key.partition("/")
            if kind == "train" and (name.startswith("loss") or name in named):
                losses.setdefault(name, value)
            elif name and kind != "perf" and key != "train/lr":
                metrics[key] = value
    return losses, metrics


def _read_back(stage: Stage, run: SmallRun, last: ExitStack) -> None:
    """Resume the run by a second trainer, and report what it does not have as it was. Tell the table of groups."""
    store = run.trainer._run.checkpoints
    if store.is_empty():
        return
    stage.report.tell("step", checkpoint_bytes=store.newest_meta()["files"]["state.pt"]["bytes"])
    if BYTES_PER_PARAMETER * count_parameters([run.trainer]) > free_memory():
        stage.report.warn("step", "The checkpoint was not read back, since the memory that is free here is too small.")
        return
    second = set_up(stage, run.name, last, is_resumed=True)
    if second is None:
        return
    if changed := differences(second):
        stage.report.warn(
            "step",
            f"A resumed run would not go on as it was: {some_of(changed)} of the checkpoint have other values after it "
            "was read. Do get_extra_state and set_extra_state, or state_dict and load_state_dict, fit together?",
        )
    if names := lost(run.begun, run.ended, unsaved(second)):
        stage.report.warn(
            "step",
            f"A resumed run begins with the first value of {some_of(names)} again: no checkpoint holds plain "
            "attributes. If a later step needs what is there, make it a buffer, or return it by get_extra_state.",
        )
    groups = table_of_groups(second)
    stage.report.tell("step", groups=groups)
    for text in odd_schedule(run.trainer, groups):
        stage.report.warn("step", text)
