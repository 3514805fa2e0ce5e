"""`stable-ssl train`: a run, or a sweep of runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..compose import compose_with_hydra, find, importable, in_folder, is_hydras, origin_of
from ..exceptions import ConfigError
from . import hydra_options, slurm
from .resume import is_going_on
from .run import Run, job_of
from .sweep import Point, Sweep


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Train the recipe or file that the arguments name."""
    source, folder, overrides = source_of(args, rest)
    if hydra_options.asks_to_show(args):
        return hydra_options.show(args, source, folder, overrides)
    config_folder, name = find(source, folder)
    settings, overrides = slurm.split(overrides, args.slurm, "train")
    _warn_of_no_effect(overrides, args.multirun)
    folders = (Path.cwd(), config_folder, *origin_of(config_folder, name)[1])
    with importable(*folders):
        if args.multirun:
            sweep = Sweep(config_folder, name, overrides)
            if not args.slurm:
                return sweep.run(folders)
            left = [point for point in sweep.left() if not _is_going_on(point)]
            configs = {point.name: in_folder(point.config, str(point.folder)) for point in left}
        else:
            config, hydra = compose_with_hydra(str(source), overrides, folder)
            configs = {"": config}
        if args.slurm and configs:
            slurm.submit(configs, name, settings, folders, not args.no_check)
        elif not args.slurm:
            with job_of(hydra):
                Run(config, folders)()
    return 0


def source_of(args: argparse.Namespace, rest: list[str]) -> tuple[str | None, str | None, list[str]]:
    """Return the recipe or file that the arguments name, the folder of configurations if one is given, and overrides.

    Raises
    ------
    ConfigError
        An override stands in the place of the recipe.
    """
    source, folder = args.source, args.config_path or args.config_dir
    overrides = [*args.overrides, *rest]
    if folder is not None or args.config_name is not None:
        # The older form has no source: the argument in its place is the first override.
        overrides = [*([source] if source else []), *overrides]
        source, folder = args.config_name or "config", folder or "."
    if source is not None and "=" in source and not Path(source).expanduser().exists():
        raise ConfigError(f"{args.command}: '{source}' is an override; name a recipe or file before it.")
    return source, folder, overrides


def _warn_of_no_effect(overrides: list[str], is_sweep: bool) -> None:
    """Name the settings of Hydra that have no effect: on a sweep, or on a single run."""
    for text in filter(is_hydras, overrides):
        is_of_run = text.lstrip("+").startswith("hydra.run.dir=")
        if is_of_run and is_sweep:
            why = "with --multirun; hydra.sweep.dir=FOLDER says where the runs of a sweep are"
        elif (
            not is_of_run
            and not is_sweep
            and not text.lstrip("+").startswith(("hydra.job.chdir=", "hydra.job.env_set"))
        ):
            why = "without --multirun"
        else:
            continue
        print(f"stable-ssl: '{text}' has no effect {why}.", file=sys.stderr)


def _is_going_on(point: Point) -> bool:
    """Return whether another process is going on with a point's run; say so, since it gets no second job."""
    if is_there := is_going_on(point.folder):
        print(f"{point.name}: going on in another process, in '{point.folder}'.")
    return is_there
