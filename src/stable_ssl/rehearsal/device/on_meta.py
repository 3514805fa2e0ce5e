"""The training step on `meta`, at the real batch size: what would wait for a GPU, and what a GPU would refuse."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ...data import Loader
from ...exceptions import BreakAllEpochs, BreakEpoch, BreakStep, in_a_line
from ...runtime.device import count_images
from ..report import ERROR, WARNING
from ..stage import META, Stage
from ..step.few import few_of, first_batch
from ..step.hearing import Heard, left_as_it_was
from ..step.tries import Tries, close
from ..stepping import begin_epoch, take_batch
from . import waits
from .lines import line_of
from .waits import Finding, Findings, noticing

PART = "device"
# A step of the package reads values in these files if optim.nonfinite is skip, and never else.
_LOOK_AT_LOSSES = ("stable_ssl/engine/stepping.py", "stable_ssl/runtime/precision.py")
_MOST_SAMPLES = 8  # of a set to evaluate on
_SAYS_DEVICE = re.compile("expected device|same device|different devices")
_IS_OF_GRAPH = re.compile("backward through the graph a second time|modified by an inplace operation")
_ADVICE = {
    waits.MIXED: "CUDA refuses that. Make the tensor on self.device, or let a module hold it: a tensor as a buffer, "
    "layers in an nn.ModuleList.",
    waits.BY_HOST_GENERATOR: "CUDA refuses that. Make the generator by torch.Generator(self.device).",
    waits.AS_ARRAY: "CUDA refuses that. Use .cpu() first, outside of steps, or torch's function.",
    waits.READS: "Keep the value a tensor: self.log(name, tensor) waits at logging steps only (self.is_logging).",
    waits.TO_HOST: "Keep the tensor on the device, or copy it at logging steps only (self.is_logging).",
    waits.TO_DEVICE: "Make the tensor on the device, or once in a buffer of a module.",
    waits.BY_HOST_INDEX: "Index by a slice, or by a tensor that is on the device already, such as a buffer.",
    waits.SHAPE: "torch.where, or a product with the mask, keeps the shape.",
    waits.SYNCHRONIZES: "Leave it out, or call it at logging steps only (self.is_logging).",
    waits.CHECKS: "If it can't be left out, expect a slower loop.",
}


def check_on_meta(stage: Stage) -> None:
    """Take training steps, and an evaluation step per set, on the `meta` device, and report what would go wrong.

    Two optimizer steps are taken with the run's first mini-batch, and a third one that logs. The first step may fill
    caches, and a step that logs must read values. So only the second step's waits count. What CUDA refuses counts in
    all of them. A mini-batch of the size of the epoch's last one is tried too.

    A run on the CPU is not rehearsed, unless a card was named. What the card refuses is then a warning.
    """
    if stage.batch is None:
        return
    findings, refused = Findings(), ERROR
    with left_as_it_was(), Heard().listening(), _eager(), ExitStack() as last:
        try:
            trainer = stage.throw_away("meta", META)
            last.callback(close, trainer)
            if str(trainer._configured["hardware"]["device"]) == "cpu":
                refused = WARNING
                if stage.card is None:
                    stage.report.tell(PART, left_out="hardware.device is cpu")
                    return
            with noticing(findings):
                trainer.setup()
        except (Exception, SystemExit) as error:
            _tell_error(stage, findings, error, refused)
        else:
            _rehearse(stage, trainer, findings, refused)
    for finding in findings.all:
        level = refused if finding.kind in waits.ERRORS else WARNING
        stage.report.add(level, PART, _sentence(finding))
    stage.report.tell(PART, waits_per_step=len(findings.all) - len(findings.errors()))


def _rehearse(stage: Stage, trainer: Any, findings: Findings, refused: str) -> None:
    """Train and evaluate a trainer that is set up on `meta`."""
    error = _train(stage, trainer, findings)
    if error is None:
        _evaluate(stage, trainer, findings, refused)
    else:
        _tell_error(stage, findings, error, refused)


def _sentence(finding: Finding) -> str:
    if finding.kind == waits.READS and finding.place.startswith(_LOOK_AT_LOSSES):
        return "optim.nonfinite: skip looks at each step's loss and gradients, so each step waits for the device."
    if finding.kind in waits.ERRORS:
        return f"{finding.place} {finding.kind} ({finding.what}). {_ADVICE[finding.kind]}"
    return (
        f"{finding.place} {finding.kind} ({finding.what}), so each step waits for the device. {_ADVICE[finding.kind]}"
    )


def _group(trainer: Any) -> int:
    """Return how many mini-batches make an optimizer step here: two stand for more."""
    return int(min(trainer.optim["accumulation_steps"], trainer._steps.num_batches, 2))


def _train(stage: Stage, trainer: Any, findings: Findings) -> BaseException | None:
    """Take three optimizer steps and the last mini-batch, and return the error that ended the steps, if one did."""
    assert stage.batch is not None
    batch: tuple[Any, Any] = stage.batch
    steps, group = trainer._steps, _group(trainer)
    steps.accumulation = group
    later = group if steps.num_batches >= 2 * group else 0  # what is done every so many mini-batches is often done at 0

    def begin() -> None:
        trainer.before_fit()
        begin_epoch(trainer)

    def take(first: int) -> BaseException | None:
        def step() -> None:
            for batch_idx in range(first, first + group):
                take_batch(trainer, batch_idx, *batch)

        return _tried(step, trainer, findings)

    error = _tried(begin, trainer, findings)
    with findings.counting_waits():
        error = error or take(0)
        if error is None:
            findings.forget_waits()
            error = take(later)
    if error is None:
        _take_last_batch(stage, trainer, findings)
        trainer._recorder._every, trainer._recorder.emit = 1, lambda record: None
        error = take(later)
        error = error if error and _is_of_devices(error) else None  # the values that are logged are missing
    return error


def _tried(do: Callable[[], None], trainer: Any, findings: Findings) -> BaseException | None:
    """Do something on `meta`, and return the error that it ends with, if it does."""

    def attempt() -> None:
        with noticing(findings):
            try:
                do()
            except (BreakStep, BreakEpoch, BreakAllEpochs):
                trainer._steps.drop_group()

    try:
        findings.answers.tried(attempt, trainer._steps.drop_group)
    except (Exception, SystemExit) as error:
        return error
    return None


def _take_last_batch(stage: Stage, trainer: Any, findings: Findings) -> None:
    """Take a mini-batch as small as the last one of an epoch, and report it if that fails."""
    assert stage.batch is not None
    loader, batch, whole = trainer.data["train"], stage.batch, count_images(*stage.batch)
    if not isinstance(loader, Loader):
        return
    of_run = copy.copy(loader)
    of_run.bind(0, "train", 0, stage.world_size, is_even=True)
    batches = of_run._index_batches(0)
    size = len(batches[-1])
    if size == whole or trainer._steps.num_batches < len(batches):
        return
    error = _tried(lambda: take_batch(trainer, 0, *few_of(batch, size)), trainer, findings)
    trainer._steps.drop_group()
    if error is not None:
        stage.report.error(
            PART,
            f"data.train: the last mini-batch of an epoch has {size} samples instead of {whole}, and a step "
            f"fails with it at {line_of(error)} ({in_a_line(error)}). Set drop_last: true, or mend that line.",
        )


def _evaluate(stage: Stage, trainer: Any, findings: Findings, refused: str) -> None:
    """Give a batch of each evaluation set to its metrics. Only what CUDA refuses counts: values are read by nature."""
    for name in trainer.eval_sets if stage.trainer is not None else ():
        try:
            found = first_batch(stage.trainer.data[name], _MOST_SAMPLES)
        except Exception:  # the check of the data says so
            found = None
        if found is None:
            continue
        trainer.eval()

        def step(name: str = name, found: tuple[Any, Any] = found) -> None:
            with torch.no_grad():
                trainer.batch_idx, trainer.indices, trainer.batch = 0, found[0], trainer._feed.on_device(found[1])
                trainer.before_eval_step()
                trainer._eval_step(name)
                trainer.after_eval_step()
                for metric in trainer.logger["metric"][name].values():
                    metric.compute()

        error = _tried(step, trainer, findings)
        if error is not None and _is_of_devices(error):
            _tell_error(stage, findings, error, refused)


@contextmanager
def _eager() -> Iterator[None]:
    """Let functions that the user's code has compiled run as they are written."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _is_of_devices(error: BaseException) -> bool:
    return _SAYS_DEVICE.search(str(error)) is not None


