"""Every code block of the README, and every script of the docs, runs as it is printed; the docs name what there is."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import architecture
import configuration
import list_of_protocols
import processes
import pytest

from stable_ssl.cli import main
from stable_ssl.data import Digits

ROOT = Path(__file__).parent.parent


def blocks_of(file):
    return re.findall(r"```(\w+)\n(.*?)```", file.read_text(), flags=re.DOTALL)


BLOCKS = [
    (language, text)
    for file in sorted((ROOT / "docs").glob("*.md"))
    for language, text in blocks_of(file)
    if file.name == "running.md" or (language == "python" and text.endswith(")()\n"))  # a whole run
]
# These two make an environment and run a whole suite: the second is what runs this, and the first has a test of its own.
MAKE = ("make demo\n", "make test\n")


@pytest.mark.parametrize("page", ["README.md", "docs/your_images.md", "docs/export.md"])
def test_all_blocks_of_a_page_on_images_of_ones_own_run_in_their_order(tmp_path, monkeypatch, page):
    digits = Digits("test", size=32)
    for number, (image, label) in enumerate(zip(digits.images[:60], digits.targets, strict=False)):
        path = tmp_path / "photos" / ("cat", "dog")[label % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert("RGB").save(path)
    monkeypatch.chdir(tmp_path)
    for language, text in blocks_of(ROOT / page):
        if language == "python":
            exec(text, {"__name__": "__main__"})
        elif text not in MAKE:
            for line in text.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
    assert len(list(tmp_path.glob("runs/*/metrics.jsonl"))) >= 1


@pytest.mark.parametrize(
    ("language", "text"),
    BLOCKS,
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
    assert [text for _, text in blocks_of(ROOT / "README.md") if text in MAKE] == list(MAKE)
    assert "\ndemo:" in makefile
    assert "\ntest:" in makefile


def missing(file, text):
    """Return the make targets, links and Python files that a text names and that are not there."""
    named, prose = ROOT.joinpath("Makefile").read_text(), re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    commands = re.findall(r"`[^`\n]+`", prose) + re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    targets = {target for command in commands for target in re.findall(r"(?:^|[`\n])make ([a-z-]+)", command)}
    links = set(re.findall(r"\]\(([^)#]+)", re.sub(r"`[^`\n]+`", "", prose))) - {""}
    files = {path for command in commands for path in re.findall(r"[\w/]+\.py\b", command)}
    places = (ROOT, ROOT / "src", ROOT / "src/stable_ssl")
    return [
        *(target for target in targets if not re.search(rf"^{target}:", named, flags=re.MULTILINE)),
        *(link for link in links if "://" not in link and not (file.parent / link).exists()),
        *(path for path in files if not any((place / path).exists() for place in places)),
    ]


def test_the_docs_name_only_what_there_is():
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {file.name: missing(file, file.read_text()) for file in files}
    assert not {name: names for name, names in found.items() if names}
    wrong = "`make tea`, [a page](docs/none.md), `none.py`, `base.py`\n```sh\nmake cake\n```"
    assert sorted(missing(ROOT / "README.md", wrong)) == ["cake", "docs/none.md", "none.py", "tea"]


def test_the_names_on_the_page_of_the_architecture_are_in_the_source():
    files = [*(ROOT / "src/stable_ssl").rglob("*.py"), ROOT / "tests/test_structure.py"]
    source = "\n".join(path.read_text() for path in files)
    code = re.findall(r"`([A-Za-z_.0-9]+)(?:\([\w, *]*\))?`", (ROOT / "docs/architecture.md").read_text())
    names = {name for dotted in code for name in dotted.split(".")}
    assert {"Feed", "Stepper", "update_teacher"} <= names
    assert not [name for name in names if not re.search(rf"\b{name}\b", source)]


def test_the_drawing_shows_the_imports_of_today():
    """If this fails, run `python benchmarks/architecture.py` and look at the drawing."""
    assert architecture.PATH.read_text() == architecture.drawing()


def test_an_arrow_is_left_out_if_it_follows_from_others():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": {"c"}}
    assert architecture.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": set(), "d": {"c"}}
    assert architecture.rows(graph) == {"a": 2, "b": 1, "c": 0, "d": 1}


def test_the_page_of_settings_is_that_of_the_source():
    """If this fails, run `python benchmarks/configuration.py`."""
    page = configuration.PAGE.read_text()
    assert all("\n".join(configuration.rows(cls)) in page for cls in configuration.TABLES.values())


def test_the_table_of_protocols_is_what_the_protocols_say():
    """If this fails, run `python benchmarks/list_of_protocols.py`."""
    assert "\n".join(list_of_protocols.rows()) in list_of_protocols.PAGE.read_text()
