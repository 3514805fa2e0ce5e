"""The options of Hydra's own command line that show a configuration, or tell of Hydra, instead of training."""

from __future__ import annotations

import argparse
import logging
import sys

from ..compose import composer, find, search_path_of
from ..exceptions import ConfigError


def asks_to_show(args: argparse.Namespace) -> bool:
    """Return whether the options ask to show something.

    Raises
    ------
    ConfigError
        `--package` or `--resolve` is given without `--cfg`.
    """
    if (args.package or args.resolve) and not args.cfg:
        raise ConfigError("train: --package and --resolve belong to --cfg, as in --cfg job --resolve.")
    return bool(args.cfg or args.info or args.hydra_help)


def show(args: argparse.Namespace, source: str | None, folder: str | None, overrides: list[str]) -> int:
    """Have Hydra print what the options ask for, and return the exit status.

    Parameters
    ----------
    args
        The options.
    source, folder
        As for `find`. With `--hydra-help`, the source may be None.
    overrides
        As on the command line.
    """
    import hydra

    path = name = None
    given = [f"--{option}={value}" for option in ("cfg", "package", "info") if (value := getattr(args, option))]
    given += [f"--{name}" for name in ("resolve", "hydra-help", "multirun") if getattr(args, name.replace("-", "_"))]
    if source is not None or not args.hydra_help:
        found, name = find(source, folder)
        path = str(found)
        with composer(found, name, is_sweep=args.multirun) as (_, complete):
            given += [*complete(overrides), search_path_of(found, name)]
    kept, root = sys.argv, logging.getLogger()
    handlers, level = [*root.handlers], root.level
    sys.argv = ["stable-ssl", *given]  # where Hydra looks for its options
    try:
        hydra.main(path, name, version_base="1.2")(lambda _: None)()
    except SystemExit as end:  # as Hydra does after some of its options
        return int(end.code or 0)
    finally:
        sys.argv = kept
        root.handlers[:] = handlers  # Hydra sets up logging for a job
        root.setLevel(level)
    return 0
