"""The check of a run, from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..exceptions import ConfigError, Preempted, some_of
from ..lines import lines_of, shown
from ..runtime.seeding import preserved_generators
from .cards import Card
from .offline import offline
from .report import ERROR, WARNING, Finding, Report
from .stage import Stage, maker_of

Part = Callable[[Stage], None]


def rehearse(
    config: Mapping[str, Any],
    make: Callable[[], Any] | None = None,
    card: Card | None = None,
    world_size: int | None = None,
    all_data: bool = False,
    is_quick: bool = False,
    has_samples: bool = True,
    slurm: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Find out what can be known about a run, without its GPU.

    Parameters
    ----------
    config
        The configuration of the run, `{"trainer": {...}}`.
    make
        Makes the run's trainer, anew at each call. None: as the configuration describes it.
    card
        The card that it is meant for. None: figures are given, and no verdict on memory.
    world_size
        Number of processes, one per card. None: that of the Slurm job, or of the configuration.
    all_data
        Read all samples, instead of some.
    is_quick
        Look at the configuration, and at the first sample of each data set, only.
    has_samples
        False: a quick check leaves out the samples, too.
    slurm
        The parameters of the Slurm job that the run is submitted as, by submitit's names. None: it is not.
    say
        Gets the name of each part of the check when it begins.
    """
    report = Report()
    with TemporaryDirectory(prefix="stable_ssl_") as folder, preserved_generators():
        size = world_size or _world_size(config, slurm)
        stage = Stage(config, make or maker_of(config), Path(folder), report, card, size, all_data, slurm)
        for name, part in parts(is_quick, has_samples):
            say(name)
            try:
                # What the run prints is not what the check prints.
                with redirect_stdout(StringIO()), redirect_stderr(StringIO()), offline(), torch.enable_grad():
                    part(stage)
            except Preempted:
                raise
            # Each part tells of the run's faults, so what it raises is its own fault.
            except (Exception, SystemExit) as error:
                file, number = lines_of(error)[0]
                report.broken.setdefault(name, f"{type(error).__name__}: {error} ({shown(file, number)})")
    return report


def _world_size(config: Mapping[str, Any], slurm: Mapping[str, Any] | None) -> int:
    """Return the number of processes that a Slurm job or a configuration asks for."""
    if slurm:
        return int(slurm["nodes"] * slurm["tasks_per_node"])
    hardware = _section(config, "hardware")
    size = hardware.get("world_size", 1) if isinstance(hardware, Mapping) else 1
    return size if isinstance(size, int) and size > 0 else 1


def _section(config: Mapping[str, Any], name: str) -> Any:
    """Return a section of a configuration, whatever it is; None if there is none."""
    trainer = config.get("trainer")
    return trainer.get(name) if isinstance(trainer, Mapping) else None


def check_others(
    report: Report, config: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], **options: Any
) -> None:
    """Look at the other runs of a sweep: at each configuration, and at the first samples of data that are new.

    Parameters
    ----------
    report
        What was found of the first run. It gets what is not in it yet, each fault once, after the names of its runs.
    config, others
        The configuration of the first run, and those of the others by name.
    **options
        Arguments of `rehearse`.
    """
    seen, runs = [_section(config, "data")], dict[Finding, list[str]]()
    for name, other in others.items():
        data = _section(other, "data")
        found = rehearse(other, is_quick=True, has_samples=data not in seen, **options)
        seen.append(data)
        report.broken.update(found.broken)
        for finding in found.findings:
            if finding not in report.findings:
                runs.setdefault(finding, []).append(name)
    for finding, names in runs.items():
        report.add(finding.level, finding.part, f"{some_of(names, 2, '; ')}: {finding.text}")


def check_first(
    config: Mapping[str, Any], say: Callable[[str], None], others: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Look at the configuration and at the first samples of a run that is about to begin, in a few seconds.

    Parameters
    ----------
    config
        The configuration of the run, `{"trainer": {...}}`.
    say
        Gets a line per warning.
    others
        The configurations of the other runs of a sweep, by name.

    Raises
    ------
    ConfigError
        The run certainly fails. The error has a sentence per reason.
    """
    report = rehearse(config, is_quick=True)
    check_others(report, config, others or {})
    for finding in report.of(WARNING):
        say(f"{finding.part}: {finding.text}")
    for name, error in report.broken.items():
        say(f"the check of the {name} broke: {error}")
    if errors := report.of(ERROR):
        raise ConfigError([*(finding.text for finding in errors), "--no-check begins without this check."])


def parts(is_quick: bool, has_samples: bool = True) -> list[tuple[str, Part]]:
    """Return what a check does, in its order, each with the part of the report that it belongs to."""
    from .configuration.building import build_parts
    from .configuration.settings import check_configuration
    from .device.on_meta import check_on_meta
    from .resources.jobs import check_slurm
    from .resources.memory import check_memory
    from .resources.pace import check_pace
    from .resources.surroundings import check_disk
    from .samples.sets import check_first_samples, check_samples
    from .step.small_run import check_small_run

    if is_quick:
        samples: list[tuple[str, Part]] = [("data", check_first_samples)] if has_samples else []
        return [("configuration", check_configuration), *samples]
    return [
        ("configuration", check_configuration),
        ("configuration", build_parts),
        ("data", check_samples),
        ("step", check_small_run),
        ("device", check_on_meta),
        ("memory", check_memory),
        ("time", check_pace),
        ("disk", check_disk),
        ("slurm", check_slurm),
    ]
