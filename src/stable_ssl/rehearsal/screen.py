"""What a check shows: a table that one reads in ten seconds, and a line per fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..exceptions import some_of
from ..runtime.files import printable

if TYPE_CHECKING:  # a report shows itself by this file
    from .report import Report

ERROR, WARNING = "error", "warning"  # the levels of findings
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
    if report.broken:
        return f"The check broke, so the run may fail by what was not looked at: {count}."
    return f"Nothing says that the run would fail: {count}."


def _summary(report: Report) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for part in PARTS:
        facts = report.facts.get(part, {})
        levels = {finding.level for finding in report.findings if finding.part == part}
        if part == "slurm" and not (facts or levels):
            continue
        text = "the check of it broke, see below" if part in report.broken else _LINES[part](facts) if facts else ""
        state = ERROR if ERROR in levels else WARNING if WARNING in levels else "" if text else "unknown"
        mark, style = MARKS[state]
        if not (text or levels):
            text = "no figures, since something else is missing or wrong"
        table.add_row(Text(mark, style), Text(part, "bold"), Text(text))
    return table


def _groups(groups: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("parameters", "of", "rate", "decay", box=None, pad_edge=False, header_style="dim")
    for group in groups:
        rate = group.get("schedule") or f"{group['lr']:g}"
        table.add_row(f"{group['parameters']:,}", some_of(group["modules"], 3), str(rate), f"{group['weight_decay']:g}")
    return table


def _of_data(facts: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {_of_set(one)}" for name, one in facts.items())


def _of_set(one: Mapping[str, Any]) -> str:
    if not isinstance(one.get("images"), int):
        return "a stream"
    texts = [f"{one['images']:,} images"]
    texts += [f"as in {one['as']}"] if "as" in one else []
    texts += [str(one["sizes"])] if one.get("sizes") else []
    texts += [f"{one['classes']} classes"] if one.get("classes") else []
    return ", ".join(texts)


def _of_step(facts: Mapping[str, Any]) -> str:
    values = [f"{name} {value:.4g}" for name, value in facts.get("loss", {}).items()]
    return f"two steps and a checkpoint worked with {facts.get('batch_size')} samples: {some_of(values, 3)}"


def _of_device(facts: Mapping[str, Any]) -> str:
    if "left_out" in facts:
        return f"not rehearsed, since {facts['left_out']}"
    waits = facts.get("waits_per_step")
    if waits is None:
        return ""
    return (
        f"a step waits for the card at {waits} place{'s' * (waits != 1)}"
        if waits
        else "a step never waits for the card"
    )


def _of_memory(facts: Mapping[str, Any]) -> str:
    if "peak_bytes" not in facts:
        return ""
    parts = sorted(facts["parts"].items(), key=lambda part: -part[1])
    shares = [f"{name.replace('_', ' ')} {size / GIB:.1f}" for name, size in parts if size >= GIB / 20]
    of = f" of {facts['card_bytes'] / GIB:.0f}" if facts.get("card_bytes") else ""
    margin = f" + {facts['margin_bytes'] / GIB:.1f} (margin)"
    least = "" if facts["is_complete"] else "at least "
    text = f"{least}{facts['peak_bytes'] / GIB:.1f}{margin}{of} GiB per card, with {facts['batch_size']} samples"
    fits = f"; {facts['largest_batch']:,} samples would fit" if facts.get("largest_batch") else ""
    return f"{text}{f' ({some_of(shares, 4)})' if shares else ''}{fits}{_of_strategy(facts)}"


def _of_strategy(facts: Mapping[str, Any]) -> str:
    """Return how several processes share the model, and when a process has whole parameters, in words."""
    if facts["processes"] == 1:
        return ""
    places = ""
    if machines := facts["machines"]:
        places = f" on {machines} machine{'s' * (machines != 1)}, each of which has the whole model"
    is_whole = facts["moment"] == "evaluation" and "whole_parameters" in facts["parts"]
    worst = ". The worst moment is an evaluation, in which each process has whole parameters" if is_whole else ""
    return f"; strategy {facts['strategy']} with {facts['processes']} processes{places}{worst}"


def _of_configuration(facts: Mapping[str, Any]) -> str:
    return "the trainer and all its parts can be built" if facts.get("is_built") else ""


def _summary_of(facts: Mapping[str, Any]) -> str:
    return str(facts.get("summary", ""))


_LINES = {
    "configuration": _of_configuration,
    "data": _of_data,
    "step": _of_step,
    "device": _of_device,
    "memory": _of_memory,
    "time": _summary_of,
    "disk": _summary_of,
    "slurm": _summary_of,
}
