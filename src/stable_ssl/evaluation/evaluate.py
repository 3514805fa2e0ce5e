"""Evaluating sources on data sets by protocols: features first, on all processes, then the figures."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..augmentations import EvalView
from ..compose import importable, origin_of
from ..engine.agreement import Alone, Together, join
from ..exceptions import ConfigError, DataError, nearest
from ..runtime.cpus import limit_threads
from ..runtime.device import resolve_device
from ..runtime.folder import read_config
from ..runtime.precision import resolve_precision
from .augmented import Augmented, FineTuning
from .augmented.running import size_of
from .features import BATCH, FeatureStore, How, Say, SetFeatures, usual_cache
from .fingerprints import of_dataset, of_view
from .live import sets_in
from .networks import Features
from .presets import PROTOCOLS
from .protocol import Figure, Labelled, OnFeatures, Protocol, Sets
from .request import DEFAULT, Request
from .results import FOLDER, IncompleteError, record, save
from .sets import EvaluationData, check_labels, open_data, own_data
from .sources import before_training, open_source, seen_by
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
    sets = [] if data is None else [data] if isinstance(data, str | Path | tuple) else [*data]
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
    shown = (value if isinstance(value, str | Path | None) else "…" for value in (source, data))
    return carry_out(request, f"evaluate({next(shown)!r}, {protocol!r}, {next(shown)!r}{given})")


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str | Path | nn.Module) else [*value]


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
                for subject in _opened(source, request)
                for job in _jobs(subject, protocols, request, store)
            ]
        results, problems = [], []
        # What all processes do together comes first: the others would not wait for the figures of rank 0.
        for job in sorted(jobs, key=lambda job: ranks.size > 1 and isinstance(job, _OnFeatures)):
            say(f"{job.subject.name}: {job.protocol.name} on {job.data.name}")
            try:
                result = job.measured(request, how.device, command)
                if ranks.is_main:
                    results.append(result)
                    if (folder := _folder(job.subject, request)) is not None:
                        save(result, folder)
            except (ConfigError, DataError) as error:
                if ranks.size > 1 and isinstance(job, _Training):
                    raise
                problems.append(f"{job.protocol.name}: {error}")
        if problems:
            raise IncompleteError(problems, results)
        return results


def _check_wishes(protocols: Sequence[Protocol], request: Request) -> None:
    """Raise a ConfigError for a wish that none of the protocols can grant, so that it would do nothing."""
    wishes: dict[str, tuple[Any, Callable[[Protocol], bool], str]] = {
        "--epochs": (request.epochs, lambda p: isinstance(p, Augmented), "trains on augmented images"),
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
    return replace(protocol, seeds=seeds, features=features)


def _folder(subject: Subject, request: Request) -> Path | None:
    """Return the folder for records; None if they are not written."""
    return request.out or (subject.run / FOLDER if subject.run else None)


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


def _opened(source: Any, request: Request) -> Iterator[Subject]:
    """Yield the networks of a source: of a run that has its first weights, before and after training."""
    if before := before_training(source):
        yield replace(opened(before, request), name=f"{source} before training")
    yield opened(source, request)


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


@dataclass(frozen=True)
class _Job:
    """One protocol on one source and data set."""

    subject: Subject
    protocol: Protocol
    data: EvaluationData

    def measured(self, request: Request, device: torch.device, command: str) -> dict[str, Any]:
        """Return the record of its figures."""
        labels = self.labels()
        num_classes = check_labels(self.data, *labels)
        departures = [*_departures(self.protocol, request)]
        figures = {
            seed: [_departing(figure, departures) for figure in self.figures(seed, num_classes, request, device)]
            for seed in range(self.protocol.seeds)
        }
        data = {
            "name": self.data.name,
            **{"train": len(labels[0]), "test": len(labels[1]), "classes": len(labels[0].unique())},
            "fingerprint": self.data.fingerprint,
        }
        view = self.view(request)
        digest = of_view(view)
        size, _, _ = seen_by(view, self.subject.backbone, self.subject.size)
        made = record(self.subject, self.protocol, data, size, figures, self.options(request), command)
        return {**made, "view": digest and digest[:16]}

    def labels(self) -> list[Tensor]:
        """Return the labels of the training set and the test set, those below 0 left out."""
        raise NotImplementedError

    def view(self, request: Request) -> Any:
        """Return what makes of a test image what the network gets."""
        raise NotImplementedError

    def options(self, request: Request) -> dict[str, Any]:
        """Return the wishes of a request that change the figures of a protocol."""
        wishes = {name: getattr(request, name) for name in ("features", "size", "precision", "batch")}
        return {name: wish for name, wish in wishes.items() if wish}

    def figures(self, seed: int, num_classes: int, request: Request, device: torch.device) -> list[Figure]:
        """Return the figures of one seed."""
        raise NotImplementedError


@dataclass(frozen=True)
class _OnFeatures(_Job):
    """A protocol on features, which are there."""

    protocol: OnFeatures
    train: SetFeatures
    test: SetFeatures

    def labels(self) -> list[Tensor]:
        return [part.labels[part.labels >= 0] for part in (self.train, self.test)]

    def view(self, request: Request) -> Any:
        return _view(self.subject, self.protocol, self.data, request)

    def figures(self, seed: int, num_classes: int, request: Request, device: torch.device) -> list[Figure]:
        train, test = (_labelled(part, num_classes) for part in (self.train, self.test))
        return self.protocol.measure(train, test, seed, device)


@dataclass(frozen=True)
class _Training(_Job):
    """A protocol that trains on augmented images, with all processes together. It goes on if it was interrupted."""

    protocol: Augmented

    def labels(self) -> list[Tensor]:
        return [part.labels for part in self.data.labelled]

    def options(self, request: Request) -> dict[str, Any]:
        wishes = {"epochs": request.epochs, "world_size": request.world_size}
        return super().options(request) | {name: wish for name, wish in wishes.items() if wish}

    def view(self, request: Request) -> Any:
        return self.protocol.test_view(self.subject, size_of(self.subject, request.size))

    def figures(self, seed: int, num_classes: int, request: Request, device: torch.device) -> list[Figure]:
        options: dict[str, Any] = {"epochs": request.epochs, "batch_size": request.batch, "size": request.size}
        options |= {"precision": request.precision, "workers": request.workers, "world_size": request.world_size}
        place = _folder(self.subject, request) or Path(FOLDER)
        data = [of_dataset(part) for part in (self.data.train, self.data.test)]
        settings = repr([self.subject.digest, self.data.name, data, self.protocol.features, [*options.items()]])
        out = place / "training" / f"{self.protocol.name}_{zlib.crc32(settings.encode()):08x}_seed_{seed}"
        return self.protocol.measure(self.subject, *self.data.labelled, seed, out, device, **options)


def _departing(figure: Figure, departures: Sequence[str]) -> Figure:
    """Return a figure that also tells where a request departs from what was published."""
    return replace(
        figure, details={**figure.details, "departures": [*figure.details.get("departures", ()), *departures]}
    )


def _labelled(part: SetFeatures, num_classes: int) -> Sets:
    has_label = part.labels >= 0
    chosen: Any = slice(None) if has_label.all() else has_label
    labels: Tensor = part.labels[chosen]
    return {name: Labelled(values[chosen], labels, num_classes) for name, values in part.values.items()}


def _jobs(subject: Subject, protocols: Sequence[Protocol], request: Request, store: FeatureStore) -> Iterator[_Job]:
    """Yield what is to be measured of a source, with its features. Ranks other than 0 get what all train together."""
    config = read_config(subject.run) if subject.run else None
    folders = origin_of(subject.run, "config")[1] if subject.run else []
    with importable(*folders, Path.cwd()):
        for what in request.data or [None]:
            if what is not None:
                data = open_data(what, request.overrides, request.labels, subject.channels)
            else:
                data = sets_in(subject.loaders) if subject.loaders else own_data(subject, config)
            for protocol in protocols:
                _check_features(subject, protocol, request)
                if isinstance(protocol, Augmented):
                    subject.check_view()
                    yield _Training(subject, protocol, data)
                elif isinstance(protocol, OnFeatures):
                    view = _view(subject, protocol, data, request)
                    train, test = (
                        store.features(
                            subject, protocol.features, dataset, view, f"{subject.name}, {part} of {data.name}"
                        )
                        for part, dataset in (("train", data.train), ("test", data.test))
                    )
                    if train is not None and test is not None:
                        yield _OnFeatures(subject.without_networks(), protocol, data, train, test)


def _check_features(subject: Subject, protocol: Protocol, request: Request) -> None:
    """Raise a ConfigError if a network does not give the features of a protocol, before anything is computed."""
    try:
        Features(subject, protocol.features)
    except ConfigError as error:
        if request.features:
            raise
        told = str(error).removeprefix("--features: ")
        advice = "--features representation takes what every network gives; that is then not what was published."
        raise ConfigError(f"--protocol {protocol.name}: {told} {advice}") from error


def _departures(protocol: Protocol, request: Request) -> Iterator[str]:
    """Yield what a request wants otherwise than a protocol says. Of its runs, a protocol that trains tells the rest."""
    published = PROTOCOLS[protocol.name]
    if set(protocol.features) != set(published.features):
        yield f"features: {', '.join(protocol.features)} instead of {', '.join(published.features)}"
    if isinstance(protocol, OnFeatures) and published.view == "224" and request.size is not None:
        yield f"size: {request.size} instead of 224"
    if protocol.seeds != published.seeds:
        yield f"seeds: {protocol.seeds} instead of {published.seeds}"


def _view(subject: Subject, protocol: Protocol, data: EvaluationData, request: Request) -> Any:
    """Return what makes of an image what the network gets under a protocol."""
    if protocol.view == "own" or request.size == "native" or request.view is not None:
        return view_for(subject, data.is_own)
    subject.check_view()
    size = request.size if isinstance(request.size, int) else 224
    return EvalView(size, round(size * protocol.resize / 224), subject.mean, subject.std, "bicubic")


def view_for(subject: Subject, is_own: bool) -> Any:
    """Return the view of a source's own evaluation. A run without one takes its own images as they are."""
    if subject.view is not None or is_own:
        return subject.view
    subject.check_view()
    return EvalView(_side(subject), None, subject.mean, subject.std)


def _side(subject: Subject) -> Any:
    return subject.size[0] if subject.size[0] == subject.size[1] else subject.size
