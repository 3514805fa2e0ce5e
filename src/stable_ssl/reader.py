"""Reading logs back, by the names of early 2025."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .exceptions import DataError
from .loggers.jsonl import read_metrics


def alphanum_key(key: str) -> list[int | str]:
    """Return a text as a list of texts and whole numbers, so that "run10" is sorted behind "run9"."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split("([0-9]+)", key)]


def natural_sort(values: Iterable[str]) -> list[str]:
    """Sort texts so that the numbers in them count."""
    return sorted(values, key=alphanum_key)


def jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a run's folder, each with the rank that wrote it.

    They are those of `metrics.jsonl`, which rank 0 writes, or those of the files `logs_rank_*.jsonl` of early 2025.

    Raises
    ------
    DataError
        The path is not a folder of a run.
    """
    folder = _folder(path)
    if (folder / "metrics.jsonl").exists():
        return [{**record, "rank": 0} for record in read_metrics(folder / "metrics.jsonl")]
    found = [(re.fullmatch(r"logs_rank_(\d+)\.jsonl", file.name), file) for file in folder.iterdir()]
    early = sorted((int(match[1]), file) for match, file in found if match)
    if not (early or (folder / "config.yaml").exists() or (folder / ".hydra").exists()):
        raise DataError(
            f"'{path}' holds no run: it has neither metrics.jsonl nor logs_rank_0.jsonl, nor a config.yaml."
        )
    return [{**record, "rank": rank} for rank, file in early for record in _records_of(file)]


def _records_of(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of early 2025, without lines that were not written to their end."""
    for line in file.read_text().splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def jsonl_project(folder: str | Path, num_workers: int = 1) -> tuple[Any, list[list[dict[str, Any]]]]:
    """Return the configurations of all runs below a folder, a row of a table per run, and the records of each run.

    The columns are whole keys, such as "trainer.optim.epochs". `num_workers` does nothing.
    """
    import pandas
    from omegaconf import OmegaConf

    logs = (file for name in ("metrics.jsonl", "logs_rank_0.jsonl") for file in _folder(folder).rglob(name))
    runs = natural_sort({str(file.parent) for file in logs})
    return pandas.json_normalize([OmegaConf.to_container(config(run)) for run in runs]), [jsonl(run) for run in runs]


def config(path: str | Path) -> Any:
    """Return the configuration of a run's folder, as a DictConfig of OmegaConf."""
    from omegaconf import OmegaConf

    folder = _folder(path)
    early = folder / ".hydra" / "config.yaml"
    return OmegaConf.load(early if early.exists() and not (folder / "config.yaml").exists() else folder / "config.yaml")


def _folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"'{path}' is not a folder.")
    return folder


def wandb(
    entity: str, project: str, run_id: str, min_step: int = 0, max_step: int = -1, keys: Iterable[str] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Download a run from W&B: a table of its values by step, and its configuration.

    Parameters
    ----------
    entity, project, run_id
        The run.
    min_step, max_step
        The first step, counted from the end if it is negative, and the step after the last one. -1: all steps.
    keys
        Names of values. None: all that are numbers.
    """
    import pandas
    import wandb as client

    run = client.Api().run(f"{entity}/{project}/{run_id}")
    end = run.lastHistoryStep + 1 if max_step == -1 else max_step
    begin = end + min_step if min_step < 0 else min_step
    if keys is None:
        numbers = [name for name, value in run.summary.items() if name[0] != "_" and isinstance(value, int | float)]
        keys = [*numbers, "_runtime", "_timestamp"]
    wanted = [*dict.fromkeys([*keys, "_step"])]
    rows = run.scan_history(page_size=10_000, keys=wanted, min_step=begin, max_step=end)
    return pandas.DataFrame(list(rows)).set_index("_step"), run.config


def wandb_project(
    entity: str,
    project: str,
    min_step: int = 0,
    max_step: int = -1,
    keys: Iterable[str] | None = None,
    num_workers: int = 1,
    state: Iterable[str] = ("finished",),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Download the runs of a project that have one of the states: tables and configurations by run. See `wandb`.

    `num_workers` does nothing: the runs are read one after another.
    """
    import wandb as client

    runs = [run.id for run in client.Api().runs(f"{entity}/{project}") if run.state in state]
    found = {f"{entity}/{project}/{run}": wandb(entity, project, run, min_step, max_step, keys) for run in runs}
    return {run: table for run, (table, _) in found.items()}, {run: config for run, (_, config) in found.items()}


def wandb_project_to_table(
    dfs: dict[str, Any], configs: dict[str, Any], value: str, row: str, column: str, agg: Callable[[Any], Any]
) -> Any:
    """Return a table of a value of the runs of a project, by two settings of them.

    Parameters
    ----------
    dfs, configs
        What `wandb_project` returned.
    value
        Name of the value in the tables.
    row, column
        Keys of the two settings in the configurations.
    agg
        Makes one entry of the values of all runs that have the same settings, (runs, steps).
    """
    import numpy as np
    import pandas

    cells: dict[tuple[str, str], list[Any]] = {}
    for run, config in configs.items():
        cells.setdefault((str(config[row]), str(config[column])), []).append(dfs[run][value])
    rows, columns = (natural_sort({cell[axis] for cell in cells}) for axis in (0, 1))
    entries = [[agg(np.stack(cells[r, c])) if (r, c) in cells else None for c in columns] for r in rows]
    return pandas.DataFrame(entries, index=rows, columns=columns)


def __getattr__(name: str) -> Any:
    instead = {
        "flatten_config": "pandas.json_normalize(OmegaConf.to_container(reader.config(run))) makes a row of it.",
        "tabulate_runs": "pandas.pivot_table makes a table of what jsonl_project returns.",
    }
    if name in instead:  # they could not read the files that runs wrote in early 2025
        raise ImportError(f"stable_ssl.reader.{name} is gone: {instead[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
