"""The measurements of `benchmarks/gpu.py`. Each is a function of a `Scale` that returns what makes each of its rows."""

from __future__ import annotations

import contextlib
import functools
import itertools
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import augmentation_gpu
import check
import heads
import losses
import same
import torch
from augmentation import make_images
from augmentation_gpu import milliseconds
from gpu_trainer import WARM_UP, Clocked, trained

ROOT = Path(__file__).resolve().parent.parent
Values = dict[str, float | str | None]  # by column; None is not known
Rows = dict[str, Callable[[], Values]]


@dataclass(frozen=True)
class Scale:
    """How large the measurements are: those of a GPU, or those of a rehearsal on the CPU."""

    device: str = "cuda"
    deadline: float = float("inf")  # of the measurement, as time.monotonic() has it
    cifar10: str | None = None  # a folder of Parquet files
    batch: int = 256
    size: int = 224  # of the views, in pixels
    image_size: int = 256
    vit: str = "vit_small"
    resnet: str = "resnet18"
    rounds: int = 20
    num_bytes: int = 1 << 28  # of the copy that shows the bandwidth
    num_few: int = 16  # images for torchvision, which takes one at a time
    num_cifar: int = 50_000
    batch_cifar: int = 256
    steps: int = 30  # after the warm-up
    embeddings: tuple[int, ...] = (2_048, 8_192, 32_768, 131_072)
    methods: tuple[str, ...] = ("simclr", "mae", "dino")
    precisions: tuple[str, ...] = ("fp32", "bf16")
    queries: int = 10_000
    bank: int = 50_000

    @property
    def is_rehearsal(self) -> bool:
        return self.device == "cpu"


REHEARSAL = Scale(
    device="cpu", batch=4, size=32, image_size=40, vit="vit_digits", resnet="resnet9", rounds=1, num_bytes=1 << 20,
    num_few=2, num_cifar=128, batch_cifar=16, steps=2, embeddings=(64, 128), methods=("simclr",),
    precisions=("bf16",), queries=100, bank=500,
)  # fmt: skip


def tests(scale: Scale) -> Rows:
    """What the tests that need a GPU say. After the deadline, no test begins."""

    def run(path: str) -> Values:
        with tempfile.TemporaryDirectory() as folder:
            report, deadline = Path(folder) / "report.xml", time.time() + scale.deadline - time.monotonic() - 20
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
            done = subprocess.run(
                [*command, f"--deadline={deadline}", path], cwd=ROOT, capture_output=True, text=True, check=False
            )
            if not report.exists():
                raise RuntimeError((done.stdout + done.stderr).strip().splitlines()[-1])
            return _outcomes(ElementTree.parse(report))

    paths = ("tests/test_cuda.py", "tests/augmentations/test_device.py")
    return {f"`{path}`": functools.partial(run, path) for path in paths[: 1 if scale.is_rehearsal else None]}


def _outcomes(report: ElementTree.ElementTree) -> Values:
    """Return how many tests had each outcome, and the names of those that failed."""
    found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": [], "late": []}
    for case in report.iter("testcase"):
        skipped, is_bad = case.find("skipped"), case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if is_bad else "passed" if skipped is None else "skipped"
        if skipped is not None and "the time is over" in (skipped.get("message") or ""):
            outcome = "late"
        found[outcome].append(case.get("name", ""))
    return {**{key: len(names) for key, names in found.items()}, "names": ", ".join(found["failed"])}


