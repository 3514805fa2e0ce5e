"""Estimates of `stable-ssl check` beside reality: the peak memory and the time of a training step of ten recipes.

    python benchmarks/check.py [--recipe NAME …] [--write docs/check.md]

`benchmarks/gpu.py` does the same on a GPU, in bf16 and with larger batches, and fills the other table of that page.

Each recipe has a fresh process. Memory on the CPU: the estimate counts tensors. Reality is the largest resident memory
of the process during a step, without what it had before the step: weights, optimizer and batch, which are there
already. Blocks of 64 KiB and more are given back to the system at once (MALLOC_MMAP_THRESHOLD_), so that the resident
memory follows torch's allocations; what oneDNN allocates for itself is in it. On CUDA: `max_memory_allocated` of a
step, with all that the card holds, in bf16.

Time: the estimate takes, on the CPU, the speed of a product of matrices and of a copy that are measured first in the
place of a card's data sheet. Reality is the median of several steps. A core reaches a larger share of its speed than
the 20 to 50 % that are expected of a GPU, so real times on the CPU lie near the lower end, or below it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tables import write_table
from torch.utils.flop_counter import FlopCounterMode

from stable_ssl.compose import compose
from stable_ssl.rehearsal.cards import CARDS, Card
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.resources.memory import check_memory
from stable_ssl.rehearsal.resources.pace import step_seconds
from stable_ssl.rehearsal.stage import Stage, maker_of
from stable_ssl.rehearsal.step.few import first_batch
from stable_ssl.rehearsal.stepping import take_steps

SMALL = ("data=digits", "size=32", "data.train.batch_size=8")
LARGE = ("data=digits", "size=224", "data.train.batch_size=2")
RECIPES = {
    "SimCLR, ResNet-18, 32 px, batch 8": ("simclr", "backbone=resnet18", *SMALL),
    "Barlow Twins, ResNet-18, 32 px, batch 8": ("barlow_twins", "backbone=resnet18", *SMALL),
    "VICReg, ResNet-9, 32 px, batch 8": ("vicreg", "backbone=resnet9", *SMALL),
    "BYOL, ResNet-18, 32 px, batch 8": ("byol", "backbone=resnet18", *SMALL),
    "MoCo, ResNet-18, 32 px, batch 8": ("moco", "backbone=resnet18", *SMALL),
    "SwAV, ResNet-18, 32 px, batch 8": ("swav", "backbone=resnet18", *SMALL),
    "DINO, ViT-Ti, 32 px, batch 8": ("dino", "backbone=vit_tiny", *SMALL),
    "supervised, ConvMixer, 32 px, batch 8": ("supervised", "backbone=convmixer", *SMALL),
    "SimCLR, ResNet-50, 224 px, batch 2": ("simclr", "backbone=resnet50", *LARGE),
    "MAE, ViT-S/16, 224 px, batch 2": ("mae", "backbone=vit_small", *LARGE),
}
STEPS = 2


def prepared(overrides: tuple[str, ...], folder: Path, device: str) -> tuple[Stage, object]:
    """Return a stage with a batch, and a trainer that is set up on the device."""
    config = compose(overrides[0], overrides[1:])
    config["trainer"]["hardware"]["precision"] = "fp32" if device == "cpu" else "bf16"
    stage = Stage(config, maker_of(config), folder, Report())
    trainer = stage.throw_away("real", torch.device(device))
    trainer.hardware["precision"] = config["trainer"]["hardware"]["precision"]
    trainer.setup()
    for group in trainer.optim["optimizer"].param_groups:
        if group.get("foreach", False) is None:  # as on CUDA by default
            group["foreach"] = True
    stage.batch = first_batch(trainer.data["train"])
    return stage, trainer


def resident(name: str) -> int:
    """Return VmRSS, the resident memory of this process in bytes, or VmHWM, its largest since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def speed_here() -> Card:
    """Return the speed of a core, as that of a card."""

    def seconds(job) -> float:
        times = []
        for _ in range(5):
            begun = time.process_time()
            job()
            times.append(time.process_time() - begun)
        return statistics.median(times[1:])

    matrix, source = torch.randn(1536, 1536), torch.ones(1 << 26)
    target = torch.empty_like(source)
    flops = 2 * 1536**3 / seconds(lambda: matrix @ matrix)
    return Card("a core here", 0, fp32=flops, bandwidth=2 * source.nbytes / seconds(lambda: target.copy_(source)))


