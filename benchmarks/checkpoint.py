"""What a checkpoint costs: a ResNet-50 with AdamW and its moments, saved by this library, Lightning and `torch.save`.

    python benchmarks/checkpoint.py [--rounds 4] [--saves 3] [--write docs/exactness.md]

The contestants take turns, and the figures are medians over all saves but the first of each run, which has a row of its
own. The batches are small and in memory, and there are steps between two saves for one to be over before the next.
Files go to the folder for temporary ones (TMPDIR), and what they cost depends on its disk.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torchvision
from tables import write_table
from torch import nn

STEPS_BETWEEN_SAVES = 3


class Run:
    """What was measured in one run, in seconds."""

    def __init__(self):
        self.stalls: list[float] = []  # the loop is held up
        self.durable: list[float] = []  # from the same moment until the file survives a power cut
        self.quiet_steps: list[float] = []
        self.busy_steps: list[float] = []  # that began while a checkpoint was being written
        self.bytes = 0


def make_batches(saves: int) -> list:
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(4, 3, 32, 32, generator=generator), torch.randint(10, (4,), generator=generator)]
        for _ in range(saves * STEPS_BETWEEN_SAVES + STEPS_BETWEEN_SAVES - 1)
    ]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet50(num_classes=10)


def make_optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)


class InMemory:
    """Batches in memory as Lightning takes them: a plain list would be several loaders to it."""

    def __init__(self, batches: list):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def sync_file(path: Path) -> None:
    """Make a file and its name durable."""
    for entry in (path, path.parent):
        descriptor = os.open(entry, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def measure_plain(batches: list, folder: Path, durably: bool = False) -> Run:
    """Save by `torch.save(state, path)` in a plain loop; `durably`, with an fsync of file and folder."""
    run, network, path = Run(), make_model(), folder / "state.pt"
    optimizer = make_optimizer(network.parameters())
    for step, (x, y) in enumerate(batches, 1):
        start = time.perf_counter()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.quiet_steps.append(time.perf_counter() - start)
        if step % STEPS_BETWEEN_SAVES == 0:
            start = time.perf_counter()
            torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, path)
            if durably:
                sync_file(path)
                run.durable.append(time.perf_counter() - start)
            run.stalls.append(time.perf_counter() - start)
    run.bytes = path.stat().st_size
    return run


def measure_plain_durably(batches: list, folder: Path) -> Run:
    return measure_plain(batches, folder, durably=True)


def measure_ours(batches: list, folder: Path) -> Run:
    from stable_ssl import SupervisedTrainer

    run = Run()

    class Timed(SupervisedTrainer):
        def before_fit_step(self):
            writing = store._writing
            vars(self).update(busy=writing is not None and not writing[1].done(), start=time.perf_counter())

        def after_fit_step(self):
            seconds = time.perf_counter() - self.start
            (run.busy_steps if self.busy else run.quiet_steps).append(seconds)

    def timed_save(*args, **kwargs):
        start = time.perf_counter()
        save(*args, **kwargs)
        now = time.perf_counter()
        if store._writing:  # called when the checkpoint has its final name
            store._writing[1].add_done_callback(lambda written: run.durable.append(time.perf_counter() - start))
        elif not run.stalls:  # the first was waited for
            run.durable.append(now - start)
        else:  # this boundary was saved already
            return
        run.stalls.append(now - start)

    trainer = Timed(
        data={"train": batches},
        module={"backbone": make_model()},
        hardware={"device": "cpu"},
        optim={"optimizer": make_optimizer, "epochs": 1},
        logger={"dump_path": folder, "checkpoint_every_step": STEPS_BETWEEN_SAVES, "level": logging.ERROR},
    )
    trainer.setup()
    # The engine's own parts: the trainer has no public place where a save could be timed.
    saver, store = trainer._saver, trainer._saver._store
    save, saver.save = saver.save, timed_save
    trainer.launch()
    run.bytes = max(path.stat().st_size for path in folder.glob("checkpoints/*/state.pt"))
    saves = len(batches) // STEPS_BETWEEN_SAVES  # the end of the epoch, and of the run, may save again
    run.stalls, run.durable = run.stalls[:saves], run.durable[:saves]
    return run


def measure_lightning(batches: list, folder: Path) -> Run:
    """Save by Lightning's `ModelCheckpoint`. It doesn't fsync: that is done for it, outside of its stall."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    run = Run()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = make_model()

        def training_step(self, batch, batch_idx):
            x, y = batch
            return nn.functional.cross_entropy(self.network(x), y)

        def configure_optimizers(self):
            return make_optimizer(self.parameters())

        def on_train_batch_start(self, batch, batch_idx):
            self.start = time.perf_counter()

        def on_train_batch_end(self, outputs, batch, batch_idx):
            run.quiet_steps.append(time.perf_counter() - self.start)

    class Timed(ModelCheckpoint):
        def on_train_batch_end(self, *args, **kwargs):
            last, start = self._last_global_step_saved, time.perf_counter()
            super().on_train_batch_end(*args, **kwargs)
            if self._last_global_step_saved != last:
                run.stalls.append(time.perf_counter() - start)
                sync_file(Path(self.best_model_path))
                run.durable.append(time.perf_counter() - start)

    saver = Timed(folder, every_n_train_steps=STEPS_BETWEEN_SAVES)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), InMemory(batches))
    run.bytes = Path(saver.best_model_path).stat().st_size
    return run


