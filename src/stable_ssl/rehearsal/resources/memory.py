"""The memory of a training run: that of its card at the worst moment, and that of the host."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...data.in_memory import whole_memory
from ...engine.building import data_sets
from ...engine.strategies import not_called
from ...exceptions import ConfigError
from ...monitors import KNN
from ..cards import GIB
from ..device.answers import ENDLESS
from ..device.lines import line_of
from ..report import ERROR
from ..stage import Stage
from .accounting import share_of
from .fake import WHOLE, FakeRun
from .host import bytes_per_image, held_bytes, host_parts, on_node, views_on_card

# The margin: what a step takes beside its tensors.
CONTEXT = GIB // 2  # of CUDA, with its kernels
COMMUNICATION = GIB // 2  # of NCCL, if there are several processes
SHARE = 0.1  # of the peak: gaps between tensors in the allocator's blocks, and work space of cuDNN and cuBLAS
STEP, EXCHANGE, EVALUATION = "training step", "exchange of gradients", "evaluation"
LASTING = "parameters", "buffers", "optimizer"  # the parts that are there at all moments
_MOST_LINES = 4
_QUERIES, _BANK = 256, 65536  # images that the kNN monitor compares at a time


def check_memory(stage: Stage) -> None:
    """Estimate the memory that the run takes of each card, and of the host, and compare it with what there is.

    Steps are taken with tensors that have no memory, at the real batch size and precision, and each allocation is
    counted as CUDA's allocator would round it. `facts["memory"]` gets, in bytes:

    - `peak_bytes`, and its `parts`, at the worst `moment`: in a "training step"; in the "exchange of gradients" of
      several processes, which takes a copy of all gradients; or in an "evaluation" with the kNN bank. In "views" are
      the batch itself and, if views are made on the card, the images there and the next batch;
    - `strategy`, and the number of `processes`, and of `machines` with strategy "hsdp". If parameters are sharded,
      "parameters", "gradients" and "optimizer" are the part of a process. "whole_parameters" are those that are
      gathered: in a step those of two blocks and all that are in no block, in an evaluation all of them.
      "whole_gradients" are those of the block that has most, before and while they are summed. A group of mini-batches
      (`optim.accumulation_steps`) keeps all "gradients" whole until its last one;
    - `margin_bytes`: 0.5 GiB for CUDA's context, as much for NCCL with several processes, 10 % of the peak, and the
      work space of views that are made on the card;
    - `batch_size`, and the `largest_batch` that fits the card with the margin, within 2 %;
    - `host_bytes` and `host_parts`, per process;
    - `flops_per_step`, in "convolutions" and "products", and `traffic_bytes_per_step`: what all operations read and
      write, each for itself.

    If the step fails, `is_complete` is false: the peak lacks activations and temporaries, and there are no FLOPs.

    A peak above the card's memory is an error even without the margin, and a warning with it. Not seen: kernels that
    keep other tensors on CUDA than on the CPU, and what `hardware.compile` saves.
    """
    if stage.batch is None:
        return
    try:
        _Estimate(stage).report()
    except ConfigError:
        return  # those who build the run have told it
    except Exception as error:  # of the user's code, which meets tensors without values here
        if not stage.report.of(ERROR):
            what = f"{type(error).__name__}: {error}".split("\n")[0]
            stage.report.warn("memory", f"The memory can't be estimated: a step without values failed ({what}).")


class _Estimate:
    """The figures of one run."""

    def __init__(self, stage: Stage):
        self._stage, self._card, self._world_size = stage, stage.card, stage.world_size
        self._run = run = FakeRun(stage)
        self._trainer = trainer = run.trainer
        self._count = trainer.optim["accumulation_steps"]
        self.batch_size = getattr(trainer.data["train"], "batch_size", None) or run.num_samples
        names = data_sets(trainer.data)
        self._held = {name: held_bytes(trainer.data[name], self._world_size) for name in names}
        self._on_card = views_on_card(trainer.data["train"], self._held["train"], self._card)
        self._per_image = bytes_per_image(trainer.data["train"]) if self._on_card else (0.0, 0.0)
        count = min(self._count, 2)  # more mini-batches take no more memory than two
        other = self.batch_size // 2 if self.batch_size >= 4 else 2 * self.batch_size
        self._count_here = count
        self.failure: BaseException | None = None
        self._points: list[tuple[int, int]] = []
        try:
            self._account, at_own = run.step(self.batch_size, count)
        except (Exception, SystemExit) as error:  # of the user's code, which meets tensors without values here
            self.failure, self._account = error, run.without_step(self.batch_size)
        else:
            with suppress(Exception):  # the code may ask for the run's own size
                self._points = [(other, run.step(other, count)[1]), (self.batch_size, at_own)]
        self._endless = run.answers.endless()
        self._factor = self._count / count
        self.parts = self._moments()
        self.moment = max(self.parts, key=lambda moment: sum(self.parts[moment].values()))
        self.peak = sum(self.parts[self.moment].values())

    def _moments(self) -> dict[str, dict[str, int]]:
        """Return the memory in use at each of the moments that may be the worst, by part."""
        account, run = self._account, self._run
        trained = [p for o in run.optimizers for g in o.param_groups for p in g["params"] if p.requires_grad]
        step = dict(account.at_peak)
        step["views"] = step.get("views", 0) + self._views(self.batch_size)
        lasting = {name: step.get(name, 0) for name in LASTING}
        moments = {STEP: step, EVALUATION: {**lasting, "knn_bank": self._knn_bank()}}
        if run.groups:
            moments[EVALUATION][WHOLE] = sum(group.whole_bytes for group in run.groups)
        elif self._world_size > 1:
            moments[EXCHANGE] = {**lasting, "views": step["views"], "gradients": 2 * _bytes(trained)}
        return moments

    def _views(self, batch_size: int) -> int:
        """Return the memory of the card for views that are made there, without the batch in use."""
        return self._held["train"] + int(self._per_image[0] * batch_size) if self._on_card else 0

    def _knn_bank(self) -> int:
        """Return the memory of the largest kNN evaluation."""
        rows = getattr(self._trainer, "latest_representations", None)
        if rows is None or rows.ndim != 2:
            return 0
        sizes, data = [0], self._trainer.data
        for name, monitors in self._trainer.logger["monitor"].items():
            for monitor in monitors.values():
                if isinstance(monitor, KNN):
                    bank, queries = (getattr(data[one], "num_samples", 0) for one in (monitor.bank, name))
                    sizes.append(knn_bytes(rows.shape[1], bank, queries // self._world_size, monitor.k))
        return max(sizes)

    def _margin(self, peak: float, batch_size: int) -> float:
        context = CONTEXT + (COMMUNICATION if self._world_size > 1 else 0)
        return context + SHARE * peak + self._per_image[1] * batch_size

    def _largest_batch(self, memory: int) -> int | None:
        """Return the largest batch that fits with the margin; 0 if none does, and None if it is not known.

        The line through the peaks of two batch sizes leads to a third one, whose peak is taken too, and so on. The
        optimizer's own step is left out: it takes as much memory for every batch size.
        """
        others = [sum(parts.values()) for moment, parts in self.parts.items() if moment != STEP]
        if any(peak + self._margin(peak, 0) > memory for peak in others):
            return 0
        if not self._points:
            return None
        points = list(self._points)
        for _ in range(_MOST_LINES):
            far, near = ((size, self._of_batch(size, peak) - memory) for size, peak in points[-2:])
            size = _crossing(far, near)
            if size < 1 or abs(size - points[-1][0]) <= points[-1][0] / 50:
                break
            try:
                points.append((size, self._run.step(size, self._count_here)[1]))
            except Exception:  # such a batch may be too large for something else
                break
        return max(0, size)

    def _of_batch(self, batch_size: int, peak: float) -> float:
        """Return the memory of the card for a peak without views that are made there, with these and the margin."""
        peak += self._views(batch_size)
        return peak + self._margin(peak, batch_size)

    def report(self) -> None:
        """Write the figures, and what is wrong with them, to the stage's report."""
        account, card, report = self._account, self._card, self._stage.report
        margin = int(self._margin(self.peak, self.batch_size))
        largest = None if card is None else self._largest_batch(card.memory_bytes)
        batch_bytes = _bytes(tree_leaves(self._stage.batch)) * self.batch_size // self._run.num_samples
        division, host = self._run.division, host_parts(self._trainer.data, self._held, batch_bytes, self._copy())
        report.tell(
            "memory", peak_bytes=self.peak, is_complete=self.failure is None, parts=self.parts[self.moment],
            moment=self.moment, margin_bytes=margin, batch_size=self.batch_size, largest_batch=largest,
            precision=self._run.precision, strategy=division.strategy, processes=division.processes,
            machines=division.machines if division.strategy == "hsdp" else None,
            views_on="card" if self._on_card else "host",
            flops_per_step={kind: int(self._factor * flops) for kind, flops in account.flops.items()},
            traffic_bytes_per_step=int(self._factor * account.traffic),
            host_bytes=sum(host.values()), host_parts=host, card=None if card is None else card.name,
            card_bytes=None if card is None else card.memory_bytes,
        )  # fmt: skip
        for line, name in self._run.uncalled.found.items() if self._run.uncalled else ():
            report.error("step", f"{line}: {name} is used. {not_called(division.strategy)}")
        if self.failure is not None and not report.of(ERROR):
            what = f"{type(self.failure).__name__}: {self.failure}".split("\n")[0]
            report.warn(
                "memory",
                f"{line_of(self.failure)}: the step can't be tried without values beyond this line ({what}). So "
                "the activations are missing in the figure: it holds parameters, gradients, optimizer and views only.",
            )
        if self._endless:
            report.warn(
                "memory",
                f"{self._endless} asks for values without end, as a loop does that ends by a value. It was ended after "
                f"{ENDLESS} rounds. If the real loop has fewer, memory and time are overestimated.",
            )
        if card is not None and self.peak + margin > card.memory_bytes:
            self._refuse(self.peak, margin, largest)
        self._compare_host(host)

    def _copy(self) -> dict[str, int]:
        """Return the host memory of a process's copy for a checkpoint, by part."""
        size = sum(int(tensor.nbytes * share_of(tensor, shards)) for tensor, _, shards in self._run.lasting())
        return {"part_of_checkpoint" if self._run.groups else "checkpoint": size}

    def _compare_host(self, parts: dict[str, int]) -> None:
        """Compare host memory with that of this machine, unless the run is a Slurm job, which runs on another one."""
        needed, there = on_node(parts, self._world_size), whole_memory()
        if self._stage.slurm is not None or needed <= there:
            return
        who = f"The {self._world_size} processes take" if self._world_size > 1 else "The run takes"
        held, remedy = parts["held_images"], "Take a machine with more memory"
        of_images = f" ({_gib(held)} of it per process for images that are held)" if held >= GIB / 20 else ""
        remedy += ", or set in_memory of the data sets to false" if of_images else ""
        self._stage.report.warn(
            "memory",
            f"{who} about {_gib(needed)} of host memory{of_images}, and this machine has {_gib(there)}. {remedy}.",
        )

    def _refuse(self, peak: int, margin: int, largest: int | None) -> None:
        """Say that the run does not fit the card, or that it may not."""
        card, report = self._card, self._stage.report
        assert card is not None
        need = f"data.train.batch_size={self.batch_size} takes {_gib(peak)} of each card in the {self.moment}"
        if self.moment == EVALUATION and self._run.groups:
            need += ", in which each process has whole parameters"
        fits = self._remedy(largest)
        if self._run.precision == "fp32":
            fits += f", or set hardware.precision (fp32) to {'bf16' if card.bf16 or not card.fp16 else 'fp16'}"
        if peak > card.memory_bytes and not self._endless:
            report.error("memory", f"{need}, and {card.name} has {_gib(card.memory_bytes)}. To fit it, {fits}.")
        else:
            report.warn(
                "memory",
                f"{need}, and {_gib(margin)} are put aside for CUDA and the allocator's gaps. {card.name} has "
                f"{_gib(card.memory_bytes)}, so memory may run out. To be safe, {fits}.",
            )

    def _remedy(self, largest: int | None) -> str:
        """Return what makes the run fit its card, in words."""
        if self.moment == EVALUATION:
            parts = self.parts[EVALUATION]
            of_bank = parts["knn_bank"] > parts.get(WHOLE, 0)
            return "give the kNN monitor a smaller bank" if of_bank else "take a smaller network"
        if largest == 0 or self.moment == EXCHANGE:
            return "take a smaller network" + (" or smaller images, for no batch fits" if self.moment == STEP else "")
        if largest is None:
            return f"lower data.train.batch_size and raise optim.accumulation_steps ({self._count})"
        images = self.batch_size * self._count
        kept = f"optim.accumulation_steps to {-(-images // largest)}, which keeps {images} or more samples per step"
        return f"set data.train.batch_size to {largest} and {kept}"


def _crossing(far: tuple[int, float], near: tuple[int, float]) -> int:
    """Return the batch size at which the line through two points, (batch size, excess of memory), crosses zero."""
    slope = (near[1] - far[1]) / (near[0] - far[0])
    return int(near[0] - near[1] / slope) if slope > 0 else 8 * near[0]


def knn_bytes(dim: int, bank: int, queries: int, k: int) -> int:
    """Return the memory of a kNN evaluation: bank and queries as they came, joined, and with length 1; similarities;
    and the neighbours that were found, twice while they are exchanged.

    Parameters
    ----------
    dim
        Of a representation, in fp32.
    bank, queries
        Numbers of rows.
    k
        Number of neighbours.
    """
    compared = min(bank, _BANK)
    return 4 * (dim * (2 * bank + compared + 2 * queries) + _QUERIES * compared) + 2 * (4 + 8) * queries * k


def _bytes(values: list[Any]) -> int:
    """Return the bytes of all tensors among some values."""
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
