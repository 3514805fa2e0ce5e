"""The results of evaluations: as records, which are written as JSON, and as a table on the screen."""

from __future__ import annotations

import fcntl
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..exceptions import ConfigError
from ..runtime.files import printable, whole_file
from .protocol import Figure, Protocol
from .subject import Subject

FORMAT = 1
FOLDER = "evaluations"


def record(
    subject: Subject,
    protocol: Protocol,
    data: Mapping[str, Any],
    size: Sequence[int],
    figures: Mapping[int, Sequence[Figure]],
    options: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    """Return the record of one protocol on one source and data set, as JSON can hold it.

    Parameters
    ----------
    data
        The sets: "name", and the numbers of images in "train" and "test" and of "classes".
    size
        Height and width of the images that the network gets, in pixels.
    figures
        What the protocol gave, by seed.
    options
        What a user wanted otherwise than the protocol says, by name.
    command
        The command or call that makes the same record.
    """
    return {
        "format": FORMAT,
        "source": subject.name,
        **subject.facts,
        "digest": subject.digest[:16],
        "data": dict(data),
        "size": [*size],
        "protocol": protocol.name,
        "summary": protocol.summary,
        "chosen_on": protocol.chosen_on,
        "seeds": [*figures],
        "options": dict(options),
        "figures": _summed_up(figures),
        "command": command,
    }


def _summed_up(figures: Mapping[int, Sequence[Figure]]) -> dict[str, dict[str, Any]]:
    """Return the mean and the standard deviation over seeds of each figure, by its name.

    If a protocol gives a figure for each of several features, their name is a part of its name.
    """
    by_name: dict[str, list[Figure]] = {}
    for of_seed in figures.values():
        names = [figure.name for figure in of_seed]
        for figure in of_seed:
            name = figure.name if names.count(figure.name) == 1 else f"{figure.name}, {figure.features}"
            by_name.setdefault(name, []).append(figure)
    return {
        name: {
            "accuracy": statistics.mean(one.accuracy for one in found),
            "std": statistics.stdev(one.accuracy for one in found) if len(found) > 1 else None,
            "by_seed": [one.accuracy for one in found],
            "features": [*dict.fromkeys(one.features for one in found)],
            "chosen": [dict(one.chosen) for one in found],
            "details": [dict(one.details) for one in found],
        }
        for name, found in by_name.items()
    }


class IncompleteError(ConfigError):
    """Some figures of an evaluation are missing, or could not be written. `results` are the records that there are."""

    def __init__(self, problems: Iterable[str], results: Sequence[Mapping[str, Any]]):
        super().__init__([*dict.fromkeys(problems)])
        self.results = results


def save(result: Mapping[str, Any], folder: Path) -> Path:
    """Write a record to a folder, and return its file. A record of anything else is never overwritten.

    Raises
    ------
    ConfigError
        The folder can't be written.
    """
    step = f"_step_{result['global_step']}" if "global_step" in result else ""
    title = re.sub(r"[^\w.-]", "_", result["data"]["name"].rstrip("/").rpartition("/")[2])
    stem = f"{result['protocol']}_{title}{step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "a") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            path = _place(folder, stem, result)
            with whole_file(path) as part:
                part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(
            f"--out: no record can be written to '{printable(folder)}': {error.strerror}. Give another folder."
        ) from error
    return path


def _place(folder: Path, stem: str, result: Mapping[str, Any]) -> Path:
    """Return the file for a record: a new one, or that of an earlier record of the same evaluation."""
    number = 1
    while (path := folder / f"{stem}{f'_{number}' if number > 1 else ''}.json").exists() and not _is_of(path, result):
        number += 1
    return path


def _is_of(path: Path, result: Mapping[str, Any]) -> bool:
    """Return whether a file has an earlier record of the same evaluation; not if its images can't be told apart."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    same = ("digest", "data", "protocol", "seeds", "options", "size", "view")
    is_known = result["data"].get("fingerprint") is not None and result.get("view") is not None
    return is_known and isinstance(known, dict) and all(known.get(key) == result.get(key) for key in same)


def saved(run: Path) -> list[dict[str, Any]]:
    """Return the records in a run's folder, the oldest file first."""
    files = sorted((run / FOLDER).glob("*.json"), key=lambda file: (file.stat().st_mtime, file.name))
    records = [json.loads(file.read_text()) for file in files]
    return [record for record in records if isinstance(record, dict) and record.get("format") == FORMAT]


def show(results: Iterable[Mapping[str, Any]]) -> None:
    """Print a table of each source and data set: protocol, figure, accuracy, features, setting, what chose it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["source"], result["data"]["name"]), []).append(result)
    for (source, name), found in groups.items():
        data = found[0]["data"]
        sizes = f"{data['train']:,} images to learn from, {data['test']:,} to test on, {data['classes']} classes"
        table = Table(title=f"{source} on {name}: {sizes}", title_justify="left", box=None, pad_edge=False)
        for column in ("protocol", "figure", "accuracy", "features"):
            table.add_column(column, justify="right" if column == "accuracy" else "left", no_wrap=True)
        table.add_column("setting")
        for result in found:
            for figure, values in result["figures"].items():
                features = ", ".join(values["features"])
                table.add_row(result["protocol"], figure, in_words(values), features, _setting(values["chosen"]))
        console.print(table)
        for result in found:
            console.print(f"[dim]{result['protocol']}: {_in_a_line(result)}[/dim]", highlight=False)
        console.print()


def _in_a_line(result: Mapping[str, Any]) -> str:
    """Return the size of the images, what chose the setting, how often it was repeated, and the departures."""
    number = len(result["seeds"])
    repeated = f"mean ± standard deviation over {number} seeds" if number > 1 else "one seed"
    departures = dict.fromkeys(
        text
        for values in result["figures"].values()
        for details in values["details"]
        for text in details.get("departures", ())
    )
    others = f". Not as published: {'; '.join(departures)}" if departures else ""
    height, width = result["size"]
    return f"{height} × {width} pixels; setting chosen by: {result['chosen_on']}; {repeated}{others}"


def in_words(values: Mapping[str, Any]) -> str:
    """Return an accuracy in percent, with its standard deviation over seeds if there are several.

    Examples
    --------
    >>> in_words({"accuracy": 0.9134, "std": 0.0021})
    '91.34 ± 0.21 %'
    """
    spread = "" if values["std"] is None else f" ± {100 * values['std']:.2f}"
    return f"{100 * values['accuracy']:.2f}{spread} %"


def _setting(chosen: Sequence[Mapping[str, Any]]) -> str:
    """Return the settings that were chosen, each once, in the order of the seeds; "–" if nothing was."""
    settings = [*dict.fromkeys(tuple(one.items()) for one in chosen if one)]
    if len(settings) > 1 and all(len(one) == 1 for one in settings):
        return f"{settings[0][0][0]} {' / '.join(str(one[0][1]) for one in settings)}"
    return " / ".join(", ".join(f"{key} {value}" for key, value in one) for one in settings) or "–"
