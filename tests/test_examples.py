"""Every example (`>>>`) in a docstring shows what happens."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = [
    str(path.relative_to(SOURCE / "stable_ssl"))
    for path in sorted(SOURCE.rglob("*.py"))
    if re.search(r">>> (?!import|from)(?!.*doctest: \+SKIP)", path.read_text())
]


@pytest.mark.parametrize("file", FILES)
def test_the_examples_of_a_file_run(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)  # of a run without a folder of its own
    name = ".".join(("stable_ssl", *Path(file).with_suffix("").parts)).removesuffix(".__init__")
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert found.attempted
    assert not found.failed
