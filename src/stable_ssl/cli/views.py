"""`stable-ssl views`: a picture of samples and their views, with the parameters that were drawn for each view."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compose import compose, find, importable, origin_of, recipe_names
from ..exceptions import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

CELL, LINE, MARGIN = 192, 13, 6  # pixels


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Write a picture of the views of a recipe's training data."""
    from PIL import Image

    if args.samples < 1:
        raise ConfigError(f"views: --samples {args.samples} is not a whole number of at least 1.")
    out = Path(args.out).expanduser()
    suffix = out.suffix.lower()
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise ConfigError(f"views: --out {args.out}: '{suffix}' is not a format of pictures; take .png, for example.")
    folder, name = find(args.source)
    with importable(Path.cwd(), folder, *origin_of(folder, name)[1]):
        trainer = _composed(args.source, [*args.overrides, *rest])
        if "train" not in trainer.get("data", {}):
            raise ConfigError(f"views: '{args.source}' has no data.train.")
        picture = draw(trainer, args.samples, args.epoch)
    picture.save(out)
    print(f"{args.out}: {picture.width} × {picture.height} pixels")
    return 0


def _composed(source: str, overrides: list[str]) -> dict[str, Any]:
    """Return the trainer's configuration. A picture needs no labels, and no full batch."""
    try:
        trainer: dict[str, Any] = compose(source, overrides)["trainer"]
    except ConfigError:
        if source not in recipe_names() or any(text.startswith("num_classes=") for text in overrides):
            raise
        trainer = compose(source, [*overrides, "num_classes=2"])["trainer"]
    train = trainer.get("data", {}).get("train")
    if isinstance(train, dict) and "drop_last" in train:
        train["drop_last"] = False
    return trainer


def draw(trainer: dict[str, Any], num_samples: int, epoch: int) -> Image:
    """Return a grid with one row per sample: the image as it was read, then its views.

    Parameters
    ----------
    trainer
        The trainer's configuration.
    num_samples
        Number of rows; fewer if a batch has fewer samples.
    epoch
        The epoch whose views are drawn.
    """
    from ..config import build
    from ..data import Loader, as_loader
    from ..data.collating import split
    from ..data.views import WithViews, to_array

    seed = trainer.get("hardware", {}).get("seed", 0) or 0
    loader = as_loader(build(trainer["data"]["train"], "data.train"), "train")
    if not isinstance(loader, Loader):
        kind = type(getattr(loader, "source", loader)).__name__
        raise ConfigError(f"views: data.train is a {kind}; views are shown for a stable_ssl.data.Loader only.")
    loader.bind(seed, "train")
    try:
        indices, batch = next(iter(loader.batches(epoch)))
    finally:
        loader.close()
    indices = indices[:num_samples]
    source = loader.dataset.dataset if isinstance(loader.dataset, WithViews) else loader.dataset
    is_only_images = split(source[indices[0]])[1] is None
    views = batch if is_only_images else split(batch)[0]
    views = views if isinstance(views, Sequence) else [views]
    images = [_shown(split(source[index])[0]) for index in indices]
    captions: list[list[list[str]]] = [[[] for _ in indices] for _ in views]
    if loader.views:
        images = [to_array(split(source[index])[0], index) for index in indices]
        drawn = loader.views.parameters(seed, epoch, indices, [image.shape for image in images])
        shown = zip(drawn, loader.views.views, strict=True)
        captions = [_captions(parameters, view.operations, len(indices)) for parameters, view in shown]
        num_views = len(loader.views.views)
        views, masks = views[:num_views], views[num_views:]
        views = [_unnormalized(made, view.operations) for made, view in zip(views, loader.views.views, strict=True)]
        for name, mask in zip((name for kind in loader.views.masks for name in kind.names), masks, strict=True):
            is_in = mask.any(1) if mask.ndim == 3 else mask
            views.append(_dimmed(views[0], is_in if name == "hidden" else ~is_in))
            captions.append([[f"{name}: {int(of_image.sum())} of {of_image.numel()} patches"] for of_image in is_in])
    rows = []
    for i, (index, image) in enumerate(zip(indices, images, strict=True)):
        made = [(_shown(view[i]), lines[i]) for view, lines in zip(views, captions, strict=True)]
        rows.append([(image, [f"sample {index}"]), *made])
    return _grid(rows)


