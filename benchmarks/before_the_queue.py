"""What `stable-ssl check` shows of a healthy run and of one with faults, for docs/check.md.

    python benchmarks/before_the_queue.py [--write docs/check.md]

It writes 240 photographs of each of two classes, and runs the two command lines there as a user would.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from input import write_files
from tables import write_table

HEALTHY = "stable-ssl check simclr data=images root=photos labels=folder backbone=resnet50 size=224 --device a100-80gb"
FAULTY = (
    "stable-ssl check simclr data=images root=photos labels=folder backbone=resnet50 size=224 --device rtx4090 "
    "optim.optimizer.lr=60 module.backbone_classifier.out_features=1 +trainer.temprature=0.2"
)
EXAMPLES = {"healthy": HEALTHY, "faulty": FAULTY}


def shown(line: str, folder: Path) -> list[str]:
    """Run a command line in a folder, and return it and what it prints as lines of Markdown."""
    env = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    code = "from stable_ssl.cli import entry; entry()"
    arguments = [sys.executable, "-c", code, *shlex.split(line)[1:]]
    done = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.stderr:
        raise SystemExit(done.stderr)
    printed = [text.rstrip() for text in done.stdout.splitlines()]
    return ["```console", f"$ {line}", *printed, f"$ echo $?\n{done.returncode}", "```"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a Markdown file with <!-- healthy --> and <!-- faulty -->")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label in ("china", "flower"):
            (folder / "photos" / label).mkdir(parents=True)
            write_files(folder / "photos" / label)
        for example, line in EXAMPLES.items():
            lines = shown(line, folder)
            print("\n".join(lines))
            if args.write:
                write_table(args.write, example, lines)


if __name__ == "__main__":
    main()
