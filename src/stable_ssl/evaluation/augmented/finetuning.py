"""Fine-tuning of a whole network and a linear classifier, on augmented images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ...augmentations.images import as_array
from ...base import BaseTrainer
from ...exceptions import DataError
from ...runtime.batches import images_of, labels_in


class FineTuningTrainer(BaseTrainer):
    """Trains `module["backbone"]` and the classifier `module["head"]` on its representations.

    Parameters
    ----------
    mix
        Makes of images and labels mixed images and the shares of the classes in them, (batch, classes), such as
        `timm.data.Mixup`. It draws from the default generators. None: images stay as they are.
    about
        What else a run that goes on must have in common with its folder, such as the checksum of the network.

    See `BaseTrainer` for the other parameters.
    """

    required_modules = {"backbone": nn.Module, "head": nn.Module}
    mix: Callable | None = None
    about: Mapping[str, Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores, (batch, classes)."""
        scores: Tensor = self.module["head"](self.module["backbone"](images).flatten(1))
        return scores

    def predict(self) -> Tensor:
        """Return the class scores of the current batch as those of one head, (batch, 1, classes)."""
        return self.forward(images_of(self.batch))[:, None]

    def compute_loss(self) -> Tensor:
        """Return the cross-entropy."""
        images, targets = images_of(self.batch), labels_in(self.batch)
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        return nn.functional.cross_entropy(self.forward(images), targets)


class TimmView:
    """The training view of timm's `create_transform`, of a PIL image or an array of 8 bits per channel.

    Parameters
    ----------
    **options
        Arguments of `timm.data.create_transform`.
    """

    def __init__(self, **options: Any):
        self.transform = timm().data.create_transform(is_training=True, **options)

    def __call__(self, image: Any) -> Tensor:
        """Return the view, float32 (3, height, width)."""
        array = as_array(image)
        if array.dtype != np.uint8:
            raise DataError(f"the augmentations of timm take images of 8 bits per channel, and not {array.dtype}.")
        picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
        view: Tensor = self.transform(picture)
        return view


def timm() -> ModuleType:
    """Return the library timm.

    Raises
    ------
    ImportError
        It is not installed.
    """
    try:
        import timm
        import timm.data
        import timm.layers
    except ImportError as error:
        raise ImportError("--protocol: its augmentations need `pip install 'stable-ssl[timm]'`.") from error
    return timm


def layer_groups(network: nn.Module, blocks: Sequence[nn.Module], decay: float) -> dict[str, dict[str, float]]:
    """Return `optim.groups` for rates that fall from the last layer to the first (Clark et al., "ELECTRA", ICLR 2020).

    Of n blocks, block i, from 1, has the rate times decay^(n + 1 - i). What comes before the blocks has it times
    decay^(n + 1), and what comes after them has it whole. Tokens and position embeddings have no weight decay, as in
    BEiT and MAE.

    Parameters
    ----------
    network
        `module["backbone"]`.
    blocks
        Its blocks, from the first.
    decay
        The factor from a block to the one before it.
    """
    number = len(blocks) + 1
    names = {id(part): name for name, part in network.named_modules(prefix="backbone")}
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    groups: dict[str, dict[str, float]] = {}
    for name, parameter in network.named_parameters(prefix="backbone"):
        if id(parameter) in inside:
            break  # what follows and is in no block comes after the blocks
        is_free = name.endswith("token") or "pos_embed" in name
        groups[name] = {"lr_scale": decay**number, **({"weight_decay": 0.0} if is_free else {})}
    for place, block in enumerate(blocks, start=1):
        groups[f"{names[id(block)]}.*"] = {"lr_scale": decay ** (number - place)}
    return groups


def set_drop_path(blocks: Sequence[Any], rate: float) -> bool:
    """Let the blocks of a vision transformer of timm drop paths: none of the first, up to `rate` in the last.

    Returns
    -------
    bool
        False if they are no blocks of timm; then nothing is changed.
    """
    if not blocks or not all(hasattr(block, "drop_path1") and hasattr(block, "drop_path2") for block in blocks):
        return False
    for number, block in enumerate(blocks):
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, timm().layers.DropPath(rate * number / max(len(blocks) - 1, 1)))
    return True
