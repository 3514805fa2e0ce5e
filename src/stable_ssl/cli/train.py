"""`stable-ssl train`: a run, or a sweep of runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..compose import SEARCH_PATH, arithmetic, compose, compose_sweep, composer, find, importable, origin_of, resolved
from ..exceptions import ConfigError
from . import slurm
from .run import Run


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Train the recipe or file that the arguments name."""
    folder = args.config_path or args.config_dir
    overrides = [*args.overrides, *rest]
    source = args.source
    if folder is not None or args.config_name is not None:
        # The older form has no source: the argument in its place is the first override.
        overrides = [*([source] if source else []), *overrides]
        source, folder = args.config_name or "config", folder or "."
    if source is not None and "=" in source and not Path(source).exists():
        raise ConfigError(f"train: '{source}' is an override; name a recipe or file before it.")
    config_folder, name = find(source, folder)
    settings, overrides = slurm.split(overrides, args.slurm, "train")
    folders = (Path.cwd(), config_folder, *origin_of(config_folder, name)[1])
    with importable(*folders):
        if args.slurm:
            configs = (
                compose_sweep(config_folder, name, overrides)
                if args.multirun
                else [compose(str(source), overrides, folder)]
            )
            slurm.submit(configs, name, settings, folders)
        elif args.multirun:
            return _sweep(config_folder, name, overrides)
        else:
            Run(compose(str(source), overrides, folder), folders)()
    return 0


def _job(config: Any) -> None:
    """Run one point of a sweep. A launcher may call this in a new process, where the resolver is not registered yet."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("eval", arithmetic, replace=True)
    Run(resolved(config), folders=())()


def _sweep(folder: Path, name: str, overrides: list[str]) -> int:
    """Let Hydra's sweeper and launcher start one job per combination of values."""
    import hydra

    with composer(folder, name, is_sweep=True) as (_, complete):
        overrides = complete(overrides)
    kept = sys.argv
    sys.argv = ["stable-ssl", *overrides, SEARCH_PATH, "--multirun"]
    try:
        hydra.main(version_base="1.2", config_path=str(folder), config_name=name)(_job)()
    finally:
        sys.argv = kept
    return 0
