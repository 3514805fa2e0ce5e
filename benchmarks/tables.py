"""Tables in Markdown files, between `<!-- name -->` and `<!-- /name -->`, written by what measured them."""

from __future__ import annotations

import re
from pathlib import Path


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(\n<!-- /{name} -->)", re.DOTALL)


def read_table(path: Path, name: str) -> list[str]:
    """Return the lines of the table of this name.

    Raises
    ------
    SystemExit
        The file has no such marks.
    """
    found = _pattern(name).search(path.read_text())
    if found is None:
        raise SystemExit(f"{path} has no <!-- {name} --> … <!-- /{name} -->.")
    return found[2].splitlines()


def write_table(path: Path, name: str, lines: list[str]) -> None:
    """Put lines in the place of the table of this name; errors as `read_table`'s."""
    read_table(path, name)
    table = "\n".join(lines)
    path.write_text(_pattern(name).sub(lambda found: found[1] + table + found[3], path.read_text()))