def _fails_with_all(stage: Stage) -> bool:
    """Try the run's own batch on the CPU, if that takes little time. Return whether it fails, which is reported."""
    with ExitStack() as last, Heard().listening():
        return Tries(stage, last, Heard()).fails_with_all()


def _tell_error(stage: Stage, findings: Findings, error: BaseException, refused: str) -> None:
    """Report an error that ended the rehearsal, unless something else has been said that explains it.

    `refused` is the level of what the card refuses: error or warning.
    """
    if findings.errors():
        return
    text = in_a_line(error)
    if _is_of_devices(error):
        stage.report.add(refused, PART, f"{line_of(error)} mixes tensors of several devices: {text}")
    elif stage.trainer is not None and _IS_OF_GRAPH.search(text):
        stage.report.error(
            PART,
            f"{line_of(error)}: the backward pass of a step fails ({text}). If a step keeps a tensor for later ones, "
            "such as a running mean, keep it by .detach(). If it writes into a tensor, let it make a new one.",
        )
    elif stage.trainer is not None and not _fails_with_all(stage):  # else it has been said
        stage.report.warn(
            PART,
            f"{line_of(error)}: the step can't be rehearsed without a GPU beyond this line, which may need the values "
            f"of tensors ({text}). Waits and tensors on the wrong device behind it are not known.",
        )
