"""The session of a run: its processes, folder, messages, logs, signals and status."""

from __future__ import annotations

import logging
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..exceptions import BreakAllEpochs, NanError, PeerError
from ..loggers import Console, RunLog, read_metrics
from ..nodes import origin
from ..runtime.checkpoint import CheckpointStore
from ..runtime.cpus import limit_threads
from ..runtime.device import describe_batch, place_module, resolve_device, use_deterministic
from ..runtime.folder import RunFolder, how_to_branch, how_to_resume
from ..runtime.precision import Precision, resolve_precision
from ..runtime.preemption import StopRequest
from ..runtime.seeding import Stream, seed_generators
from ..runtime.status import COMPLETE, StatusFile, outcome
from .agreement import join
from .facts import check_held
from .memory import memory_explained
from .progress import Progress

log = logging.getLogger("stable_ssl")


class Session:
    """The environment of one run: its processes, folder, device, logs and signals.

    Parameters
    ----------
    dump_path
        The run's folder. None: a new folder is chosen.
    name
        The run's name, which a chosen folder gets.
    progress
        The record of how far the run is. It is shared with the rest of the engine.
    hardware, optim, logger
        The run's configuration. In `hardware`, `world_size`, `seed` and `precision` become the values in use.

    Attributes
    ----------
    ranks
        The processes of the run: `Alone` or `Together`.
    folder, checkpoints
        The run's `RunFolder`, and the checkpoints in it.
    status
        The run's `status.json`.
    owns_folder
        Whether the folder is known to hold this run and no other one, so that a failed set-up may be noted there.
    device
        Where this process computes.
    precision
        Autocast, loss scaling and clipping.
    loader
        The loader of the set whose batches were read last; None before the first.
    stop
        The signals and the time limit that ask the run to stop. Exists while the run lasts.
    is_finished, has_ended
        Whether the run did all its epochs or was stopped by `BreakAllEpochs`, or ended in another way. In both cases
        this trainer can't launch it again.
    """

    precision: Precision
    loader: Any = None

    def __init__(
        self, dump_path: str | Path | None, name: str, progress: Progress, hardware: Any, optim: Any, logger: Any
    ):
        self.progress, self.device = progress, torch.device("cpu")
        self.is_finished = self.has_ended = self.owns_folder = False
        self._hardware, self._optim, self._logger = hardware, optim, logger
        self._log: RunLog | None = None
        self.stop = StopRequest()
        self.ranks = join(hardware["world_size"] if "world_size" in hardware.model_fields_set else None)
        hardware["world_size"] = self.ranks.size
        try:
            with self._telling():
                self.folder: RunFolder = self.ranks.from_main(lambda: RunFolder(dump_path, name))
        except BaseException:
            self.ranks.leave()
            raise
        self.status = StatusFile(self.folder.path, self.ranks.is_main)
        self.ranks.on_lost, self.ranks.unanswered = self._lost, lambda: self.stop.unanswered()
        folder, keep = self.folder.path / "checkpoints", logger["checkpoint_keep"]
        self.checkpoints = CheckpointStore(folder, keep, self.ranks.peers)

    # Setting up -------------------------------------------------------------------------------------------------------

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Show the messages of the `with` block, which sets up the run. An error in it ends the run on all ranks.

        The error is noted in `console.log` and `status.json`. A run that was finished or stopped stays so.
        """
        with self.console() as console:
            try:
                with self._telling():
                    yield
            except BaseException as error:
                status, sentence = outcome(error)
                if self.owns_folder:
                    console.write_to_file(f"The set-up failed: {sentence or type(error).__name__}")
                self._end_set_up(status, sentence)
                self.let_go()
                raise

    def _end_set_up(self, status: str, sentence: str | None) -> None:
        """Write the status of a set-up that failed, beside the progress of the run in the folder."""
        earlier: dict[str, Any] = self.folder.status
        if self.owns_folder and earlier.get("status") not in COMPLETE:
            known: dict[str, Any] = {key: earlier[key] for key in ("progress", "epochs", "metrics") if key in earlier}
            self.status.end(status, {**self._facts(), **known}, sentence)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell the other ranks of an error of the `with` block. If it is a consequence of theirs, raise a PeerError."""
        try:
            yield
        except BaseException as error:
            if not self.stop.has_ended_run:
                self.ranks.fail(error)
            raise

    def console(self) -> Console:
        """Return a console for messages outside of training. It also writes them to the run's folder."""
        return Console(self.folder.path, self._logger["level"], self._optim["epochs"], self.ranks.rank)

    def let_go(self) -> None:
        """Leave the other ranks, and release the lock on the folder."""
        self.ranks.leave()
        self.folder.release()

    def choose_seed(self, earlier: Mapping[str, Any] | None) -> int:
        """Return `hardware.seed`. If it is None, return that of an earlier run, or draw one if there is none.

        Parameters
        ----------
        earlier
            The configuration of the run that goes on, or of the one that this run branches from. None: a new run.
        """

        def choose() -> int:
            if self._hardware["seed"] is not None:
                return int(self._hardware["seed"])
            if earlier:
                return int(earlier["hardware"]["seed"])
            drawn = secrets.randbits(31)
            log.info("hardware.seed is none: the run has seed %d.", drawn)
            return drawn

        seed: int = self.ranks.from_main(choose)
        self._hardware["seed"] = seed
        return seed

    def claim(self, config: dict[str, Any], held: Mapping[str, Any] | None) -> None:
        """Refuse a folder that holds a run with another configuration or behaviour. In a new run, write `config.yaml`.

        Parameters
        ----------
        held
            What the folder's newest checkpoint says: `config` and `behaviours`. None if there is no checkpoint. Then
            there is nothing to lose, and any configuration may be written.

        Raises
        ------
        ConfigError
            Lists the differences between the run in the folder and this one, or between this process and rank 0.
        """

        def write() -> None:
            self._config = config
            if held:
                check_held(self.folder.path, held, config["trainer"])
                self.owns_folder = True
            else:
                self.own_folder()

        self.ranks.from_main(write)
        self.ranks.compare(config["trainer"])

    def own_folder(self) -> None:
        """Write `config.yaml`: the folder is known to hold this run. Called on rank 0 only."""
        self.folder.write_config({**self._config, **origin(self._config)})
        self.owns_folder = True

    def how_to_change(self) -> str:
        """Return the sentence that says how this run goes on under another configuration, after it has failed."""
        if self.checkpoints.is_empty():
            return "The run has no checkpoint yet, so change what you like and start it again."
        return how_to_branch(self.folder.path)

    def take_device(self) -> torch.device:
        """Return the configured device, or the nearest that the machine has. Set threads and the precision in use."""
        hardware, ranks = self._hardware, self.ranks
        limit_threads()
        self.device = resolve_device(hardware["device"], ranks.local_rank, ranks.size)
        hardware["precision"] = resolve_precision(hardware["precision"], self.device, ranks.size)
        ranks.introduce(self.device, hardware)
        if hardware["deterministic"]:
            use_deterministic(self.device)
        max_norm, skips = self._optim["grad_max_norm"], self._optim["nonfinite"] == "skip"
        self.precision = Precision(hardware["precision"], self.device, max_norm, skips)
        return self.device

    def place(self, module: nn.Module) -> None:
        """Move a module to the device, in the configured memory format."""
        place_module(module, self.device, self._hardware["channels_last"])

    # While it lasts ---------------------------------------------------------------------------------------------------

    def may_begin(self) -> bool:
        """Return whether anything is left to do. If the run is finished, say so and release its folder.

        Raises
        ------
        RuntimeError
            This run has ended already.
        """
        if self.has_ended:
            raise RuntimeError("This trainer's run has ended; a new trainer with the same dump_path goes on with it.")
        if self.is_finished:
            with self.console():
                status, step = self.folder.status.get("status"), self.progress.global_step
                if status not in COMPLETE:  # its process was killed after the last thing that it had to do
                    status = "finished"
                    self.status.end(status, self._facts())
                log.info(
                    "The run in '%s' is %s at step %d; a larger optim.epochs goes on.", self.folder.path, status, step
                )
            self.let_go()
        return not self.is_finished

    @contextmanager
    def running(
        self, config: dict[str, Any], log_position: int | None, parts: Iterable[Any], on_stop: Callable[[], None]
    ) -> Iterator[None]:
        """Open the logs and listen for signals during the `with` block. Then close the logs and write the final status.

        Parameters
        ----------
        config
            The configuration, for trackers such as TensorBoard.
        log_position
            Length in bytes to which `metrics.jsonl` is cut back. None: it is not cut.
        parts
            Objects with a method `close`, which is called at the end, before the status is written.
        on_stop
            Saves the state after `BreakAllEpochs`.
        """
        path, status, sentence, step = self.folder.path, "finished", None, self.progress.global_step
        self.stop = StopRequest(self._hardware["time_limit"], listens=self.ranks.size > 1)
        try:
            with self._telling():
                self._log = RunLog(path, self._logger, self.num_epochs, config, step, log_position, self.ranks.rank)
                self.status.begin(self._facts)
                if self.folder.is_chosen:
                    where = path.absolute()
                    log.info("The run is in '%s'; start it again with logger.dump_path=%s to go on.", where, where)
                explained = self.ranks.sharding.explained()
                with self.stop, memory_explained(self, self._hardware, self._optim), explained:
                    try:
                        yield
                    except BreakAllEpochs as request:
                        self.ranks.broke_off(request)
                        on_stop()
                        status = "stopped"
                        log.info("Training was stopped at step %d. %s", self.progress.global_step, request)
        except BaseException as error:
            status, sentence = outcome(error)
            if status == "failed" and not self.has_ended:
                self._say_why(error, sentence)
            raise
        finally:
            self._end(status, sentence, parts)

    def _say_why(self, error: BaseException, sentence: str | None) -> None:
        """Log the error that ends the run, and how to go on; of one of another rank, a sentence in the file will do."""
        said = f"The run failed at step {self.progress.global_step}: {sentence}"
        if self._log and isinstance(error, PeerError):  # which the screen shows itself
            return self._log.console.write_to_file(said)
        log.error(said)
        if not (isinstance(error, NanError) or self.checkpoints.is_empty()):
            log.error("%s %s", how_to_resume(self.folder.path), how_to_branch(self.folder.path))

    def _lost(self, status: str, sentence: str | None) -> None:
        """Write out what is buffered: the process ends at once, because of another one or of a signal."""
        self.has_ended = True
        if self._log:
            with suppress(OSError):
                self._log.position()
            self.status.end(status, self._facts(), sentence)
        else:
            self._end_set_up(status, sentence)

    def _end(self, status: str, sentence: str | None, parts: Iterable[Any]) -> None:
        """Close everything, the last first; each although another one failed. A run whose end is lost has failed."""
        try:
            with ExitStack() as last:
                if self._log and status in COMPLETE:
                    last.callback(self._log.position)
                for part in parts:
                    last.callback(part.close)
        except BaseException as error:
            if status in COMPLETE:
                status, sentence = outcome(error)
                log.error("The run failed at its end: %s", sentence)
            self.ranks.fail(error)
            raise
        finally:
            self.is_finished = status in COMPLETE
            self.has_ended = not self.is_finished
            with ExitStack() as last:
                last.callback(self.let_go)
                last.callback(self._close_log, status)
                last.callback(self.status.end, status, self._facts(), sentence)

    def _close_log(self, status: str) -> None:
        if self._log:
            self._log.close(status)
            self._log = None

    @property
    def num_epochs(self) -> int:
        """Epochs of the run."""
        return int(self._optim["epochs"])

    @property
    def shown_epoch(self) -> int:
        """The number, from 0, of the epoch that is going on or was just evaluated: after training, the last one."""
        return min(self.progress.epoch, self.num_epochs - 1)

    @property
    def is_going_on(self) -> bool:
        """Whether the logs are open."""
        return self._log is not None

    @property
    def log(self) -> RunLog:
        """Console, `metrics.jsonl` and trackers, while the run lasts."""
        if self._log is None:
            raise RuntimeError(
                "The run is not going on: launch() trains, evaluates and logs. If data has no train, it evaluates only."
            )
        return self._log

    def records(self) -> list[dict[str, Any]]:
        """Return the records of `metrics.jsonl`, the newest included."""
        if self._log:
            self._log.position()  # writes out what is buffered
        return read_metrics(self.folder.path / "metrics.jsonl")

    def _facts(self) -> dict[str, Any]:
        """Return what `status.json` says of how far the run is. Its thread calls this too."""
        facts: dict[str, Any] = {"progress": self.progress.as_dict(), "epochs": self._optim["epochs"]}
        if run_log := self._log:
            facts["metrics"] = run_log.summary.values()
        return {**facts, "warning": self.ranks.stuck} if self.ranks.stuck else facts

    def end_when_asked(self, request: int, where: str) -> None:
        """End the run if it is asked to, after the newest checkpoint is on disk.

        Parameters
        ----------
        request
            The reason, a value of `StopRequest.request`; 0 for none.
        where
            The place at which the run stops, for the message.
        """
        if request:
            log.warning("Stopping %s because of %s.", where, self.stop.reason(request))
            self.checkpoints.wait()  # the handler of submitit may end the job at once
            self.stop.end_run(request)

    def seed_for(self, hook: Callable[[], None]) -> None:
        """Seed the default generators for a hook outside of training steps, and the epoch."""
        name = zlib.crc32(getattr(hook, "__name__", "").encode())
        seed_generators(self._hardware["seed"], Stream.EPOCH, self.progress.epoch, name)

    def seed_epoch(self) -> None:
        """Seed the default generators for the hooks around an epoch."""
        seed_generators(self._hardware["seed"], Stream.EPOCH, self.progress.epoch)

    def described(self, compute: Callable[[], Any], batch: Any, batch_idx: int) -> Any:
        """Call a method of the trainer, and return its result. If it raises an error, add a note on the batch to it."""
        try:
            return compute()
        except Exception as error:
            owner, where = type(getattr(compute, "__self__", None)).__name__, f"epoch {self.shown_epoch + 1}"
            what = f"batch {batch_idx} of {where}: {describe_batch(batch)}"
            error.add_note(f"While {owner}.{compute.__name__}() used {what}.")
            raise
