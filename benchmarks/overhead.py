"""What the loop costs: the same tiny model trained by a plain PyTorch loop, with and without
seeding, by this library and by Lightning.

    python benchmarks/overhead.py [--rounds 7] [--steps 2000] [--write README.md]

Batches are in memory, one key is logged every 50 steps, gradients are not clipped. The three run alternately, and the
figures are medians over the rounds; the microseconds depend on the machine, so read the differences.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from tables import write_table
from torch import nn

LOG_EVERY = 50


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def make_batches(steps: int) -> list:
    generator = torch.Generator().manual_seed(0)
    distinct = [
        [torch.randn(32, 64, generator=generator), torch.randint(10, (32,), generator=generator)] for _ in range(64)
    ]
    return [distinct[step % 64] for step in range(steps)]


class InMemory:
    """Batches in memory as Lightning takes them: a plain list would be several loaders to it."""

    def __init__(self, batches: list):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def time_plain(batches: list, before_step=None) -> float:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    logged = []
    start = time.perf_counter()
    for step, (x, y) in enumerate(batches, 1):
        if before_step:
            before_step(step)
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % LOG_EVERY == 0:
            logged.append(loss.item())
    return time.perf_counter() - start


def time_seeding(batches: list) -> float:
    """The plain loop, with what exact resume needs: Python's, NumPy's and torch's generators seeded at each step."""
    from stable_ssl.runtime.seeding import seed_generators_in_turn

    return time_plain(batches, lambda step: seed_generators_in_turn(1 << 60, step))


def time_ours(batches: list) -> float:
    from stable_ssl import SupervisedTrainer

    class Timed(SupervisedTrainer):
        def before_fit_epoch(self):
            super().before_fit_epoch()
            vars(self)["start"] = time.perf_counter()

        def after_fit_epoch(self):
            vars(self)["seconds"] = time.perf_counter() - self.start

    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            data={"train": batches},
            module={"backbone": model()},
            hardware={"device": "cpu"},
            optim={"optimizer": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), "epochs": 1},
            logger={"dump_path": folder, "log_every_step": LOG_EVERY, "level": logging.ERROR},
        )
        trainer()
    return trainer.seconds


def time_lightning(batches: list) -> float:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = model()

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = nn.functional.cross_entropy(self.network(x), y)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

        def on_train_epoch_start(self):
            self.start = time.perf_counter()

        def on_train_epoch_end(self):
            self.seconds = time.perf_counter() - self.start

    with tempfile.TemporaryDirectory() as folder:
        module = Module()
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=lightning.pytorch.loggers.CSVLogger(folder),
            log_every_n_steps=LOG_EVERY,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(module, InMemory(batches))
    return module.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--write", type=Path, help="put the table between its markers in this file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    batches = make_batches(args.steps)
    contestants = {
        "plain PyTorch loop": time_plain,
        "plain loop, generators seeded": time_seeding,
        "stable-ssl": time_ours,
        "Lightning": time_lightning,
    }
    microseconds: dict[str, list[float]] = {name: [] for name in contestants}
    for measure in contestants.values():
        measure(batches[:200])  # warm-up
    for _ in range(args.rounds):
        for name, measure in contestants.items():
            microseconds[name].append(measure(batches) / args.steps * 1e6)
    plain = microseconds["plain PyTorch loop"]
    lines = ["| loop | µs a step | over the plain loop |", "|---|---|---|"]
    for name, values in microseconds.items():
        over = statistics.median(value - base for value, base in zip(values, plain, strict=True))
        lines.append(
            f"| {name} | {statistics.median(values):.0f} | {f'+{over:.0f}' if name in list(contestants)[1:] else ''} |"
        )
    print("\n".join(lines))
    if args.write:
        write_table(args.write, "overhead", lines)


if __name__ == "__main__":
    main()
