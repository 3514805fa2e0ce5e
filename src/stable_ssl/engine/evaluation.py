"""Evaluation: the metrics of each set, and their record in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..data import length_of
from ..exceptions import BreakEpoch, DataError
from ..loggers.metrics import watched
from ..runtime.batches import labels_in
from ..runtime.device import describe_batch
from .best import Best
from .feeding import Feed
from .parts import Part
from .recording import Recorder
from .session import Session
from .weight_files import WeightFiles

log = logging.getLogger("stable_ssl")


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module's parts into evaluation mode in the block."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


class Evaluation:
    """Updates, computes and logs the metrics of the evaluation sets.

    Parameters
    ----------
    run, recorder
        The session, and where results are logged.
    feed
        The batches of the sets.
    options
        The run's `LoggerConfig`, with metrics and monitors built.
    weights
        The run's files of weights, for those of the best evaluation and those before training.
    """

    def __init__(self, run: Session, recorder: Recorder, feed: Feed, options: Any, weights: WeightFiles):
        self._run, self._recorder, self._feed = run, recorder, feed
        self._metrics: Mapping[str, Mapping[str, Any]] = options["metric"]
        self._best: Best | None = None
        # By set, a metric to which labels of -1, which stand for no label, would be wrong ones.
        self._strict = {
            name: next((key for key, metric in metrics.items() if _counts_missing_labels(metric)), None)
            for name, metrics in self._metrics.items()
        }
        self._every: int = options["eval_every_epoch"] or 0
        self._begins_run: bool = options["eval_at_start"]
        self._weights = weights
        self._evaluated = -1  # the newest step that was
        if options["best"]:
            known = watched(self._metrics, options["monitor"])
            known.pop("train", None)
            self._best = Best(options["best"], known, run, weights)

    def parts(self) -> Iterator[Part]:
        """Yield what a checkpoint holds: which step was evaluated, the best evaluation, what waits for a snapshot."""
        yield Part("evaluation", self, is_shared=True, is_optional=True)
        yield self._recorder.part()
        if self._best:
            yield Part("best", self._best, is_shared=True, is_optional=True)

    def is_due(self) -> bool:
        """Return whether an evaluation is due after the current epoch's training."""
        return self._every > 0 and self._run.progress.trained_epochs % self._every == 0

    def is_due_at_start(self) -> bool:
        """Return whether an evaluation is due before training."""
        return self._begins_run and self._run.progress.global_step == 0 and not self.is_done()

    def is_done(self) -> bool:
        """Return whether the model was evaluated after its newest optimizer step."""
        return self._evaluated == self._run.progress.global_step

    def state_dict(self) -> dict[str, int] | None:
        """Return the step that was evaluated, if it is the current one."""
        return {"step": self._evaluated} if self.is_done() else None

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over a state that `state_dict` returned."""
        self._evaluated = state["step"]

    def begin(self, hook: Callable[[], None]) -> None:
        """Begin an evaluation of all sets: run its first hook. Before training, keep the weights first."""
        if self.is_due_at_start():
            self._weights.save("initial")
        self.mark_done()
        self._run.ranks.sharding.unshard()
        self._recorder.hook(hook, "eval")

    @contextmanager
    def over(
        self, set_name: str, data: Mapping[str, Any], monitors: Mapping[str, Callable[[], Any]]
    ) -> Iterator[Iterator[tuple[int, Any, Any]]]:
        """Yield the batches of a set for the `with` block to evaluate. After the block, log metrics and monitors.

        A BreakEpoch in the block ends the set, and the results are those of the batches so far.

        Parameters
        ----------
        set_name, data
            The set's name in the trainer's `data`.
        monitors
            Functions by the monitor's name. Each returns the value of its monitor after all batches.

        Yields
        ------
        Iterator
            (place in the set, sample indices, batch on the device).
        """
        self._feed.check(data)
        metrics = self._metrics[set_name]
        for metric in metrics.values():
            metric.reset()
        with self._recorder.evaluation(set_name, length_of(data[set_name])):
            try:
                yield self._feed.seeded_evaluation(data, set_name)
            except BreakEpoch as request:
                self._run.ranks.broke_off(request)
                log.info(
                    "The evaluation of '%s' was broken off; its results are those of the batches so far.", set_name
                )
            self._run.ranks.fill_empty_states(metrics)
            computed = {name: metric.compute() for name, metric in metrics.items()}
            computed.update((name, compute()) for name, compute in monitors.items())
            if self._run.ranks.is_main:  # the values are those of all processes already
                for name, value in computed.items():
                    self._recorder.log_values(name, value)

    def end(self, hook: Callable[[], None]) -> None:
        """End an evaluation of all sets: keep the weights if it is the best, run the last hook, write the snapshot.

        Raises
        ------
        BreakAllEpochs
            The hook ends training, or training gets no better, as `logger.best` says.
        """
        if self._best:
            self._best.judge(self._recorder.results)
            self._run.ranks.sharding.unshard()  # what saves weights divides them
        try:
            self._recorder.hook(hook, "eval")
        finally:
            self._recorder.write_snapshot()
            self._run.ranks.sharding.reshard()
        if self._best:
            self._best.stop_if_stale()

    def mark_done(self) -> None:
        """Note that the model is evaluated after its newest optimizer step."""
        self._evaluated = self._run.progress.global_step

    def last(self, after_fit: Callable[[], None]) -> None:
        """Run the hook after training. Warn if the last step was evaluated neither in the loop nor in the hook."""
        self._run.seed_for(after_fit)
        with self._recorder.outside_steps():
            after_fit()
        if any(self._metrics.values()) and not self.is_done():
            log.warning("after_fit() left out the last evaluation, which super().after_fit() makes.")

    def close(self) -> None:
        """Add to the last evaluation's snapshot what was logged since, if training is over."""
        if self._run.progress.epoch >= self._run.num_epochs:
            self._recorder.write_snapshot()

    def update(self, set_name: str, predictions: Any, batch: Any) -> None:
        """Give the predictions and labels of a batch to the metrics of its set."""
        labels = labels_in(batch)
        strict = self._strict.get(set_name)
        if strict and isinstance(labels, Tensor) and (labels == -1).any():
            raise DataError(
                f"logger.metric.{set_name}.{strict} needs labels, but some are -1, which stands for no label. Set the "
                "metric's ignore_index to -1, or remove the metric."
            )
        for name, metric in self._metrics[set_name].items():
            if labels is None:
                raise DataError(
                    f"logger.metric.{set_name}.{name} needs labels, but the batch is {describe_batch(batch)}. Give "
                    "[images, labels] or {'image': images, 'label': labels}, or remove the metric."
                )
            try:
                metric.update(predictions.float() if isinstance(predictions, Tensor) else predictions, labels)
            except Exception as error:
                error.add_note(
                    f"While logger.metric.{set_name}.{name} took predictions {describe_batch(predictions)} and labels "
                    f"{describe_batch(labels)}."
                )
                raise


def _counts_missing_labels(metric: Any) -> bool:
    """Return whether a metric is one of torchmetrics for classes whose `ignore_index` is not -1."""
    parts = list(metric.modules()) if isinstance(metric, nn.Module) else []
    of_classes = [p for p in parts if "torchmetrics" in type(p).__module__ and hasattr(p, "ignore_index")]
    return bool(of_classes) and all(part.ignore_index != -1 for part in of_classes)
