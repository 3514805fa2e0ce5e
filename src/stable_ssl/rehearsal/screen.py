"""What a check shows: a table that one reads in ten seconds, and a line per fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..exceptions import some_of
from ..runtime.files import printable
from .report import ERROR, WARNING, Report

PARTS = ("configuration", "data", "step", "device", "memory", "time", "disk", "slurm")
MARKS = {ERROR: ("✗", "bold red"), WARNING: ("!", "yellow"), "": ("✓", "green"), "unknown": ("–", "dim")}
GIB = 2**30


def show(report: Report, console: Console | None = None) -> None:
    """Print what a check has found.

    Parameters
    ----------
    report
        What it found.
    console
        Where it is printed. None: on standard output.
    """
    console = console or Console(highlight=False)
    console.print(_summary(report))
    if groups := report.facts.get("step", {}).get("groups"):
        console.print(_groups(groups))
    for level in (ERROR, WARNING):
        for finding in report.of(level):
            mark, style = MARKS[level]
            console.print(Text.assemble((f"{mark} {finding.part}: ", style), printable(finding.text)), soft_wrap=True)
    for name, error in report.broken.items():
        console.print(f"? The check of the {name} broke by a fault of its own: {error}", markup=False, soft_wrap=True)
    console.print(_verdict(report), style="bold", markup=False)


def _verdict(report: Report) -> str:
    errors, warnings = (len(report.of(level)) for level in (ERROR, WARNING))
    count = ", ".join(
        f"{number} {name}{'s' * (number != 1)}" for number, name in ((errors, ERROR), (warnings, WARNING))
    )
    if errors:
        return f"The run would fail: {count}."
    return f"Nothing was found for which the run would certainly fail: {count}."


def _summary(report: Report) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for part in PARTS:
        facts = report.facts.get(part, {})
        levels = {finding.level for finding in report.findings if finding.part == part}
        if part == "slurm" and not (facts or levels):
            continue
        state = ERROR if ERROR in levels else WARNING if WARNING in levels else "" if facts else "unknown"
        mark, style = MARKS[state]
        text = _LINES[part](facts) if facts else "" if levels else "not looked at, since something before it failed"
        table.add_row(Text(mark, style), Text(part, "bold"), Text(text))
    return table


def _groups(groups: list[Mapping[str, Any]]) -> Table:
    table = Table("parameters", "of", "rate", "decay", "schedule", box=None, pad_edge=False, header_style="dim")
    for group in groups:
        table.add_row(
            f"{group['parameters']:,}", str(group.get("modules", "")), f"{group['lr']:g}",
            f"{group['weight_decay']:g}", str(group.get("schedule", "")),
        )  # fmt: skip
    return table


def _of_configuration(facts: Mapping[str, Any]) -> str:
    return str(facts.get("summary", "all keys are known, and everything that they name can be imported"))


def _of_data(facts: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {_of_set(one)}" for name, one in facts.items())


def _of_set(one: Any) -> str:
    if not isinstance(one, Mapping):
        return str(one)
    texts = [f"{one['images']:,} images" if isinstance(one.get("images"), int) else "a stream"]
    texts += [f"{one[key]}" for key in ("sizes",) if one.get(key)]
    texts += [f"{one['classes']} classes"] if one.get("classes") else []
    return ", ".join(texts)


def _of_step(facts: Mapping[str, Any]) -> str:
    loss = facts.get("loss", {})
    values = [f"{name} {value:.4g}" for name, value in loss.items()] if isinstance(loss, Mapping) else [f"{loss:.4g}"]
    return f"a batch of {facts.get('batch_size')}: {some_of(values, 3)}"


def _of_device(facts: Mapping[str, Any]) -> str:
    flops = facts.get("flops_per_step")
    return f"{flops / 1e12:.3g} TFLOP per step" if flops else "two steps on tensors without values"


def _of_memory(facts: Mapping[str, Any]) -> str:
    parts = [f"{name} {size / GIB:.2f}" for name, size in facts.get("parts", {}).items() if size >= GIB / 200]
    peak = facts.get("peak_bytes")
    return "" if peak is None else f"{peak / GIB:.1f} GiB per card at the peak ({', '.join(parts)})"


def _of_time(facts: Mapping[str, Any]) -> str:
    return str(facts.get("summary", ""))


def _of_disk(facts: Mapping[str, Any]) -> str:
    return str(facts.get("summary", ""))


def _of_slurm(facts: Mapping[str, Any]) -> str:
    return str(facts.get("summary", ""))


_LINES = {
    "configuration": _of_configuration,
    "data": _of_data,
    "step": _of_step,
    "device": _of_device,
    "memory": _of_memory,
    "time": _of_time,
    "disk": _of_disk,
    "slurm": _of_slurm,
}
