"""Every code block of the README, and every script of the docs, runs as it is printed."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import processes
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
    stable_ssl = Path(sys.executable).with_name("stable-ssl")
    script = tmp_path / f"block.{language}"
    script.write_text(text)
    commands = {
        "python": [[sys.executable, script]],
        "yaml": [[stable_ssl, "train", script]],
        "sh": [shlex.split(line) for line in text.splitlines()],
    }[language]
    for command, *args in commands:
        assert command in (sys.executable, stable_ssl, "stable-ssl")
        done = processes.run([stable_ssl if command == "stable-ssl" else command, *args], cwd=tmp_path)
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
