"""Experiment trackers: Weights & Biases, and TensorBoard. One that fails or hangs never stops a run."""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..runtime.files import whole_file
from ..runtime.status import COMPLETE
from .media import Histogram, Image, Media

log = logging.getLogger("stable_ssl")

SECONDS_TO_OPEN = 20.0  # after which training begins although a tracker is not open yet
SECONDS_OF_GRACE = 30.0  # beyond W&B's own limits, after which a call has no answer
# W&B's own limit for the upload at the end; without one it tries for days.
_SETTINGS = {"console": "off", "silent": True, "finish_timeout": 60, "finish_timeout_raises": True}


class Tracker(Protocol):
    """An experiment tracker: it gets every record of a run."""

    def log(self, record: dict[str, Any], step: int) -> None:
        """Add one record of a global step."""

    def show(self, media: Mapping[str, Media], step: int) -> None:
        """Add images and histograms of a global step, by name. Anything else is left out."""

    def flush(self) -> None:
        """Write all records, so that they are not lost if the process dies. Called at each checkpoint."""

    def close(self, status: str) -> None:
        """End the tracker's run. `status` is "finished", "stopped", "preempted" or "failed"."""


def open_trackers(
    folder: Path, *, wandb: bool | dict[str, Any] | None, tensorboard: bool, config: dict[str, Any], step: int
) -> list[Tracker]:
    """Return the trackers that the configuration asks for. Warn of one that can't be opened, and leave it out.

    Parameters
    ----------
    folder
        The run's folder.
    wandb
        True, or a dict of arguments for `wandb.init`. False or None: no Weights & Biases.
    tensorboard
        Whether to write TensorBoard events.
    config
        The run's configuration, which trackers show.
    step
        The global step of the checkpoint that the run resumes from; 0 for a new run.
    """
    wanted: dict[str, Callable[[], Tracker]] = {}
    if wandb:
        options = {} if wandb is True else {key: value for key, value in wandb.items() if value is not None}
        wanted["wandb"] = lambda: _open_wandb(folder, options, config)
    if tensorboard:
        wanted["tensorboard"] = lambda: TensorBoardTracker(folder, step)
    trackers: list[Tracker] = []
    for name, opened in wanted.items():
        try:
            trackers.append(Guarded(name, opened()))
        except Exception as error:
            _warn(name, error)
    return trackers


def _warn(name: str, error: Exception) -> None:
    """Say that a tracker failed."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        reason = f"there is no package {name} (`pip install 'stable-ssl[{name}]'`)"
    log.warning("logger.%s: %s. The run goes on without it; metrics.jsonl has all values.", name, reason)


class Guarded:
    """A tracker whose first failure is a warning. It gets nothing more after it.

    Parameters
    ----------
    name
        Its key in the configuration, for the warning.
    tracker
        The tracker.
    """

    def __init__(self, name: str, tracker: Tracker):
        self._name, self._tracker = name, tracker
        self._has_failed = False

    def _call(self, method: str, *args: Any) -> None:
        if self._has_failed:
            return
        try:
            getattr(self._tracker, method)(*args)
        except Exception as error:
            self._has_failed = True
            _warn(self._name, error)

    def log(self, record: dict[str, Any], step: int) -> None:
        """Add one record of a global step."""
        self._call("log", record, step)

    def show(self, media: Mapping[str, Media], step: int) -> None:
        """Add images and histograms of a global step, by name."""
        self._call("show", media, step)

    def flush(self) -> None:
        """Write all records."""
        self._call("flush")

    def close(self, status: str) -> None:
        """End the tracker's run."""
        self._call("close", status)


class InBackground:
    """A tracker that is opened and called in a thread of its own, so that one that hangs never holds up the run.

    Its errors are raised by the next call.

    Parameters
    ----------
    make
        Opens the tracker. The constructor waits for it, but not longer than `SECONDS_TO_OPEN`.
    patience
        Seconds that a call may take.
    """

    def __init__(self, make: Callable[[], Tracker], patience: float):
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._tracker: Tracker | None = None
        self._error: Exception | None = None
        self._patience, self._begun = patience, 0.0
        threading.Thread(target=self._work, name="tracker", daemon=True).start()

        def open_it() -> None:
            self._tracker = make()

        self._put(open_it)
        self._wait(SECONDS_TO_OPEN)
        self._check()

    def _work(self) -> None:
        while call := self._calls.get():
            self._begun = time.monotonic()
            try:
                if self._error is None:
                    call()
            except Exception as error:
                self._error = error
            except BaseException as error:  # such as SystemExit, which must not end the run
                self._error = RuntimeError(repr(error))
            self._calls.task_done()

    def _put(self, call: Callable[[], None]) -> None:
        if not self._calls.unfinished_tasks:
            self._begun = time.monotonic()
        self._calls.put(call)

    def _wait(self, seconds: float) -> bool:
        """Wait until all calls are done, but not longer than some seconds. Return whether they are."""
        with self._calls.all_tasks_done:
            return self._calls.all_tasks_done.wait_for(lambda: not self._calls.unfinished_tasks, seconds)

    def _check(self) -> None:
        if self._error:
            raise self._error
        if self._calls.unfinished_tasks and time.monotonic() - self._begun > self._patience:
            raise TimeoutError(f"no answer for {self._patience:.0f} s")

    def _call(self, method: str, *args: Any) -> None:
        self._check()
        self._put(lambda: getattr(self._tracker, method)(*args))

    def log(self, record: dict[str, Any], step: int) -> None:
        """Add one record of a global step."""
        self._call("log", record, step)

    def show(self, media: Mapping[str, Media], step: int) -> None:
        """Add images and histograms of a global step, by name."""
        self._call("show", media, step)

    def flush(self) -> None:
        """Do not wait: what is in another process or on its way to a server can't be made safe."""
        self._check()

    def close(self, status: str) -> None:
        """End the tracker's run, and wait for it."""
        seconds = self._patience if self._tracker else SECONDS_TO_OPEN
        self._call("close", status)
        is_done = self._wait(seconds)
        self._calls.put(None)  # ends the thread
        self._check()
        if not is_done:
            raise TimeoutError(f"no answer for {seconds:.0f} s at the end of the run")


