"""A trainer whose tensors have shape, type and place, but no memory: a step of it can be accounted for anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ...exceptions import BreakAllEpochs, BreakEpoch, BreakStep
from ...runtime.device import count_images
from ...runtime.precision import Precision
from ..device.answers import Answers
from ..device.waits import SHAPES, Findings, nonzero, noticing, without_cuda
from ..division import Group, division_of, groups_of, roots_of_run
from ..stage import CPU, META, Stage
from ..stepping import take_steps
from .accounting import Accounting, CudaAutocast, share_of
from .uncalled import Uncalled

aten = torch.ops.aten
GATHERED = WHOLE, GRADIENTS = "whole_parameters", "whole_gradients"  # parts that hold what is sharded, for a while


class FakeRun:
    """A run whose training steps can be accounted for.

    The trainer is set up on `meta`, and its tensors are then turned into fake ones of the CPU, in place: networks whose
    initialisation looks at values can't be built of fake tensors, and autocast does nothing on `meta`.

    Parameters
    ----------
    stage
        The stage, with a batch.

    Raises
    ------
    ConfigError
        The configuration is wrong.

    Attributes
    ----------
    trainer
        The trainer.
    precision
        `hardware.precision` of the run.
    division, groups
        How the run's strategy divides parameters, and the groups of those that it shards; none with strategy "ddp".
    uncalled
        Where sharded parameters are used without a call; None with strategy "ddp".
    optimizers
        All of its optimizers.
    num_samples
        Of the stage's batch.
    answers
        What the code was told in the newest step, where it asked for values.
    """

    def __init__(self, stage: Stage):
        assert stage.batch is not None
        self.trainer = trainer = stage.throw_away("memory", META)
        self.precision: str = trainer._configured["hardware"]["precision"]
        with noticing(Findings()):
            trainer.setup()
            trainer.before_fit()
        trainer._run.let_go()
        self.division = division_of(stage, trainer._configured["hardware"]["strategy"])
        self.groups: list[Group] = []
        self.uncalled: Uncalled | None = None
        if self.division.strategy != "ddp":
            roots = roots_of_run(trainer)
            self.groups = groups_of(roots.values(), self.precision)
            self.uncalled = Uncalled(roots, self.groups)
            vars(trainer)["compute_loss"] = self.uncalled.watched(trainer.compute_loss)
        self._sharded = {id(parameter) for group in self.groups for parameter in group.parameters}
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        for tensor in _tensors_on_meta(trainer):
            _make_fake(tensor, self._mode)
        trainer.device = trainer._run.device = CPU
        trainer.hardware["channels_last"] = False  # the order is that of the copy to the card, which is the batch here
        # On the CPU, bf16 stands for fp16 too: its tensors are as large, and no scaler looks at them.
        kind = "fp32" if self.precision == "fp32" else "bf16"
        precision = Precision(kind, CPU, trainer.optim["grad_max_norm"])
        trainer._run.precision = trainer._steps._precision = precision
        self.optimizers = [trainer.optim["optimizer"], *trainer._steps.trained.side.values()]
        self._use_foreach()
        self.answers = Answers()
        self._make_states()
        indices, self._batch = stage.batch
        self.num_samples = count_images(indices, self._batch)

    def _use_foreach(self) -> None:
        """Let the optimizers update all parameters at once, as torch's do on CUDA by default; it takes more memory.

        They update those that are sharded one by one.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                is_sharded = any(self.is_sharded(parameter) for parameter in group["params"])
                if not is_sharded and group.get("foreach", False) is None and not group.get("fused"):
                    group["foreach"] = True

    def _make_states(self) -> None:
        """Let the optimizers make the states that they have after their first step."""
        with self._mode, Answering(self.answers):
            for optimizer in self.optimizers:
                trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
                for parameter in trained:
                    parameter.grad = torch.empty_like(parameter)
                optimizer.step()
                for parameter in trained:
                    parameter.grad = None

    def is_sharded(self, parameter: Tensor) -> bool:
        """Return whether processes divide a parameter."""
        return id(parameter) in self._sharded

    def shards(self, parameter: Tensor) -> int:
        """Return how many processes divide a parameter."""
        return self.division.shards if self.is_sharded(parameter) else 1

    def step(self, batch_size: int, count: int) -> tuple[Accounting, int]:
        """Take mini-batches of a size, and return their account, and its peak before the optimizer's own step.

        Parameters
        ----------
        batch_size
            Samples per mini-batch.
        count
            How many mini-batches. They make one optimizer step.
        """
        self.answers = Answers()
        return self.answers.tried(lambda: self._step(batch_size, count), self.trainer._steps.drop_group)  # type: ignore[no-any-return]

    def without_step(self, batch_size: int) -> Accounting:
        """Return the account of what a step takes before its forward pass, and of its gradients."""
        account, batch = self._lasting(), self._batch_of(batch_size)
        account.assign([leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)], "views")
        self._gather(account)
        with self._mode:
            trained = [parameter for parameter in self.trainer.parameters() if parameter.requires_grad]
            gradients = [torch.empty_like(parameter) for parameter in trained]
            for parameter, gradient in zip(trained, gradients, strict=True):
                account.assign([gradient], "gradients", self.shards(parameter))
        return account

    def lasting(self) -> Iterator[tuple[Tensor, str, int]]:
        """Yield each tensor that a checkpoint holds, its part of the memory, and how many processes divide it."""
        yield from ((parameter, "parameters", self.shards(parameter)) for parameter in self.trainer.parameters())
        yield from ((buffer, "buffers", 1) for buffer in self.trainer.buffers())
        for optimizer in self.optimizers:
            for parameter, own in optimizer.state.items():
                for state in (state for state in own.values() if isinstance(state, Tensor)):
                    yield state, "optimizer", self.shards(parameter) if state.shape == parameter.shape else 1

    def _lasting(self) -> Accounting:
        account = Accounting()
        for tensor, part, shards in self.lasting():
            account.assign([tensor], part, shards)
        cast = [parameter for group in self.groups if group.in_bf16 for parameter in group.parameters]
        account.free_copies = {id(parameter.untyped_storage()) for parameter in cast}  # they are gathered in bf16
        return account

    def _gather(self, account: Accounting) -> None:
        """Count what is whole in a step of what is sharded.

        Those of networks are whole until the end. Of their blocks, one computes and the next one is gathered.
        """
        if not self.groups:
            return
        roots = [group.whole_bytes for group in self.groups if group.is_root]
        blocks = sorted(group.whole_bytes for group in self.groups if not group.is_root)
        account.hold(WHOLE, sum(roots) + sum(blocks[-2:]))
        account.hold(GRADIENTS, max(group.gradient_bytes for group in self.groups))

    def _begin_update(self, account: Accounting, optimizer: torch.optim.Optimizer) -> None:
        """Count that an optimizer updates shards with shards of the gradients."""
        if not self.groups:
            return
        for part in GATHERED:
            account.hold(part, -account.now[part])
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for parameter in trained:
            account.assign([parameter.grad], "gradients", self.shards(parameter))
        whole = sum(parameter.nbytes for parameter in trained)
        account.share = sum(p.nbytes * share_of(p, self.shards(p)) for p in trained) / max(whole, 1)

    def _step(self, batch_size: int, count: int) -> tuple[Accounting, int]:
        trainer, account, peaks = self.trainer, self._lasting(), []
        trainer._steps.accumulation = trainer._steps.num_batches = count
        if self.uncalled is not None:
            self.uncalled.begin_step()

        def begin(optimizer: torch.optim.Optimizer, *given: Any) -> None:
            peaks.append(account.peak)
            self._begin_update(account, optimizer)

        def end(*given: Any) -> None:
            account.share = 1.0

        def arrived(parameter: Tensor) -> None:
            # Those of a group of mini-batches are divided when the last one adds to them.
            account.assign([parameter.grad], "gradients", self.shards(parameter) if count == 1 else 1)  # type: ignore[list-item]

        with ExitStack() as last:
            for optimizer in self.optimizers:
                last.callback(optimizer.register_step_pre_hook(begin).remove)
                last.callback(optimizer.register_step_post_hook(end).remove)
            for parameter in trainer.parameters():
                if parameter.requires_grad:
                    last.callback(parameter.register_post_accumulate_grad_hook(arrived).remove)
            batch = self._batch_of(batch_size)
            account.assign([leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)], "views")
            self._gather(account)
            last.enter_context(self._mode)
            last.enter_context(account)
            last.enter_context(Answering(self.answers))
            last.enter_context(CudaAutocast())
            last.enter_context(OnHost())
            try:
                take_steps(trainer, list(range(batch_size)), batch, count)
            except (BreakStep, BreakEpoch, BreakAllEpochs):  # the step is what was taken until there
                trainer._steps.drop_group()
        return account, min(peaks, default=account.peak)

    def _batch_of(self, size: int) -> Any:
        """Return a mini-batch like the run's, of so many samples, with tensors that have no memory."""

        def resized(tensor: Tensor) -> Tensor:
            count = len(tensor) if tensor.ndim else 0
            rows = count // self.num_samples * size if count % self.num_samples == 0 else count
            with self._mode:
                made = torch.empty((rows, *tensor.shape[1:]) if tensor.ndim else (), dtype=tensor.dtype)
            if tensor.dtype == torch.bool and count:  # masks, of which the host counts the patches
                made.on_host = tensor[torch.arange(rows) % count]  # type: ignore[attr-defined]
            return made

        return tree_map_only(Tensor, resized, self._batch)


