"""`BaseTrainer`: the life of a run, read from top to bottom."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import config as cfg
from . import engine
from .arguments import check_arguments, check_own_names, parse_branch, resolved_config
from .compat import CountedSteps, EarlyTrainer, set_epoch
from .engine.building import data_sets
from .engine.evaluation import in_evaluation_mode
from .exceptions import BreakAllEpochs, BreakEpoch, BreakStep, ConfigError
from .nodes import describe
from .runtime.batches import images_of
from .runtime.preemption import StopWaiting


class BaseTrainer(EarlyTrainer, nn.Module):
    """Trains, evaluates, checkpoints and restarts a model; a subclass says what the model learns.

    A subclass implements `forward`, `predict` and `compute_loss`, and may override any hook. `trainer()` runs
    everything, as does `setup()` followed by `launch()`:

        before_fit
        for each epoch:      before_fit_epoch
          for each batch:      before_fit_step, _fit_step, after_fit_step
                             after_fit_epoch
                             _evaluate, if due: before_eval,
          for each set, batch:   before_eval_step, _eval_step, after_eval_step
                               after_eval
        after_fit            (evaluates, if the last epoch was not)

    Without a set named `train`, the run only evaluates. Raise `BreakStep` in a step hook, `BreakEpoch` there or in
    the hooks around an epoch, `BreakAllEpochs` in any hook. One process is enough, except in `compute_loss`,
    `side_losses`, `after_fit` and evaluation steps: there every process must raise it. Only `BreakStep` in evaluation
    steps concerns its own process alone. An overridden hook need not call that of this class, except `after_fit`'s.

    Parameters
    ----------
    data
        Loaders by name: the run trains on `train` and evaluates on the others. Names with a leading underscore are
        plain values. A loader is a `stable_ssl.data.Loader`, a torch `DataLoader`, or any iterable of batches.
    module
        Networks by name.
    hardware, optim, logger
        Fields of `HardwareConfig`, `OptimConfig` and `LoggerConfig`.
    loss
        Available to `compute_loss` as `self.loss`. Its parameters are trained too.
    module_init
        Initial weights: `{module name: source}`, with the sources of `load_backbone`. A resumed run does not read them.
    branch_from
        Begin from a checkpoint of another run: its folder, or a dict with `run`, `step` and `restart_schedule`.
    **kwargs
        Become attributes.

    Every argument may hold live objects, `_target_` nodes, or both. The constructor checks them, and raises one
    ConfigError that names everything that is wrong; `setup` builds.

    Attributes
    ----------
    batch, batch_idx, indices
        The current mini-batch, its place in the epoch (or evaluation set), and its sample indices if known.
    stepped
        In `after_fit_step`: whether this mini-batch ended an optimizer step.
    device, rank, world_size
        The device and the number of this process, and the number of processes.
    latest_representations, latest_embeddings
        Outputs of the backbone and of the projector for the current batch, (batch, dim), in methods that have them.
    """

    required_modules: Mapping[str, type] = {}
    batch: Any = None
    batch_idx: int = 0
    indices: Any = None
    stepped: bool = False
    device: torch.device = torch.device("cpu")
    rank: int = 0
    world_size: int = 1
    latest_representations: Tensor | None = None
    latest_embeddings: Tensor | None = None
    _recorder: engine.Recorder = engine.NoRecorder()  # until `setup`
    _notes: tuple[str, ...] = ()  # for the log, from before there is one

    def __new__(cls, *args: Any, **kwargs: Any) -> BaseTrainer:  # noqa: D102
        # Kept for `checkpoint` and `get_config`, whatever a subclass does in its own constructor.
        trainer = super().__new__(cls)
        trainer.__dict__["_captured"] = (args, kwargs)
        return trainer

    @engine.with_sweep_values
    def __init__(
        self, data: Any, module: Any, hardware: Any, optim: Any, logger: Any, loss: Any = None, *,
        module_init: Any = None, branch_from: Any = None, **kwargs: Any,
    ):  # fmt: skip
        super().__init__()
        problems: list[str] = []
        self.hardware = cfg.parse_config(cfg.HardwareConfig, hardware, "hardware", problems)
        self.optim = cfg.parse_config(cfg.OptimConfig, optim, "optim", problems)
        self.logger = cfg.parse_config(cfg.LoggerConfig, logger, "logger", problems)
        check_arguments(BaseTrainer, self, data, module, loss, module_init or {}, kwargs, problems)
        self.data, self.module, self.loss, self._attributes = data, module, loss, kwargs
        self.module_init, self.branch_from = module_init or {}, parse_branch(branch_from, problems)
        if problems:
            raise ConfigError(problems)
        for name, value in kwargs.items():
            setattr(self, name, value)
        # As configured: `setup` replaces some fields by what it builds.
        self._configured = {key: dict(getattr(self, key)) for key in ("hardware", "optim", "logger", "branch_from")}
        self._dump_path, self._progress, self._is_set_up = self.logger["dump_path"], engine.Progress(), False
        self._registered: list[tuple[str, Any]] = []

    def __call__(self) -> None:
        """Set up and launch."""
        self.setup()
        self.launch()

    # What a subclass must say -----------------------------------------------------------------------------------------

    def forward(self, *args: Any) -> Any:
        """Return the representation of an input."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward().")

    def predict(self) -> Tensor:
        """Return class scores for `self.batch`, (batch, classes). The evaluation metrics get them."""
        raise NotImplementedError(f"{type(self).__name__} does not implement predict(), which metrics need.")

    def compute_loss(self) -> Tensor | list | dict[str, Any]:
        """Return the loss of `self.batch`: a scalar, or a list or dict of scalars and numbers, logged and summed."""
        raise NotImplementedError(f"{type(self).__name__} does not implement compute_loss().")

    # What it may add --------------------------------------------------------------------------------------------------
    # Any module or loss, and the trainer itself, may have `begin_epoch(epoch)`, called before an epoch's training (and
    # again if it is resumed), and `begin_step(progress)` and `update_teacher(progress)`, called before and after each
    # optimizer step; `progress` is the fraction of the run's steps that came before it.

    def prepare_modules(self, modules: dict[str, nn.Module]) -> None:
        """Check and change the modules, in place, after they were built and before they are on the device."""

    def initialize_modules(self) -> None:
        """Set first values. Runs only in a run that begins anew, after `module_init`."""

    def optimized_modules(self) -> dict[str, nn.Module]:
        """Return the modules whose trainable parameters the optimizer gets: all of `module`, and the loss."""
        modules = dict(self.module.items())
        return {**modules, "loss": self.loss} if isinstance(self.loss, nn.Module) else modules

    def side_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return optimizers, by name, of parameters that `side_losses` train. Leave them out of `optimized_modules`.

        They are saved, their gradients are averaged over the processes, and they skip a step when the method does.
        """
        return {}

    def side_losses(self) -> dict[str, Tensor]:
        """Return losses of the current batch, by name, that are no part of the method's; they are logged.

        Their sum has a backward pass of its own, after the method's, outside of autocast and loss scaling: give them
        detached features, in float32.
        """
        return {}

    def check_setup(self) -> None:
        """Raise a ConfigError if what was built does not fit together."""

    def register(self, name: str, part: Any) -> None:
        """Save `part.state_dict()`, of each process its own, with checkpoints; on resume `load_state_dict` gets it."""
        self._registered.append((name, part))
        if self._is_set_up:
            self._saver.register([(name, part)])

    def before_optimizer_step(self) -> None:
        """Run before each optimizer step: gradients are averaged, not clipped yet. Change them alike on all ranks."""

    # The hooks --------------------------------------------------------------------------------------------------------

    def before_fit(self) -> None:
        """Run once before training."""

    def after_fit(self) -> None:
        """Run once after training; evaluates, unless the last step was evaluated already."""
        if not self._evaluation.is_done():
            self._evaluate()

    def before_fit_epoch(self) -> None:
        """Run before each epoch, with all modules in training mode; again if the epoch is resumed."""

    def after_fit_epoch(self) -> None:
        """Run after each epoch's training, before its evaluation."""

    def before_fit_step(self) -> None:
        """Run before each training step, with the mini-batch on the device."""

    def after_fit_step(self) -> None:
        """Run after each training step, when teachers and monitors have followed an optimizer step."""

    def before_eval(self) -> None:
        """Run before each evaluation, with all modules in evaluation mode."""

    def after_eval(self) -> None:
        """Run after each evaluation."""

    def before_eval_step(self) -> None:
        """Run before each evaluation step, with the mini-batch on the device."""

    def after_eval_step(self) -> None:
        """Run after each evaluation step."""

    # The page: the life of a run --------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Build what was configured, place it on the device, and restore the newest checkpoint of the run's folder.

        Raises
        ------
        ConfigError
            Something can't be built, or the folder holds a run with another configuration.
        CheckpointError
            The folder's checkpoints can't be used.
        """
        if self._is_set_up:
            return
        check_own_names(self)
        if "_saver" in vars(self):
            raise RuntimeError("The set-up of this trainer failed before; make a new trainer.")
        configs = self.hardware, self.optim, self.logger
        run = self._run = engine.Session(self._dump_path, type(self).__name__, self._progress, *configs)
        self._dump_path, self.rank, self.world_size = run.folder.path, run.ranks.rank, run.ranks.size
        with run.preparing():
            engine.tell(self._notes)
            saver = self._saver = engine.Saver(
                run, self.logger, engine.Model.of(self), self.optimized_modules, self._resolved, self.branch_from
            )
            seed = run.choose_seed(saver.earlier)
            self._configured["hardware"].update(seed=seed, world_size=self.world_size)
            run.claim(self._resolved(), saver.held)
            self.device = run.take_device()
            build = engine.Builder(seed, run.ranks, self.device)
            build.attributes(self, self._attributes)
            self.module = build.modules(self.module, self.required_modules, self.prepare_modules)
            vars(self)["module"] = self.module  # found here in a microsecond less than by `nn.Module.__getattr__`
            self.loss, self.data = build.seeded(self.loss, "loss"), build.data(self.data)
            run.place(self)
            if saver.lacks_values():
                build.first_values(self, self.module, self.module_init, self.initialize_modules)
            optimized = self.optimized_modules() if "train" in self.data else {}
            build.settle(self, self.module, optimized, self.hardware["compile"])
            self._feed = feed = engine.Feed(run, self.hardware, build.loaders, saver.save)
            self._recorder = engine.Recorder(run, feed, self.logger["log_every_step"])
            build.watched(self.logger, self.data)
            if "train" in self.data:
                build.optimization(self.optim, self.optimized_modules(), self.data["train"], saver.schedule_begin)
            self._begin_early()
            self._instanciate()
            build.after_hook(self.data, self.optim, self.logger)
            self._monitors = engine.Monitors(self.logger["monitor"], self._recorder)
            self._monitors.check(self)
            self._evaluation = engine.Evaluation(run, self._recorder, feed, self.logger, saver.weights)
            saver.parts.add_all([*self._monitors.parts(), *self._evaluation.parts()])
            if "train" in self.data:
                side, parts = self.side_optimizers(), [*self.modules(), self.loss]  # the trainer is its first module
                trained = engine.TrainedParameters(self.optim["optimizer"], side, self.named_parameters)
                self._steps = engine.Stepper(run, self._recorder, self.optim, seed, self.module, parts, trained)
                saver.add_training(self._steps, self.optim, self.data["train"])
            self.check_setup()
            saver.register(self._registered)
            saver.restore(self.optim["epochs"], self.data)
            self._load_checkpoint()
        self._is_set_up = True

    def launch(self) -> None:
        """Train, evaluate and clean up.

        Raises
        ------
        Preempted
            A signal or the time limit ended the run; its state is saved.
        NanError
            The loss or a weight is not finite.
        """
        if not self._is_set_up:  # a `setup` of a user's own runs once
            self.setup()
        if not self._run.may_begin():
            return
        parts = [*self._feed.loaders.values(), self._evaluation, self._saver, *self._closers()]
        with self._run.running(self._resolved(), self._saver.log_position, parts, self._saver.stop):
            if "train" not in self.data:
                self._evaluate()
                return
            self._recorder.hook(self.before_fit, is_new=self._saver.log_position == 0, runs_again=True)
            self._fit()
            self._evaluation.last(self.after_fit)
            self._saver.save_evaluated()

    def _fit(self) -> None:
        """Train and evaluate for `optim["epochs"]` epochs, from where the run stands."""
        run, progress, saver = self._run, self._progress, self._saver
        if self._evaluation.is_due_at_start():
            self._evaluate()
        while progress.epoch < self.optim["epochs"]:
            run.seed_epoch()
            if progress.phase == "fit":
                self.train()
                try:
                    self._steps.begin_epoch(self.before_fit_epoch)
                    self._fit_epoch()
                except BreakEpoch as request:
                    run.ranks.broke_off(request)
                    self._steps.drop_group()
                except StopWaiting:
                    saver.at_boundary(False)  # does not return: there is a request to stop
                self._steps.end_epoch(self.after_fit_epoch, self)
                saver.at_boundary(saver.is_due_after_epoch())
            if self._evaluation.is_due():
                self._evaluate()
            saver.end_epoch()
        saver.finish()

    def _fit_epoch(self) -> None:
        """Train on one epoch's mini-batches; `accumulation_steps` of them make an optimizer step."""
        steps, ranks = self._steps, self._run.ranks
        for batch_idx, indices, batch in self._feed.training(self.data, steps.num_batches, steps.accumulation):
            # `nn.Module.__setattr__` costs more than a microsecond per name; writing here does not.
            vars(self).update(batch_idx=batch_idx, indices=indices, batch=batch, stepped=False)
            try:
                steps.begin(batch_idx)
                ranks.hook(self.before_fit_step)
                self._fit_step()
            except BreakStep as request:
                ranks.broke_off(request)
                # The mini-batch is left out. If it was the last of its group, the step is taken without it.
                if not (steps.ends_group and steps.step(self.before_optimizer_step)):
                    self._progress.batches = batch_idx + 1
                    continue
            self._finish_batch()
        # A stream may have ended within a group: the step is taken with what there is.
        if steps.step(self.before_optimizer_step):
            steps.ends_group = True
            self._finish_batch()

    def _fit_step(self) -> None:
        """Forward and backward pass of one mini-batch; for the last of its group, the optimizer step too."""
        steps = self._steps
        with self._run.precision.autocast:
            losses = self._run.described(self.compute_loss, self.batch, self.batch_idx)
        side_losses = self.side_losses()
        steps.backward(losses, type(self).__name__)
        steps.side_backward(side_losses)
        if steps.ends_group:
            steps.step(self.before_optimizer_step)

    def _finish_batch(self) -> None:
        """Count the mini-batch. After an optimizer step: let teachers and monitors follow; log, save, stop if due."""
        steps = self._steps
        if steps.ends_group:
            vars(self)["stepped"] = True
            steps.count()
            self._monitors.after_step(self)
        self._progress.batches = self.batch_idx + 1
        request = steps.finish(self.after_fit_step)
        if steps.ends_group and not isinstance(request, BreakAllEpochs):
            self._saver.after_step()
        if request:
            raise request

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Evaluate on every set but `train`."""
        self.eval()
        self._evaluation.begin(self.before_eval)
        for name_loader in self.eval_sets:
            values = self._monitors.values(name_loader, self)
            with self._evaluation.over(name_loader, self.data, values) as batches:
                for batch_idx, indices, batch in batches:
                    self.batch_idx, self.indices, self.batch = batch_idx, indices, batch
                    with contextlib.suppress(BreakStep):
                        self.before_eval_step()
                        self._eval_step(name_loader)
                        self.after_eval_step()
        self._evaluation.end(self.after_eval)

    def _eval_step(self, name_loader: str) -> None:
        """Give `predict()` and the labels to the metrics of the set, and let its monitors look."""
        predictions = None
        if self.logger["metric"][name_loader] or self._monitors.need_predictions(name_loader):
            with self._run.precision.autocast:
                predictions = self._run.described(self.predict, self.batch, self.batch_idx)
            self._evaluation.update(name_loader, predictions, self.batch)
        self._monitors.after_eval_step(name_loader, self, predictions)

    # What it tells ----------------------------------------------------------------------------------------------------

    epoch = property(lambda self: self._progress.epoch, set_epoch, doc="Epochs finished.")
    global_step = property(lambda self: CountedSteps(self._progress.global_step), doc="Optimizer steps attempted.")
    is_logging = property(lambda self: self._recorder.is_logging, doc="Whether values are logged now.")
    folder = property(lambda self: self._run.folder.path, doc="The run's folder, known after `setup`.")
    eval_sets = property(lambda self: data_sets(self.data, but="train"), doc="The sets in `data` to evaluate on.")

    def log(self, name: str, value: Tensor | float) -> None:
        """Log a number: as `train/<name>`, in an evaluation as `<set>/<name>`, around it as `eval/<name>`.

        If a name is logged several times before the record is written, it has the mean. This waits for no device.
        """
        self._recorder.log(name, value)

    def log_image(self, name: str, image: Any) -> None:
        """Log an image, or a batch of images as a grid, to trackers and `snapshots/`; see `loggers/media.py`."""
        self._recorder.log_image(name, image)

    def log_histogram(self, name: str, values: Any) -> None:
        """Log a histogram of numbers of any shape to trackers and `snapshots/`."""
        self._recorder.log_histogram(name, values)

    @torch.no_grad()
    def embed(self, batch: Any) -> Any:
        """Return `forward` of a batch's images as an evaluation computes it: without gradients, in its precision."""
        with in_evaluation_mode(self), self._run.precision.autocast:
            return self.forward(images_of(batch))

    def representations(self, set_name: str) -> Iterator[tuple[Tensor, Any]]:
        """Yield (`embed(batch)`, batch) for each of this process's batches of an evaluation set, on the device."""
        return ((self.embed(batch), batch) for _, batch in self._feed.evaluation(self.data, set_name))

    def _resolved(self) -> dict[str, Any]:
        """Return what `get_config` returns, as plain dicts."""
        config = resolved_config(BaseTrainer, type(self), vars(self)["_captured"], self._configured)
        return {**describe(self._extras), **config}

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Save the current state, and return submitit's `DelayedSubmission` of a fresh trainer that goes on from it.

        With one process, the checkpoint is on disk when this returns if a hook between two steps calls it last:
        `before_fit`, `before_fit_epoch`, `after_fit_epoch`, or `after_fit_step` with `stepped`. Called elsewhere, it is
        written at the next step boundary. With several processes, it is written one step later, whoever calls.
        """
        from submitit.helpers import DelayedSubmission

        if self._is_set_up:
            self._saver.save_by_hand(self._recorder.take_so_far())
        own_args, own_kwargs = vars(self)["_captured"]
        fresh = type(self)(*own_args, **own_kwargs)
        vars(fresh).update(_dump_path=self._dump_path, _extras=self._extras, **self._extras)
        return DelayedSubmission(fresh)
