"""From what a user names to what is evaluated: a run, a file of weights, a network of timm or of torchvision.

In Python also a trainer, or a network alone.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..augmentations import CenterCrop, EvalView, MultiView, Normalize, RandomResizedCrop, Resize, View
from ..base import BaseTrainer
from ..exceptions import CheckpointError, ConfigError, NoRunError, as_config_error, option_named
from ..loading import LoadedRun, load_run
from ..modules import load_backbone
from ..modules.teacher_student import TeacherStudentModule
from ..nodes import build, is_node, live_paths
from ..runtime.files import printable
from ..trainers import SupervisedTrainer
from ..weights.files import read_header
from ..weights.runs import path_of_backbone, read_run
from .live import copy_of_trainer, views_in
from .subject import Subject

INITIAL = Path("weights", "initial.safetensors")
_LAST_LAYERS = ("fc", "classifier", "head", "heads")


def open_source(
    source: Any,
    *,
    backbone: str | None = None,
    network: str | None = None,
    size: int | None = None,
    view: Any = None,
    module: Mapping[str, Any] | None = None,
) -> Subject:
    """Return what a source names, ready to be evaluated.

    Parameters
    ----------
    source
        A run's folder, one of its files of weights or checkpoints, a file of weights together with `backbone`,
        `timm/NAME` or `torchvision/NAME`. A trainer that is set up, or a network (together with `view`), is evaluated
        as it is at this moment, and stays so.
    backbone
        The network of a file of weights of no run, as `load_backbone` names it.
    network
        "teacher" or "student", of a run that has both. None: as its `evaluate_with` says.
    size
        Height and width of the images, in pixels. None: as the source sees them.
    view
        What makes of an image what the network gets, such as an `EvalView`. None: as the source's own evaluation.
    module
        Modules of a run that a script made, by name, which no file describes.

    Raises
    ------
    ConfigError, CheckpointError
        There is no such source, it has no weights, or an option does not suit it.
    """
    if isinstance(source, BaseTrainer):
        subject = _of_trainer(source, network)
    elif isinstance(source, nn.Module):
        subject = _of_network(source)
    elif isinstance(source, str | Path):
        subject = _of_place(str(source), backbone, network, module)
    else:
        raise ConfigError(f"source: a {type(source).__name__} is no path, no name, no trainer and no network.")
    if view is not None:
        size_of_view, mean, std = seen_by(view, subject.backbone)
        subject = replace(subject, view=view, size=size_of_view, mean=mean, std=std, is_view_known=True)
    if size is not None:
        subject.check_view()
        view = EvalView(size, None, subject.mean, subject.std, _interpolation_of(subject.view))
        subject = replace(subject, view=view, size=(size, size))
    subject.network.requires_grad_(False).float()
    return replace(subject, digest=_digest(subject))


def before_training(source: Any) -> Path | None:
    """Return the file with a run's weights before training; None if the source is no run's folder, or has none."""
    path = Path(source).expanduser() / INITIAL if isinstance(source, str | Path) else None
    return path if path and path.is_file() else None


def _of_place(name: str, backbone: str | None, network: str | None, module: Mapping[str, Any] | None) -> Subject:
    library = next((kind for kind in ("timm", "torchvision") if name.startswith(f"{kind}/")), None)
    if library is None or Path(name).exists():
        return _of_file(name, backbone) if backbone is not None else _of_run(name, network, module)
    if backbone or network or module:
        raise ConfigError(f"eval: '{name}' is a network of {library}, so --backbone and --network do not apply.")
    return _of_timm(name) if library == "timm" else _of_torchvision(name)


def _of_network(network: nn.Module) -> Subject:
    made, name = copy.deepcopy(network).cpu().eval(), type(network).__name__
    return Subject(name, made, None, *seen_by(None, made), made, is_view_known=False, facts={"network": name})


def _of_trainer(trainer: BaseTrainer, network: str | None) -> Subject:
    made = copy_of_trainer(trainer)
    folder = trainer.folder
    run = LoadedRun(folder, read_run(trainer.folder).config, made.module, made, folder)
    facts = {"weights": "of the trainer in memory", "global_step": int(trainer.global_step)}
    subject = _of_loaded(str(folder), run, network, facts, views_in(trainer.data))
    return replace(subject, loaders=trainer.data)


def _of_run(name: str, network: str | None, module: Mapping[str, Any] | None) -> Subject:
    try:
        read_run(name)
    except NoRunError as error:
        raise ConfigError(
            f"'{printable(name)}' is no source: no run, no file of a run, and neither timm/NAME nor torchvision/NAME. "
            "For other files of weights, --backbone NAME says which network they are of."
        ) from error
    run = load_run(name, copy.deepcopy(module))  # the user's own stay as they are
    if run.trainer is None:
        cls = str(run.config["trainer"].get("_target_")).removeprefix("<live ").removesuffix(">")
        raise ConfigError(
            f"'{name}': no file has the class of its trainer, {cls}, so that its "
            "forward is not known. In Python, evaluate(trainer, ...) evaluates the trainer itself; of runs to come, "
            "the class may be in a file of its own beside the script."
        )
    is_file = run.source.is_file()
    header = read_header(run.source) if is_file else {"global_step": int(run.source.name.removeprefix("step_"))}
    is_inside = run.source.is_relative_to(run.folder)
    facts = {
        "weights": str(run.source.relative_to(run.folder) if is_inside else run.source),
        **{key: header[key] for key in ("global_step", "epoch") if key in header},
    }
    return _of_loaded(name, run, network, facts, view_of_run(run.config))


def _of_loaded(
    name: str, run: LoadedRun, network: str | None, facts: Mapping[str, Any], views: tuple[Any, Any]
) -> Subject:
    """Return a run whose modules and trainer are there; `views` are as `view_of_run` returns them."""
    trainer, options = run.trainer, run.config["trainer"]
    if network is not None:
        if network not in ("teacher", "student"):
            raise ConfigError(f"--network: '{network}' is neither teacher nor student.")
        if not has_teacher(run.modules):
            raise ConfigError(f"--network {network}: '{name}' has no teacher; leave the option out.")
        vars(trainer)["evaluate_with"] = network
    backbone = backbone_of(run, network)
    of_forward: nn.Module = _Forward(trainer, run.modules)
    if gives_scores(type(trainer)):
        of_forward = backbone = without_last_layer(backbone)
    view, known = views
    size, mean, std = seen_by(known, backbone, size_of_images(options))
    which = network or options.get("evaluate_with")
    facts = {
        "method": type(trainer).__name__,
        **facts,
        **({"network": which or "teacher"} if has_teacher(run.modules) else {}),
    }
    projector = dict(run.modules.items()).get("projector")
    if isinstance(projector, TeacherStudentModule):
        projector = projector.student if which == "student" else projector.teacher
    is_view_known = isinstance(known, View | MultiView) or not (known or live_paths(options.get("data") or {}))
    return Subject(
        name, of_forward, view, size, mean, std, backbone, projector, run=run.folder, facts=facts,
        is_view_known=is_view_known,
    )  # fmt: skip


def size_of_images(options: Mapping[str, Any]) -> Any:
    """Return the size that a run's training set gives its images; None if its configuration does not say."""
    loader = (options.get("data") or {}).get("train")
    dataset: Any = loader.get("dataset") if isinstance(loader, Mapping) else None
    return dataset.get("size") if isinstance(dataset, Mapping) else None