def _open_wandb(folder: Path, options: dict[str, Any], config: dict[str, Any]) -> Tracker:
    """Return a run of W&B in the background.

    Parameters
    ----------
    options
        Arguments for `wandb.init`. `settings` may be a dict, and `config` is added to the run's.
    """
    import wandb

    settings = options.get("settings", {})
    if isinstance(settings, Mapping):
        known = getattr(wandb.Settings, "model_fields", ("console", "silent"))  # those of W&B's first versions
        settings = wandb.Settings(**{key: value for key, value in _SETTINGS.items() if key in known} | dict(settings))
    limit = max(getattr(settings, name, None) or 0.0 for name in ("init_timeout", "finish_timeout"))
    options = {**options, "settings": settings}
    return InBackground(lambda: WandbTracker(folder, options, config), limit + SECONDS_OF_GRACE)


class WandbTracker:
    """A run of Weights & Biases. It is offline if there is no login, and keeps its id when the run is resumed."""

    def __init__(self, folder: Path, options: dict[str, Any], config: dict[str, Any]):
        import wandb

        remembered = folder / "wandb.json"
        if "id" not in options:
            # A sweep's agent has chosen the id already.
            chosen = {"id": os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)}
            options["id"] = (json.loads(remembered.read_text()) if remembered.exists() else chosen)["id"]
        remembered.write_text(json.dumps({"id": options["id"]}) + "\n")
        is_asked = "WANDB_MODE" in os.environ or {"mode", "force"} & options.keys()
        if not is_asked and wandb.api.api_key is None:
            options["mode"] = "offline"
            log.warning("logger.wandb: there is no login, so the run is logged offline. `wandb sync` uploads it later.")
        if not {"resume", "resume_from", "fork_from"} & options.keys():
            options["resume"] = "allow"
        # W&B writes in a process of its own, which may have been started in another working folder.
        place = Path(options.get("dir") or folder).expanduser().absolute()
        options = {"name": folder.name, **options, "dir": str(place)}
        own = options.pop("config", {})
        options["config"] = {**config, **own} if isinstance(own, Mapping) else own
        self._wandb, self._run = wandb, wandb.init(**options)
        facts = {name: getattr(self._run, name, None) for name in ("entity", "project", "name")}
        known = {name: fact for name, fact in facts.items() if fact and isinstance(fact, str)}
        with whole_file(remembered) as part:
            part.write_text(json.dumps({"id": options["id"], **known}) + "\n")
        # W&B's own step can't go back, but after a resume the global step goes back to the checkpoint's.
        self._run.define_metric("*", step_metric="global_step")

    def log(self, record: dict[str, Any], step: int) -> None:
        """Add one record of a global step."""
        self._run.log(record)

    def show(self, media: Mapping[str, Media], step: int) -> None:
        """Add images and histograms of a global step, by name."""
        shown: dict[str, Any] = {}
        for name, item in media.items():
            if isinstance(item, Image):
                shown[name] = self._wandb.Image(item.pixels)
            elif isinstance(item, Histogram):
                shown[name] = self._wandb.Histogram(np_histogram=(item.counts.tolist(), item.edges.tolist()))
        if shown:
            self._run.log({"global_step": step, **shown})

    def flush(self) -> None:
        """Do nothing: W&B writes each record from a process of its own."""

    def close(self, status: str) -> None:
        """End the run. W&B shows a preempted run as preempted, and a failed one as failed."""
        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status in COMPLETE else 1)


class TensorBoardTracker:
    """TensorBoard events in the folder `tensorboard` of the run's folder."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides the events after the checkpoint, because the resumed run writes them again.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, record: dict[str, Any], step: int) -> None:
        """Add one record of a global step."""
        for name, value in record.items():
            if name != "global_step":
                self._writer.add_scalar(name, value, step)

    def show(self, media: Mapping[str, Media], step: int) -> None:
        """Add images and histograms of a global step, by name."""
        for name, item in media.items():
            if isinstance(item, Image):
                self._writer.add_image(name, item.pixels, step, dataformats="HWC")
            elif isinstance(item, Histogram):
                counts, edges = item
                middles = (edges[1:] + edges[:-1]) / 2  # stand for the values of their bins
                self._writer.add_histogram_raw(
                    name,
                    min=float(edges[0]),
                    max=float(edges[-1]),
                    num=int(counts.sum()),
                    sum=float((counts * middles).sum()),
                    sum_squares=float((counts * middles**2).sum()),
                    bucket_limits=edges[1:].tolist(),
                    bucket_counts=counts.tolist(),
                    global_step=step,
                )

    def flush(self) -> None:
        """Write all events to disk."""
        self._writer.flush()

    def close(self, status: str) -> None:
        """Write all events to disk and close the file."""
        self._writer.close()
