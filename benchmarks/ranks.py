"""The time per training step of several processes: this library, DistributedDataParallel by hand, and Lightning.

    python benchmarks/ranks.py [--quick] [--rounds 5] [--worlds 2 4 slow] [--networks mlp resnet18 vit_tiny]
                               [--strategy ddp] [--write docs/several_gpus.md]

All train the same network on the CPU, by gloo, with SGD and the cross-entropy of the same samples in memory, read by a
torch DataLoader. Each process computes with one thread. A step lasts from one call of the loss to the next, so nobody
needs a hook for the measurement. The figure of a round is rank 0's median over its steps after the warm-up.

The contenders start new processes in turn, once per round. The table has the medians over the rounds, and in brackets
the median of each round's ratio to DistributedDataParallel. Milliseconds depend on the machine, so read the ratios.

This library is measured with its default, a record of the loss per step, and with a record per 50 steps. Lightning's
logger, checkpoints, progress bar and summary are off. The losses of the first steps are compared: all contenders
must learn the same.

World "slow" has one process on each of 4 network namespaces, with 0.5 ms of latency in each direction, so a round trip
takes 1 ms, and 1 Gbit/s from and to each. It needs root and `ip`. See `benchmarks/slow_network.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from slow_network import DEVICE, LATENCY, RATE, SlowNetwork
from tables import write_table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
SECONDS_AT_MOST = 300
COMPARED = 4  # steps; later ones of a network with batch normalisation enlarge differences in the last bits
BASE, PEER = "DistributedDataParallel", "Lightning"


# What is trained -----------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    network = resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def vit_tiny() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10)


@dataclass
class Task:
    """A network and its samples.

    Attributes
    ----------
    label
        Its name in the table.
    make
        Returns the network.
    shape
        The shape of a sample.
    batch_size
        Samples per process and step.
    steps, warm_up
        Steps in all, and the first of them that are not counted.
    """

    label: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch_size: int
    steps: int
    warm_up: int

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def loader(self, is_whole: bool) -> DataLoader:
        """Return the batches of all processes, which the trainer divides, or those of this one, in the same order.

        The batches lie in memory, so that reading samples takes no time, which is no matter of several processes.
        """
        size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.steps * size, self.batch_size, *self.shape, generator=generator)
        batches = TensorDataset(images, torch.randint(10, images.shape[:2], generator=generator))
        sampler = None if is_whole else range(rank, len(batches), size)
        return DataLoader(batches, 1, sampler=sampler, collate_fn=first)


def first(samples: list[Any]) -> Any:
    return samples[0]


TASKS = {
    "mlp": Task("MLP, 9 k parameters", mlp, (64,), 32, 300, 50),
    "resnet18": Task("ResNet-18, 11 M", resnet18, (3, 32, 32), 4, 14, 4),
    "vit_tiny": Task("ViT-tiny, 5 M", vit_tiny, (3, 32, 32), 4, 18, 4),
}


class WatchedLoss(nn.Module):
    """The cross-entropy, which notes when it is called, and keeps its values."""

    def __init__(self):
        super().__init__()
        self.times: list[float] = []
        self.values: list[Tensor] = []

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        self.times.append(time.perf_counter())
        loss = nn.functional.cross_entropy(scores, labels)
        self.values.append(loss.detach())
        return loss


# The contenders: each trains a network in all processes --------------------------------------------------------------


def train_ours(task: Task, network: nn.Module, loss: WatchedLoss, strategy: str, **logger: Any) -> None:
    from stable_ssl import SupervisedTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = SupervisedTrainer(
            data={"train": task.loader(is_whole=True)},
            module={"backbone": network},
            hardware={"device": "cpu", "world_size": int(os.environ["WORLD_SIZE"]), "strategy": strategy},
            optim={"optimizer": SGD, "epochs": 1},
            logger={"dump_path": folder, "level": logging.ERROR, **logger},
            loss=loss,
        )
        trainer()


def train_ddp(task: Task, network: nn.Module, loss: WatchedLoss) -> None:
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo")
    model = DistributedDataParallel(network)
    optimizer = SGD(network.parameters())
    for images, labels in task.loader(is_whole=False):
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
    torch.distributed.destroy_process_group()


def train_lightning(task: Task, network: nn.Module, loss: WatchedLoss) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            images, labels = batch
            return loss(self.network(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return SGD(self.parameters())

    local = int(os.environ["LOCAL_WORLD_SIZE"])
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=local,
        num_nodes=int(os.environ["WORLD_SIZE"]) // local,
        strategy="ddp",
        use_distributed_sampler=False,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), task.loader(is_whole=False))


def contenders(strategies: list[str]) -> dict[str, Callable[..., None]]:
    """Return all contenders by name. The first is what the others are compared with."""
    found: dict[str, Callable[..., None]] = {BASE: train_ddp}
    for strategy in strategies:
        name = "stable-ssl" if strategy == "ddp" else f"stable-ssl, {strategy}"
        found[name] = partial(train_ours, strategy=strategy)
        found[f"{name}, a record per 50 steps"] = partial(train_ours, strategy=strategy, log_every_step=50)
    return {**found, PEER: train_lightning}


def measure(contender: Callable[..., None], task: Task, answer: Path) -> None:
    """Train in this process, one of several. Rank 0 writes the seconds of its steps, and their losses."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    loss = WatchedLoss()
    contender(task, task.network(), loss)
    if os.environ["RANK"] == "0":
        seconds = [end - start for start, end in itertools.pairwise(loss.times)][task.warm_up :]
        answer.write_text(
            json.dumps({"seconds": statistics.median(seconds), "losses": [value.item() for value in loss.values]})
        )


