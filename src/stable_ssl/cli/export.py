"""`stable-ssl export`: the backbone of a run in the format of another library."""

from __future__ import annotations

import argparse

from ..exceptions import ConfigError
from ..runtime.files import printable


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Write the backbone, and print its path and the lines of Python that load it."""
    if rest:
        raise ConfigError(f"export: '{rest[0]}' is one argument too many: it takes one run.")
    from ..exporting import export

    exported = export(args.run, args.to, args.out, args.network)
    lines = (f"    {printable(line)}" for line in exported.lines)
    print("\n".join([f"{printable(exported.path)}: {printable(exported.told)}", "In Python:", *lines]))
    return 0
