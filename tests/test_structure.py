"""The rooms of the house import each other only as far as they may."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "stable_ssl"
LEAF = {"exceptions", "runtime.distributed", "runtime.seeding"}
BASE = {"arguments", "config", "data", "exceptions", "loggers", "optimizers", "runtime"}
MAY = {
    "exceptions": set(),
    "augmentations": LEAF,
    "losses": LEAF,
    "modules": LEAF,
    "optimizers": LEAF,
    "schedulers": LEAF,
    "runtime": {"exceptions"},
    "loggers": {"exceptions", "runtime"},
    "nodes": {"exceptions"},
    "arguments": {"base", "nodes"},  # checked against what BaseTrainer has
    "config": {"exceptions", "nodes", "base"},  # makes a trainer of a configuration
    "data": {"augmentations", "exceptions", "runtime"},
    "base": BASE,
    "trainers": {"base", "config", "exceptions", "losses", "modules", "runtime"},
    "monitors": {"base", "exceptions", "losses", "modules", "runtime"},
    "utils": {"exceptions"},
    "recipes": set(),
    "cli": {"augmentations", "config", "data", "exceptions", "nodes", "runtime"},
}


def imports(path):
    """Return what a file imports of the package, as dotted names inside it."""
    folder = path.relative_to(SOURCE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*folder[: len(folder) - node.level + 1], *(node.module.split(".") if node.module else [])]
            yield from (".".join(base) if base else alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (name.removeprefix("stable_ssl.") for name in names if (name or "").startswith("stable_ssl."))


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for name in imports(path):
        target = name.split(".")[0]
        allowed = (
            target == room or target == "__version__" or any(name == m or name.startswith(m + ".") for m in MAY[room])
        )
        assert allowed, f"{path.relative_to(SOURCE)} imports {name}"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, stable_ssl; print([m for m in ('torch', 'numpy', 'hydra', 'pydantic', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_can_be_had():
    import stable_ssl

    assert all(getattr(stable_ssl, name) is not None for name in stable_ssl.__all__)