def resume(scale: Scale) -> Rows:
    """Whether a run that is killed in the middle of an epoch, and goes on, ends as one left alone, to the bit."""

    def compare(method: str, precision: str) -> Values:
        hardware = {"device": scale.device, "deterministic": True, "precision": precision}
        with tempfile.TemporaryDirectory() as folder:
            runs = {name: Path(folder) / name for name in ("alone", "killed")}

            def make(name: str, *deaths: int | None) -> None:
                for dies_at in deaths:
                    (status,) = same.start(1, (method, runs[name], 1, dies_at, hardware))
                    if status != (0 if dies_at is None else -signal.SIGKILL):
                        raise RuntimeError(f"the run '{name}' ended with status {status}")

            with ThreadPoolExecutor(2) as both:
                jobs = both.submit(make, "alone", None), both.submit(make, "killed", same.DIES_AT, None)
            for job in jobs:
                job.result()
            alone, killed = (same.outcome(run) for run in runs.values())
            different = [place.lstrip(".") for place in same.differences(alone, killed, "")]
        state = alone[max(key for key in alone if key.startswith("step_"))]
        answer = f"no: {different[0]} and {len(different) - 1} more" if different else "yes"
        return {"same": answer, "steps": state["progress"]["global_step"], "killed": same.DIES_AT}

    return {
        f"{method}, {precision}": functools.partial(compare, method, precision)
        for method, precision in itertools.product(scale.methods, scale.precisions)
    }


def views(scale: Scale) -> Rows:
    """SimCLR's two views of images that are on the device."""

    @functools.cache
    def took(name: str) -> tuple[float, float]:
        if name == "step":
            job = augmentation_gpu.training_step(scale.batch, scale.size, 1 if scale.is_rehearsal else 12, scale.device)
        elif name == "copy":
            job = augmentation_gpu.copy(scale.num_bytes, scale.device)
        else:
            makers = {"stable-ssl": augmentation_gpu.ours, "kornia": augmentation_gpu.kornias}
            images = torch.from_numpy(make_images(number(name), scale.image_size)).to(scale.device)
            job = makers.get(name, augmentation_gpu.torchvisions)(images, scale.size)
        return augmentation_gpu.measure(job, scale.rounds, scale.device)

    def number(name: str) -> int:
        return scale.num_few if name == "torchvision v2" else scale.batch

    def each(name: str) -> float:
        """Return the milliseconds per image."""
        return took(name)[0] / number(name)

    def share(of_image: float) -> float | None:
        with contextlib.suppress(torch.OutOfMemoryError):
            return scale.batch * of_image / took("step")[0]
        return None

    def contender(name: str) -> Values:
        return {
            "rate": 2e3 / each(name),
            "faster": each(name) / each("stable-ssl"),
            "python": took(name)[1] * scale.batch / number(name),
            "share": share(each(name)),
        }

    def floor() -> Values:
        bandwidth = 2 * scale.num_bytes / took("copy")[0]  # bytes per millisecond, read and written
        least = 2 * (3 * scale.image_size**2 + 4 * 3 * scale.size**2) / bandwidth  # of an image
        return {
            "rate": 2e3 / least,
            "faster": least / each("stable-ssl"),
            "share": share(least),
        }

    contenders = {name: functools.partial(contender, name) for name in ("stable-ssl", "kornia", "torchvision v2")}
    return {**contenders, "the bandwidth alone": floor}


def cifar(scale: Scale) -> Rows:
    """SimCLR of a ResNet-18 on CIFAR-10, by its recipe; the first epoch, in which all is compiled, does not count."""
    epochs = 3

    def train(compiles: bool) -> Values:
        from_folder = [] if scale.cifar10 is None else ["data=parquet", f"root={scale.cifar10}", "size=32"]
        overrides = [
            *from_folder,
            f"backbone={scale.resnet}",
            "num_classes=10",
            f"data.train.batch_size={scale.batch_cifar}",
            f"optim.max_steps={scale.num_cifar // scale.batch_cifar}",
        ]
        images = {"number": scale.num_cifar, "size": 32} if scale.cifar10 is None else None
        trainer = trained(scale.device, "simclr_cifar10", overrides, images, epochs, compiles)
        ends = trainer.marks["optimizer"]
        steps = len(ends) // epochs
        seconds = milliseconds(ends[steps - 1], ends[-1]) / 1e3
        rate = (len(ends) - steps) * scale.batch_cifar / seconds
        parts = trainer.parts()
        return {
            "images": "random" if scale.cifar10 is None else "CIFAR-10",
            "rate": rate,
            "minutes": 200 * scale.num_cifar / rate / 60,
            "step": parts["step"],
            "own": parts["forward"] + parts["backward"] + parts["optimizer"],
            "peak": trainer.peak(),
        }

    eager = {"eager": functools.partial(train, False)}
    return eager if scale.is_rehearsal else {**eager, "`hardware.compile: true`": functools.partial(train, True)}


