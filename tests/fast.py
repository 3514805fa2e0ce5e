"""Run the tests of what changed since this branch left main, uncommitted changes included: `make fast`.

Changed                         Runs
tests/<folder>/test_<name>.py   that file
tests/<name>.py                 the test files that import it
src/stable_ssl/<room>/…         the test files that import the changed file, tests/<room>/, the file's examples
src/stable_ssl/<name>.py        the test files that import it, tests/test_<name>.py, the file's examples
base.py, engine/                tests/test_lifecycle.py, the resume of a preempted run

Nothing begins after 40 seconds: `make test` runs the rest.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE, TESTS = Path("src/stable_ssl"), Path("tests")
OF_BASE = ["tests/test_lifecycle.py", "tests/resume/test_resume.py::test_a_preempted_run_ends_as_one_left_alone"]
SECONDS = 40


def git(*args: str) -> list[str]:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


def changed_files() -> list[Path]:
    (since,) = git("merge-base", "HEAD", "main") or ["HEAD"]
    return [Path(name) for name in git("diff", "--name-only", since) + git("ls-files", "-o", "--exclude-standard")]


def imported(file: Path) -> set[str]:
    """Return the modules that a file imports anywhere, by their full names."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def tests_of(file: Path, importing: dict[str, set[str]]) -> list[str]:
    """Return what to run for a changed file, what is nearest to it first; `importing` has test files' imports."""
    if file.suffix != ".py":
        return []
    if file.is_relative_to(TESTS):
        return (
            [str(file)]
            if file.name.startswith("test_")
            else [t for t, names in importing.items() if file.stem in names]
        )
    if not file.is_relative_to(PACKAGE):
        return []
    module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    found = [test for test, names in importing.items() if module in names and module != PACKAGE.name]
    room = file.relative_to(PACKAGE).parts[0]
    if room in ("base.py", "engine"):
        found += OF_BASE
    found += [str(TESTS / room)] if room != file.name else [str(TESTS / f"test_{room}")]
    if ">>>" in (ROOT / file).read_text():
        found.append(f"tests/test_examples.py::test_the_examples_of_a_file_run[{file.relative_to(PACKAGE)}]")
    return found


def main() -> int:
    tests = sorted((ROOT / TESTS).rglob("test_*.py"))
    importing = {str(test.relative_to(ROOT)): imported(test) for test in tests}
    chosen: dict[str, Path] = {}  # without doubles, in order
    for file in changed_files():
        if (ROOT / file).exists():
            for test in tests_of(file, importing):
                if (ROOT / test.split("::")[0]).exists():
                    chosen.setdefault(test, file)
    if not chosen:
        print("No file changed that has tests.")
        return 0
    for test, file in chosen.items():
        print(f"{test}  because of {file}")
    deadline = f"--deadline={time.time() + SECONDS}"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
        deadline,
        *chosen,
        *sys.argv[1:],
    ]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