def _tensors_on_meta(trainer: nn.Module) -> list[Tensor]:
    """Return parameters, buffers, and tensors that are plain attributes of modules, each once."""
    plain = [value for module in trainer.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    found = {id(tensor): tensor for tensor in [*trainer.parameters(), *trainer.buffers(), *plain] if tensor.is_meta}
    return list(found.values())


def _make_fake(tensor: Tensor, mode: FakeTensorMode) -> None:
    """Turn a tensor on `meta` into a fake one of the CPU, in place: optimizers and modules keep their objects."""
    # Its own constructor, since tensors that are made under the mode have weak references, and can't be swapped.
    fake = FakeTensor(mode, torch.empty_like(tensor.detach()), CPU)
    fake.requires_grad_(tensor.requires_grad)
    if isinstance(tensor, nn.Parameter):
        fake._is_param = True  # type: ignore[attr-defined]
    torch.utils.swap_tensors(tensor, fake)


class Answering(TorchDispatchMode):
    """Answers questions after values, which fake tensors can't. What is computed of real tensors alone stays real.

    A choice of some rows takes all of them, so it takes as much memory as it can.

    Parameters
    ----------
    answers
        What the answers are.
    """

    def __init__(self, answers: Answers):
        super().__init__()
        self._answers = answers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return self._answers.number(args[0].dtype)
        if func in (aten.equal.default, aten.allclose.default):
            return self._answers.truth()
        if func in SHAPES and kwargs.get("output_size") is None:
            return SHAPES[func](*args, **kwargs)
        if func is aten.index.Tensor:
            args = args[0], [row for index in args[1] for row in _rows(index)]
        return func(*args, **kwargs)


class OnHost(TorchFunctionMode):
    """Has "cuda" mean the CPU, and gives NumPy an array of ones in place of a fake tensor, which it can't read."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = without_cuda(args, kwargs, CPU)
        if func is Tensor.cuda:
            return args[0]
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], FakeTensor):
            with unset_fake_temporarily():
                args = torch.ones(args[0].shape, dtype=args[0].dtype), *args[1:]
        return func(*args, **kwargs)


def _rows(index: Tensor | None) -> Sequence[Tensor | None]:
    """Return indices of all elements in the place of a mask."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return nonzero(index).unbind(1)
