"""Folders of runs that stable-ssl of early 2025 wrote. Their weights can be used, but the runs can't be resumed."""

from __future__ import annotations

from pathlib import Path


def run_of_2025(folder: Path) -> str:
    """Return why the run of early 2025 in a folder can't go on, and what can be done; empty if there is no such run."""
    weights = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    is_one = any(folder.glob("logs_rank_*.jsonl")) or (weights and (folder / ".hydra" / "config.yaml").is_file())
    if not is_one:
        return ""
    advice = "It has no weights either, so begin it anew in another folder."
    if weights:
        advice = f"Its weights can begin a run in another folder: module_init={{backbone: '{weights[-1]}'}}."
    return (
        f"'{folder}' holds a run of stable-ssl of early 2025, which can't be resumed: it saved neither its optimizer "
        f"nor its place in the data. {advice}"
    )