# The processes -------------------------------------------------------------------------------------------------------


class SameMachine:
    """Processes that meet on this machine."""

    device = "lo"
    processes_per_machine: int

    def __init__(self, size: int):
        self.addresses, self.processes_per_machine = ["127.0.0.1"] * size, size

    def command(self, rank: int) -> list[str]:
        """Return what comes before a command for it to run as this rank."""
        return []


class SlowMachines(SlowNetwork):
    """Processes that have a machine each."""

    device, processes_per_machine = DEVICE, 1


@dataclass
class World:
    """Several processes.

    Attributes
    ----------
    label
        Its name in the table.
    size
        Number of processes.
    network
        Makes what they meet on, as a context.
    """

    label: str
    size: int
    network: Callable[[int], Any]


def same_machine(size: int) -> AbstractContextManager[SameMachine]:
    return nullcontext(SameMachine(size))


WORLDS = {
    "2": World("2", 2, same_machine),
    "4": World("4", 4, same_machine),
    "slow": World(f"4, {LATENCY * 2e3:g} ms and {RATE * 8 / 1e9:g} Gbit/s apart", 4, SlowMachines),
}


def run(network: Any, size: int, words: list[str]) -> dict[str, Any]:
    """Start this script with these words on all ranks, and return what rank 0 wrote.

    Raises
    ------
    SystemExit
        A process failed, or took too long. All are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer, errors = Path(folder, "answer"), [Path(folder, f"errors{rank}") for rank in range(size)]
        port, processes = free_port(), []
        try:
            for rank in range(size):
                command = [*network.command(rank), sys.executable, __file__, *words, "--answer", str(answer)]
                with errors[rank].open("w") as file:
                    env = environment(network, rank, size, port)
                    processes.append(subprocess.Popen(command, env=env, cwd=folder, stdout=file, stderr=file))
            deadline = time.monotonic() + SECONDS_AT_MOST
            while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
                if any(process.poll() for process in processes):
                    break
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for rank, process in enumerate(processes):
            if process.returncode:
                print(f"{words}: rank {rank} ended with {process.returncode}:\n{errors[rank].read_text()[-2000:]}")
        if any(process.returncode for process in processes):
            raise SystemExit(1)
        return json.loads(answer.read_text())


def environment(network: Any, rank: int, size: int, port: int) -> dict[str, str]:
    """Return the environment that torchrun would give to a rank."""
    local = network.processes_per_machine
    ours = {"MASTER_ADDR": network.addresses[0], "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "ranks"}
    ranks = {"RANK": rank, "LOCAL_RANK": rank % local, "GROUP_RANK": rank // local}
    sizes = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": local, "OMP_NUM_THREADS": 1}
    added = {**ours, **ranks, **sizes, "GLOO_SOCKET_IFNAME": network.device}
    return {**os.environ, **{name: str(value) for name, value in added.items()}}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# The table -----------------------------------------------------------------------------------------------------------


def compare(network: Any, world: World, name: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds per step of each contender, a value per round.

    Raises
    ------
    SystemExit
        A contender did not learn what `BASE` learned.
    """
    seconds: dict[str, list[float]] = {contender: [] for contender in contenders(args.strategy)}
    for number in range(args.rounds):
        losses = {}
        for contender in seconds:
            if contender == PEER and not find_spec("lightning"):
                continue
            words = ["--contender", contender, "--networks", name, "--strategy", *args.strategy]
            found = run(network, world.size, [*words, *(["--quick"] if args.quick else [])])
            seconds[contender].append(found["seconds"])
            losses[contender] = found["losses"][:COMPARED]
            print(
                f"# {world.label}, {name}, round {number + 1}, {contender}: {found['seconds'] * 1e3:.2f} ms", flush=True
            )
        if not all(np.allclose(found, losses[BASE], rtol=1e-3) for found in losses.values()):
            raise SystemExit(f"The contenders did not learn the same: the losses of the first steps are {losses}.")
    return seconds