class _Forward(nn.Module):
    """A trainer's `forward`, as a module."""

    def __init__(self, trainer: Any, modules: nn.ModuleDict):
        super().__init__()
        self.modules_of_run = modules
        self.trainers = [trainer]  # in a list, so that its other parts are no parts of this module

    def forward(self, images: Tensor) -> Tensor:
        trainer = self.trainers[0]
        trainer.device = images.device
        outputs: Tensor = trainer.forward(images)
        return outputs


def has_teacher(modules: nn.ModuleDict) -> bool:
    """Return whether a run has a teacher beside its student."""
    return "target_encoder" in modules or isinstance(dict(modules.items()).get("backbone"), TeacherStudentModule)


def backbone_of(run: LoadedRun, network: str | None = None) -> nn.Module:
    """Return the network of a run whose representations it is evaluated by; errors as `path_of_backbone`'s.

    Parameters
    ----------
    run
        The run.
    network
        "teacher" or "student". None: as the run's `evaluate_with` says.
    """
    modules = dict(run.modules.items())
    name, *attributes = path_of_backbone(run.config["trainer"], network, modules)
    return modules[name].get_submodule(".".join(attributes))


def gives_scores(trainer: Any) -> bool:
    """Return whether the representations of a trainer's class are class scores, so that the last layer is taken off."""
    is_class = isinstance(trainer, type) and issubclass(trainer, SupervisedTrainer)
    return is_class and trainer.forward is SupervisedTrainer.forward


def without_last_layer(network: nn.Module) -> nn.Module:
    """Return a copy of a classifier that gives the input of its last layer instead of class scores."""
    made = copy.deepcopy(network)
    if (reset := getattr(made, "reset_classifier", None)) is not None:  # of timm, where some heads pool, too
        reset(0)
        return made
    name = next((name for name in _LAST_LAYERS if isinstance(getattr(made, name, None), nn.Module)), None)
    if name is None:
        return made
    last = getattr(made, name)
    if isinstance(last, nn.Sequential) and len(last):
        last[-1] = nn.Identity()
    else:
        setattr(made, name, nn.Identity())
    return made


