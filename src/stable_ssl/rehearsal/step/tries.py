"""Tries to take two optimizer steps, with more and more samples."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...engine.building import data_sets
from ...exceptions import CheckpointError, NanError, Preempted, some_of
from ...monitors import KNN
from ...runtime.batches import labels_of
from ...runtime.device import count_images
from ...runtime.precision import Precision
from ..report import ERROR
from ..sections import trainer_of
from ..stage import CPU, Stage
from .explained import explain, is_known, is_of_check
from .few import Batch, Few, few_of, first_batch
from .hearing import Heard
from .observations import why_not_finite
from .places import Place
from .read_back import unsavable, unsaved
from .room import has_room
from .watching import Watch

STEPS = 2  # the second one finds what the first one has left
MOST_PER_STEP = 2  # mini-batches: more of them find no more
SIZES = (2, 4, 8)  # samples of the first tries
MOST_SECONDS = 10.0  # that a try with the whole batch may take, as those before it let expect
_MOST_SECONDS_OF_DOUBT = 30.0  # the same, if a step without values fails with it
_OF_EPOCHS = ("after_fit_epoch()", "after_eval()", "after_fit()")  # hooks that may need more than a check's two steps
# What more samples may mend.
_OF_NUMBERS = (RuntimeError, ValueError, IndexError, AssertionError, ArithmeticError, NanError)


@dataclass
class SmallRun:
    """A run with few samples.

    Attributes
    ----------
    trainer, name, size
        Its trainer, the name of its folder, and its samples per mini-batch.
    watch
        What was seen of it.
    begun, ended
        The values that no checkpoint holds: after the set-up, and at the end.
    seconds, seconds_of_checkpoint
        Of the whole run, and of writing the last checkpoint.
    error, place
        What ended it, and where. None: it came to its end.
    """

    trainer: Any
    name: str
    size: int
    watch: Watch
    begun: dict[str, Any]
    ended: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_of_checkpoint: float = 0.0
    error: BaseException | None = None
    place: Place | None = None


def set_up(stage: Stage, name: str, last: ExitStack, is_resumed: bool = False) -> Any:
    """Return a throw-away trainer after its set-up. None: it failed, and the report says why.

    Parameters
    ----------
    stage, name, last
        The stage, the name of the trainer's folder, and what closes the trainer in the end.
    is_resumed
        Whether its folder has the checkpoint of a run, which the set-up reads. Otherwise, what can't be read are other
        weights, such as those of `module_init`.
    """
    trainer: Any = None
    try:
        trainer = stage.throw_away(name)
        last.callback(close, trainer)
        trainer.setup()
    except Preempted:
        raise
    except (Exception, SystemExit) as error:
        problems = explain(error, Place(error, trainer, {}), trainer_of(stage))
        if isinstance(error, CheckpointError) and is_resumed:
            text = re.sub(
                r"^'.*' does not fit this \w+: (Error\(s\) in loading state_dict for \w+:)?", "", str(error), flags=re.S
            )
            problems = [
                f"The run can't be resumed, since its checkpoint can't be read back: {' '.join(text.split())} A run "
                "that nothing interrupts ends all the same."
            ]
        _tell_error(stage, problems, is_certain=not is_resumed and not is_of_check(error, trainer_of(stage)))
        return None
    return trainer


def close(trainer: Any) -> None:
    """Release the folder of a trainer, and end its threads and worker processes."""
    run = vars(trainer).get("_run")
    if run is not None:
        run.let_go()
        run.checkpoints._writer.shutdown()
    for name in data_sets(trainer.data) if isinstance(trainer.data, Mapping) else ():
        if hasattr(trainer.data[name], "close"):
            trainer.data[name].close()


def _tell_error(stage: Stage, problems: list[str], is_certain: bool = True) -> None:
    """Report problems, but not those of a key that has an error already, nor a text that stands under a key."""
    errors = stage.report.of(ERROR)
    known = {_key_of(finding.text) for finding in errors if finding.part != "step"}
    for problem in problems:
        key = f"{_key_of(problem)}."
        is_known = any(key.startswith(f"{one}.") or one.startswith(key) or f"{one}()" in problem for one in known)
        if not is_known and not any(finding.text.endswith(f": {problem}") for finding in errors):
            (stage.report.error if is_certain else stage.report.warn)("step", problem)


def _key_of(problem: str) -> str:
    """Return the key that a sentence begins with."""
    return problem.partition(": ")[0]


class Tries:
    """The tries to take two steps, with more and more samples.

    Parameters
    ----------
    stage
        The stage. Its report gets the error of the last try.
    last
        Closes all trainers when the check is over.
    heard
        What is said. What tries before the last one say is forgotten.
    """

    def __init__(self, stage: Stage, last: ExitStack, heard: Heard):
        self._stage, self._last, self._heard = stage, last, heard
        self._batches: dict[str, Batch] = {}

    def made(self) -> SmallRun | None:
        """Return the first run that comes to its end; None if there is none, and the report says why."""
        trainer = set_up(self._stage, "small", self._last)
        if trainer is None or not has_room(self._stage, [trainer], is_there=True) or not self._read(trainer):
            return None
        self._stage.batch = self._batches.get("train")
        whole = count_images(None, self._batches.get("train", next(iter(self._batches.values())))[1])
        run = self._launch(trainer, "small", min(SIZES[0], whole))
        while run.error is not None:
            size = min([size for size in SIZES if run.size < size < whole], default=whole)
            is_slow = run.size < whole == size and run.seconds / run.size * whole > MOST_SECONDS
            if run.size == whole or is_slow or not _may_be_mended(run):
                self._tell(run, is_certain=not (is_slow and _may_be_mended(run)))
                return None
            self._heard.forget()
            self._last.pop_all().close()
            name = f"small_{size}"
            trainer = set_up(self._stage, name, self._last)
            if trainer is None or (size == whole and not self._read(trainer, is_whole=True)):
                return None
            run = self._launch(trainer, name, size)
        return run

    def fails_with_all(self) -> bool:
        """Try the whole batch, after fewer samples came to their end. Return whether it fails, which is reported."""
        self._batches = {"train": self._stage.batch} if self._stage.batch is not None else {}
        whole = count_images(*self._batches["train"]) if self._batches else 0
        step = self._stage.report.facts.get("step", {})
        expected = STEPS * (step.get("seconds_per_step") or 0.0) * whole / step.get("batch_size", 1)
        if not whole or expected > _MOST_SECONDS_OF_DOUBT or step.get("batch_size") == whole:
            return False
        trainer = set_up(self._stage, "whole", self._last)
        if trainer is None or not self._read(trainer):
            return False
        run = self._launch(trainer, "whole", whole)
        if run.error is not None:
            self._tell(run, is_certain=True)
        return run.error is not None

    def in_half(self, size: int) -> SmallRun | None:
        """Return another run of the same samples, in bf16, come to its end or not; None if there is none."""
        trainer = set_up(self._stage, "half", self._last)
        if trainer is None:
            return None
        trainer._run.precision = Precision("bf16", CPU)
        return self._launch(trainer, "half", size)

    def _read(self, trainer: Any, is_whole: bool = False) -> bool:
        """Read the first batch of each set, and return whether all could be read.

        Parameters
        ----------
        is_whole
            Read the whole batches of evaluation sets too, instead of their first samples.
        """
        for name in data_sets(trainer.data):
            try:
                found = first_batch(trainer.data[name], None if is_whole or name == "train" else SIZES[-1])
            except Exception as error:
                place = Place(error, trainer, {})
                _tell_error(self._stage, explain(error, place, trainer_of(self._stage)))
                return False
            if found is not None:
                self._batches[name] = found
        return bool(self._batches)

    def _tell(self, run: SmallRun, is_certain: bool) -> None:
        """Report what ended the last try."""
        assert run.error is not None
        assert run.place is not None
        few = f"more than {run.size} samples"
        problems = explain(run.error, run.place, trainer_of(self._stage))
        if isinstance(run.error, NanError):
            problems = [why_not_finite(run.watch, run.trainer) or problem for problem in problems]
        if isinstance(run.error, CheckpointError) and (odd := unsavable(run.trainer._saver._state())):
            problems = [
                f"No checkpoint can hold {some_of(odd)}. A state may hold tensors, numbers, texts, and lists and dicts "
                "of them, so that loading it never runs code."
            ]
        if isinstance(run.error, _OF_NUMBERS):
            if run.place.method in _OF_EPOCHS:
                is_certain, few = False, "all mini-batches of an epoch"
            elif run.place.is_of_values:
                is_certain = False
        if not is_certain:
            problems = [f"{problem} With {few} it may work." for problem in problems]
        _tell_error(self._stage, problems, is_certain and not is_of_check(run.error, trainer_of(self._stage)))

    def _launch(self, trainer: Any, name: str, size: int) -> SmallRun:
        """Launch a run for two optimizer steps with few samples, and one evaluation."""
        run = SmallRun(trainer, name, size, Watch(trainer), unsaved(trainer))
        begun = time.perf_counter()
        try:
            with self._cut_short(run), run.watch.watching():
                trainer.launch()
        except Preempted:
            raise
        except (Exception, SystemExit) as error:
            run.error, run.place = error, Place(error, trainer, run.watch.outputs)
        run.seconds, run.ended = time.perf_counter() - begun, unsaved(trainer)
        return run

    @contextmanager
    def _cut_short(self, run: SmallRun) -> Iterator[None]:
        """Have a run end after two optimizer steps and one evaluation in the block, and log all that it can."""
        trainer, count = run.trainer, 1
        loaders, store = trainer._feed.loaders, trainer._run.checkpoints
        trainer._evaluation._every = trainer._recorder._every = 1
        with ExitStack() as last:
            if "train" in trainer.data:
                steps = trainer._steps
                last.callback(vars(steps).update, num_batches=steps.num_batches, accumulation=steps.accumulation)
                steps.accumulation = min(steps.accumulation, MOST_PER_STEP)
                count = steps.num_batches = min(STEPS * steps.accumulation, steps.num_batches)
            few = {name: few_of(found, run.size) for name, found in self._batches.items()}
            for name, found in few.items():
                last.callback(trainer.data.update, {name: loaders[name]})
                last.callback(loaders.update, {name: loaders[name]})
                trainer.data[name] = loaders[name] = Few(loaders[name], found, count if name == "train" else 1)
            for monitor in (one for named in trainer.logger["monitor"].values() for one in named.values()):
                if isinstance(monitor, KNN):
                    compute = _with_fewer_neighbours(monitor, few.get(monitor.bank))
                    last.enter_context(_replaced(monitor, "compute", compute))
            last.callback(trainer.optim.update, epochs=trainer.optim["epochs"])
            last.enter_context(_replaced(trainer._saver, "end_epoch", _ending(trainer)))
            last.enter_context(_replaced(store, "_write", _timed(run, store._write)))
            yield


def _ending(trainer: Any) -> Callable[[], None]:
    """Return a function that ends an epoch of a run as its last one."""
    end_epoch = trainer._saver.end_epoch

    def end() -> None:
        trainer.optim["epochs"] = 1
        end_epoch()

    return end


def _timed(run: SmallRun, write: Callable[..., None]) -> Callable[..., None]:
    """Return a function that writes a checkpoint, and notes how long it took."""

    def timed(*args: Any) -> None:
        begun = time.perf_counter()
        write(*args)
        run.seconds_of_checkpoint = time.perf_counter() - begun

    return timed


@contextmanager
def _replaced(owner: Any, name: str, method: Any) -> Iterator[None]:
    """Have an object another method in the block."""
    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name)


def _may_be_mended(run: SmallRun) -> bool:
    """Return whether the error of a run may be gone with more samples."""
    assert run.place is not None
    if isinstance(run.error, NanError):  # such as the mean of a class that few samples don't have
        return True
    return isinstance(run.error, _OF_NUMBERS) and not is_known(run.error, run.place)


def _with_fewer_neighbours(monitor: KNN, bank: Batch | None) -> Callable[[Any], dict[str, float]]:
    """Return a monitor's function that looks at no more neighbours than the bank has now, under its usual name."""
    labels = labels_of(bank[1]) if bank is not None else None
    all_of, compute = monitor.k, monitor.compute
    here = min(all_of, max(int((labels >= 0).sum()), 1)) if labels is not None else all_of

    def fewer(trainer: Any) -> dict[str, float]:
        monitor.k = here
        try:
            values = compute(trainer)
        finally:
            monitor.k = all_of
        return {f"k{all_of}_t{monitor.temperature}": value for value in values.values()}

    return fewer
