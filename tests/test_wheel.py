"""The wheel holds the whole package, and works where nothing else of the project is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that no build folder is left here and none from before gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    # Without isolation, the build uses the setuptools that is installed, and downloads none.
    subprocess.run([*PIP, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "dist"], cwd=folder, check=True)
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def run_bare(wheel, tmp_path_factory):
    """Return a function that runs a command of an environment in which the wheel is installed.

    Its dependencies weigh gigabytes, so a `.pth` file adds those of this environment. Python processes no `.pth` file in
    a folder that a `.pth` file added: an editable install of this package here is not found there.
    """
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"

    def run(name, *arguments):
        outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        command = [folder / "bin" / name, *arguments]
        return subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True)

    packages = run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    absent = run("python", "-c", "import torch, stable_ssl")
    assert "No module named 'stable_ssl'" in absent.stderr
    install = ["--python", python, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel]
    subprocess.run([*PIP, *install], check=True)
    assert run("python", "-c", "import stable_ssl; print(stable_ssl.__file__)").stdout.startswith(packages)
    return run


def test_the_wheel_holds_every_file_of_the_package_and_the_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
        licenses = [archive.read(name).decode() for name in names if name.endswith("/licenses/LICENSE")]
    files = [path.relative_to(ROOT / "src") for path in (ROOT / "src" / "stable_ssl").rglob("*.*")]
    expected = {str(path) for path in files if path.suffix in (".py", ".yaml", ".typed")}
    assert {"stable_ssl/py.typed", "stable_ssl/recipes/simclr_digits.yaml"} <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert licenses == [(ROOT / "LICENSE").read_text()]
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


def test_the_installed_wheel_lists_recipes_and_helps(run_bare):
    recipes, usage = run_bare("stable-ssl", "recipes"), run_bare("stable-ssl", "--help")
    assert "simclr_digits" in recipes.stdout, recipes.stderr
    assert "train" in usage.stdout, usage.stderr


def test_the_installed_wheel_trains(run_bare, tmp_path):
    overrides = ["optim.epochs=1", "optim.max_steps=2", f"logger.dump_path={tmp_path}"]
    done = run_bare("stable-ssl", "train", "simclr_digits", *overrides)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(row["global_step"] for row in rows) == 2
