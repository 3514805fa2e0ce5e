"""The time of a training run: the work of its card, and the images that the host must make ready for it."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from ...runtime.cpus import cpus_of_process
from ...runtime.device import count_images
from ...runtime.files import time_in_words
from ..cards import Card
from ..stage import Stage
from ..step.instead import set_up_on_meta
from .host import held_bytes

# The share of the peak that a run reaches: of the tensor cores or of plain fp32, and of the memory's bandwidth.
PEAK = (0.2, 0.5)
BANDWIDTH = (0.5, 0.9)
_SECONDS = 4.0  # of reading
_MOST_READERS = 256  # cores or workers per card, beyond which more of them are no advice


def check_pace(stage: Stage) -> None:
    """Estimate the time of a step and of the run, and whether the host makes images ready fast enough.

    The shortest time of a step is that of its FLOPs at 50 % of the card's published peak, or that of its traffic at
    90 % of the bandwidth, whichever is longer. The longest is their sum, at 20 % and at 50 %. Published shares of the
    peak are 21 % for GPT-3 on V100, 30 % for Megatron-Turing NLG on A100 and 46 % for PaLM on TPU v4 (Chowdhery et al.,
    "PaLM: Scaling language modeling with pathways", JMLR 2023, table 3). The traffic is the limit for convolutional
    networks, whose batch normalisation and activations read and write much and compute little. The time for
    evaluations, checkpoints and other processes is left out.

    `facts["time"]` gets `flops_per_step`; `step_seconds` and `run_seconds`, the shortest and the longest, of `steps`
    steps; `images_per_second` that the loader gives here, by so many `workers`; `images_per_core_second`, per second of
    a core's time, or of a worker's or this process's time if `reading_waits`; `needed_images_per_second` and
    `needed_cores` (or workers), for the longest and the shortest step; and a `summary` of them.
    Without a card whose speed is known, there are only the FLOPs and what the loader gives.
    """
    memory, report = stage.report.facts.get("memory", {}), stage.report
    flops: dict[str, int] = memory.get("flops_per_step", {})
    report.tell("time", flops_per_step=sum(flops.values()) or None)
    if stage.trainer is not None:
        _estimate(stage, stage.trainer)
    elif stage.lacks_room and memory:
        with set_up_on_meta(stage, "time") as trainer:
            _estimate(stage, trainer)


def _estimate(stage: Stage, trainer: Any) -> None:
    """Tell the time of the trainer's steps, and compare it with the time in which its images are made ready."""
    memory, report = stage.report.facts.get("memory", {}), stage.report
    flops: dict[str, int] = memory.get("flops_per_step", {})
    if memory.get("views_on") == "host":
        _measure(stage, trainer.data["train"])
    card, precision = stage.card, memory.get("precision", "fp32")
    if card is not None and card.fp32 is not None and flops:
        if precision == "bf16" and card.bf16 is None:
            report.warn(
                "time",
                f"hardware.precision=bf16: {card.name} has no tensor cores for bf16, so it is slow there. Set it to "
                "fp16.",
            )
        shortest, longest = step_seconds(flops, memory["traffic_bytes_per_step"], card, precision)
        optim = trainer.optim
        steps = -(-int(optim["total_steps"]) // stage.world_size)
        images = memory["batch_size"] * optim["accumulation_steps"]
        report.tell(
            "time", step_seconds=[shortest, longest], steps=steps, run_seconds=[steps * shortest, steps * longest],
            images_per_step=images, needed_images_per_second=[images / longest, images / shortest],
        )  # fmt: skip
        _compare(stage, card)
    report.tell("time", summary=_summary(stage))


def step_seconds(flops: dict[str, int], traffic: int, card: Card, precision: str) -> tuple[float, float]:
    """Return the shortest and the longest time of a step, in seconds.

    Parameters
    ----------
    flops
        FLOPs of "convolutions" and of "products" of matrices.
    traffic
        Bytes that operations read and write.
    card
        The card, whose speed is known.
    precision
        `hardware.precision`. In fp32, torch lets convolutions use TF32, and products of matrices only if it is told to.
    """
    assert card.fp32 is not None
    assert card.bandwidth is not None
    half = {"bf16": card.bf16, "fp16": card.fp16}.get(precision)
    backends = torch.backends
    tf32 = {"convolutions": backends.cudnn.allow_tf32, "products": backends.cuda.matmul.allow_tf32}
    at_peak = 0.0
    for kind, count in flops.items():
        at_peak += count / (half or (card.tf32 if tf32[kind] and card.tf32 else card.fp32))
    at_bandwidth = traffic / card.bandwidth
    shortest = max(at_peak / PEAK[1], at_bandwidth / BANDWIDTH[1])
    return shortest, at_peak / PEAK[0] + at_bandwidth / BANDWIDTH[0]


def _measure(stage: Stage, train: Any) -> None:
    """Read batches of the loader of `data.train` for some seconds, and tell how many images per second come."""
    loader = _to_measure(train, stage.world_size)
    batches, begun = _endless(loader), _clocks()
    try:
        images = count_images(*next(batches))
        workers, by_threads = _readers(loader)
        if workers or by_threads or _passed(begun)[0] < _SECONDS:  # the first started workers, or read into memory
            images, begun = 0, _clocks()
        while _passed(begun)[0] < _SECONDS:
            images += count_images(*next(batches))
        taken, worked, queued = _passed(begun)
    except Exception:  # the part that reads samples tells of it
        return
    finally:
        batches.close()
        loader.close()
    waits = not workers and worked + queued < taken / 2  # the time of workers is not seen
    cores = min(_count(workers, by_threads), cpus_of_process()) if workers or waits else worked / taken
    stage.report.tell(
        "time", images_per_second=images / taken, images_per_core_second=images / taken / cores, workers=workers,
        by_threads=by_threads, reading_waits=waits,
    )  # fmt: skip


def _clocks() -> tuple[float, float, float]:
    """Return seconds of the clock, of this process's work, and in which this thread waited for a core, if known."""
    try:
        queued = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        queued = 0.0
    return time.perf_counter(), time.process_time(), queued


def _passed(since: tuple[float, float, float]) -> list[float]:
    """Return how far each of the clocks has gone."""
    return [now - then for now, then in zip(_clocks(), since, strict=True)]


def _to_measure(loader: Any, world_size: int) -> Any:
    """Return a loader like a given one. If that holds its images in memory, it gets so few that they are read soon."""
    if not held_bytes(loader, world_size):
        return loader
    loader = copy.copy(loader)
    loader.dataset = Subset(loader.dataset, range(min(len(loader.dataset), 4 * (loader.batch_size or 1))))
    return loader


def _endless(loader: Any) -> Generator[tuple[Any, Any]]:
    """Yield (sample indices, batch) of a loader, epoch after epoch."""
    for epoch in itertools.count():
        batches = loader.batches(epoch)
        first = next(batches, None)
        if first is None:
            return
        yield first
        yield from batches


def _readers(loader: Any) -> tuple[int, bool]:
    """Return how many worker processes read, and whether threads do, of which each core has one."""
    if getattr(loader, "_held", None) is not None or getattr(loader, "_decoded", None) is not None:
        return 0, True
    return int(getattr(loader, "num_workers", 0)), False


def _count(workers: int, by_threads: bool) -> int:
    """Return how many images can be made ready at a time."""
    return workers or (cpus_of_process() if by_threads else 1)


def _compare(stage: Stage, card: Card) -> None:
    """Warn if this machine's cores don't make images ready as fast as the card takes them."""
    facts = stage.report.facts["time"]
    if not (per_core := facts.get("images_per_core_second")):
        return
    needed, has = facts["needed_images_per_second"], _count(facts["workers"], facts["by_threads"])
    least, most = cores = [math.ceil(rate / per_core) for rate in needed]
    stage.report.tell("time", needed_cores=cores)
    if most <= has:
        return
    key, what = f"data.train.num_workers: {facts['workers']}", "workers"
    if facts["by_threads"]:
        key, what = f"data.train: {has} cores", "cores"
    reading = facts["steps"] * facts["images_per_step"] / facts["images_per_second"]
    stage.report.warn(
        "time",
        f"{key}, and the run {'is' if least > has else 'may be'} input-bound: it needs {least:,} to {most:,} {what} "
        f"per card. {card.name} takes {_rate(needed[0])} to {_rate(needed[1])} images per second, and "
        f"{_maker(facts)} here makes {_rate(per_core)} ready. As it is, reading takes {time_in_words(reading)}. "
        f"{_remedy(least, what, facts['reading_waits'])}",
    )


def _maker(facts: dict[str, Any]) -> str:
    """Return what makes `images_per_core_second`, in words."""
    return "a process" if facts["reading_waits"] and not facts["by_threads"] else "a core"


def _remedy(least: int, what: str, waits: bool) -> str:
    """Return what makes images ready faster: so many workers or cores, or less work per image."""
    mends = ": more workers mend that, and more cores do not" if what == "workers" else ""
    why = f"Reading mostly waits, as for a slow disk{mends}. " if waits else ""
    if least > _MOST_READERS:
        more = f"So many {what} are no remedy:"
    elif what == "cores":
        more = "Ask for more cores,"
    else:
        more = "Raise num_workers" + ("," if waits else " and the number of cores,")
    disk = ", move them to a faster disk" if waits else ""
    return f"{why}{more} prepare the images (stable-ssl prepare){disk}, or use a larger network."


def _rate(images: float) -> str:
    """Return a number of images per second with at least two digits."""
    return f"{images:,.0f}" if images >= 10 else f"{images:.2g}"


def _summary(stage: Stage) -> str:
    """Return the figures in a line."""
    facts, parts = stage.report.facts["time"], []
    if "step_seconds" in facts:
        step, run = facts["step_seconds"], facts["run_seconds"]
        parts.append(f"{1e3 * step[0]:.3g} to {1e3 * step[1]:.3g} ms per step")
        parts.append(f"{time_in_words(run[0])} to {time_in_words(run[1])} for {facts['steps']:,} steps")
        needed = facts["needed_images_per_second"]
        parts.append(f"needs {_rate(needed[0])} to {_rate(needed[1])} images/s")
    elif facts["flops_per_step"]:
        parts.append(f"{facts['flops_per_step'] / 1e12:.3g} TFLOP per step")
    if per_core := facts.get("images_per_core_second"):
        parts.append(f"{_maker(facts)} here makes {_rate(per_core)} images/s")
    return ", ".join(parts)
