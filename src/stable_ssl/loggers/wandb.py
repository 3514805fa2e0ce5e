"""Metrics in Weights & Biases."""

from __future__ import annotations

import difflib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..exceptions import ConfigError
from .base import Status, Tracker, numbers

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("stable_ssl")

OPTIONS = ("dir", "entity", "project", "name", "id", "tags", "group")


class WandbTracker(Tracker):
    """Sends metrics to one W&B run, however often the run is started again.

    The W&B run's id is made once and kept in `<dump_path>/wandb.json`. Without a login, or when W&B can't be
    reached, everything is written offline and a log line says how to upload it. `WANDB_MODE` and the other variables
    of W&B are respected; an option that is given here wins over its variable. A W&B run that is open already, that of
    a sweep's agent say, is used as it is, and left open.

    Steps of which a killed process had logged more than its checkpoint held are logged once more: the horizontal
    axis is `global_step`, which W&B, unlike its own step, lets go back.

    Parameters
    ----------
    dump_path
        The run's folder; its name is the default for the W&B run's, and it holds W&B's files unless `dir` is given.
    options
        `dir`, `entity`, `project`, `name`, `id`, `tags`, `group`: arguments of `wandb.init`.
    config
        What W&B shows as the run's configuration.

    Raises
    ------
    ConfigError
        An option is unknown, or W&B refuses its value.
    ImportError
        The package `wandb` is missing.
    """

    def __init__(self, dump_path: Path, options: Mapping[str, Any], config: Mapping[str, Any]):
        _check_options(options)
        import wandb

        self._is_ours = wandb.run is None
        if wandb.run is not None:
            self._run = wandb.run
            log.info("W&B: metrics go to the run that is open, '%s'.", self._run.name)
        else:
            self._run = _init(dump_path, options, config)
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Send the numbers as one row."""
        self._run.log({"global_step": step, **numbers(record)})

    def close(self, status: Status) -> None:
        """Finish the W&B run; one that was preempted goes on when the run is started again."""
        if not self._is_ours:
            return
        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status in ("finished", "stopped") else 1)


def _check_options(options: Mapping[str, Any]) -> None:
    problems = []
    for key in options:
        if key not in OPTIONS:
            near = difflib.get_close_matches(str(key), OPTIONS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(OPTIONS)}."
            problems.append(f"logger.wandb.{key}: unknown; {hint}")
    if problems:
        raise ConfigError(problems)


def _init(dump_path: Path, options: Mapping[str, Any], config: Mapping[str, Any]) -> wandb.Run:
    """Start the W&B run of this folder, or go on with it."""
    import wandb

    env = os.environ
    service = env.get("WANDB_SERVICE")
    given = {key: value for key, value in options.items() if value is not None}
    given.setdefault("name", env.get("WANDB_NAME") or dump_path.resolve().name)
    given["id"] = _run_id(dump_path, given.get("id") or env.get("WANDB_RUN_ID"))
    given["dir"] = str(given.get("dir") or env.get("WANDB_DIR") or dump_path)
    Path(given["dir"]).mkdir(parents=True, exist_ok=True)
    mode = env.get("WANDB_MODE") or wandb.setup().settings.mode
    why = ""
    if mode == "online" and not _has_login():
        mode, why = "offline", "no login was found"
    # The console is ours, and W&B's own messages would tear the progress bar.
    settings = wandb.Settings(console="off", silent=True)

    def start(mode: str) -> wandb.Run:
        return wandb.init(**given, config=dict(config), mode=mode, resume="allow", settings=settings)  # type: ignore[arg-type]

    try:
        try:
            run = start(mode)
        except wandb.errors.CommError as error:
            mode, why = "offline", f"it can't be used ({error})"
            run = start(mode)
    except wandb.errors.UsageError as error:
        raise ConfigError(f"logger.wandb: {error}") from error
    finally:
        # Set by W&B; a job submitted from here would look for this process's service.
        if service is None:
            env.pop("WANDB_SERVICE", None)
    if run.settings.mode == "online":
        log.info("W&B: %s", run.url)
    elif run.settings.mode == "offline":
        folder = Path(run.dir).parent
        log.log(
            logging.WARNING if why else logging.INFO,
            "W&B: %swriting offline; `wandb sync '%s'` uploads it.",
            f"{why}, " if why else "",
            folder,
        )
    return run


def _run_id(dump_path: Path, given: str | None) -> str:
    """Return the id that was given, else the one in the folder's `wandb.json`, else a new one; keep it there."""
    path = dump_path / "wandb.json"
    kept = json.loads(path.read_text())["id"] if path.exists() else None
    run_id = given or kept or secrets.token_hex(4)
    if run_id != kept:
        part = path.with_name(".wandb.json.part")
        part.write_text(json.dumps({"id": run_id}) + "\n")
        os.replace(part, path)
    return run_id


def _has_login() -> bool:
    """Say whether W&B would find credentials without asking for them."""
    import wandb
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.api_key:
        return True
    return get_netrc_auth(settings.base_url) is not None
