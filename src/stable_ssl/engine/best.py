"""The best evaluation of a run: its weights are kept, and training ends if no better one comes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..exceptions import BreakAllEpochs, ConfigError, nearest
from .session import Session
from .weight_files import WeightFiles

log = logging.getLogger("stable_ssl")


class Best:
    """Compares the evaluations of a run by one of their values.

    Parameters
    ----------
    options
        `logger.best` as a dict with metric, mode and patience, where "metric" is "<set>/<name>".
    watched
        `{set: {name: metric or monitor}}`: what is evaluated on each set.
    run
        The session.
    weights
        The run's files of weights.

    Raises
    ------
    ConfigError
        Nothing evaluates such a metric, or it does not say whether larger values are better.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        watched: Mapping[str, Mapping[str, Any]],
        run: Session,
        weights: WeightFiles,
    ):
        self.metric, self.patience = options["metric"], options["patience"]
        self._run, self._weights = run, weights
        self._is_larger_better = self._direction(watched, options["mode"])
        self.value: float | None = None
        self.epoch = -1
        self.evaluations_since = 0

    def _direction(self, watched: Mapping[str, Mapping[str, Any]], mode: str | None) -> bool:
        """Return whether larger values are better: as `mode` says, or as the metric itself says."""
        if (name_set := self.metric.partition("/")[0]) not in watched:
            raise ConfigError(
                f"logger.best.metric: '{self.metric}' is not '<set>/<name>' with an evaluation set of data."
                f"{nearest(name_set, watched)}"
            )
        found = {f"{name_set}/{name}": each for name_set, named in watched.items() for name, each in named.items()}
        # The values of one that returns a dict are called <name>_<key>.
        makers = [found[name] for name in sorted(found, key=len) if f"{self.metric}_".startswith(f"{name}_")]
        if not makers:
            unknown = (
                f"logger.best.metric: no metric and no monitor makes '{self.metric}'.{nearest(self.metric, found)}"
            )
            if mode is None:
                raise ConfigError(f"{unknown} If a hook logs it, set logger.best.mode to max or min.")
            log.warning("%s It counts if a hook logs it.", unknown)
        if mode is not None:
            return mode == "max"
        is_larger_better: bool | None = getattr(makers[-1], "higher_is_better", None)
        if is_larger_better is None:
            raise ConfigError(
                f"logger.best.mode: {type(makers[-1]).__name__} does not say which values of '{self.metric}' are "
                "better; set max or min."
            )
        return is_larger_better

    def judge(self, results: Mapping[str, float]) -> None:
        """Write the weights to `weights/best.safetensors` if an evaluation is the best one so far.

        Parameters
        ----------
        results
            The values of the evaluation of all sets, by "<set>/<name>". A value that is not a number is never better.
        """
        value = results.get(self.metric)
        if value is None:
            log.warning(
                "logger.best: this evaluation has no value '%s'; it has %s.", self.metric, sorted(results) or "none"
            )
            return
        epoch = self._run.shown_epoch if self._run.progress.global_step else -1  # before training
        if self._is_better(value) or (value, epoch) == (self.value, self.epoch):  # the same, if it is repeated
            self.value, self.epoch = value, epoch
            self.evaluations_since = 0
            self._weights.save("best", best=self.state_dict())
        else:
            self.evaluations_since += 1

    def stop_if_stale(self) -> None:
        """End training if the last `patience` evaluations were not better.

        Raises
        ------
        BreakAllEpochs
            They were not, and epochs are left.
        """
        if (
            self.patience
            and self.evaluations_since >= self.patience
            and self._run.progress.trained_epochs < self._run.num_epochs
        ):
            raise BreakAllEpochs(
                f"{self.metric} was best in epoch {self.epoch + 1}, with {self.value}; logger.best.patience is "
                f"{self.patience} evaluations."
            )

    def _is_better(self, value: float) -> bool:
        if self.value is None:
            return value == value
        return value > self.value if self._is_larger_better else value < self.value

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its epoch, and the number of evaluations since."""
        return {"value": self.value, "epoch": self.epoch, "evaluations_since": self.evaluations_since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` returned.

        A run may end between its last evaluation and the checkpoint of it, or `after_fit` may have changed the modules.
        If that evaluation was the best one, the header of its weights says so.
        """
        header = self._weights.header_of("best")
        if header and header["global_step"] == self._run.progress.global_step:
            state = header["best"]
        self.value, self.epoch, self.evaluations_since = state["value"], state["epoch"], state["evaluations_since"]