def view_of_run(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what a run's evaluation makes of images, None if it takes them as they are; and a view of its training.

    Either is None if no file describes it.
    """
    data = config["trainer"].get("data") or {}
    own = (config.get("pretrain") or {}).get("view")
    nodes = {name: loader.get("views") for name, loader in data.items() if is_node(loader)}
    trained = nodes.pop("train", None)
    described = [views for views in (own, *nodes.values()) if views and not live_paths(views)]
    view = build(described[0], "views") if described else None
    return view, build(trained, "views") if view is None and trained and not live_paths(trained) else view


def seen_by(
    view: Any, network: nn.Module, size: Any = None
) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """Return the size of the images that a view makes, and their mean and standard deviation, one number per channel.

    Parameters
    ----------
    view
        The view. If it does not normalise, the mean is 0 and the standard deviation 1.
    network
        Gets the images.
    size
        The size if the view leaves it as it is. None: 224 pixels.
    """
    operations = operations_of(view)
    sizes = [o.size for o in operations if isinstance(o, CenterCrop | RandomResizedCrop | Resize)]
    size = sizes[-1] if sizes else size or 224
    layers = (layer.in_channels for layer in network.modules() if isinstance(layer, nn.Conv2d))
    channels = next(layers, 3)
    usual = (0.0,) * channels, (1.0,) * channels
    mean, std = next(((o.mean, o.std) for o in operations if isinstance(o, Normalize)), usual)
    mean, std = (tuple(values) * (channels if len(values) == 1 else 1) for values in (mean, std))
    return ((size, size) if isinstance(size, int) else (size[0], size[1])), mean, std


def operations_of(view: Any) -> Sequence[Any]:
    """Return the operations of a view, or of the first of several; none if it is of another class."""
    first = view.views[0] if isinstance(view, MultiView) else view
    return first.operations if isinstance(first, View) else ()


def _interpolation_of(view: Any) -> str:
    return next((o.interpolation for o in operations_of(view) if isinstance(o, Resize)), "bilinear")


def _of_file(name: str, backbone: str) -> Subject:
    with option_named("name", "--backbone"), as_config_error():
        network: Any = load_backbone(backbone.removeprefix("torchvision/"), weights=name)
    view = EvalView()
    return Subject(name, network.eval(), view, *seen_by(view, network), network, facts={"network": backbone})


def _of_timm(name: str) -> Subject:
    try:
        import timm.data
    except ImportError as error:
        raise ConfigError(f"'{name}' needs `pip install 'stable-ssl[timm]'`.") from error
    network: Any = load_backbone(name, weights=name).eval()  # type: ignore[union-attr]
    known = timm.data.resolve_data_config({}, model=network)
    size, share = known["input_size"][1:], known["crop_pct"] or 1.0
    view = EvalView(
        size[0] if size[0] == size[1] else tuple(size),
        math.floor(min(size) / share) if size[0] == size[1] else None,
        known["mean"],
        known["std"],
        _known_interpolation(known["interpolation"]),
    )
    return Subject(name, network, view, tuple(size), known["mean"], known["std"], network, facts={"network": name})


def _of_torchvision(name: str) -> Subject:
    from torchvision import models

    short = name.removeprefix("torchvision/")
    if short not in models.list_models(models):
        raise ConfigError(f"torchvision has no classifier '{short}'.")
    weights: Any = models.get_model_weights(short).DEFAULT  # type: ignore[attr-defined]
    try:
        network: Any = load_backbone(short, weights=weights).eval()  # type: ignore[union-attr]
    except OSError as error:
        raise CheckpointError(f"torchvision can't get the weights of '{short}': {error}") from error
    known = weights.transforms()
    size = known.crop_size[0]
    interpolation = _known_interpolation(known.interpolation.value)
    view = EvalView(size, known.resize_size[0], known.mean, known.std, interpolation)
    facts = {"network": name, "weights": str(weights)}
    return Subject(name, network, view, (size, size), known.mean, known.std, network, facts=facts)


def _known_interpolation(name: str) -> str:
    return "bicubic" if name == "bicubic" else "bilinear"


def _digest(subject: Subject) -> str:
    """Return a checksum of all values of a network and its projector, and of what computes them.

    The same values may belong to two subjects: a teacher and a student of one run, or two networks that a file fits.
    """
    made_by = [subject.facts.get("method"), subject.facts.get("network"), subject.network]
    found = hashlib.sha256(repr(made_by).encode())
    for part in (subject.network, subject.projector):
        for key, value in part.state_dict().items() if part is not None else ():
            found.update(key.encode())
            if isinstance(value, Tensor):
                found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
