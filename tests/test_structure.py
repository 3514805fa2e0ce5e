"""The rooms of the house: who imports whom, without circles; files and functions that fit on a screen or two."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "stable_ssl"
FILES = sorted(SOURCE.rglob("*.py"))
LEAF = {"exceptions", "runtime.distributed", "runtime.seeding"}
ENGINE = {"arguments", "config", "data", "exceptions", "loggers", "nodes", "optimizers", "runtime"}
# A room may import itself and these.
MAY = {
    "__about__": set(),
    "exceptions": set(),
    "augmentations": LEAF,
    "losses": LEAF,
    "modules": {*LEAF, "compose", "nodes", "signatures", "weights"},
    "optimizers": LEAF,
    "schedulers": LEAF,
    "runtime": {"exceptions"},
    "weights": {"exceptions", "runtime"},
    "loggers": {"exceptions", "runtime"},
    "lines": set(),
    "signatures": {"exceptions"},
    "nodes": {"exceptions", "lines", "signatures"},
    "fields": {"exceptions"},
    "config": {"exceptions", "fields", "nodes"},
    "trials": {"data", "exceptions", "nodes"},
    "arguments": {"config", "exceptions", "nodes", "signatures", "trials", "weights"},
    "data": {"augmentations", "exceptions", "runtime"},
    "engine": {*ENGINE, "lines", "weights"},
    "compat": {"exceptions", "reader", "runtime.distributed"},
    "reader": {"exceptions", "loggers"},
    "base": {"arguments", "compat", "config", "data", "engine", "exceptions", "loggers", "nodes", "runtime"},
    "trainers": {"base", "compat", "config", "exceptions", "losses", "modules", "runtime"},
    "monitors": {"base", "exceptions", "losses", "modules", "runtime"},
    "instantiate": {"arguments", "base", "exceptions", "nodes"},
    "overrides": {"exceptions"},
    "resolvers": {"exceptions", "nodes"},
    "explaining": {"exceptions"},
    "compose": {"exceptions", "explaining", "nodes", "overrides", "resolvers"},
    "pretraining": {
        "augmentations",
        "compose",
        "data",
        "exceptions",
        "instantiate",
        "nodes",
        "overrides",
        "runtime",
        "weights",
    },
    "rehearsal": {
        "arguments",
        "augmentations",
        "base",
        "compose",
        "config",
        "data",
        "engine",
        "exceptions",
        "instantiate",
        "lines",
        "loggers",
        "losses",
        "modules",
        "monitors",
        "nodes",
        "runtime",
        "signatures",
        "trainers",
        "weights",
    },
    "evaluation": {
        "augmentations",
        "base",
        "compose",
        "config",
        "data",
        "engine",
        "exceptions",
        "loading",
        "modules",
        "monitors",
        "nodes",
        "optimizers",
        "pretraining",
        "runtime",
        "schedulers",
        "trainers",
        "weights",
    },
    "loading": {"base", "compose", "exceptions", "instantiate", "nodes", "runtime", "weights"},
    "api": {
        "base",
        "compose",
        "config",
        "data",
        "exceptions",
        "instantiate",
        "loading",
        "nodes",
        "pretraining",
        "rehearsal",
        "resolvers",
        "runtime",
        "weights",
    },
    "exporting": {"augmentations", "compose", "evaluation", "exceptions", "modules", "nodes", "runtime", "weights"},
    "utils": {"exceptions", "losses", "runtime"},
    "recipes": set(),
    "cli": {
        "api",
        "evaluation",
        "rehearsal",
        "augmentations",
        "compose",
        "config",
        "data",
        "exceptions",
        "exporting",
        "instantiate",
        "lines",
        "nodes",
        "overrides",
        "pretraining",
        "resolvers",
        "runtime",
    },
}
MAX_LINES = {"base.py": 450}
MAX_LINES_OF_OTHERS = 400
MAX_LINES_OF_A_FUNCTION = 60


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Return every statement that can run, functions' bodies included."""
    for child in ast.iter_child_nodes(node):
        if is_for_types_only(child):
            for other in child.orelse:
                yield other
                yield from statements(other)
        else:
            yield child
            yield from statements(child)


def imports(tree: ast.AST, folder: tuple[str, ...]) -> Iterator[str]:
    """Return what a file in this folder of the package imports of the package, as dotted names inside it."""
    for node in statements(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                module = [*folder[: len(folder) - node.level + 1], *module]
            elif module[:1] == ["stable_ssl"]:
                module = module[1:]
            else:
                continue
            yield from (".".join([*module, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from (name.removeprefix("stable_ssl.") for name in names if name.startswith("stable_ssl."))


def file_of(name: str) -> Path:
    """Return the file that a dotted name of the package is in: the longest part of it that is a file."""
    parts = name.split(".")
    for depth in range(len(parts), -1, -1):
        path = SOURCE.joinpath(*parts[:depth])
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file() and depth:
                return candidate
    return SOURCE / "__init__.py"


def imports_of(path: Path) -> list[str]:
    return list(imports(ast.parse(path.read_text()), path.relative_to(SOURCE).parent.parts))


def circle(graph: dict[Path, set[Path]]) -> list[Path]:
    """Return the files of one circle of imports, the first of them again at the end; an empty list if there is none."""
    done: set[Path] = set()

    def search(path: Path, way: list[Path]) -> list[Path]:
        if path in way:
            return [*way[way.index(path) :], path]
        if path in done:
            return []
        for target in sorted(graph.get(path, ())):
            if found := search(target, [*way, path]):
                return found
        done.add(path)
        return []

    return next((found for path in sorted(graph) if (found := search(path, []))), [])


def test_no_files_import_each_other_in_a_circle():
    graph = {path: {file_of(name) for name in imports_of(path)} for path in FILES}
    assert not (found := circle(graph)), " → ".join(map(name_of, found))


def test_a_circle_is_found_inside_functions_but_not_among_imports_for_types():
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .base import A\ndef f():\n    from .nodes import b\n"
    assert list(imports(ast.parse(code), ())) == ["nodes.b"]
    assert list(imports(ast.parse("from ..losses import ntxent, NTXEntLoss"), ("trainers",))) == [
        "losses.ntxent", "losses.NTXEntLoss",
    ]  # fmt: skip
    assert [name_of(file_of(name)) for name in ("losses.ntxent", "losses.NTXEntLoss", "nodes.b", "__version__")] == [
        "losses/ntxent.py", "losses/__init__.py", "nodes.py", "__init__.py",
    ]  # fmt: skip
    a, b, c = (Path(name) for name in "abc")
    assert circle({a: {b}, b: {c}, c: {b}}) == [b, c, b]
    assert circle({a: {b, c}, b: {c}, c: set()}) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for name in imports_of(path):
        allowed = {room, "__version__", *MAY[room]}
        assert any(name == one or name.startswith(f"{one}.") for one in allowed), f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    length = text.count("\n")
    limit = MAX_LINES.get(name_of(path), MAX_LINES_OF_OTHERS)
    assert length <= limit, f"{name_of(path)} has {length} lines; at most {limit} are allowed."
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_LINES_OF_A_FUNCTION, f"{name_of(path)}: {node.name}() has {lines} lines."


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, stable_ssl; print([m for m in ('torch', 'numpy', 'hydra', 'pydantic', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_can_be_had():
    import stable_ssl

    assert all(getattr(stable_ssl, name) is not None for name in stable_ssl.__all__)