def _dimmed(images: Any, is_dimmed: Any) -> Any:
    """Return images, (batch, channels, height, width), with patches dimmed where a mask, (batch, patches), is true."""
    import torch

    height, width = images.shape[-2:]
    rows = round(math.sqrt(is_dimmed.shape[1] * height / width))
    shown = 1 - 0.85 * is_dimmed.view(len(images), 1, rows, -1).float()
    return images * torch.nn.functional.interpolate(shown, size=(height, width), mode="nearest")


def _unnormalized(made: Any, operations: Sequence[Any]) -> Any:
    """Return images, (batch, channels, height, width), with their normalisation undone, as values from 0 to 1."""
    import torch

    from ..augmentations import Normalize

    for operation in operations:
        if isinstance(operation, Normalize):
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (operation.mean, operation.std))
            return (made * std + mean).clamp(0, 1)
    return made


def _captions(parameters: dict[str, Any], operations: Sequence[Any], num_samples: int) -> list[list[str]]:
    """Return for each sample one line per operation that was applied: its name, its interpolation if it has one, and
    the values that were drawn.
    """
    by_operation: dict[int, dict[str, Any]] = {}
    for key, values in parameters.items():
        place, _, name = key.split(".")
        by_operation.setdefault(int(place), {})[name] = values
    names = [[type(one).__name__, *filter(None, [vars(one).get("interpolation")])] for one in operations]
    return [
        [
            " ".join([*names[place], *(_said(name, v[i]) for name, v in values.items() if name != "is_applied")])
            for place, values in by_operation.items()
            if values.get("is_applied", [True] * num_samples)[i]
        ]
        for i in range(num_samples)
    ]


def _said(name: str, value: Any) -> str:
    if getattr(value, "ndim", 0):
        return f"{name} {''.join(str(item) for item in value if item >= 0)}"
    return f"{name} {value + 0.0:.3g}"


def _shown(image: Any) -> Any:
    """Return an image of any kind and range of values as uint8, (height, width, channels)."""
    import numpy as np
    from torch import Tensor

    if isinstance(image, Tensor):
        image = image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
    array = np.asarray(image)
    array = array[:, :, None] if array.ndim == 2 else array
    if array.dtype == np.uint8:
        return array
    low, high = array.min(), array.max()
    if low < 0 or high > 1:  # normalised, and nobody knows by which mean: show the full range
        array = (array - low) / max(high - low, 1e-6)
    return np.rint(255 * array).astype(np.uint8)


def _grid(rows: list[list[tuple[Any, list[str]]]]) -> Image:
    """Return a picture of rows of cells. A cell is an image, (height, width, channels), and the lines below it."""
    from PIL import Image, ImageDraw

    cells = [(pixels, _wrap(text)) for row in rows for pixels, text in row]
    height = CELL + LINE * max(len(lines) for _, lines in cells) + 2 * MARGIN
    width = CELL + 2 * MARGIN
    picture = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    pen = ImageDraw.Draw(picture)
    for number, (pixels, lines) in enumerate(cells):
        left, top = number % len(rows[0]) * width + MARGIN, number // len(rows[0]) * height + MARGIN
        channels = pixels.shape[2]
        image = Image.fromarray(pixels[:, :, :3] if channels >= 3 else pixels[:, :, 0])
        scale = CELL / max(image.size)
        shape = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        picture.paste(image.resize(shape, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX), (left, top))
        for place, line in enumerate(lines):
            pen.text((left, top + CELL + 2 + LINE * place), line, fill="black")
    return picture


def _wrap(text: list[str]) -> list[str]:
    import textwrap

    return [part for line in text for part in textwrap.wrap(line, CELL // 6, subsequent_indent="  ")]
