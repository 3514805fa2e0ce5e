"""Findings that several data sets share, as one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..report import ERROR, Report


def add_together(report: Report, found: Report, names: Iterable[str]) -> None:
    """Add what was found about data sets to a report; what is the same for several sets is said once.

    Parameters
    ----------
    report, found
        The report that gets the findings and figures, and the one that has them.
    names
        Of the data sets.
    """
    known = "|".join(map(re.escape, names))
    alike: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for finding in found.findings:
        name = re.match(rf"data\.({known})\b", finding.text) if known else None
        text = re.sub(rf"\bdata\.{name[1]}\b", "data.{}", finding.text) if name else finding.text
        alike.setdefault((finding.level, finding.part, text), []).append((name[1] if name else "", finding.text))
    for (level, part, _), texts in alike.items():
        others = " and ".join(f"data.{name}" for name, _ in texts[1:])
        text = texts[0][1] + (f" So it is with {others}." if others else "")
        (report.error if level == ERROR else report.warn)(part, text)
    for part, facts in found.facts.items():
        report.tell(part, **facts)
