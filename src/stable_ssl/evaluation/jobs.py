"""What an evaluation consists of: each protocol on each source and data set, with what it needs."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..augmentations import EvalView
from ..compose import importable, origin_of
from ..exceptions import ConfigError
from ..runtime.folder import read_config
from .augmented import Augmented
from .augmented.running import Options, scale_of, size_of
from .features import FeatureStore, SetFeatures
from .fingerprints import is_of_libraries, of_view, versions_of
from .live import sets_in
from .networks import Features
from .presets import PROTOCOLS
from .protocol import Figure, Labelled, OnFeatures, Protocol, Sets
from .request import Request
from .results import FOLDER, record
from .sets import EvaluationData, check_labels, open_data, own_data
from .sources import seen_by
from .subject import Subject


@dataclass(frozen=True)
class Job:
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
class JobOnFeatures(Job):
    """A protocol on features, which are there."""

    protocol: OnFeatures
    train: SetFeatures
    test: SetFeatures

    def labels(self) -> list[Tensor]:
        """As `Job.labels`."""
        return [part.labels[part.labels >= 0] for part in (self.train, self.test)]

    def view(self, request: Request) -> Any:
        """As `Job.view`."""
        return _view(self.subject, self.protocol, self.data, request)

    def figures(self, seed: int, num_classes: int, request: Request, device: torch.device) -> list[Figure]:
        """As `Job.figures`."""
        train, test = (_labelled(part, num_classes) for part in (self.train, self.test))
        return self.protocol.measure(train, test, seed, device)


@dataclass(frozen=True)
class TrainingJob(Job):
    """A protocol that trains on augmented images, with all processes together. It goes on if it was interrupted."""

    protocol: Augmented

    def labels(self) -> list[Tensor]:
        """As `Job.labels`."""
        return [part.labels for part in self.data.labelled]

    def options(self, request: Request) -> dict[str, Any]:
        """As `Job.options`."""
        wishes = {name: getattr(request, name) for name in ("epochs", "few_shot", "world_size")}
        return super().options(request) | {name: wish for name, wish in wishes.items() if wish}

    def view(self, request: Request) -> Any:
        """As `Job.view`."""
        return self.protocol.test_view(self.subject, size_of(self.subject, request.size))

    def figures(self, seed: int, num_classes: int, request: Request, device: torch.device) -> list[Figure]:
        """As `Job.figures`."""
        wishes: dict[str, Any] = {"epochs": request.epochs, "batch_size": request.batch, "size": request.size}
        wishes |= {"precision": request.precision, "workers": request.workers, "world_size": request.world_size}
        train, test = self.data.labelled
        scale = scale_of(self.protocol, self.subject, len(train), device, Options(**wishes))
        of_network = [self.subject.digest, *versions_of(self.subject.network)]
        known = [
            *of_network,
            self.data.name,
            self.data.fingerprint,
            self.protocol.features,
            self.protocol.labels,
            scale,
        ]
        name = f"{self.protocol.name}_{zlib.crc32(repr(known).encode()):08x}_seed_{seed}"
        with self._place(request, scale.world_size) as place:
            return self.protocol.measure(self.subject, train, test, seed, place / name, device, **wishes)

    @contextmanager
    def _place(self, request: Request, world_size: int) -> Iterator[Path]:
        """Yield the folder for runs: one that stays, unless another evaluation could take the runs for its own.

        Raises
        ------
        ConfigError
            It could, and several processes would need one folder.
        """
        is_known = self.data.fingerprint is not None and is_of_libraries(self.subject.network)
        if not is_known and world_size > 1:
            raise ConfigError(
                "--world-size: this network or these images can't be told from others, since code of your own makes "
                "them. Train in one process, or give a folder of images and a network of a library."
            )
        if is_known:
            yield (folder_of_records(self.subject, request) or Path(FOLDER)) / "training"
        else:
            with tempfile.TemporaryDirectory(prefix="stable_ssl_training_") as folder:
                yield Path(folder)


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


def jobs_of(subject: Subject, protocols: Sequence[Protocol], request: Request, store: FeatureStore) -> Iterator[Job]:
    """Yield what is to be measured of a source, with its features. Ranks other than 0 get what all train together."""
    for protocol in protocols:
        _check_features(subject, protocol, request)
    config = read_config(subject.run) if subject.run else None
    folders = origin_of(subject.run, "config")[1] if subject.run else []
    with importable(*folders, Path.cwd()):
        for what in request.data or [None]:
            if what is not None:
                data = open_data(what, request.overrides, request.labels, subject.channels)
            else:
                data = sets_in(subject.loaders) if subject.loaders else own_data(subject, config)
            for protocol in protocols:
                if isinstance(protocol, Augmented):
                    subject.check_view()
                    yield TrainingJob(subject, protocol, data)
                elif isinstance(protocol, OnFeatures):
                    view = _view(subject, protocol, data, request)
                    train, test = (
                        store.features(
                            subject, protocol.features, dataset, view, f"{subject.name}, {part} of {data.name}"
                        )
                        for part, dataset in (("train", data.train), ("test", data.test))
                    )
                    if train is not None and test is not None:
                        yield JobOnFeatures(subject.without_networks(), protocol, data, train, test)


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
    if isinstance(protocol, OnFeatures) and published.view == "224" and request.size not in (None, 224):
        yield f"size: {request.size} instead of 224"
    if isinstance(protocol, Augmented) and isinstance(published, Augmented) and protocol.labels != published.labels:
        yield f"images: {_amount_in_words(protocol.labels)} instead of {_amount_in_words(published.labels)}"
    if protocol.seeds != published.seeds:
        yield f"seeds: {protocol.seeds} instead of {published.seeds}"


def _amount_in_words(amount: float | int | None) -> str:
    """Return how many images a protocol takes, as `Augmented.labels` says it."""
    if amount is None:
        return "all"
    return f"{100 * amount:g} % of each class" if isinstance(amount, float) else f"{amount} of each class"


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


def folder_of_records(subject: Subject, request: Request) -> Path | None:
    """Return the folder for records; None if they are not written."""
    return request.out or (subject.run / FOLDER if subject.run else None)
