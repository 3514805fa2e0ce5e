"""The table of methods trained beside lightly's, with each of three optimizers: `tests/parity` makes the comparison.

    python benchmarks/parity_table.py [--write docs/methods.md]

The largest difference is that of any value after any of 15 optimizer steps, in float64. If something differs, the exit
status is 1, and nothing is written.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch
from tables import write_table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from parity.cases import CASES, Case
from parity.sides import OPTIMIZERS, TOLERANCE, compare


def row(name: str, case: Case) -> tuple[str, bool]:
    """Return a method's line of the table, and whether all kinds of values are equal."""
    results = [compare(case.make, optimizer) for optimizer in OPTIMIZERS]
    differs = {kind for result in results for kind, value in result.items() if not value <= TOLERANCE}
    same = [kind for kind in results[0] if kind not in differs]
    largest = f"{max(result[kind] for result in results for kind in same):.0e}" if same else ""
    cells = [name, case.equals, ", ".join(same), largest, ", ".join(sorted(differs))]
    return f"| {' | '.join(cells)} |", not differs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a Markdown file with <!-- parity --> … <!-- /parity -->")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*weight_norm", category=FutureWarning)
    table = ["| method | equals | in | largest difference | differs in |", "|---|---|---|---|---|"]
    are_equal = True
    print("\n".join(table))
    for name, case in CASES.items():
        line, is_equal = row(name, case)
        print(line, flush=True)
        table.append(line)
        are_equal &= is_equal
    if args.write and are_equal:
        write_table(args.write, "parity", table)
    return int(not are_equal)


if __name__ == "__main__":
    sys.exit(main())
