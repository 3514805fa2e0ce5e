"""The methods' runs on CIFAR-10 that benchmarks/methods.py keeps, under the protocols `held-out` and `dino-knn`.

    python benchmarks/methods.py --data FOLDER --keep KEPT
    python benchmarks/protocols.py --data FOLDER --kept KEPT [--write docs/evaluate.md]

The images are those of the runs: 20,000 to learn from, and the test split, at their native 32 pixels. Each figure is
the mean over the runs of a method, one per seed of training, with the standard deviation over them. `held-out` is
repeated with three seeds of its own for each run, and the mean over these counts.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from methods import METHODS, kept_at, read, title_of
from tables import write_table

from stable_ssl.augmentations import EvalView
from stable_ssl.evaluation import evaluate

PROTOCOLS = ("held-out", "dino-knn")


def figures_of(name: str, seed: int, args: argparse.Namespace, data: tuple) -> dict[str, float]:
    """Return the accuracies of one run, in percent, by protocol and figure."""
    records = evaluate(
        kept_at(args.kept, name, seed),
        PROTOCOLS,
        data,
        features=["representation"],
        module=METHODS[name]()[2],
        view=EvalView(32),
        size="native",
        cache=None,
    )
    return {
        f"{record['protocol']}, {figure}": 100 * values["accuracy"]
        for record in records
        for figure, values in record["figures"].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with train*.parquet and test*.parquet")
    parser.add_argument("--kept", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--write", type=Path, help="a Markdown file with <!-- protocols --> … <!-- /protocols -->")
    args = parser.parse_args()
    data = tuple(
        list(zip(images, labels.tolist(), strict=True))
        for images, labels in (read(args.data, split, args.images) for split in ("train", "test"))
    )
    table: list[str] = []
    for name in args.methods:
        seeds = [seed for seed in range(args.seeds) if (kept_at(args.kept, name, seed) / "weights").is_dir()]
        found = [figures_of(name, seed, args, data) for seed in seeds]
        if not found:
            continue
        if not table:
            table = [f"| method | {' | '.join(found[0])} | runs |", "|---" * (len(found[0]) + 2) + "|"]
            print("\n".join(table), flush=True)
        cells = []
        for key in found[0]:
            values = [one[key] for one in found]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        table.append(f"| {title_of(name)} | {' | '.join(cells)} | {len(found)} |")
        print(table[-1], flush=True)
    if args.write:
        write_table(args.write, "protocols", table)


if __name__ == "__main__":
    main()
