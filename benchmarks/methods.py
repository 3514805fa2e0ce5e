"""What each method learns on CIFAR-10 in a small fixed budget, beside its own untrained network and raw pixels.

    python benchmarks/methods.py --data FOLDER [--methods simclr byol …] [--seeds 3] [--write docs/methods.md]

About an hour and a half in all on two cores. `--data` is a folder with `train*.parquet` and `test*.parquet`. A method
trains on the first `--images` training images. Then the weighted kNN (k = 20, temperature 0.07) and the linear
(logistic regression) accuracy of the backbone's representation are measured on the official test split, with those
training images and their labels; of the last step, and of the network before training, whose running statistics are
those of the training images too. The gain is paired by seed. To choose hyper-parameters, `--held-out` measures on
training images that come after those. `--keep` keeps the runs' folders, which benchmarks/protocols.py evaluates.

    python benchmarks/methods.py --step-times 10 [--methods …] --write docs/methods.md

measures the processor's seconds per step instead, of all methods in one process, in turns, on noise. With the gains of
the table above it writes what each method gains per minute of one core.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from tables import read_table, write_table

from stable_ssl import losses, modules, trainers
from stable_ssl.augmentations import (
    ColorJitter,
    EvalView,
    Grayscale,
    HorizontalFlip,
    IJEPAViews,
    MAEViews,
    MultiView,
    Normalize,
    RandomResizedCrop,
    SimCLRViews,
    View,
)
from stable_ssl.augmentations.recipes import IMAGENET_MEAN, IMAGENET_STD
from stable_ssl.data import Loader, Parquet
from stable_ssl.schedulers import LinearWarmupCosineAnnealing

DIM, HELD_OUT = 128, 5000
BUDGET = {"epochs": 2, "batch_size": 128, "lr": 2e-3}
convnet = functools.partial(modules.load_backbone, "resnet9", widths=[16, 32, 64, DIM])
vit = functools.partial(modules.ViT, 32, 4, DIM, depth=4, num_heads=4)
patch_predictor = functools.partial(modules.PatchPredictor, (8, 8), DIM, hidden_dim=64, depth=2, num_heads=4)


def with_teacher(network, momentum: float = 0.9):
    return modules.TeacherStudentModule(network, base_ema_coefficient=momentum)


def projector(out_dim: int = 128):
    return modules.MLP([DIM, 512, out_dim])


def distilled(head, momentum: float = 0.9, **others):
    return {"backbone": with_teacher(convnet(), momentum), "projector": with_teacher(head, momentum), **others}


def multi_crop():
    jitter = [
        HorizontalFlip(0.5),
        ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        Grayscale(0.2),
        Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    large, small = (
        View([RandomResizedCrop(32, (0.3, 1.0)), *jitter]),
        View([RandomResizedCrop(16, (0.1, 0.4)), *jitter]),
    )
    return MultiView([large, large, small, small])


# What is not the usual.
BUDGETS = {
    "byol": {"epochs": 4},
    "moco": {"epochs": 3},
    "dino": {"epochs": 3, "lr": 5e-4},
    "swav": {"epochs": 3, "lr": 1e-3},
    "mae": {"batch_size": 64, "lr": 1e-3},
    "ijepa": {"epochs": 4, "batch_size": 64, "lr": 1e-3},
}
# Trainer, loss, modules, views, and the trainer's own parameters; each is made after the seed is set.
METHODS = {
    "simclr": lambda: (
        trainers.JointEmbeddingTrainer, losses.NTXEntLoss(0.2),
        {"backbone": convnet(), "projector": projector()}, SimCLRViews(32), {},
    ),
    "vicreg": lambda: (
        trainers.JointEmbeddingTrainer, losses.VICRegLoss(),
        {"backbone": convnet(), "projector": projector(512)}, SimCLRViews(32), {},
    ),
    "barlow_twins": lambda: (
        trainers.JointEmbeddingTrainer, losses.BarlowTwinsLoss(),
        {"backbone": convnet(), "projector": projector(512)}, SimCLRViews(32), {},
    ),
    "lejepa": lambda: (
        trainers.JointEmbeddingTrainer, losses.LeJEPALoss(num_slices=256),
        {"backbone": convnet(), "projector": projector(32)}, multi_crop(), {},
    ),
    "byol": lambda: (
        trainers.SelfDistillationTrainer, losses.BYOLLoss(),
        distilled(projector(), predictor=modules.BYOLPredictor(128, 512, 128)), SimCLRViews(32), {},
    ),
    "simsiam": lambda: (
        trainers.SelfDistillationTrainer, losses.NegativeCosineSimilarity(),
        {"backbone": convnet(), "projector": modules.SimSiamProjector(DIM, 512, 512),
         "predictor": modules.SimSiamPredictor(512, 128)}, SimCLRViews(32), {},
    ),
    "moco": lambda: (
        trainers.SelfDistillationTrainer, losses.MoCoLoss(128, 4096, 0.2),
        {"backbone": with_teacher(convnet(), 0.95), "projector": with_teacher(projector(), 0.95)}, SimCLRViews(32),
        {"symmetric": False},
    ),
    "dino": lambda: (
        trainers.DINOTrainer, None,
        distilled(modules.DINOHead(DIM, 256, 512, 64, batch_norm=True), 0.99), multi_crop(),
        {"temperature_teacher": 0.04},
    ),
    "swav": lambda: (
        trainers.ClusteringTrainer, losses.SwAVLoss(128, 64, epsilon=0.02),
        {"backbone": convnet(), "projector": projector()}, multi_crop(), {"freeze_prototypes_epochs": 0},
    ),
    "ijepa": lambda: (
        trainers.IJEPATrainer, losses.IJEPALoss(),
        {"context_encoder": vit(), "target_encoder": vit(), "predictor": patch_predictor(out_dim=DIM)},
        IJEPAViews(32, 4, num_targets=2), {"base_ema_coefficient": 0.98},
    ),
    "mae": lambda: (
        trainers.MaskedTrainer, losses.MAELoss(),
        {"backbone": vit(), "decoder": patch_predictor(out_dim=48)}, MAEViews(32, 4), {},
    ),
}  # fmt: skip


def read(folder: str, split: str, number: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return the first images, uint8 (number, channels, height, width), and their labels."""
    data = Parquet(f"{folder}/{split}*.parquet", transform=np.asarray)
    number = min(number, len(data))
    images = torch.from_numpy(np.stack([data[i][0] for i in range(number)])).permute(0, 3, 1, 2).contiguous()
    return images, np.array(data.targets[:number])


