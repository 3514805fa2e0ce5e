"""`benchmarks/gpu.py`, which runs on the day a GPU is at hand, is rehearsed on the CPU."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import gpu
import gpu_measurements
import pytest
from tables import read_table


def pages():
    return {path: path.read_text() for path in gpu.DOCS.glob("*.md")}


@pytest.mark.slow
def test_a_rehearsal_makes_every_row_and_changes_no_page(tmp_path):
    before, found = pages(), tmp_path / "gpu.json"
    command = [sys.executable, gpu.HERE, "--rehearse", "--only", "losses", "vit", "--json", found]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(found.read_text())
    assert list(made) == ["losses", "vit"]
    for name, measurement in made.items():
        columns = gpu.MEASUREMENTS[name].columns
        assert measurement["end"] is None
        assert measurement["facts"]["rehearsal"]
        assert list(measurement["rows"]) == gpu.row_names(name, gpu.REHEARSAL)
        for row, values in measurement["rows"].items():
            assert values["rehearsal"]
            assert values["time"] > 0
            assert f"| {row} (rehearsal) | {format(values['time'], columns['time'][1])} |" in done.stdout
    assert made["vit"]["rows"]["a whole step"]["share"] == 1
    assert pages() == before


@pytest.mark.parametrize("name", gpu.MEASUREMENTS)
def test_each_measurement_has_its_table_in_the_docs(name):
    """If this fails, run `python benchmarks/gpu.py --from benchmarks/gpu.json`, or from a file that holds `{}`."""
    lines = read_table(gpu.DOCS / gpu.MEASUREMENTS[name].page, f"gpu {name}")
    begin = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    names = gpu.row_names(name, gpu_measurements.Scale())
    assert [line.split(" | ")[0] for line in lines[begin + 1 :]] == [f"| {row}" for row in names]


def test_what_fails_or_takes_too_long_says_why_and_leaves_the_rows_before_it(tmp_path, monkeypatch):
    def fails():
        raise ValueError("one | two")

    rows = {"quick": lambda: {"time": 2.5, "peak": None}, "wrong": fails, "absent": lambda: __import__("kornya")}
    losses = dataclasses.replace(gpu.MEASUREMENTS["losses"], rows=lambda scale: rows)
    monkeypatch.setitem(gpu.MEASUREMENTS, "losses", losses)
    gpu.work("losses", gpu.REHEARSAL, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    made = {
        "facts": lines[0]["facts"],
        "rows": {one["row"]: one.get("values") or one for one in lines[1:]},
        "end": "late",
    }
    assert gpu.table("losses", made, [*rows, "next"])[-4:] == [
        "| quick (rehearsal) | 2.50 |  |",
        "| wrong (rehearsal) | not run: ValueError: one \\| two |  |",
        "| absent (rehearsal) | not run: kornya is not installed |  |",
        "| next (rehearsal) | not run: late |  |",
    ]


def test_a_process_is_ended_after_its_time_with_what_it_started(tmp_path):
    made = gpu.measure("losses", ["--rehearse"], 0.5, tmp_path)
    assert made["end"] == "cut off after 0.5 s"
    assert made["rows"] == {}
