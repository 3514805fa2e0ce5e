"""The backbone of a run, built as the run's configuration describes it, with the run's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..exceptions import CheckpointError, ConfigError, nearest
from ..nodes import build, is_node, live_paths
from ..runtime.seeding import preserved_generators
from ..weights.loading import load_weights
from ..weights.runs import Run, path_of_backbone, read_run
from ..weights.sources import Source

_TAKE_CLASSES = ("load_backbone", "ViT", "Resnet9", "ConvMixer")


@dataclass(frozen=True)
class BackboneNode:
    """The backbone of a run, as its configuration describes it.

    Attributes
    ----------
    run
        The run.
    path
        Where the network is among the run's modules, such as "backbone.teacher".
    node
        What builds the network.
    """

    run: Run
    path: str
    node: Mapping[str, Any]

    @property
    def target(self) -> str:
        """The last part of the name of what builds the network, such as "load_backbone"."""
        return str(self.node["_target_"]).rpartition(".")[2]

    @property
    def takes_classes(self) -> bool:
        """Whether what builds the network takes `num_classes`, which is None for a network without a last layer."""
        return "stable_ssl" in str(self.node["_target_"]) and self.target in _TAKE_CLASSES


def find_backbone(place: str, network: str | None = None) -> BackboneNode:
    """Return the backbone of a run in its configuration.

    Parameters
    ----------
    place
        The run's folder, one of its files of weights, or the folder of one of its checkpoints.
    network
        "teacher", "student", or the name of a module, such as "encoder" or "backbone.teacher". None: as the run is
        evaluated.

    Raises
    ------
    CheckpointError
        The place is not of a run.
    ConfigError
        The run has no such network, or no file describes it.
    """
    run = read_run(place)
    modules = run.trainer["module"]
    is_path = network not in (None, "teacher", "student")
    path = tuple(str(network).split(".")) if is_path else path_of_backbone(run.trainer, network)
    name, *attributes = path
    node = modules.get(name)
    is_of_pair = _is_pair(node) and attributes in (["teacher"], ["student"])
    if node is None or (attributes and isinstance(node, Mapping) and not is_of_pair):
        parts = {key: (".teacher", ".student") if _is_pair(part) else ("",) for key, part in modules.items()}
        named = [f"{key}{part}" for key in parts for part in parts[key]]
        raise ConfigError(
            f"network: '{network}' is none of the run's networks, which are {', '.join(named)}."
            f"{nearest(network, named)}"
        )
    if is_of_pair:
        node = node["student"]  # which the teacher is a copy of
    if not is_node(node) or live_paths(node):
        raise ConfigError(
            f"No file describes module.{name} of the run in '{run.folder}', because a Python script made it. Make it "
            f"again as the script did: stable_ssl.load({place!r}, module={{{name!r}: ...}})[{name!r}] gives it the "
            "run's weights."
        )
    return BackboneNode(run, ".".join(path), node)


def _is_pair(node: Any) -> bool:
    return isinstance(node, Mapping) and "student" in node


def backbone_of_run(source: Source, num_classes: int | None = None) -> tuple[Any, int | None]:
    """Return the backbone of a run with its weights, on the CPU, and the width of its representation if it is known.

    Parameters
    ----------
    source
        The run's folder, one of its files of weights, or the folder of one of its checkpoints. Its prefix is the
        `network` of `find_backbone`.
    num_classes
        Width of a new last layer, if the network's constructor takes `num_classes`. None: it has no last layer.

    Raises
    ------
    CheckpointError, ConfigError
        As of `find_backbone`. The weights do not fit what the configuration describes.
    """
    found = find_backbone(source.place, source.prefix)
    node = {**found.node}
    if found.takes_classes:
        node["num_classes"] = num_classes
    elif num_classes is not None:
        raise ConfigError(f"num_classes: {node['_target_']} of the run is not known to take it. Leave it out.")
    if found.target == "load_backbone":
        node |= {"weights": None, "return_feature_dim": True}
    from ..compose import importable

    with preserved_generators(), torch.device("cpu"), importable(*found.run.import_from, Path.cwd()):
        made = build(node, f"module.{found.path}")
    network, dim = made if isinstance(made, tuple) else (made, getattr(made, "num_features", None))
    try:
        load_weights(Source(source.place, source.strict, found.path), network, "backbone", "weights")
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} If the run's trainer changed the network, stable_ssl.load({source.place!r}) makes it again."
        ) from error
    return network, dim