@torch.no_grad()
def embed(trainer, images: torch.Tensor) -> np.ndarray:
    """Return the representation of each image, seen whole."""
    view, order = EvalView(32), list(range(len(images)))
    nhwc = images.permute(0, 2, 3, 1).contiguous().numpy()
    parts = [order[at : at + 500] for at in range(0, len(order), 500)]
    return torch.cat([trainer.forward(view.make(nhwc[p], 0, 0, p)[0]).float() for p in parts]).numpy()


def accuracies(train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> dict[str, float]:
    """Return kNN and linear accuracy, in percent."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    knn = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(train, labels)
    scaler = StandardScaler().fit(train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 100 iterations may not converge
        linear = LogisticRegression(C=0.1, max_iter=100).fit(scaler.transform(train), labels)
    linear_accuracy = linear.score(scaler.transform(test), test_labels)
    return {"knn": 100 * knn.score(test, test_labels), "linear": 100 * linear_accuracy}


def kept_at(folder: Path, name: str, seed: int) -> Path:
    """Return the folder of a run that is kept."""
    return folder / f"{name}_{seed}"


def run(name: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train one method under one seed; return accuracies before and after, and seconds of training."""
    train, labels = read(args.data, "train", args.images + HELD_OUT)
    test, test_labels = read(args.data, "test", args.images)
    if args.held_out:
        test, test_labels = train[args.images :], labels[args.images :]
    train, labels = train[: args.images], labels[: args.images]
    if name == "raw pixels":
        found = accuracies(*(part for x, y in ((train, labels), (test, test_labels)) for part in (x.flatten(1), y)))
        return {f"{key}_after": value for key, value in found.items()}
    images = list(zip(train, labels.tolist(), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(name, seed, images, str(kept_at(args.keep, name, seed) if args.keep else folder))
        trainer.setup()
        result = {}
        with torch.no_grad():
            trainer.train()
            embed(trainer, train[:10000])
        for when in ("before", "after"):
            if when == "after":
                start = time.perf_counter()
                trainer.launch()
                result["seconds"] = time.perf_counter() - start
            trainer.eval()
            measured = accuracies(embed(trainer, train), labels, embed(trainer, test), test_labels)
            result |= {f"{key}_{when}": value for key, value in measured.items()}
    return result


def make(name: str, seed: int, images: list, folder: str, **optim):
    """Return the trainer of a method on (image, label) pairs."""
    torch.manual_seed(seed)
    cls, loss, networks, views, options = METHODS[name]()
    budget = budget_of(name)
    return cls(
        data={"train": Loader(images, budget["batch_size"], views=views, shuffle=True, drop_last=True)},
        module=networks,
        hardware={"seed": seed, "device": "cpu", "channels_last": True},
        optim={
            "epochs": budget["epochs"],
            "optimizer": functools.partial(torch.optim.AdamW, lr=budget["lr"], weight_decay=1e-4),
            "scheduler": functools.partial(LinearWarmupCosineAnnealing, peak_step=0.1),
            "exclude_bias_norm": True,
            **optim,
        },
        logger={"dump_path": folder, "level": 40, "log_every_step": 50, "save_final_model": True},
        loss=loss,
        **options,
    )


def step_seconds(names: list[str], steps: int) -> dict[str, float]:
    """Return the processor's seconds per step of each method: the median of `steps` steps, made in turns."""
    torch.set_num_threads(1)
    images = [(image, 0) for image in torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8)]
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(steps // 5 + 1):  # the first turn compiles
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                trainer, times = make(name, 0, images, folder, epochs=3, max_steps=2), []
                trainer.after_fit_step = lambda times=times: times.append(time.process_time())
                trainer()
            found[name] += np.diff(times).tolist() if turn else []
    return {name: statistics.median(times) for name, times in found.items()}


def write_gains(names: list[str], steps: int, path: Path | None, images: int) -> None:
    """Print what each method gains per minute of one core, the best first, and write it into a file."""
    learned = read_table(Path(__file__).parent.parent / "docs" / "methods.md", "learned")
    cells = [[cell.strip() for cell in line.split("|")] for line in learned if "±" in line]
    gains = {name: float(gain.split("±")[0]) for _, name, _, _, gain, *_ in cells}
    rows = {}
    for name, seconds in step_seconds(names, steps).items():
        budget, gain = budget_of(name), gains[title_of(name)]
        minutes = budget["epochs"] * (images // budget["batch_size"]) * seconds / 60
        rows[name] = (gain / minutes, f"| {title_of(name)} | {gain:+.1f} | {seconds:.3f} | {minutes:.1f} |")
    table = ["| method | kNN gain | s per step | minutes | gain per minute |", "|---|---|---|---|---|"]
    table += [f"{row} {rate:.1f} |" for rate, row in sorted(rows.values(), reverse=True)]
    print("\n".join(table))
    if path:
        write_table(path, "per minute", table)


def budget_of(name: str) -> dict:
    return {**BUDGET, **BUDGETS.get(name, {})}


def title_of(name: str) -> str:
    return name.replace("_", " ")


def row(name: str, found: list[dict[str, float]]) -> str:
    """Return a method's line of the table."""
    cells = [title_of(name)]
    for key in ("knn", "linear"):
        after = [one[f"{key}_after"] for one in found]
        if "seconds" not in found[0]:
            cells += ["–", f"{after[0]:.1f}", "–"]
            continue
        gains = [one[f"{key}_after"] - one[f"{key}_before"] for one in found]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        before = statistics.mean(one[f"{key}_before"] for one in found)
        cells += [f"{before:.1f}", f"{statistics.mean(after):.1f}", f"{statistics.mean(gains):+.1f} ± {error:.1f}"]
    cells += (
        ["{epochs} × {batch_size}".format(**budget_of(name)), f"{statistics.mean(one['seconds'] for one in found):.0f}"]
        if "seconds" in found[0]
        else ["–"] * 2
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--methods", nargs="+", default=["raw pixels", *METHODS], choices=["raw pixels", *METHODS])
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", action="store_true", help="measure on training images that come after those")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the runs' folders in this one")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument(
        "--write", type=Path, help="a Markdown file with <!-- learned --> … <!-- /learned -->; others' rows stay"
    )
    parser.add_argument("--step-times", type=int, metavar="N", help="measure seconds per step, of N steps")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step_times:
        write_gains([name for name in args.methods if name in METHODS], args.step_times, args.write, args.images)
        return
    if args.data is None:
        parser.error("--data is missing: a folder with train*.parquet and test*.parquet")
    if args.one is not None:
        torch.set_num_threads(1)
        print(json.dumps(run(args.methods[0], args.one, args)))
        return
    table = [
        "| method | kNN before | after | gain | linear before | after | gain | epochs × batch | s per run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(table), flush=True)
    options = [f"--data={args.data}", f"--images={args.images}", *(["--held-out"] if args.held_out else [])]
    options += [f"--keep={args.keep}"] if args.keep else []
    waiting = [(name, seed) for name in args.methods for seed in range(1 if name == "raw pixels" else args.seeds)]
    running: list[tuple[str, subprocess.Popen]] = []
    found: dict[str, list[dict[str, float]]] = {name: [] for name in args.methods}
    while waiting or running:
        while waiting and len(running) < args.jobs:
            name, seed = waiting.pop(0)
            command = [sys.executable, __file__, "--methods", name, f"--one={seed}", *options]
            running.append((name, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
        name, process = running.pop(0)
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(f"{name} failed with status {process.returncode}.")
        found[name].append(json.loads(output.splitlines()[-1]))
        if not any(other == name for other, _ in (*waiting, *running)):
            table.append(row(name, found[name]))
            print(table[-1], flush=True)
            if args.write:
                rows = {line.split("|")[1].strip(): line for line in (*read_table(args.write, "learned"), *table)}
                order = [*rows][:2] + [title_of(name) for name in ("raw pixels", *METHODS)]
                write_table(args.write, "learned", [rows[title] for title in order if title in rows])


if __name__ == "__main__":
    main()
