"""Each broken configuration of the tables gets the one line that names its fault, without a step."""

from __future__ import annotations

import copy
import functools

import pytest
from broken_configurations import NODES, SETTINGS
from hydra.core.override_parser.overrides_parser import OverridesParser

from stable_ssl.compose import compose
from stable_ssl.exceptions import ConfigError
from stable_ssl.rehearsal.configuration.building import build_parts
from stable_ssl.rehearsal.configuration.settings import check_configuration
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.stage import Stage, maker_of

composed = functools.cache(compose)


def configured(recipe, overrides):
    """Return what `compose` returns; much sooner, if the overrides concern the trainer's own keys only."""
    config = copy.deepcopy(composed(recipe))
    parsed = OverridesParser.create().parse_overrides(overrides)
    keys = [one.key_or_group.removeprefix("trainer.").split(".") for one in parsed]
    if any(len(key) == 1 or key[0] not in config["trainer"] for key in keys) or "metric.tset" in str(overrides):
        return compose(recipe, overrides)
    for one, (*path, name) in zip(parsed, keys, strict=True):
        place = config["trainer"]
        for part in path:
            place[part] = place.get(part) or {}
            place = place[part]
        if one.is_delete():
            del place[name]
        else:
            place[name] = one.value()
    return config


@pytest.mark.parametrize(("recipe", "overrides", "level", "line"), SETTINGS + NODES)
def test_the_line_that_names_the_fault_is_there(recipe, overrides, level, line, tmp_path):
    report = Report()
    try:
        config = configured(recipe, overrides.split())
    except ConfigError as error:  # as the command line says it
        report.refuse("configuration", error)
        config = None
    stage = Stage(config, maker_of(config or {}), tmp_path, report)
    for part in (check_configuration, build_parts):
        if config is not None:
            part(stage)
        found = [one.text for one in stage.report.of(level)]
        if any(text.startswith(line) for text in found):
            return
    pytest.fail(f"found: {stage.report.findings}")
