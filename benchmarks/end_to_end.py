"""Images a second of SimCLR on small images, by what makes the views.

    python benchmarks/end_to_end.py [--rounds 3] [--images 2048] [--write docs/views.md]

The same small ConvNet trains on the same 32 × 32 images from memory: with declared views, with the transforms of
torchvision v2 and of lightly, each in 2 workers, and with ready batches, which cost nothing: the most to be reached.
All run alternately, with two threads; the first epoch of each, in which workers start and loops are compiled, does not
count.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from augmentation import make_images, torchvision_v2
from PIL import Image
from tables import write_table

from stable_ssl.augmentations import SimCLRViews
from stable_ssl.data import Loader
from stable_ssl.losses import NTXEntLoss
from stable_ssl.modules import MLP, load_backbone
from stable_ssl.trainers import JointEmbeddingTrainer

BATCH, EPOCHS = 128, 3


class Timed(JointEmbeddingTrainer):
    """Notes how long each epoch takes."""

    def before_fit_epoch(self):
        self.epoch_times = [*getattr(self, "epoch_times", []), -time.perf_counter()]

    def after_fit_epoch(self):
        self.epoch_times[-1] += time.perf_counter()


def sources(number: int) -> dict:
    """Return a function that makes the data of each contender."""
    from lightly.transforms import SimCLRTransform

    images = make_images(number, 32)
    arrays = [(image, 0) for image in images]
    pil = [(Image.fromarray(image), 0) for image in images]
    usual = functools.partial(Loader, batch_size=BATCH, shuffle=True, drop_last=True)
    workers = functools.partial(usual, num_workers=2, persistent_workers=True)
    one = torchvision_v2(32, 0.5, 0.0)
    made = SimCLRViews(32).make(images, 0, 0, list(range(number)))
    ready = [
        [[view[at : at + BATCH] for view in made], torch.zeros(BATCH, dtype=torch.long)]
        for at in range(0, number - BATCH + 1, BATCH)
    ]
    return {
        "ready batches": lambda: ready,
        "stable-ssl": lambda: usual(arrays, views=SimCLRViews(32)),
        "torchvision v2, 2 workers": lambda: workers(pil, views=[one, one]),
        "lightly, 2 workers": lambda: workers(pil, views=SimCLRTransform(32, cj_strength=0.5, gaussian_blur=0.0)),
    }


def rate(data, number: int) -> float:
    """Return the images a second of the epochs after the first."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            {"train": data},
            {
                "backbone": load_backbone("resnet9", num_classes=None, widths=[8, 16, 32, 64]),
                "projector": MLP([64, 128, 64]),
            },
            {"device": "cpu", "seed": 0},
            {"epochs": EPOCHS, "optimizer": functools.partial(torch.optim.SGD, lr=0.1)},
            {"dump_path": folder, "level": 50, "log_every_step": 1000},
            NTXEntLoss(temperature=0.2),
        )
        trainer()
    return number // BATCH * BATCH * (EPOCHS - 1) / sum(trainer.epoch_times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--write", type=Path, help="a Markdown file with <!-- end to end --> … <!-- /end to end -->")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    contenders = sources(arguments.images)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, make in contenders.items():
            rates[name].append(rate(make(), arguments.images))
    best = statistics.median(rates["ready batches"])
    table = ["| views | images/s | of ready batches |", "|---|---|---|"]
    for name, values in rates.items():
        median = statistics.median(values)
        table.append(f"| {name} | {median:,.0f} | {median / best:.0%} |")
    print("\n".join(table))
    if arguments.write:
        write_table(arguments.write, "end to end", table)


if __name__ == "__main__":
    main()