def measure_on_cpu(stage: Stage, trainer) -> dict:
    memory = stage.report.facts["memory"]
    take_steps(trainer, *stage.batch, 1)  # makes the optimizer's state, and what oneDNN keeps
    before, times = resident("VmRSS"), []
    forget_peak()
    for _ in range(STEPS):
        begun = time.process_time()
        take_steps(trainer, *stage.batch, 1)
        times.append(time.process_time() - begun)
    real = resident("VmHWM") - before
    estimate = sum(memory["parts"].get(part, 0) for part in ("activations", "temporaries", "gradients"))
    expected = step_seconds(memory["flops_per_step"], memory["traffic_bytes_per_step"], speed_here(), "fp32")
    return {"memory": [estimate, real], "time": [*expected, statistics.median(times)]}


def measure_on_cuda(stage: Stage, trainer) -> dict:
    memory = stage.report.facts["memory"]
    take_steps(trainer, *stage.batch, 1)
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(STEPS + 2):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        take_steps(trainer, *stage.batch, 1)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    batch = sum(leaf.nbytes for leaf in torch.utils._pytree.tree_leaves(stage.batch) if isinstance(leaf, torch.Tensor))
    estimate = sum(size for part, size in memory["parts"].items() if part != "views") + batch
    name = torch.cuda.get_device_name().lower().replace(" ", "")
    card = next((card for card in CARDS.values() if card.name.partition("-")[0] in name), None)
    work = memory["flops_per_step"], memory["traffic_bytes_per_step"]
    expected = step_seconds(*work, card, "bf16") if card else (0.0, 0.0)
    return {
        "memory": [estimate, torch.cuda.max_memory_allocated()],
        "time": [*expected, statistics.median(times[2:])],
    }


def measure(overrides: tuple[str, ...], device: str) -> dict:
    """Return the figures of a recipe: bytes (estimate, real), seconds (shortest, longest, real) and FLOPs of a step.

    The FLOPs are the estimate and torch's own count in a real step: those of matrix products and convolutions.
    """
    with tempfile.TemporaryDirectory() as folder:
        stage, trainer = prepared(overrides, Path(folder), device)
        check_memory(stage)
        if "memory" not in stage.report.facts:
            raise RuntimeError(f"{' '.join(overrides)}: {stage.report.findings}")
        found = (measure_on_cpu if device == "cpu" else measure_on_cuda)(stage, trainer)
        with FlopCounterMode(display=False) as counter:
            take_steps(trainer, *stage.batch, 1)
        estimate = sum(stage.report.facts["memory"]["flops_per_step"].values())
        return {**found, "flops": [estimate, counter.get_total_flops()]}


def rows(names: list[str]) -> list[str]:
    """Return the rows of a table, each recipe measured in a process of its own."""
    lines, ratios = [], []
    for name in names:
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        call = [sys.executable, __file__, "--one", name]
        done = subprocess.run(call, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        (estimate, real), (shortest, longest, took) = found["memory"], found["time"]
        ratios.append(estimate / real)
        lines.append(
            f"| {name} | {estimate / 2**20:,.0f} MiB | {real / 2**20:,.0f} MiB | {estimate / real:.2f} | "
            f"{shortest:.3g} to {longest:.3g} s | {took:.3g} s |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    if ratios:
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        lines.append(f"| median of the ratios (least, largest) | | | {middle:.2f} ({low:.2f}, {high:.2f}) | | |")
    return lines


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="only this one; may be repeated")
    parser.add_argument("--write", type=Path, help="the page to put the table into, in the place of its last one")
    parser.add_argument("--one", choices=RECIPES, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        torch.set_num_threads(1)
        print(json.dumps(measure(RECIPES[args.one], "cpu")))
        return 0
    names = args.recipe or list(RECIPES)
    head = "| | memory, estimate | real | estimate / real | time of a step, estimate | real |"
    table = [f"On one core of a {platform.machine()} CPU, fp32, beside weights, optimizer and batch:", "", head]
    table += ["|---|---|---|---|---|---|", *rows(names)]
    if args.write:
        write_table(args.write, "check", table)
    print("\n".join(table))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