def cell(values: list[float], base: list[float]) -> str:
    if not values:
        return "not installed"
    milliseconds = statistics.median(values) * 1e3
    shown = f"{milliseconds:.{0 if milliseconds >= 100 else 1}f} ms"
    ratio = statistics.median(value / other for value, other in zip(values, base, strict=True))
    return shown if values is base else f"{shown} ({ratio:.2f})"


def rows(world: World, args: argparse.Namespace, notes: list[str]) -> list[str]:
    """Measure all networks in a world, and return the lines of the table. What is to be known of them joins `notes`.

    A world whose network can't be made, or does not work, has one line with the reason. Each line is printed at once.
    """
    lines = []
    with ExitStack() as stack:
        try:
            network = stack.enter_context(world.network(world.size))
            if isinstance(network, SlowNetwork):
                measured = "Two of the machines that are apart had a round trip of {:.2f} ms, and {:.0f} Mbit/s."
                notes.append(measured.format(*network.measure()))
        except OSError as error:
            reason = " ".join(str(error).split()).replace("|", "\\|")
            return [f"| {' | '.join([world.label, f'not run: {reason}', *[''] * len(contenders(args.strategy))])} |"]
        for name in args.networks:
            seconds = compare(network, world, name, args)
            cells = [cell(values, seconds[BASE]) for values in seconds.values()]
            lines.append(f"| {' | '.join([world.label, TASKS[name].label, *cells])} |")
            print(lines[-1], flush=True)  # it stands if a later one fails
    return lines


def table(args: argparse.Namespace) -> list[str]:
    heads = ["processes", "network", *contenders(args.strategy)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    notes: list[str] = []
    for name in args.worlds:
        lines += rows(WORLDS[name], args, notes)
    cores = len(os.sched_getaffinity(0))
    if any(WORLDS[name].size > cores for name in args.worlds):
        notes.append(f"The machine has {cores} cores. More processes than that wait for each other's computation.")
    return [*lines, "", *notes] if notes else lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, help="all, if none is given")
    parser.add_argument("--networks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--strategy", nargs="+", default=["ddp"], help="of this library: ddp, fsdp, hsdp, or several")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of the MLP, by 2 processes if no other world is given"
    )
    parser.add_argument("--write", type=Path, help="put the table between its markers in this file")
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # a process of a measurement
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.networks, args.worlds = 1, ["mlp"], args.worlds or ["2"]
        TASKS["mlp"] = replace(TASKS["mlp"], steps=60, warm_up=20)
    if args.contender:
        measure(contenders(args.strategy)[args.contender], TASKS[args.networks[0]], args.answer)
        os._exit(0)  # at a usual exit, threads of torch's process groups abort some processes
    args.worlds = args.worlds or list(WORLDS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C does, it removes what was made
    lines = table(args)
    print("\n".join(lines))
    if args.write:
        write_table(args.write, "ranks", lines)


if __name__ == "__main__":
    main()
