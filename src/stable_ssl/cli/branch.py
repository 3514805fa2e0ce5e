"""`stable-ssl branch`: a new run that begins from a checkpoint of another one, with changes."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from ..api import branch_config
from ..compose import importable, origin_of
from ..exceptions import option_named
from . import slurm
from .run import Run, say_once


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Train the branch, or go on with it if it has begun, here or as a Slurm job."""
    settings, overrides = slurm.split([*args.overrides, *rest], args.slurm, "branch")
    home, own = origin_of(Path(args.run).expanduser(), "config")
    out = Path(args.out).expanduser().absolute() if args.out else None
    folders = [*own, Path.cwd()]
    with importable(*folders):
        config = branch_config(args.run, overrides, args.step, out, args.restart_schedule)
        name = config["trainer"]["_target_"].split(".")[-1]
        if home and home != Path.cwd():
            os.chdir(home)  # relative paths in the configuration, such as those of data, begin there
            _name_in_full(config["trainer"])
        if args.slurm:
            slurm.submit({"": config}, name, settings, folders, not args.no_check)
        else:
            with option_named("logger.dump_path", "branch: --out" if out else None):
                Run(config, folders=())()
    return 0


def _name_in_full(trainer: dict[str, Any]) -> None:
    """Give a new run's folder its absolute path if it is given, and say so. The run itself says which one it chose."""
    given = (trainer.get("logger") or {}).get("dump_path")
    if not given:
        return
    folder = Path(given).expanduser().absolute()
    trainer["logger"] = {**trainer["logger"], "dump_path": str(folder)}
    say_once(
        f"branch: the new run will be in '{folder}'; `stable-ssl resume {shlex.quote(str(folder))}` goes on with it."
    )
