"""Carrying out a request: plan a run or go on with it, and say what came of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

from yaml import YAMLError

from ..compose import compose, importable, in_folder
from ..data.scanning import list_images
from ..exceptions import ConfigError, Preempted, option_named
from ..instantiate import instanciate_config
from ..nodes import build
from ..runtime.checkpoint import CheckpointStore
from ..runtime.folder import differences, read_config
from ..runtime.launchers import find_place
from ..runtime.runs_of_2025 import run_of_2025
from ..runtime.status import COMPLETE, read_status
from .planning import plan
from .request import Request
from .results import describe

Check = Callable[[dict[str, Any], Callable[[str], None]], None]


def carry_out(request: Request, say: Callable[[str], None], check: Check | None = None) -> Path:
    """Train the run of a request, or go on with it; return its folder.

    Parameters
    ----------
    request
        What was asked for.
    say
        Gets lines for the user.
    check
        Looks at the configuration of a run that begins, and raises a ConfigError if it certainly fails. It gets `say`
        for its warnings. None: nothing looks.

    Raises
    ------
    ConfigError
        The request can't be carried out, or its folder holds another run.
    Preempted, KeyboardInterrupt
        The run was asked to stop. The same request goes on with it.
    """
    place = find_place()
    if place is not None and place.size > 1:
        raise ConfigError(
            f"pretrain: {place.launcher} started {place.size} processes, and pretrain begins in one. Start it so; once "
            "its run is there, `stable-ssl resume RUN` goes on in several processes."
        )
    folder = request.place()
    held = _held(folder)
    if held is not None and _failed_at_once(folder, held, request):
        held = None
    if held is None:
        _check_place(folder, request.folder)
    else:
        _check_same(folder, held, request)
    if held is None or read_status(folder).get("status") not in COMPLETE:
        try:
            _train(folder, held is None, request, say, check)
        except (KeyboardInterrupt, Preempted):
            what = f"the run in '{folder}' was stopped" if read_config(folder) else "nothing was trained yet"
            then = "goes on" if _has_checkpoint(folder) else "begins anew, since nothing was saved"
            say(f"{what}; the same line {then}.")
            raise
    else:
        _say_changes(request, held, say)
        longer = f"`stable-ssl resume {quote(str(folder))} optim.epochs=N` trains for longer"
        say(f"the run in '{folder}' is finished. {longer}; another --out trains anew.")
    say(f"{read_status(folder).get('status')}.\n{describe(folder)}")
    return folder


def _failed_at_once(folder: Path, held: dict[str, Any], request: Request) -> bool:
    """Return whether a folder holds a run of pretrain with other arguments that failed before it saved anything."""
    is_other = held.get("pretrain", {}).get("arguments", request.arguments()) != request.arguments()
    return is_other and read_status(folder).get("status") == "failed" and not _has_checkpoint(folder)


def _has_checkpoint(folder: Path) -> bool:
    """Return whether a run has a checkpoint to go on from."""
    return not CheckpointStore(folder / "checkpoints").is_empty()


def _say_changes(request: Request, held: dict[str, Any] | None, say: Callable[[str], None]) -> None:
    """Say if the folder has another number of images than when its finished run began."""
    if held is None:
        return
    try:
        dataset = build(held["trainer"]["data"]["train"]["dataset"], "data.train.dataset")
    except ConfigError:  # what was learned is there, whatever has become of the images
        return
    if len(dataset) != (then := held["pretrain"]["images"]):
        say(
            f"'{request.folder}' had {then} images to train on then, and has {len(dataset)} now; another --out trains "
            "on them."
        )


def _train(folder: Path, is_new: bool, request: Request, say: Callable[[str], None], check: Check | None) -> None:
    with importable(Path.cwd()):
        if is_new:
            config = plan(request, say)
            if check:
                check(config, say)
            optim = config["trainer"]["optim"]
            length = f"{request.minutes:g} minutes" if request.minutes is not None else f"epochs: {optim['epochs']}"
            say(f"{request.method} with {request.backbone}, {length}, in '{folder}'")
        else:
            config = compose(str(folder / "config.yaml"))
            anew = "" if _has_checkpoint(folder) else ", which has no checkpoint: it begins anew"
            say(f"going on with the run in '{folder}'{anew}")
        with option_named("logger.dump_path", "pretrain: --out"):
            instanciate_config(in_folder(config, str(folder)))()


def _held(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's `config.yaml`, or None if there is no such file."""
    try:
        return read_config(folder)
    except (OSError, ValueError, YAMLError) as error:
        raise ConfigError(
            f"pretrain: '{folder / 'config.yaml'}' can't be read: {error}. If it is of a run, `stable-ssl resume "
            f"{quote(str(folder))}` helps; else give another --out."
        ) from error


def _check_place(folder: Path, images: Path) -> None:
    """Refuse a folder that can't be made, or is one of images, before anything is read or timed."""
    place, real, of_images = folder.absolute(), folder.resolve(), images.resolve()
    if real == of_images or (real.is_relative_to(of_images) and list_images(real).files):
        raise ConfigError(
            f"pretrain: --out: '{folder}' has the images, and the run's files would lie among them. Give another --out."
        )
    while not os.path.lexists(place):
        place = place.parent
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        what = "may not be written" if os.path.isdir(place) else "is a file" if place.is_file() else "is no folder"
        raise ConfigError(f"pretrain: --out: '{folder}' can't be made: '{place}' {what}. Give another --out.")


def _check_same(folder: Path, held: dict[str, Any], request: Request) -> None:
    """Refuse a folder that holds another run."""
    if "pretrain" not in held:
        what = run_of_2025(folder) or f"'{folder}' holds a configuration that pretrain did not write."
        raise ConfigError(f"pretrain: --out: {what} Give another folder.")
    found = list(differences(held["pretrain"]["arguments"], request.arguments()))
    if found:
        changed = "; ".join(f"{name} was {before!r}, now it is {now!r}" for name, before, now in found)
        raise ConfigError(
            f"pretrain: --out: '{folder}' holds a run with other arguments: {changed}. Give another --out. "
            f"`stable-ssl resume {quote(str(folder))} key=value` goes on with that run."
        )
