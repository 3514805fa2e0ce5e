"""The cost of the training loop: the same tiny model trained by a plain PyTorch loop, by this library and by Lightning.

    python benchmarks/overhead.py [--rounds 80] [--steps 250] [--write docs/overhead.md]

All read a torch DataLoader over a stream of ready batches, step a schedule after each optimizer step, log one key every
50 steps, and clip no gradients. They run alternately. The figures are medians over the rounds, and the last column is
the median of each round's ratio. The microseconds depend on the machine, so read the ratios.

The lines below the plain loop add to it, one by one, what exact resume and safe logs need. The rest of the library's
overhead is its loop: hooks, counters, signals and checkpoints that may be due.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from tables import write_table
from torch import nn
from torch.utils.data import DataLoader

LOG_EVERY = 50
CLOCK = time.process_time if "--cpu-time" in sys.argv else time.perf_counter


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


class Stream(torch.utils.data.IterableDataset):
    """Ready batches, one after the other."""

    def __init__(self, steps: int):
        generator = torch.Generator().manual_seed(0)
        self.steps = steps
        self.batches = [
            [torch.randn(32, 64, generator=generator), torch.randint(10, (32,), generator=generator)] for _ in range(64)
        ]

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        return (self.batches[step % 64] for step in range(self.steps))


def make_loader(steps: int) -> DataLoader:
    return DataLoader(Stream(steps), batch_size=None)


def factor(step: int) -> float:
    return 1.0


class Watched:
    """What a part of the library does in the plain loop, before a step and with its loss."""

    def before_read(self, step: int) -> None:
        pass

    def before_step(self, step: int) -> None:
        pass

    def with_loss(self, loss: torch.Tensor, step: int) -> None:
        pass


def time_plain(steps: int, watched: Watched | None = None) -> float:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    logged = []
    batches = iter(make_loader(steps))
    start = CLOCK()
    for step in range(1, steps + 1):
        if watched:
            watched.before_read(step)
        x, y = next(batches)
        if watched:
            watched.before_step(step)
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        if watched:
            watched.with_loss(loss, step)
        if step % LOG_EVERY == 0:
            logged.append(loss.item())
    return CLOCK() - start


def time_seeded(steps: int) -> float:
    """The plain loop with the generators of torch, NumPy and Python seeded before each step."""
    from stable_ssl.runtime.seeding import seed_generators_in_turn

    class Seeded(Watched):
        def before_step(self, step: int) -> None:
            seed_generators_in_turn(1 << 60, step)

    return time_plain(steps, Seeded())


def time_seeded_twice(steps: int) -> float:
    """The same, and seeded before each batch is read too, since the stream may draw from the generators."""
    from stable_ssl.runtime.seeding import seed_generators_in_turn

    class Seeded(Watched):
        def before_read(self, step: int) -> None:
            seed_generators_in_turn(1 << 61, step)

        def before_step(self, step: int) -> None:
            seed_generators_in_turn(1 << 60, step)

    return time_plain(steps, Seeded())


def time_losses_kept(steps: int) -> float:
    """The plain loop that keeps each loss, and looks at logging steps whether all are finite."""
    from stable_ssl.runtime.precision import FiniteWatch

    class Kept(Watched):
        losses = FiniteWatch()

        def with_loss(self, loss: torch.Tensor, step: int) -> None:
            self.losses.add(loss, step)
            if step % LOG_EVERY == 0:
                self.losses.first_bad()

    return time_plain(steps, Kept())


def time_ours(steps: int) -> float:
    from stable_ssl import SupervisedTrainer

    class Timed(SupervisedTrainer):
        def before_fit_epoch(self) -> None:
            vars(self)["start"] = CLOCK()

        def after_fit_epoch(self) -> None:
            vars(self)["seconds"] = CLOCK() - self.start

    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            data={"train": make_loader(steps)},
            module={"backbone": model()},
            hardware={"device": "cpu"},
            optim={
                "optimizer": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
                "scheduler": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
                "epochs": 1,
                "max_steps": steps,
            },
            logger={"dump_path": folder, "log_every_step": LOG_EVERY, "level": logging.ERROR},
        )
        trainer()
    return trainer.seconds


def time_lightning(steps: int) -> float:
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
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_train_epoch_start(self):
            self.start = CLOCK()

        def on_train_epoch_end(self):
            self.seconds = CLOCK() - self.start

    with tempfile.TemporaryDirectory() as folder:
        module = Module()
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=steps,
            logger=lightning.pytorch.loggers.CSVLogger(folder),
            log_every_n_steps=LOG_EVERY,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(module, make_loader(steps))
    return module.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--cpu-time", action="store_true", help="measure the process's CPU time, on a busy machine")
    parser.add_argument("--write", type=Path, help="put the table between its markers in this file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    contestants = {
        "plain PyTorch loop": time_plain,
        "– generators seeded before each step": time_seeded,
        "– and before each batch of the stream": time_seeded_twice,
        "– losses kept, and read when logged": time_losses_kept,
        "stable-ssl": time_ours,
        "Lightning": time_lightning,
    }
    microseconds: dict[str, list[float]] = {name: [] for name in contestants}
    for measure in contestants.values():
        measure(200)  # warm-up
    for _ in range(args.rounds):
        for name, measure in contestants.items():
            microseconds[name].append(measure(args.steps) / args.steps * 1e6)
    plain = microseconds["plain PyTorch loop"]
    lines = ["| loop | µs per step | over the plain loop | as a share of it |", "|---|---|---|---|"]
    for name, values in microseconds.items():
        pairs = list(zip(values, plain, strict=True))
        over = statistics.median(value - base for value, base in pairs)
        share = statistics.median(value / base - 1 for value, base in pairs)
        cells = ["", ""] if values is plain else [f"{over:+.0f}", f"{share:.2f}"]
        lines.append(f"| {name} | {statistics.median(values):.0f} | {cells[0]} | {cells[1]} |")
    print("\n".join(lines))
    if args.write:
        write_table(args.write, "overhead", lines)


if __name__ == "__main__":
    main()