def trained_vit(scale: Scale, compiles: bool | str = False) -> Clocked:
    """Return a trainer of SimCLR with a ViT-S/16 that has trained in bf16."""
    per_epoch = 4
    overrides = ["data=cifar10", f"size={scale.size}", "num_classes=10", f"backbone={scale.vit}"]
    overrides += [
        f"data.train.batch_size={scale.batch}",
        *(["channels=3", "backbone.depth=1"] if scale.is_rehearsal else []),
    ]
    images = {"number": per_epoch * scale.batch, "size": scale.image_size}
    return trained(scale.device, "simclr", overrides, images, -(-(WARM_UP + scale.steps) // per_epoch), compiles)


def vit(scale: Scale) -> Rows:
    """The parts of a training step of a ViT-S/16. Views are made on a stream of their own, while a step is taken."""

    @functools.cache
    def trainer() -> Clocked:
        return trained_vit(scale)

    def part(name: str) -> Values:
        found = trainer().parts()
        return {"time": found[name], "share": found[name] / found["step"]}

    def views_alone() -> Values:
        views, indices = trainer().data["train"].views, list(range(scale.batch))
        images = torch.from_numpy(make_images(scale.batch, scale.image_size)).to(scale.device)
        made = functools.partial(views.make, images, seed=0, epoch=0, indices=indices)
        time = augmentation_gpu.measure(made, scale.rounds, scale.device)[0]
        return {"time": time, "share": time / trainer().parts()["step"]}

    whole = {
        "a whole step": lambda: {
            **part("step"),
            "rate": scale.batch / part("step")["time"] * 1e3,
            "peak": trainer().peak(),
        }
    }
    return {
        **whole,
        "forward": functools.partial(part, "forward"),
        "backward": functools.partial(part, "backward"),
        "optimizer and schedule": functools.partial(part, "optimizer"),
        "views, alone on the device": views_alone,
    }


def compiled(scale: Scale) -> Rows:
    """Steps of compiled modules, and of CUDA graphs, beside eager ones."""

    def resnet(compiles: bool | str) -> Clocked:
        overrides = [f"backbone={scale.resnet}", "num_classes=10", f"data.train.batch_size={scale.batch_cifar}"]
        number = scale.batch_cifar * (WARM_UP + scale.steps)
        return trained(scale.device, "simclr_cifar10", overrides, {"number": number, "size": 32}, 1, compiles)

    @functools.cache
    def train(network: str, compiles: bool | str) -> Values:
        torch.compiler.reset()
        trainer = trained_vit(scale, compiles) if network.startswith("ViT") else resnet(compiles)
        parts = trainer.parts()
        return {"time": parts["step"], "first": parts["first"] / 1e3, "peak": trainer.peak()}

    def row(network: str, compiles: bool | str) -> Values:
        found = train(network, compiles)
        return {**found, "faster": train(network, False)["time"] / found["time"]} if compiles else found

    networks = (f"ViT-S/16, {scale.size} px, batch {scale.batch}", f"ResNet-18, 32 px, batch {scale.batch_cifar}")
    modes: dict[str, bool | str] = {"eager": False, "true": True, "reduce-overhead": "reduce-overhead"}
    return {
        f"{network}: {name}": functools.partial(row, network, mode)
        for network, (name, mode) in itertools.product(networks[: 1 if scale.is_rehearsal else None], modes.items())
    }


# Recipe, what is set on a GPU, and what in a rehearsal.
CHECKED = {
    "SimCLR, ResNet-18, 32 px, batch 512": ("simclr", "resnet18", 32, 512),
    "SimCLR, ResNet-50, 224 px, batch 128": ("simclr", "resnet50", 224, 128),
    "MAE, ViT-S/16, 224 px, batch 256": ("mae", "vit_small", 224, 256),
    "DINO, ViT-S/16, 224 px, batch 64": ("dino", "vit_small", 224, 64),
    "BYOL, ResNet-50, 224 px, batch 128": ("byol", "resnet50", 224, 128),
    "MoCo, ResNet-18, 32 px, batch 512": ("moco", "resnet18", 32, 512),
}


def estimates(scale: Scale) -> Rows:
    """What `check` expects of a step, beside reality."""

    def compare(method: str, backbone: str, size: int, batch: int) -> Values:
        if scale.is_rehearsal:
            backbone, size, batch = "vit_digits" if "vit" in backbone else "resnet9", 16, 4
        sizes = (f"size={size}", f"data.train.batch_size={batch}")
        found = check.measure((method, f"backbone={backbone}", "data=digits", *sizes), scale.device)
        (estimate, real), (shortest, longest, took), (flops, counted) = (
            found[key] for key in ("memory", "time", "flops")
        )
        return {
            "memory": estimate / 2**20, "real_memory": real / 2**20, "ratio": estimate / real if real else None,
            "shortest": 1e3 * shortest if longest else None, "longest": 1e3 * longest if longest else None,
            "time": 1e3 * took, "flops": flops / 1e9, "counted": counted / 1e9, "rate": flops / took / 1e12,
        }  # fmt: skip

    return {
        name: functools.partial(compare, *what)
        for name, what in list(CHECKED.items())[slice(None, None, 5) if scale.is_rehearsal else slice(None)]
    }


def loss(scale: Scale) -> Rows:
    """NT-Xent, forward and backward, of this library and of lightly."""

    def compare(which: str, number: int) -> Values:
        criterion = losses.make(which).to(scale.device)
        embeddings = [torch.randn(number // 2, losses.DIM, device=scale.device, requires_grad=True) for _ in range(2)]

        def job() -> None:
            criterion(*embeddings).backward()

        job()
        before = 0
        if scale.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        time = augmentation_gpu.measure(job, 3, scale.device)[0]
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6 if scale.device == "cuda" else None
        return {"time": time, "peak": peak}

    return {
        f"{number:,} × {losses.DIM}, {which}": functools.partial(compare, which, number)
        for number, which in itertools.product(scale.embeddings, ("stable-ssl", "lightly"))
    }


def classifiers(scale: Scale) -> Rows:
    """What `benchmarks/heads.py` measures, but for scikit-learn, which stays on the CPU."""
    dim, iterations = (64, 10) if scale.is_rehearsal else (512, 200)
    arguments = SimpleNamespace(
        queries=scale.queries,
        bank=scale.bank,
        images=scale.queries,
        dim=dim,
        classes=10,
        iterations=iterations,
        device=scale.device,
    )

    @functools.cache
    def seconds(make: Callable, name: str) -> float:
        contenders, times = make(arguments, 1), []
        for _ in range(1 if scale.is_rehearsal else 2):  # the first does not count
            start = time.perf_counter()
            contenders[name]()
            times.append(time.perf_counter() - start)
        return times[-1]

    def row(make: Callable, name: str) -> Values:
        return {"time": seconds(make, name), "faster": seconds(make, name) / seconds(make, heads.OURS)}

    what = {
        "nearest neighbours": (heads.neighbours, (heads.OURS, "lightly")),
        f"{heads.NUM_HEADS} linear heads": (heads.heads, (heads.OURS, f"{heads.NUM_HEADS} × torch.nn.Linear")),
        "45 logistic regressions": (heads.regressions, (heads.OURS,)),
    }
    return {
        f"{title}: {name}": functools.partial(row, make, name)
        for title, (make, names) in what.items()
        for name in names
    }
