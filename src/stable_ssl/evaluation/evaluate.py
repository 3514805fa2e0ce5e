"""Evaluating sources on data sets by protocols: features first, on all processes, then the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..engine.agreement import Together, join
from ..engine.alone import Alone
from ..exceptions import CheckpointError, ConfigError, DataError, nearest
from ..runtime.cpus import limit_threads
from ..runtime.device import resolve_device
from ..runtime.precision import resolve_precision
from .augmented import Augmented, FineTuning
from .features import BATCH, FeatureStore, How, Say, usual_cache
from .jobs import JobOnFeatures, TrainingJob, folder_of_records, jobs_of
from .presets import PROTOCOLS
from .protocol import Protocol
from .request import DEFAULT, Request
from .results import IncompleteError, save
from .sources import before_training, open_source
from .subject import Subject


def evaluate(
    source: Any, protocol: str | Sequence[str] = DEFAULT, data: Any = None, **options: Any
) -> list[dict[str, Any]]:
    """Measure what the features of networks are worth. `stable-ssl eval` does the same.

    Parameters
    ----------
    source
        A run's folder, one of its files of weights or checkpoints, `timm/NAME` or `torchvision/NAME`; a trainer that is
        set up, or a network together with `view`; or a list of these.
    protocol
        The name of a protocol, or a list of names. docs/evaluate.md describes each.
    data
        A folder, a file of `stable-ssl prepare`, a recipe of data, a pair of data sets (train, test), or a list of
        these. None: a run's own sets.
    **options
        The other fields of `Request`.

    Returns
    -------
    list of dict
        A record per source, data set and protocol, as it is written to `RUN/evaluations/`. Its "figures" have the
        accuracies.

    Raises
    ------
    ConfigError, CheckpointError, DataError
        Something can't be evaluated. The message says why. If it is an `IncompleteError`, its `results` are the other
        records.

    Examples
    --------
    >>> from stable_ssl.evaluation import evaluate
    >>> evaluate("runs/simclr", "held-out")[0]["figures"]["knn"]["accuracy"]  # doctest: +SKIP
    0.87
    """
    sets = [] if data is None else data if isinstance(data, list) else [data]
    known = [field.name for field in fields(Request)][3:]
    for name in options:
        if name not in known:
            raise ConfigError(f"{name}: unknown option. There are {', '.join(known)}.{nearest(name, known)}")
    places = {"cache": options.get("cache", usual_cache()), "out": options.get("out")}
    places = {key: None if value in (None, "none") else Path(value).expanduser() for key, value in places.items()}
    request = Request(_listed(source), _listed(protocol), sets, **{**options, **places})
    given = "".join(
        f", {key}={value!r}" for key, value in options.items() if key not in ("module", "view", "world_size")
    )
    shown = (
        str(value) if isinstance(value, str | Path) else None if value is None else "…" for value in (source, data)
    )
    return carry_out(request, f"evaluate({next(shown)!r}, {protocol!r}, {next(shown)!r}{given})")


def _listed(value: Any) -> list[Any]:
    return [*value] if isinstance(value, list | tuple) else [value]


def protocol_named(name: str) -> Protocol:
    """Return the protocol of this name, or raise a ConfigError that lists them."""
    if name not in PROTOCOLS:
        raise ConfigError(
            f"--protocol: there is no '{name}'. There are {', '.join(PROTOCOLS)}.{nearest(name, PROTOCOLS)}"
        )
    found: Protocol = PROTOCOLS[name]
    return found


def carry_out(request: Request, command: str, say: Say = lambda line: None) -> list[dict[str, Any]]:
    """Evaluate what a request asks for, write the records, and return them; an empty list on ranks other than 0.

    Parameters
    ----------
    request
        The request.
    command
        What makes the same records.
    say
        Gets lines on what is done.

    Raises
    ------
    IncompleteError
        Some protocols could not be carried out, or some records not be written. The others were.
    ConfigError, CheckpointError, DataError
        None can be carried out as it is asked for.
    """
    request.check()
    protocols = [protocol_named(name) for name in dict.fromkeys(request.protocols)]
    _check_wishes(protocols, request)
    protocols = [_with_wishes(protocol, request) for protocol in protocols]
    with ExitStack() as stack:
        with together(request) as (ranks, how):
            store = stack.enter_context(closing(FeatureStore(how, ranks, say)))
            jobs = [
                job
                for source in request.sources
                for subject in _opened(source, request, ranks)
                for job in jobs_of(subject, protocols, request, store)
            ]
        results, problems = [], []
        # What all processes do together comes first: the others would not wait for the figures of rank 0.
        for job in sorted(jobs, key=lambda job: ranks.size > 1 and isinstance(job, JobOnFeatures)):
            say(f"{job.subject.name}: {job.protocol.name} on {job.data.name}")
            try:
                result = job.measured(request, how.device, command)
            except (ConfigError, DataError, CheckpointError) as error:
                if ranks.size > 1 and isinstance(job, TrainingJob):
                    raise
                problems.append(f"{job.protocol.name}: {error}")
                continue
            if ranks.is_main:
                results.append(result)
                try:
                    if (folder := folder_of_records(job.subject, request)) is not None:
                        save(result, folder)
                except ConfigError as error:
                    problems.append(f"{job.protocol.name}: {error}")
        if problems:
            raise IncompleteError(problems, results)
        return results


def _check_wishes(protocols: Sequence[Protocol], request: Request) -> None:
    """Raise a ConfigError for a wish that none of the protocols can grant, so that it would do nothing."""
    wishes: dict[str, tuple[Any, Callable[[Protocol], bool], str]] = {
        "--epochs": (request.epochs, lambda p: isinstance(p, Augmented), "trains on augmented images"),
        "--few-shot": (request.few_shot, lambda p: isinstance(p, Augmented), "trains on augmented images"),
        "--seeds": (request.seeds, _is_random, "has anything random"),
        "--features": (request.features, lambda p: not isinstance(p, FineTuning), "compares features"),
        "view": (request.view, lambda p: not isinstance(p, Augmented), "takes another view"),
    }
    for option, (wish, is_for, what) in wishes.items():
        if wish and not any(map(is_for, protocols)):
            names = " and ".join(protocol.name for protocol in protocols)
            raise ConfigError(f"{option}: nothing in {names} {what}. Leave it out.")


def _is_random(protocol: Protocol) -> bool:
    return protocol.seeds > 1 or isinstance(protocol, Augmented)


def _with_wishes(protocol: Protocol, request: Request) -> Protocol:
    """Return a protocol with the features and the number of seeds that a request wants, if it has a use for them."""
    seeds = request.seeds if request.seeds and _is_random(protocol) else protocol.seeds
    features = protocol.features if isinstance(protocol, FineTuning) else tuple(request.features or protocol.features)
    found = replace(protocol, seeds=seeds, features=features)
    if request.few_shot is not None and isinstance(found, Augmented):
        return replace(found, labels=request.few_shot)
    return found


@contextmanager
def together(request: Request) -> Iterator[tuple[Alone | Together, How]]:
    """Yield the processes, and how they compute features. They leave together; if one fails, all end."""
    ranks = join(request.world_size)
    try:
        limit_threads()
        device = resolve_device(request.device, ranks.local_rank, ranks.size)
        precision = resolve_precision(request.precision or "fp32", device, ranks.size)
        yield ranks, How(device, precision, request.batch or BATCH, request.workers, request.cache, request.limit)
    except BaseException as error:
        ranks.fail(error)
        raise
    finally:
        ranks.leave()


def _opened(source: Any, request: Request, ranks: Alone | Together) -> Iterator[Subject]:
    """Yield the networks of a source: of a run that has its first weights, before and after training.

    Raises
    ------
    CheckpointError
        Not all processes have read the same weights.
    """
    if before := ranks.from_main(lambda: before_training(source)):
        yield replace(opened(before, request), name=f"{source} before training")
    subject = opened(source, request)
    if ranks.from_main(lambda: subject.digest) != subject.digest:
        raise CheckpointError(
            f"'{subject.name}' changed while several processes read it, as a run does that goes on. Name one of its "
            "files of weights."
        )
    yield subject


def opened(source: Any, request: Request) -> Subject:
    """Return a source as a request wants it to be seen."""
    return open_source(
        source,
        backbone=request.backbone,
        network=request.network,
        size=request.size if isinstance(request.size, int) else None,
        view=request.view,
        module=request.module,
    )
