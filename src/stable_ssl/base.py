"""`BaseTrainer`: the life of a run, read from top to bottom."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import secrets
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import config as cfg
from .arguments import arguments_by_name, check_arguments
from .data import Loader, as_loader, length_of
from .exceptions import (
    BreakAllEpochs,
    BreakEpoch,
    BreakStep,
    CheckpointError,
    ConfigError,
    DataError,
    NanError,
    Preempted,
)
from .loggers import Console, RunLog, read_metrics
from .loggers.collector import Collector, pooled
from .loggers.metrics import check_metrics, fill_empty_states, require_methods
from .optimizers import param_groups
from .runtime.checkpoint import CheckpointStore
from .runtime.device import (
    count_images,
    describe_batch,
    place_module,
    resolve_device,
    to_device,
    use_deterministic,
)
from .runtime.folder import RunFolder, config_differences, differences
from .runtime.precision import (
    FiniteWatch,
    Precision,
    all_finite,
    learned_values,
    resolve_precision,
    running_statistics,
)
from .runtime.preemption import StopRequest, StopWaiting
from .runtime.seeding import Stream, derive_seed, seed_generators, seed_generators_in_turn
from .runtime.shares import gather_shares, take_share
from .runtime.weights import load_strictly, load_weights, save_weights
from .runtime.world import World

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

log = logging.getLogger("stable_ssl")

SECONDS_BETWEEN_EPOCH_SAVES = 60.0
_NO_BATCH = (None, ...)
_BREAKS = (BreakStep, BreakEpoch, BreakAllEpochs)


class BaseTrainer(nn.Module):
    """Trains, evaluates, checkpoints and restarts; a subclass says what is learned.

    A subclass implements `forward`, `predict` and `compute_loss`, and may override any hook. `trainer()` runs
    everything, as does `setup()` followed by `launch()`:

        before_fit
        for each epoch:      before_fit_epoch
          for each batch:      before_fit_step, _fit_step, after_fit_step
                             after_fit_epoch
                             _evaluate, when due: before_eval,
          for each set, batch:   before_eval_step, _eval_step, after_eval_step
                               after_eval
        after_fit            (evaluates)

    Without a set named `train`, it evaluates only. `BreakStep` may be raised in the hooks of a step, `BreakEpoch` in
    these and in `before_fit_epoch`, `BreakAllEpochs` in any of training; of several processes, one is enough, but in
    `compute_loss` and in an evaluation all must raise it. A hook that is overridden need not call the one of this
    class.

    Parameters
    ----------
    data
        Loaders by name: `train` is trained on, the others are evaluated on, and names with a leading underscore
        are plain values. See `stable_ssl.data.Loader`; a torch `DataLoader`, or any iterable of batches, will do.
    module
        Networks by name.
    hardware, optim, logger
        Fields of `HardwareConfig`, `OptimConfig` and `LoggerConfig`.
    loss
        What `compute_loss` may use as `self.loss`. Its parameters are trained too.
    module_init
        Weights to begin with: `{module name: safetensors file, or a run's folder}`.
    **kwargs
        Become attributes.

    Every argument may hold live objects, `_target_` nodes, or both. The constructor checks; `setup` builds.

    Attributes
    ----------
    batch, batch_idx, indices
        The mini-batch at hand, its place in the epoch (or evaluation set), and its sample indices where known.
    epoch, global_step
        Epochs finished, and optimizer steps attempted.
    stepped : bool
        In `after_fit_step`: whether this mini-batch ended an optimizer step.
    device, rank, world_size
        Where this process computes, its number, and how many there are.
    latest_representations, latest_embeddings
        Outputs of the backbone and of the projector for the batch at hand, (batch, dim), in the methods that have them.

    Raises
    ------
    ConfigError
        Names everything that is wrong with the arguments.
    """

    required_modules: Mapping[str, type] = {}
    # Nodes or live objects until `setup` builds them.
    data: Any
    module: Any
    loss: Any
    hardware: Any
    optim: Any
    logger: Any

    batch: Any = None
    batch_idx: int = 0
    indices: Any = None
    epoch: int = 0
    global_step: int = 0
    stepped: bool = False
    device: torch.device = torch.device("cpu")
    rank: int = 0
    world_size: int = 1
    latest_representations: Tensor | None = None
    latest_embeddings: Tensor | None = None

    def __new__(cls, *args, **kwargs):  # noqa: D102
        # Kept for `checkpoint` and `get_config`, whatever a subclass does in its own constructor.
        trainer = super().__new__(cls)
        trainer.__dict__["_captured"] = (args, kwargs)
        return trainer

    def __init__(self, data, module, hardware, optim, logger, loss=None, *, module_init=None, **kwargs):
        super().__init__()
        problems: list[str] = []
        self.hardware = cfg.parse_config(cfg.HardwareConfig, hardware, "hardware", problems)
        self.optim = cfg.parse_config(cfg.OptimConfig, optim, "optim", problems)
        self.logger = cfg.parse_config(cfg.LoggerConfig, logger, "logger", problems)
        check_arguments(BaseTrainer, self, data, module, loss, module_init or {}, kwargs, problems)
        if problems:
            raise ConfigError(problems)
        self.data, self.module, self.loss = data, module, loss
        self.module_init = module_init or {}
        self._attributes = kwargs
        for name, value in kwargs.items():
            setattr(self, name, value)
        # As configured: `setup` puts what it builds in the place of some fields.
        self._fields = {name: dict(getattr(self, name)) for name in ("hardware", "optim", "logger")}
        self._dump_path = self.logger["dump_path"]
        self._is_set_up = self._is_finished = self._has_ended = False
        self._world: Any = None
        self._phase, self._batches_done, self._num_backward = "fit", 0, 0
        self._logging, self._log_set, self._collected = False, "train", Collector()
        self._group_size, self._group_ends, self._bad_group, self._grad_scale = 1, True, False, 1.0
        self._data_wait, self._finite = 0.0, FiniteWatch()
        self._log: Any = None
        self._stop: Any = None
        self._agreed: Exception | None = None
        self._log_position: int | None = 0
        self._saved_progress: dict[str, Any] | None = None
        self._skip_nonfinite = self.optim["nonfinite"] == "skip"

    def __call__(self) -> None:
        """Set up and launch."""
        self.setup()
        self.launch()

    # What a subclass says ---------------------------------------------------------------------------------------------

    def forward(self, *args: Any) -> Any:
        """Return the representation of an input."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward().")

    def predict(self) -> Tensor:
        """Return class scores for `self.batch`, (batch, classes): what the evaluation metrics get."""
        raise NotImplementedError(f"{type(self).__name__} does not implement predict(), which metrics need.")

    def compute_loss(self) -> Tensor | list | dict[str, Any]:
        """Return the loss of `self.batch`: a scalar tensor, or a list or dict of them.

        Several are logged one by one and summed; plain numbers among them count as constants.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement compute_loss().")

    def optimized_modules(self) -> dict[str, nn.Module]:
        """Return the modules whose trainable parameters the optimizer gets: all of `module`, and the loss."""
        modules = dict(self.module.items())
        return {**modules, "loss": self.loss} if isinstance(self.loss, nn.Module) else modules

    # Setting up -------------------------------------------------------------------------------------------------------

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
        hardware = self.hardware
        self._world = World(hardware["world_size"] if "world_size" in hardware.model_fields_set else None)
        self.rank, self.world_size = self._world.rank, self._world.size
        hardware["world_size"] = self._fields["hardware"]["world_size"] = self.world_size
        try:
            self._folder = self._world.from_main(lambda: RunFolder(self._dump_path, type(self).__name__))
            self._dump_path = self._folder.path
            with self._console():
                self._store = CheckpointStore(self._folder.path / "checkpoints", self.logger["checkpoint_keep"])
                hardware["seed"], self._is_new = self._world.from_main(self._claim_folder)
                self._fields["hardware"]["seed"] = hardware["seed"]
                self._compare_ranks()
                self.device = resolve_device(hardware["device"], self._world.local_rank, self.world_size)
                if self.world_size > 1:
                    log.info("%d processes train together, each on a %s of its own.", self.world_size, self.device.type)
                hardware["precision"] = resolve_precision(hardware["precision"], self.device)
                if hardware["deterministic"]:
                    use_deterministic(self.device)
                self._build()
                self._restore()
        except BaseException as error:
            try:
                self._world.fail(error)
            finally:
                self._let_go()
            raise
        self._is_set_up = True

    def _let_go(self) -> None:
        """Let others have the folder, and the other ranks go."""
        self._world.leave()
        if hasattr(self, "_folder"):
            self._folder.release()

    def _console(self) -> Console:
        """Show messages outside of a run too, and keep them with the run's."""
        return Console(self._folder.path, self.logger["level"], self.optim["epochs"], self.rank)

    def _claim_folder(self) -> tuple[int, bool]:
        """Refuse to go on with a run that was configured otherwise, and write down the configuration.

        Returns
        -------
        seed, is_new
            The run's seed, and whether it has no checkpoint yet.
        """
        # A run that failed before its first checkpoint has nothing that another configuration could spoil.
        is_new = self._store.is_empty()
        earlier = None if is_new else self._folder.config
        if self.hardware["seed"] is None:
            seed = earlier["trainer"]["hardware"]["seed"] if earlier else secrets.randbits(31)
            self.hardware["seed"] = self._fields["hardware"]["seed"] = seed
            log.info("hardware.seed is none: the run has seed %d.", seed)
        config = self.get_config()
        if earlier and (differences := config_differences(earlier["trainer"], config["trainer"])):
            raise ConfigError(
                [
                    f"'{self._folder.path}' holds a run with another configuration; nothing was done.",
                    *differences,
                ]
            )
        self._folder.write_config(config)
        return self.hardware["seed"], is_new

    def _compare_ranks(self) -> None:
        """Refuse to train with processes that were told something else, or are at another trainer of their script."""
        configs = self._world.gather(self.get_config()["trainer"])
        for rank, config in enumerate(configs):
            found = [
                f"{path}: {ours!r} on rank 0, {its!r} there." for path, ours, its in differences(configs[0], config)
            ]
            if found:
                what = f"Rank {rank} has another configuration than rank 0, or is at another trainer of its script."
                raise ConfigError([what, *found])

    def _build(self) -> None:
        for name, value in self._attributes.items():
            setattr(self, name, cfg.build(value, name))
        self.module = self._build_modules()
        # Found here without `nn.Module.__getattr__`, which costs microseconds at each use.
        vars(self)["module"] = self.module
        self.loss = self._seeded_build(self.loss, "loss")
        self._build_data()
        self._must_move = self.device.type != "cpu" or self.hardware["channels_last"]
        place_module(self, self.device, self.hardware["channels_last"])
        for name, source in self.module_init.items() if self._is_new else ():
            load_weights(source, self.module[name], name)
        self._world.copy_from_main([*self.parameters(), *self.buffers()])
        if self.hardware["compile"]:
            # In place: the module stays the user's object, and its parameters keep their names.
            mode = self.hardware["compile"] if isinstance(self.hardware["compile"], str) else None
            for module in self.module.values():
                module.compile(mode=mode)
        self._precision = Precision(
            self.hardware["precision"], self.device, self.optim["grad_max_norm"], self._skip_nonfinite
        )
        self._metrics = {}
        for name in self._eval_sets:
            path = f"logger.metric.{name}"
            metrics = cfg.build(self.logger["metric"].get(name, {}), path)
            check_metrics(metrics, path, self.world_size)
            self._metrics[name] = {key: m.to(self.device) if hasattr(m, "to") else m for key, m in metrics.items()}
        self._monitors = cfg.build(self.logger["monitor"], "logger.monitor")
        self.logger["monitor"] = self._monitors
        for name, monitors in self._monitors.items():
            require_methods(monitors, ("on_step", "compute", "state_dict"), f"logger.monitor.{name}")
            for key, monitor in monitors.items():
                if hasattr(monitor, "check"):
                    monitor.check(self, f"logger.monitor.{name}.{key}")
        self._train_monitors = self._monitors.get("train", {})
        modules: list[Any] = list(self.modules())
        self._teachers = [module.update_teacher for module in modules if hasattr(module, "update_teacher")]
        self._stateful: dict[str, Any] = {
            f"monitor.{group}.{name}": monitor
            for group, monitors in self._monitors.items()
            for name, monitor in monitors.items()
        }
        if "train" in self.data:
            self._build_optimization()
            self._look_for_untrained()

    def _seeded_build(self, node: Any, path: str) -> Any:
        """Build under a seed of its own, so that initial weights depend on nothing else that is configured."""
        seed_generators(self.hardware["seed"], Stream.BUILD, zlib.crc32(path.encode()))
        return cfg.build(node, path)

    def _build_modules(self) -> nn.ModuleDict:
        modules = {name: self._seeded_build(node, f"module.{name}") for name, node in self.module.items()}
        problems = [
            f"module.{name}: a {type(module).__name__}, not a torch.nn.Module."
            for name, module in modules.items()
            if not isinstance(module, nn.Module)
        ]
        problems += [
            f"module.{name}: {type(self).__name__} needs a {kind.__name__}, not a {type(modules[name]).__name__}."
            for name, kind in self.required_modules.items()
            if isinstance(modules[name], nn.Module) and not isinstance(modules[name], kind)
        ]
        if problems:
            raise ConfigError(problems)
        if self.world_size > 1 and self.device.type == "cuda":
            # On other devices torch has none: there, running statistics are averaged at the end of each epoch.
            modules = {name: nn.SyncBatchNorm.convert_sync_batchnorm(module) for name, module in modules.items()}
        return nn.ModuleDict(modules)

    def _build_data(self) -> None:
        self.data = cfg.build(self.data, "data")
        bound: set[int] = set()
        for name, source in self.data.items():
            if not name.startswith("_"):
                # One that has two names is bound twice.
                self.data[name] = as_loader(copy.copy(source) if id(source) in bound else source, name)
                bound.add(id(source))
        self._eval_sets = [name for name in self.data if name != "train" and not name.startswith("_")]
        for name, loader in self.data.items():
            if not name.startswith("_"):
                loader.bind(self.hardware["seed"], name, self.rank, self.world_size, is_even=name == "train")
                if isinstance(loader, Loader):
                    loader.prepare(self.device)

    def _build_optimization(self) -> None:
        optim = self.optim
        self._num_batches = self._count_batches()
        optim["total_steps"] = optim["epochs"] * math.ceil(self._num_batches / optim["accumulation_steps"])
        groups = param_groups(self.optimized_modules(), optim["exclude_bias_norm"])
        optimizer = cfg.build_optimizer(optim["optimizer"], groups)
        optim["optimizer"] = self._stateful["optimizer"] = optimizer
        if optim["lr_batch_size"]:
            self._scale_learning_rates(optimizer)
        if optim["scheduler"] is not None:
            scheduler = cfg.build_scheduler(optim["scheduler"], optimizer, optim["total_steps"])
            optim["scheduler"] = self._stateful["scheduler"] = scheduler
        if self._skip_nonfinite or self._precision.scaler:
            why = "fp16" if self._precision.scaler else "optim.nonfinite=skip"
            log.info("The loop waits for the device once a step: %s needs it.", why)
        if self._precision.scaler:
            self._stateful["scaler"] = self._precision.scaler
        if hasattr(self.data["train"], "state_dict"):
            self._stateful["data"] = self.data["train"]

    def _scale_learning_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Make them follow the global batch, linearly."""
        batch_size = getattr(self.data["train"], "batch_size", None)
        if not batch_size:
            raise ConfigError("optim.lr_batch_size: data.train does not tell its batch_size, so leave it out.")
        whole = batch_size * self.world_size * self.optim["accumulation_steps"]
        for group in optimizer.param_groups:
            group["lr"] *= whole / self.optim["lr_batch_size"]
        lr = optimizer.param_groups[0]["lr"]
        log.info("The learning rate is %g, for a batch of %d over all processes.", lr, whole)

    def _look_for_untrained(self) -> None:
        """Say which trainable parameters no optimizer has; refuse an optimizer that has none of those it should."""
        groups = {name: part.param_groups for name, part in self._stateful.items() if hasattr(part, "param_groups")}
        optimized = {id(p): name for name in groups for group in groups[name] for p in group["params"]}
        trainable = {name: id(p) for name, p in self.named_parameters() if p.requires_grad}
        left_out = [name for name, key in trainable.items() if key not in optimized]
        if "optimizer" not in (optimized.get(key) for key in trainable.values()):
            raise ConfigError("optim.optimizer: has none of the parameters of module and loss.")
        if left_out:
            log.warning("No optimizer has %s: only those of module and loss are trained.", ", ".join(left_out))

    def _look_for_unused(self) -> None:
        """Say which modules nothing is learned in, for no gradient has reached them."""
        for name, module in self.module.items():
            trainable = [p for p in module.parameters() if p.requires_grad]
            if trainable and all(p.grad is None for p in trainable):
                log.warning("module.%s: no gradient reaches it in the first step. Does compute_loss use it?", name)

    def _count_batches(self) -> int:
        """Return the mini-batches of an epoch; for a stream without a length, the most that it may have."""
        limit, available = self.optim["max_steps"], length_of(self.data["train"])
        if available is None:
            if not isinstance(limit, int) or limit < 0:
                raise ConfigError(
                    "data.train has no length: set optim.max_steps to the mini-batches that make an epoch."
                )
            return limit
        available = -self._world.largest(-available)[0]
        if available == 0:
            raise ConfigError("data.train has no batches.")
        if isinstance(limit, float):
            return max(1, int(limit * available))
        return available if limit < 0 else min(limit, available)

    # Training ---------------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Train, evaluate and clean up.

        Raises
        ------
        Preempted
            A signal or the time limit ended the run; its state is saved.
        NanError
            The loss or a weight is not finite.
        """
        self.setup()
        if self._has_ended:
            raise RuntimeError(
                "The run of this trainer has ended; a new trainer with the same dump_path goes on with it."
            )
        if self._is_finished:
            with self._console():
                log.info(
                    "The run in '%s' is finished; a larger optim.epochs would go on with it.",
                    self._folder.path,
                )
            self._let_go()
            return
        with self._running():
            if "train" not in self.data:
                self._evaluate()
                return
            self._together("before_fit")
            self._fit()
            self.after_fit()

    def before_fit(self) -> None:
        """Run once before training; does nothing."""

    def after_fit(self) -> None:
        """Run once after training; evaluates."""
        self._evaluate()

    def _fit(self) -> None:
        """Train and evaluate for `optim["epochs"]` epochs, from wherever the progress stands."""
        while self.epoch < self.optim["epochs"]:
            seed_generators(self.hardware["seed"], Stream.EPOCH, self.epoch)
            if self._phase == "fit":
                self.train()
                try:
                    self._together("before_fit_epoch")
                    self._fit_epoch()
                except BreakEpoch as request:
                    self._meet(request)
                    self._drop_group()
                except StopWaiting:
                    self._at_boundary(False)
                self._together("after_fit_epoch")
                self._end_training_epoch()
            self._end_epoch()
        self._save()
        if self.logger["save_final_model"]:
            name = self.logger["save_final_model"]
            self._save_weights(name if isinstance(name, str) else "final")

    def before_fit_epoch(self) -> None:
        """Run before each epoch, with all modules in training mode; does nothing."""

    def after_fit_epoch(self) -> None:
        """Run after each epoch's training, before its evaluation; does nothing."""

    def _fit_epoch(self) -> None:
        """Train on one epoch's mini-batches; `accumulation_steps` of them make an optimizer step."""
        total, accumulation = self._num_batches, self.optim["accumulation_steps"]
        log_every = self.logger["log_every_step"]
        seed = derive_seed(self.hardware["seed"], Stream.STEP, self.rank)
        # `nn.Module.__setattr__` costs more than a microsecond a name; writing here does not.
        state, clock, console = vars(self), time.perf_counter, self._log.console
        console.begin_epoch(self.epoch, total, self._batches_done)
        loader, stop = self.data["train"], self._stop
        is_shared_stream = self.world_size > 1 and loader.is_stream
        may_be_interrupted = self.world_size == 1 and not loader.is_stream
        batches = loader.batches(self.epoch, self._batches_done)
        for batch_idx in range(self._batches_done, total):
            place = batch_idx % accumulation
            if place == 0:
                state["_logging"] = (self.global_step + 1) % log_every == 0
                state["_group_size"] = min(accumulation, total - batch_idx)
            asked = clock()
            stop.is_idle = place == 0 and may_be_interrupted
            indices, batch = next(batches, _NO_BATCH)
            stop.is_idle = False
            if is_shared_stream and self._world.any(batch is ...):
                batch = ...  # the epoch ends for all ranks when it ends for one
            if batch is ...:
                if batch_idx == 0:
                    raise DataError(
                        f"data.train gave no batch in epoch {self.epoch}. What can be gone through only once, as a "
                        "generator, does not make epochs."
                    )
                break
            ends = place + 1 == self._group_size
            state.update(indices=indices, batch=batch, batch_idx=batch_idx, stepped=False, _group_ends=ends)
            now = clock()
            state["_data_wait"] += now - asked
            if now >= console.due:
                console.show(batch_idx, count_images(indices, batch) * self.world_size)
            if self._must_move:
                state["batch"] = to_device(batch, self.device, self.hardware["channels_last"])
            seed_generators_in_turn(seed, self.global_step * accumulation + place)
            try:
                self._together("before_fit_step")
                self._fit_step()
            except BreakStep as request:
                self._meet(request)
                # With the gradients of the rest of the group, if there are any.
                if not (ends and self._optimizer_step()):
                    state["_batches_done"] = batch_idx + 1
                    continue
            self._finish_batch(batch_idx, ends)
        # Where a stream ended inside a group.
        if self._optimizer_step():
            self._finish_batch(self.batch_idx, ends=True)

    def _finish_batch(self, batch_idx: int, ends: bool) -> None:
        """Count a mini-batch, and the optimizer step where it ended a group."""
        state, request = vars(self), None
        if ends:
            state.update(stepped=True, global_step=self.global_step + 1)
            self._follow()
        try:
            self._together("after_fit_step")
        except (BreakStep, BreakEpoch) as raised:
            request = raised
        state["_batches_done"] = self._num_batches if isinstance(request, BreakEpoch) else batch_idx + 1
        if ends:
            self._end_group()
        if isinstance(request, BreakEpoch):
            raise request

    def _together(self, name: str) -> None:
        """Run a hook of training; what it breaks off on one rank is broken off on all."""
        hook = getattr(self, name)
        if self.world_size == 1 or getattr(hook, "__func__", None) is getattr(BaseTrainer, name):
            return hook()
        own: Exception | None = None
        try:
            hook()
        except _BREAKS as request:
            own = request
        number = next((number for number, kind in enumerate(_BREAKS, 1) if isinstance(own, kind)), 0)
        (largest,) = self._world.largest(number)
        if largest:
            self._agreed = own if own and number == largest else _BREAKS[largest - 1]("Another process asked for it.")
            raise self._agreed

    def _meet(self, request: Exception) -> None:
        """Where a rank breaks off by itself, the others would wait for it for ever: see that they do so too."""
        if self.world_size > 1 and request is not self._agreed:
            self._world.meet(f"{type(request).__name__} was raised in compute_loss or in an evaluation")

    def _drop_group(self) -> None:
        """Forget what an epoch that was cut short had begun."""
        self._clear_gradients()
        self._collected.flush()
        self._logging = False

    def before_fit_step(self) -> None:
        """Run before each training step, with the mini-batch on the device; does nothing."""

    def _fit_step(self) -> None:
        """Forward and backward of one mini-batch; on the last of its group, the optimizer step too."""
        with self._precision.autocast:
            loss = self._total_loss(self._described(self.compute_loss))
        self._finite.add(loss, self.global_step + 1)
        if self._skip_nonfinite and not torch.isfinite(loss):
            log.warning("Step %d is skipped: its loss is %s.", self.global_step + 1, loss.item())
            self._bad_group = True
        self._backward(loss)
        vars(self)["_num_backward"] += 1
        if self._group_ends:
            self._optimizer_step()

    def _backward(self, loss: Tensor) -> None:
        self._precision.backward(loss / self._group_size if self._group_size > 1 else loss)

    def after_fit_step(self) -> None:
        """Run after each training step, when teachers have followed and monitors have looked; does nothing."""

    def _follow(self) -> None:
        """After an optimizer step, teachers follow and monitors look."""
        for update_teacher in self._teachers:
            update_teacher((self.global_step - 1) / self.optim["total_steps"])
        for name, monitor in self._train_monitors.items():
            monitor.on_step(self)
            if self._logging:
                self._log_values(name, monitor.compute(self))

    def _optimizer_step(self) -> bool:
        """Update the parameters with the gradients of a group; False where no rank has any."""
        if self.world_size > 1:
            self._sum_gradients()
        if not self._num_backward:
            return False
        if self.global_step == 0:
            self._look_for_unused()
        # The loss was divided by the planned size; a group that lost mini-batches is put right here.
        self._apply_gradients(self._group_size * self.world_size / self._num_backward)
        return True

    def _sum_gradients(self) -> None:
        """Over the ranks, unless one of them has a loss that is not finite; then all leave out the step."""
        groups = [group for part in self._stateful.values() for group in getattr(part, "param_groups", ())]
        parameters = [parameter for group in groups for parameter in group["params"]]
        own = [self._num_backward, self._bad_group, *(p.grad is not None for p in parameters)]
        self._num_backward, num_bad, *num_gradients = self._world.total(*own)
        self._bad_group = num_bad > 0
        if self._num_backward and not self._bad_group:
            self._world.sum_gradients(parameters, 1 / self.world_size, [count > 0 for count in num_gradients])

    def _apply_gradients(self, scale: float) -> None:
        """Update the parameters with `scale` times their gradients, advance the schedule, and clear the gradients."""
        optimizer, scheduler = self.optim["optimizer"], self.optim["scheduler"]
        if self._logging:
            self.log("lr", optimizer.param_groups[0]["lr"])
        if self._bad_group:
            self._bad_group = False
        else:
            if not self._precision.step(optimizer, scale):
                log.warning("Step %d is skipped: a gradient is not finite.", self.global_step + 1)
        self._clear_gradients()
        if scheduler is not None:
            scheduler.step()

    def _clear_gradients(self) -> None:
        # `Optimizer.zero_grad` does the same in ten times the time.
        for group in self.optim["optimizer"].param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        vars(self)["_num_backward"] = 0

    def _total_loss(self, losses: Any) -> Tensor:
        """Log what `compute_loss` returned, and return the sum."""
        total: Any = None
        named: Mapping[str, Any] = {}
        if isinstance(losses, Tensor):
            total = losses
        elif isinstance(losses, (Mapping, list, tuple)) and losses:
            named = losses if isinstance(losses, Mapping) else {f"loss_{i}": loss for i, loss in enumerate(losses)}
            with contextlib.suppress(TypeError):  # something among them is no number: said below
                total = sum(named.values())
        if not isinstance(total, Tensor) or total.numel() != 1 or not total.requires_grad:
            what = describe_batch(losses) if isinstance(losses, Tensor | Mapping | list | tuple) else repr(losses)
            raise TypeError(
                f"{type(self).__name__}.compute_loss() returned {what}; expected a scalar tensor that depends on "
                "trainable parameters, or a list or dict of them."
            )
        for name, value in named.items():
            self.log(name, value)
        if self._logging:
            self.log("loss", total)
        return total

    def _described(self, compute: Callable[[], Any]) -> Any:
        """Call a method of the subclass; an error in it says which batch it was about."""
        try:
            return compute()
        except Exception as error:
            error.add_note(
                f"While {type(self).__name__}.{compute.__name__}() used batch {self.batch_idx} of epoch {self.epoch}: "
                f"{describe_batch(self.batch)}."
            )
            raise

    # The boundaries between steps and epochs --------------------------------------------------------------------------

    def _end_group(self) -> None:
        """Between two optimizer steps: write the log, save when due, stop when asked to."""
        if self._logging:
            self._check_losses()
            self._write_training_record()
            self._logging = False
        self._at_boundary(time.monotonic() >= self._next_save or self.global_step % self._save_every == 0)

    def _at_boundary(self, save_is_due: bool) -> None:
        """Save when due, and stop when asked to: all ranks at the same step, whichever of them it was."""
        stop = self._stop.request
        if self.world_size > 1:
            save_is_due, stop = self._world.largest(save_is_due, stop)
        if save_is_due or stop:
            self._save()
        if stop:
            self._end_run(stop, f"at step {self.global_step}")

    def _end_run(self, request: int, where: str) -> None:
        """Stop, when the newest checkpoint is durable: submitit's handler has the job killed."""
        log.warning("Stopping %s because of %s.", where, self._stop.reason(request))
        self._store.wait()
        self._stop.end_run(request)

    def _end_training_epoch(self) -> None:
        """Between an epoch's training and its evaluation."""
        self._log.console.end_epoch(self._batches_done)
        self._check_losses()
        self._phase, self._batches_done = "evaluate", 0
        # From here on, there is one model.
        self._world.average(list(running_statistics(self)))
        is_old = time.monotonic() - self._last_save >= SECONDS_BETWEEN_EPOCH_SAVES
        self._at_boundary(self._saved_progress is None or is_old)

    def _end_epoch(self) -> None:
        """Evaluate and keep weights when due; the last epoch's evaluation is `after_fit`'s."""
        number, last = self.epoch + 1, self.optim["epochs"]
        evaluate_every, keep_every = self.logger["eval_every_epoch"], self.logger["checkpoint_frequency"]
        if evaluate_every and number % evaluate_every == 0 and number < last:
            self._evaluate()
        if keep_every and number % keep_every == 0:
            self._save_weights(f"epoch_{number:04d}")
        self.epoch, self._phase = number, "fit"
        if keep_every and number % keep_every == 0 and not self.logger["checkpoint_model_only"]:
            self._save(kept=True)
        self._at_boundary(False)

    def _check_losses(self) -> None:
        """Read the losses since the last look; under nonfinite=raise, a bad one ends the run."""
        bad = self._finite.first_bad()
        if self.world_size > 1:
            bad = min((found for found in self._world.gather(bad) if found), default=None)
        if bad and not self._skip_nonfinite:
            step, value = bad
            raise NanError(
                f"The loss of step {step} is {value}. The newest checkpoint is from before it; "
                "optim.nonfinite=skip leaves such steps out."
            )

    # What is on disk --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Open the logs and listen for signals; on the way out, close them and say how the run ended."""
        folder, status = self._folder, "failed"
        self._schedule_save()
        self._save_every = self.logger["checkpoint_every_step"] or sys.maxsize
        self._world.on_lost = lambda: folder.write_status("failed", self._progress)
        try:
            self._log = RunLog(
                folder.path,
                self.logger,
                self.optim["epochs"],
                self.get_config(),
                self.global_step,
                self._log_position,
                self.rank,
            )
            folder.write_status("running", self._progress)
            if folder.is_chosen:
                log.info("The run is in '%s'; start it again with logger.dump_path=%s to go on.", *[folder.path] * 2)
            with StopRequest(self.hardware["time_limit"]) as self._stop:
                try:
                    yield
                    status = "finished"
                except BreakAllEpochs as request:
                    self._meet(request)
                    status = "stopped"
                    log.info("Training was stopped at step %d. %s", self.global_step, request)
            self._is_finished = status == "finished"
        except BaseException as error:
            if isinstance(error, Preempted | KeyboardInterrupt):
                status = "preempted"
            else:
                log.error("The run failed at step %d: %s: %s", self.global_step, type(error).__name__, error)
            if self._stop is None or not self._stop.has_ended_run:
                self._world.fail(error)
            raise
        finally:
            self._has_ended = not self._is_finished
            try:
                self._close(status)
            except BaseException as error:
                self._world.fail(error)
                raise
            finally:
                self._let_go()

    def _close(self, status: str) -> None:
        """End what works for the run, and write down how it ended."""
        for name, loader in self.data.items():
            if not name.startswith("_"):
                loader.close()
        try:
            self._store.close()
            self._folder.write_status(status, self._progress)
        finally:
            if self._log:
                self._log.close(status)
                self._log = None

    @property
    def _progress(self) -> dict[str, Any]:
        """What runs next: `phase` of epoch `epoch`, after `batches` of its mini-batches."""
        return {
            "global_step": self.global_step,
            "epoch": self.epoch,
            "batches": self._batches_done,
            "phase": self._phase,
        }

    def _save(self, kept: bool = False) -> None:
        """Write a checkpoint of the boundary at hand, unless the newest one is of it already; `kept`, for ever."""
        if not self._store.wait():
            self._saved_progress = None
        # Rank 0 alone knows whether the last one is on disk.
        if not self._world.any(self._progress != self._saved_progress):
            return
        self._check_losses()
        learned = [value for module in self.optimized_modules().values() for value in learned_values(module)]
        if self._world.any(not all_finite(learned)):
            raise NanError(
                f"A weight or running statistic is not finite at step {self.global_step}; "
                "the checkpoint before it stands."
            )
        self._schedule_save()
        try:
            log_position = self._log.position()
        except OSError as error:
            log.error("No checkpoint of step %d, since metrics.jsonl can't be written: %s", self.global_step, error)
            log_position = None
        if self.world_size > 1:
            log_position = self._world.from_main(lambda: log_position)
        if log_position is None:
            return
        state = {"progress": self._progress, **self._state(), "log_position": log_position}
        if self.world_size > 1:
            parts = {name for name in self._stateful if not name.startswith(("monitor.", "data"))}
            state["ranks"] = gather_shares(self._world, state, parts.union(name for name, _ in self.named_parameters()))
        if not self._world.is_main:
            self._saved_progress = self._progress
            return
        facts = {
            "progress": self._progress,
            "world": {
                "size": self.world_size,
                "device": str(self.device),
                "threads": torch.get_num_threads(),
            },
            "data": self._data_facts,
        }
        self._store.save(self.global_step, state, facts, kept)
        self._saved_progress = self._progress
        self._folder.write_status("running", self._progress)

    @property
    def _data_facts(self) -> dict[str, Any]:
        """What makes the batches of an epoch; the configuration does not tell where a loader is a live object."""
        loader = self.data["train"]
        batch_size, views = getattr(loader, "batch_size", None), getattr(loader, "views", None)
        return {
            "mini-batches an epoch": self._num_batches,
            "samples a mini-batch, over all processes": batch_size and batch_size * self.world_size,
            "views": views and repr(views),
        }

    def _state(self) -> dict[str, Any]:
        """Return all that influences the future, and is no function of the configuration."""
        persistent = {id(value) for value in self.state_dict(keep_vars=True).values()}
        return {
            "modules": self.state_dict(),
            # Those that are not persistent for others are part of the state all the same.
            "buffers": {name: buffer for name, buffer in self.named_buffers() if id(buffer) not in persistent},
            "parts": {name: part.state_dict() for name, part in self._stateful.items()},
        }

    def _schedule_save(self) -> None:
        self._last_save = time.monotonic()
        self._next_save = self._last_save + 60 * self.logger["checkpoint_every_minutes"]

    def _restore(self) -> None:
        """Go on from the newest valid checkpoint of the run's folder, if it has one."""
        found = self._world.from_main(self._store.load_newest)
        if found is None:
            return
        path, state, meta = found
        facts = self._data_facts if "train" in self.data else {}
        changed = [
            f"data.train: {name}: the run in the folder has {before}, this one {facts[name]}."
            for name, before in meta.get("data", {}).items()
            if facts and before != facts[name]
        ]
        if changed:
            raise ConfigError([f"'{path}' is of a run with other data; nothing was done.", *changed])
        if meta["world"]["size"] != self.world_size:
            log.warning(
                "Going on with %d processes instead of %d: the samples come in the same order, but results may differ "
                "in the last bits, and what each process had of its own is lost.",
                self.world_size,
                meta["world"]["size"],
            )
        elif self.world_size > 1:
            take_share(state, self.rank)
        threads, then = torch.get_num_threads(), meta["world"]["threads"]
        if threads != then:
            log.warning("Going on with %d threads instead of %d: results may differ in the last bits.", threads, then)
        load_strictly(self, state["modules"], f"'{path}' does not fit this model")
        buffers = dict(self.named_buffers())
        name = ""
        try:
            for name, value in state["buffers"].items():
                if name in buffers:  # else it is made, as it was then, when it is first needed
                    buffers[name].copy_(value)
            for name, part in self._stateful.items():
                if name in state["parts"] or not name.startswith(("monitor.", "scaler")):
                    part.load_state_dict(state["parts"][name])
                else:
                    log.info("%s begins here: the checkpoint is of a run without it.", name)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"'{path}' does not fit this run: {name}: {error!r}") from error
        progress = state["progress"]
        self.global_step, self.epoch = progress["global_step"], progress["epoch"]
        self._batches_done, self._phase = progress["batches"], progress["phase"]
        self._log_position, self._saved_progress = state["log_position"], progress
        if self._world.from_main(lambda: self._folder.status).get("status") == "finished":
            self._is_finished = self.epoch >= self.optim["epochs"]
            self._log_position = None  # all of it stands
        if not self._is_finished:
            log.info("Going on from '%s': step %d, epoch %d.", path, self.global_step, self.epoch)

    def _save_weights(self, name: str) -> None:
        """Keep the weights of all modules for reading, as `weights/<name>.safetensors`."""
        if not self._world.is_main:
            return
        tensors = {
            key.removeprefix("module."): value for key, value in self.state_dict().items() if key.startswith("module.")
        }
        tensors = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
        config = self.get_config()["trainer"]
        header = {"module": config.get("module"), "global_step": self.global_step, "epoch": self.epoch}
        save_weights(self._folder.path / "weights" / f"{name}.safetensors", tensors, header)

    def checkpoint(self, *args: Any, **kwargs: Any) -> DelayedSubmission:
        """Return the task that goes on with this run: submitit's protocol, called when the job is preempted.

        What was learned is in the run's folder, so the task is only a fresh trainer from the arguments of this one.
        """
        from submitit.helpers import DelayedSubmission

        own_args, own_kwargs = vars(self)["_captured"]
        fresh = type(self)(*own_args, **own_kwargs)
        fresh._dump_path = self._dump_path
        return DelayedSubmission(fresh)

    # Evaluation -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Evaluate on every set but `train`."""
        self.eval()
        self.before_eval()
        epoch = min(self.epoch, self.optim["epochs"] - 1)
        for name_loader in self._eval_sets:
            loader, metrics = self.data[name_loader], self._metrics[name_loader]
            for metric in metrics.values():
                metric.reset()
            self._logging, self._log_set = True, name_loader
            console = self._log.console
            console.begin_evaluation(name_loader, length_of(loader))
            for batch_idx, (indices, batch) in enumerate(self._evaluation_batches(loader)):
                self.batch_idx, self.indices = batch_idx, indices
                self.batch = to_device(batch, self.device, self.hardware["channels_last"]) if self._must_move else batch
                seed_generators(self.hardware["seed"], Stream.EVAL, batch_idx, self.rank)
                if time.perf_counter() >= console.due:
                    console.show(batch_idx, count_images(indices, batch) * self.world_size)
                with contextlib.suppress(BreakStep):
                    self.before_eval_step()
                    self._eval_step(name_loader)
                    self.after_eval_step()
            if self.world_size > 1:
                fill_empty_states(metrics, self._world.gather)
            computed = {name: metric.compute() for name, metric in metrics.items()}
            computed.update((name, m.compute(self)) for name, m in self._monitors.get(name_loader, {}).items())
            for name, value in computed.items() if self._world.is_main else ():  # they are of all ranks already
                self._log_values(name, value)
            results = self._flush()
            self._logging, self._log_set = False, "train"
            console.end_evaluation(results)
            if results:
                self._log.write({"global_step": self.global_step, "epoch": epoch, **results})
        self.after_eval()

    def _evaluation_batches(self, loader: Any) -> Iterator[tuple[Any, Any]]:
        """Yield this rank's batches of an evaluation set, of which others may have more; leave when asked to stop."""
        batches, stop = loader.batches(0), self._stop
        while True:
            stop.is_idle = self.world_size == 1
            try:
                found = next(batches, None)
            except StopWaiting:
                found = None
            stop.is_idle = False
            has_more, request = found is not None, stop.request
            if self.world_size > 1:
                has_more, request = self._world.largest(has_more, request)
            if request:  # the checkpoint from before the evaluation stands
                self._end_run(request, "in the evaluation")
            if found is not None:
                yield found
            elif not has_more:
                return

    def before_eval(self) -> None:
        """Run before evaluation, with all modules in evaluation mode; does nothing."""

    def after_eval(self) -> None:
        """Run after evaluation; does nothing."""

    def before_eval_step(self) -> None:
        """Run before each evaluation step, with the mini-batch on the device; does nothing."""

    def _eval_step(self, name_loader: str) -> None:
        """Give `predict()` and the labels to the metrics of the set."""
        metrics = self._metrics[name_loader]
        if metrics:
            with self._precision.autocast:
                predictions = self._described(self.predict)
            for name, metric in metrics.items():
                try:
                    metric.update(predictions.float(), self.batch[1])
                except Exception as error:
                    error.add_note(
                        f"While logger.metric.{name_loader}.{name} took predictions {describe_batch(predictions)} and "
                        f"labels {describe_batch(self.batch[1])}."
                    )
                    raise
        for monitor in self._monitors.get(name_loader, {}).values():
            monitor.on_eval(self)

    def after_eval_step(self) -> None:
        """Run after each evaluation step; does nothing."""

    # Logs -------------------------------------------------------------------------------------------------------------

    def log(self, name: str, value: Tensor | float) -> None:
        """Log one number, as `train/<name>`, or `<set>/<name>` during evaluation.

        Costs nothing between logging steps, and never waits for the device. The mean is written where a name comes
        several times before the record is.
        """
        if self._logging:
            self._collected.add(f"{self._log_set}/{name}", value)

    def _log_values(self, name: str, value: Any) -> None:
        """Log a number, or a dict of them."""
        if isinstance(value, Mapping):
            for key, part in value.items():
                self.log(f"{name}_{key}", part)
        elif value is not None:
            self.log(name, value)

    def _flush(self) -> dict[str, float]:
        """Return the mean over all ranks of each name that was logged, and forget them."""
        counts, means = self._collected.counts, self._collected.flush()
        return means if self.world_size == 1 else pooled(self._world.gather((means, counts)))

    def _write_training_record(self) -> None:
        record: dict[str, Any] = {
            "global_step": self.global_step,
            "epoch": self.epoch,
            **self._flush(),
        }
        record["perf/time"] = round(time.time(), 3)
        record["perf/images_per_s"] = round(self._log.console.images_per_second, 1)
        record["perf/data_wait_s"] = round(self._data_wait, 6)
        if self.device.type == "cuda":
            record["perf/memory_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 3)
        self._data_wait = 0.0
        self._log.write(record)

    def get_logs(self) -> list[dict[str, Any]]:
        """Return the records of `metrics.jsonl`, in the order in which they were written."""
        if self._log is not None:
            self._log.position()  # brings what is buffered to disk
        return read_metrics(self._folder.path / "metrics.jsonl")

    @property
    def folder(self) -> Path:
        """The run's folder, known after `setup`."""
        return self._folder.path

    def get_config(self) -> dict[str, Any]:
        """Return the resolved configuration, as `config.yaml` has it: all defaults filled in, no `dump_path`.

        A live object appears as its class name, in angle brackets.
        """
        arguments = arguments_by_name(BaseTrainer, type(self), *vars(self)["_captured"])
        arguments.update({name: fields for name, fields in self._fields.items() if name in arguments})
        if "logger" in arguments:
            arguments["logger"] = {key: value for key, value in arguments["logger"].items() if key != "dump_path"}
        cls = type(self)
        target = f"{cls.__module__}.{cls.__qualname__}"
        if cls.__module__ == "__main__" or "<locals>" in target:
            target = f"<live {cls.__name__}>"
        return {"trainer": {"_target_": target, **cfg.describe(arguments)}}