def describe(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})" if seconds else "not known"


def make_report(runs: dict[str, list[Run]]) -> str:
    ours, lightning = runs["stable-ssl"], runs["Lightning, `ModelCheckpoint`"]
    later = {
        name: ([s for run in of_name for s in run.stalls[1:]], [s for run in of_name for s in run.durable[1:]])
        for name, of_name in runs.items()
    }
    later["stable-ssl, the first of a run"] = [run.stalls[0] for run in ours], [run.durable[0] for run in ours]
    reference = [statistics.median(run.stalls[1:]) for run in lightning]
    lines = [
        "| checkpoint | the loop is held up, s | durable after, s | held up, over Lightning |",
        "|---|---|---|---|",
    ]
    for name, (stalls, durable) in later.items():
        own = stalls if "first" in name else [statistics.median(run.stalls[1:]) for run in runs[name]]
        ratio = statistics.median(value / base for value, base in zip(own, reference, strict=True))
        lines.append(f"| {name} | {describe(stalls)} | {describe(durable)} | {ratio:.2f} |")
    # Each run against its own quiet steps: a shared machine is not as fast in one minute as in another.
    quiet = [statistics.median(run.quiet_steps) for run in ours]
    extra = [[s - base for s in run.busy_steps] for run, base in zip(ours, quiet, strict=True)]
    per_save = [sum(seconds) / len(run.stalls[1:]) for run, seconds in zip(ours, extra, strict=True)]
    lines += [
        "",
        f"The state has {ours[0].bytes / 1e6:.0f} MB, Lightning's {lightning[0].bytes / 1e6:.0f} MB. {len(ours)} runs "
        f"per row, {len(later['stable-ssl'][0])} saves after the first of a run; seconds, median (least to most). "
        "While stable-ssl writes in the background, it shares the cores with training: a step of "
        f"{describe(quiet)} that begins during a write takes {describe([s for seconds in extra for s in seconds])} "
        f"more. Per checkpoint, this adds up to {describe(per_save)}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--saves", type=int, default=3, help="saves of a run, of which the first is counted apart")
    parser.add_argument("--write", type=Path, help="put the table between its markers in this file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    batches = make_batches(args.saves)
    contestants = {
        "`torch.save`": measure_plain,
        "`torch.save` and fsync": measure_plain_durably,
        "Lightning, `ModelCheckpoint`": measure_lightning,
        "stable-ssl": measure_ours,
    }
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, measure in contestants.items():
            os.sync()  # or one would write what another has left in memory
            with tempfile.TemporaryDirectory() as folder:
                runs[name].append(measure(batches, Path(folder)))
    report = make_report(runs)
    print(report)
    if args.write:
        write_table(args.write, "checkpoint", report.splitlines())


if __name__ == "__main__":
    main()
