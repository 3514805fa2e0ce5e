"""`stable-ssl recipes`: methods, data sets, backbones, and the recipes that are made of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..compose import RECIPES, compose, recipe_names
from ..exceptions import ConfigError

KINDS = ("method", "data", "backbone", "recipe")


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """List what there is, or show one recipe or option."""
    if args.action == "show":
        show(args.name, rest)
    elif sys.stdout.isatty():
        list_for_people()
    else:
        for kind in KINDS:
            for path in files(kind):
                print(kind, path.stem, summary(path), sep="\t")
    return 0


def files(kind: str) -> list[Path]:
    """Return the files of the options of a group, or of the recipes that have a name of their own."""
    if kind != "recipe":
        return [RECIPES / kind / f"{name}.yaml" for name in recipe_names(kind)]
    methods = recipe_names("method")
    return [RECIPES / f"{name}.yaml" for name in recipe_names() if name not in methods]


def summary(path: Path) -> str:
    """Return what the first comment of a recipe says."""
    comments = (line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# "))
    return next(line for line in comments if not line.startswith("@package"))


def list_for_people() -> None:
    """Print a table of each kind, and how to combine them."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for kind in KINDS:
        table = Table(kind, "what it is", expand=True)
        table.columns[0].no_wrap = True
        for path in files(kind):
            table.add_row(path.stem, summary(path))
        console.print(table)
    console.print(
        "stable-ssl train METHOD data=DATA root=PATH backbone=BACKBONE size=PIXELS   (backbone=timm/NAME for timm's)\n"
        "stable-ssl train RECIPE\n"
        "stable-ssl recipes show NAME [key=value ...]   prints a whole configuration, or an option's file",
        markup=False,
        highlight=False,
    )


def show(name: str | None, overrides: list[str]) -> None:
    """Print the whole configuration of a recipe, or the file of an option, such as data/parquet.

    Raises
    ------
    ConfigError
        There is nothing of this name.
    """
    if name is None:
        raise ConfigError("recipes show: which recipe? `stable-ssl recipes` lists them.")
    options = (
        [RECIPES / f"{name}.yaml"]
        if "/" in name
        else [RECIPES / kind / f"{name}.yaml" for kind in ("data", "backbone")]
    )
    if name not in recipe_names() and (found := [path for path in options if path.is_file()]):
        print(found[0].read_text(), end="")
        return
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(OmegaConf.create(compose(name, overrides))), end="")
