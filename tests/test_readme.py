"""Every code block of the README, and every script of the docs, runs as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = [
    (language, text)
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for language, text in re.findall(r"```(\w+)\n(.*?)```", file.read_text(), flags=re.DOTALL)
    if file.name == "README.md" or (language == "python" and text.endswith(")()\n"))  # a whole run
]
# These two make an environment and run a whole suite: the second is what runs this, and the first has a test of its own.
MAKE = ("make demo\n", "make test\n")


@pytest.mark.parametrize(
    ("language", "text"),
    [block for block in BLOCKS if block[1] not in MAKE],
    ids=lambda text: text.split("\n")[0],
)
def test_a_block_runs_as_printed(tmp_path, language, text):
    bin_folder = str(Path(sys.executable).parent)
    kind, command = {
        "python": ("py", [sys.executable]),
        "sh": ("sh", ["sh", "-e"]),
        "yaml": ("yaml", [f"{bin_folder}/stable-ssl", "train"]),
    }[language]
    script = tmp_path / f"block.{kind}"
    script.write_text(text)
    done = subprocess.run(
        [*command, script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/*/metrics.jsonl"))


def test_the_make_targets_of_the_readme_are_there():
    makefile = (ROOT / "Makefile").read_text()
    assert [text for _, text in BLOCKS if text in MAKE] == list(MAKE)
    assert "\ndemo:" in makefile
    assert "\ntest:" in makefile


def test_the_configuration_table_has_every_field():
    from stable_ssl import HardwareConfig, LoggerConfig, OptimConfig

    rows = dict(re.findall(r"^\| `(hardware|optim|logger)` \| (.*) \|$", (ROOT / "README.md").read_text(), flags=re.M))
    for name, cls in (("hardware", HardwareConfig), ("optim", OptimConfig), ("logger", LoggerConfig)):
        assert re.findall(r"`(\w+)`(?= \(|,)", rows[name]) == list(cls.model_fields)
