"""The recipe of a run, from what was asked for and what the images are."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from ..compose import RECIPES, composer, resolved
from ..exceptions import ConfigError, DataError
from ..nodes import build
from ..overrides import check_watched_sets, quoted
from ..runtime.batches import num_unlabelled
from .request import MASKED, Request
from .sets import Sets, find_sets
from .timing import measure

SIZES = (32, 64, 96, 128, 224)  # pixels
EPOCHS, FEWEST_EPOCHS = 100, 20
PIXELS_SEEN = 500_000 * 32**2  # by default: half an hour on one core, with the default backbone
LARGEST_BATCH, LARGEST_MASKED_BATCH, SMALLEST_BATCH, STEPS_PER_EPOCH = 256, 64, 16, 4
NEIGHBOURS = 20
LOGGED = 50  # values of the loss in a whole run
SHARE_OF_MEMORY = 0.5
COPIES = 3  # of each layer's output, in memory: those of two views, and gradients


def plan(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the configuration of a new run, `{"trainer": …, "pretrain": …}`; `pretrain` notes how it came about.

    Parameters
    ----------
    request
        What was asked for.
    say
        Gets a line for each thing that the user should know.

    Raises
    ------
    ConfigError
        There are too few images, labels that nothing can be measured with, or settings that do not fit together.
    """
    sets = find_sets(request.folder, request.labels)
    # The recipes on digits have the rates and the heads for short runs on CPUs.
    with composer(RECIPES, f"{request.method}_digits") as (composed, complete):

        def compose(*own: str) -> Any:
            sources = ["data=images", f"backbone={request.backbone}", *_sources(sets)]
            return composed(complete([*sources, *own, *request.overrides]))

        first = compose()
        images = _dataset(first, "train")
        _check_number(len(images), sets)
        size = request.size or choose_size(images.sizes)
        _describe(images, size, sets, say)
        settings, batch = _settings(first, images, size, request)
        settings += _measured(first, images) if sets.is_labelled else _unmeasured(first)
        epochs = request.epochs or choose_epochs(len(images), size)
        length, steps = [f"optim.epochs={epochs}"], epochs * max(len(images) // batch, 1)
        facts = {"arguments": request.arguments(), "images": len(images)}
        if request.minutes is not None:
            pace = measure(resolved(compose(*settings, *length)), request.minutes)
            length, steps = pace.settings(request.minutes), pace.steps(request.minutes)
            facts["seconds_per_step"] = round(pace.seconds, 5)
            say(
                f"a step takes {pace.seconds:.3g} s, so {request.minutes:g} minutes are {steps} steps, as many as "
                f"{steps / pace.steps_per_epoch:.3g} epochs have"
            )
        config = compose(*settings, *length, f"logger.log_every_step={min(max(steps // LOGGED, 1), 50)}")
        run = resolved(config)
        check_watched_sets(complete(request.overrides), run["trainer"])
        return {**run, "pretrain": {**facts, "view": _plain(config.eval_view)}}


def _settings(first: Any, images: Any, size: int, request: Request) -> tuple[list[str], int]:
    """Return the overrides that follow from the images and the machine, and the batch size among them."""
    sizes = {"size": size, **_patches(size, request)}
    batch = choose_batch(len(images), request.method, _memory_per_image(first, sizes))
    return [
        *(f"{key}={value}" for key, value in sizes.items()),
        f"data.train.batch_size={batch}",
        f"hardware.precision={_precision()}",
        *_rates(request),
        "logger.eval_at_start=true",
        "logger.eval_every_epoch=0",
    ], batch


def _sources(sets: Sets) -> list[str]:
    """Return the overrides that say where the images and their labels are."""
    places = {"root": str(sets.train), "test_root": str(sets.test or sets.train), "labels": sets.labels}
    whole = ["train_split=null", "test_split=null"] if sets.test or not sets.is_labelled else []
    return [*(f"{key}={quoted(value)}" for key, value in places.items()), *whole]


def _plain(node: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node, resolve=True)


def _dataset(config: Any, name: str) -> Any:
    try:
        return build(_plain(config.trainer.data[name].dataset), "pretrain")
    except ConfigError as error:
        if isinstance(error.__cause__, DataError):  # a list of files that can't be read
            raise ConfigError(f"pretrain: {error.__cause__}") from error
        # The folder is an argument here, and `root` a word of recipes.
        raise ConfigError([problem.replace("pretrain: root: ", "pretrain: ") for problem in error.problems]) from error


def _check_number(number: int, sets: Sets) -> None:
    if number < 2:
        raise ConfigError(
            f"pretrain: '{sets.train}' has {number} image{'s' * (number != 1)} to train on; at least 2 are needed."
        )


def num_labelled(images: Any) -> int:
    """Return how many images have a label."""
    return len(images) - num_unlabelled(images)


def choose_size(sizes: Any) -> int:
    """Return the largest usual size that is not above the median shorter side of images (n, 2); at least 32 pixels."""
    median = statistics.median(sizes.min(axis=1).tolist())
    return max((size for size in SIZES if size <= median), default=SIZES[0])


def choose_epochs(number: int, size: int) -> int:
    """Return the epochs for a number of images, seen at a size: 100, or fewer if they are many or large, but 20."""
    return min(max(PIXELS_SEEN // (number * size**2), FEWEST_EPOCHS), EPOCHS)


def choose_batch(number: int, method: str, bytes_per_image: float) -> int:
    """Return how many images a batch has: a power of two, or all images if they are very few.

    It is as large as suits the method, leaves at least four batches per epoch, and fits into memory.
    """
    import torch

    from ..data.in_memory import free_memory

    batch = LARGEST_MASKED_BATCH if method in MASKED else LARGEST_BATCH
    room = SHARE_OF_MEMORY * (torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else free_memory())
    while batch > SMALLEST_BATCH and (batch * STEPS_PER_EPOCH > number or batch * bytes_per_image > room):
        batch //= 2
    return min(batch, number)


def _memory_per_image(config: Any, sizes: dict[str, int]) -> float:
    """Return the bytes that training needs per image, by the outputs of the backbone's layers; 0 if that fails."""
    import torch
    from torch import nn

    config.update(sizes)
    node, counted = _plain(config.backbone), 0

    def count(part: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal counted
        counted += output.numel() * 4 if isinstance(output, torch.Tensor) else 0

    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), torch.no_grad():
            network = build(node, "backbone")
            for part in network.modules():
                if next(part.children(), None) is None:
                    part.register_forward_hook(count)
            network(torch.zeros(2, config.channels, config.size, config.size))
    except Exception:  # some networks can't be run without values
        return 0.0
    return COPIES * counted / 2


def _patches(size: int, request: Request) -> dict[str, int]:
    """Return the side of a patch, if the usual one does not divide the size."""
    usual = size // 14 if size >= 112 else max(size // 8, 1)
    if size % usual == 0 or not request.backbone.startswith("vit_"):
        return {}
    fitting = next(side for side in range(usual, 0, -1) if size % side == 0)
    if fitting < 4:
        raise ConfigError(
            f"pretrain: --size: {size} pixels make no patches; take a multiple of 8, such as {size // 8 * 8}."
        )
    return {"patch_size": fitting}


def _precision() -> str:
    import torch

    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def _rates(request: Request) -> list[str]:
    """Return the rate of large transformers, for which that of small networks is too high."""
    is_large = "vit" in request.backbone and request.backbone != "vit_digits"
    return ["optim.optimizer.lr=0.0005"] if is_large else []


def _measured(config: Any, images: Any) -> list[str]:
    """Return the overrides of a run with labels.

    Raises
    ------
    ConfigError
        There is nothing to tell apart, or to measure on.
    """
    tested = _dataset(config, "test")
    if len(images.classes) < 2 or not len(tested):
        why = "one class only" if len(images.classes) < 2 else "one image per class only, so that none can be held out"
        raise ConfigError(f"pretrain: the labels are of {why}. Nothing can be measured with them: leave --labels out.")
    if tested.classes != images.classes:
        raise ConfigError(f"pretrain: '{images.root}' and '{tested.root}' have different classes.")
    return [f"num_classes={len(images.classes)}", f"neighbours={min(NEIGHBOURS, num_labelled(images))}"]


def _unmeasured(config: Any) -> list[str]:
    """Return the overrides that leave out what needs labels."""
    probes = [f"~module.{name}" for name in config.trainer.module if name.endswith("_classifier")]
    return ["num_classes=2", "~data.test", "~data.bank", "~logger.metric", "~logger.monitor.test", *probes]


def _describe(images: Any, size: int, sets: Sets, say: Callable[[str], None]) -> None:
    height, width = (round(statistics.median(side)) for side in images.sizes.T.tolist())
    say(f"{len(images):,} images to train on, of {height} × {width} pixels in the median; views have {size} × {size}")
    if sets.is_labelled and num_labelled(images) < len(images):
        say(f"{num_labelled(images):,} of them have a label")
    for note in sets.notes:
        say(note)
