"""`stable-ssl recipes`: the recipes that come with the library."""

from __future__ import annotations

import argparse

from ..compose import RECIPES, compose, recipe_names
from ..exceptions import ConfigError


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """List the recipes, or show one."""
    if args.action == "show":
        if args.name is None:
            raise ConfigError("recipes show: which recipe? `stable-ssl recipes` lists them.")
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(compose(args.name, rest))), end="")
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", "what it trains")
    for name in recipe_names():
        table.add_row(name, (RECIPES / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# "))
    Console().print(table)
    return 0
