"""The table of methods: paper, family, recipe, lines of its own, how its loss is checked, and what it learned.

    python benchmarks/methods_table.py [--write docs/methods.md]

What it learned is read from the table that `benchmarks/methods.py --write` left in the same file.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import textwrap
from pathlib import Path

from tables import read_table, write_table

from stable_ssl import losses, modules, trainers
from stable_ssl.losses.swav import sinkhorn

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "src" / "stable_ssl" / "recipes"
NTXENT, PAIRS, OTHERS = (f"tests/losses/test_{name}.py" for name in ("ntxent", "pairs", "methods_losses"))

# Name, paper, trainer of the family, Python of its own, file of its loss's tests, and whether lightly's is in them.
METHODS = {
    "simclr": ("SimCLR", "Chen et al., ICML 2020", "JointEmbeddingTrainer", [losses.NTXEntLoss], NTXENT, True),
    "vicreg": ("VICReg", "Bardes et al., ICLR 2022", "JointEmbeddingTrainer", [losses.VICRegLoss], PAIRS, True),
    "barlow_twins": (
        "Barlow Twins", "Zbontar et al., ICML 2021", "JointEmbeddingTrainer", [losses.BarlowTwinsLoss], PAIRS, True,
    ),
    "lejepa": (
        "LeJEPA", "Balestriero and LeCun, 2025", "JointEmbeddingTrainer",
        [losses.LeJEPALoss, losses.SIGReg], OTHERS, False,
    ),
    "byol": (
        "BYOL", "Grill et al., NeurIPS 2020", "SelfDistillationTrainer",
        [losses.BYOLLoss, losses.NegativeCosineSimilarity, modules.BYOLProjector, modules.BYOLPredictor], PAIRS, True,
    ),
    "simsiam": (
        "SimSiam", "Chen and He, CVPR 2021", "SelfDistillationTrainer",
        [losses.NegativeCosineSimilarity, modules.SimSiamProjector, modules.SimSiamPredictor], PAIRS, True,
    ),
    "moco": ("MoCo v2", "Chen et al., 2020", "SelfDistillationTrainer", [losses.MoCoLoss], OTHERS, True),
    "dino": (
        "DINO", "Caron et al., ICCV 2021", "SelfDistillationTrainer",
        [losses.DINOLoss, trainers.DINOTrainer, modules.DINOHead], OTHERS, True,
    ),
    "swav": (
        "SwAV", "Caron et al., NeurIPS 2020", "JointEmbeddingTrainer",
        [losses.SwAVLoss, sinkhorn, trainers.ClusteringTrainer], OTHERS, True,
    ),
    "ijepa": (
        "I-JEPA", "Assran et al., CVPR 2023", "JointEmbeddingPredictiveTrainer",
        [losses.IJEPALoss, trainers.IJEPATrainer], OTHERS, False,
    ),
    "mae": ("MAE", "He et al., CVPR 2022", "MaskedTrainer", [losses.MAELoss, trainers.MaskedTrainer], OTHERS, False),
}  # fmt: skip


def lines_of(thing: object) -> int:
    """Return the lines of code of a class or function: no docstrings, comments and empty lines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return sum(line.strip() not in ("", "pass") for line in wrapped(ast.unparse(tree)))


def wrapped(code: str) -> list[str]:
    """Return lines as a formatter would break them, nearly: none longer than 120 characters."""
    return [part for line in code.splitlines() for part in textwrap.wrap(line, 120) or [""]]


def lines_of_yaml(name: str) -> int:
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    return sum(bool(line.strip()) and not line.startswith("#") for line in lines)


def checks(file: str, has_lightlys: bool) -> str:
    """Return what the tests of a loss hold it to; a test that is not there is an error."""
    patterns = {
        "plain loop": "def plain_|plain loop",
        **({"lightly's": "equals_lightlys|lightly"} if has_lightlys else {}),
        "gradcheck": "gradcheck",
        "bf16": "bfloat16",
        "2 ranks": "two_ranks",
    }
    text = (ROOT / file).read_text()
    missing = [words for words, pattern in patterns.items() if not re.search(pattern, text)]
    if missing:
        raise SystemExit(f"{file} has no test of {missing}.")
    return ", ".join(patterns)


def learned(path: Path) -> dict[str, str]:
    """Return the accuracies of the table that is in a document."""
    found = {}
    for line in read_table(path, "learned")[2:]:
        name, _, knn, gain, _, linear, linear_gain, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        found[name.replace(" ", "_")] = f"kNN {knn} ({gain}), linear {linear} ({linear_gain})"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a Markdown file with <!-- methods --> … <!-- /methods -->")
    args = parser.parse_args()
    accuracies = learned(args.write or ROOT / "docs" / "methods.md")
    table = [
        "| method | paper | trainer | recipes | lines: Python, YAML | loss is compared with | learned on CIFAR-10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (title, paper, family, own, *tests) in METHODS.items():
        trainer = next((thing.__name__ for thing in own if thing.__name__.endswith("Trainer")), family)
        lines = f"{sum(map(lines_of, own))}, {lines_of_yaml(f'{name}_digits')}"
        recipes = f"`{name}_digits`, `{name}_cifar10`"
        cells = [title, paper, f"`{trainer}`", recipes, lines, checks(*tests), accuracies.get(name, "not run")]
        table.append(f"| {' | '.join(cells)} |")
    print("\n".join(table))
    if args.write:
        write_table(args.write, "methods", table)


if __name__ == "__main__":
    main()
