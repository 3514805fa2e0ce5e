"""The table of protocols in docs/evaluate.md, written from the protocols themselves.

python benchmarks/list_of_protocols.py
"""

from __future__ import annotations

from pathlib import Path

from tables import write_table

from stable_ssl.evaluation import PROTOCOLS

PAGE = Path(__file__).parent.parent / "docs/evaluate.md"


def rows() -> list[str]:
    """Return a line per protocol: what it does, what chooses its setting, its seeds, whose figures it reproduces."""
    lines = ["| `--protocol` | what it does | chosen on | seeds | reproduces |", "|---|---|---|---|---|"]
    for one in PROTOCOLS.values():
        lines.append(f"| `{one.name}` | {one.summary} | {one.chosen_on} | {one.seeds} | {one.reproduces} |")
    return lines


if __name__ == "__main__":
    write_table(PAGE, "list of protocols", rows())
