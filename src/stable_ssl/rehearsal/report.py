"""What a check has found: faults, warnings and figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..exceptions import ConfigError

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Attributes
    ----------
    level
        "error": the run certainly fails. "warning": it may, or it would not do what was meant.
    part
        What it concerns: "configuration", "data", "step", "device", "memory", "time", "disk" or "slurm".
    text
        One sentence or two. They name the key, the value, and what to do.
    """

    level: str
    part: str
    text: str


@dataclass
class Report:
    """All findings and figures of one check.

    Attributes
    ----------
    findings
        In the order in which they were found, each once.
    facts
        Figures and texts by part, such as `{"memory": {"peak_bytes": ...}}`: numbers, texts, or lists and dicts of
        them, which JSON can hold. docs/check.md lists them.
    broken
        The parts of the check that broke by its own fault, each with its error.
    """

    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def add(self, level: str, part: str, text: str) -> None:
        """Add a finding, unless it is there already. What the configuration says of a data set concerns the data.

        A key that the configuration has an error for gets no error of the disk: it would say the same.
        """
        if part == "configuration" and text.startswith("data."):
            part = "data"
        finding, key = Finding(level, part, text), text.partition(":")[0]
        is_told = (level, part) == (ERROR, "disk") and any(
            (one.level, one.part, one.text.partition(":")[0]) == (ERROR, "configuration", key) for one in self.findings
        )
        if finding not in self.findings and not is_told:
            self.findings.append(finding)

    def error(self, part: str, text: str) -> None:
        """Add something for which the run certainly fails."""
        self.add(ERROR, part, text)

    def warn(self, part: str, text: str) -> None:
        """Add something that may be wrong."""
        self.add(WARNING, part, text)

    def refuse(self, part: str, error: ConfigError) -> None:
        """Add each problem of a ConfigError."""
        for problem in error.problems:
            self.error(part, problem)

    def complete(self, part: str, problems: Iterable[str]) -> None:
        """Add errors, but not those that were said of another key with the same end, as of "module.backbone.width"."""
        for problem in problems:
            key, _, sentence = problem.partition(": ")
            end = f".{key.rpartition('.')[2]}: {sentence}"
            if not any(finding.text.endswith(end) for finding in self.findings):
                self.error(part, problem)

    def tell(self, part: str, **facts: Any) -> None:
        """Add figures or texts of a part."""
        self.facts.setdefault(part, {}).update(facts)

    def of(self, level: str) -> list[Finding]:
        """Return the findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    @property
    def status(self) -> int:
        """The exit status: 2 if the run certainly fails, 1 if the check itself broke, else 0."""
        return 2 if self.of(ERROR) else 1 if self.broken else 0

    def show(self) -> None:
        """Print the table and the findings, as `stable-ssl check` does."""
        from .screen import show  # which needs rich, and this module

        show(self)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {"status": self.status, **asdict(self)}
