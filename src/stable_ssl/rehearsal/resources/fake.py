"""A trainer whose tensors have shape, type and place, but no memory: a step of it can be accounted for anywhere."""

from __future__ import annotations

from collections.abc import Sequence
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
from ..stage import CPU, META, Stage
from ..stepping import take_steps
from .accounting import Accounting, CudaAutocast

aten = torch.ops.aten


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
        """Let the optimizers update all parameters at once, as torch's do on CUDA by default; it takes more memory."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if group.get("foreach", False) is None and not group.get("fused"):
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

    def states(self) -> list[Tensor]:
        """Return the tensors of the optimizers' states."""
        states = [state for optimizer in self.optimizers for own in optimizer.state.values() for state in own.values()]
        return [state for state in states if isinstance(state, Tensor)]

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
        with self._mode:
            gradients = [torch.empty_like(one) for one in self.trainer.parameters() if one.requires_grad]
            account.assign(gradients, "gradients")
        return account

    def _lasting(self) -> Accounting:
        account = Accounting()
        account.assign(self.trainer.parameters(), "parameters")
        account.assign(self.trainer.buffers(), "buffers")
        account.assign(self.states(), "optimizer")
        return account

    def _step(self, batch_size: int, count: int) -> tuple[Accounting, int]:
        trainer, account, peaks = self.trainer, self._lasting(), []
        trainer._steps.accumulation = trainer._steps.num_batches = count
        parameters = list(trainer.parameters())
        with ExitStack() as last:
            for optimizer in self.optimizers:
                last.callback(optimizer.register_step_pre_hook(lambda *given: peaks.append(account.peak)).remove)
            for parameter in parameters:
                if parameter.requires_grad:
                    hook = parameter.register_post_accumulate_grad_hook(
                        lambda parameter: account.assign([parameter.grad], "gradients")
                    )
                    last.callback(hook.remove)
            batch = self._batch_of(batch_size)
            account.assign([leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)], "views")
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
