"""Supervised training of a classifier, as a baseline for self-supervised methods."""

from __future__ import annotations

from torch import Tensor, nn

from ..base import BaseTrainer
from ..exceptions import ConfigError, DataError
from ..runtime.batches import image_key, labels_in, num_unlabelled
from ..runtime.device import describe_batch


class SupervisedTrainer(BaseTrainer):
    """Trains the classifier `module["backbone"]` on batches (images, labels), or dicts with an image and a label.

    `loss(scores, labels)` is the loss. If none is given, it is the cross-entropy.

    See `BaseTrainer` for the parameters.

    Examples
    --------
    >>> import tempfile
    >>> from functools import partial
    >>> import torch
    >>> from stable_ssl import SupervisedTrainer
    >>> from stable_ssl.data import Loader
    >>> images = torch.randn(32, 12, generator=torch.Generator().manual_seed(0))
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = SupervisedTrainer(
    ...     data={"train": Loader([(image, int(image[0] > 0)) for image in images], batch_size=8)},
    ...     module={"backbone": torch.nn.Linear(12, 2)},
    ...     hardware={"device": "cpu"},
    ...     optim={"optimizer": partial(torch.optim.SGD, lr=0.1), "epochs": 2},
    ...     logger={"dump_path": folder.name, "level": 40},
    ... )
    >>> trainer()
    >>> trainer.global_step  # 2 epochs of 4 batches
    8
    """

    required_modules = {"backbone": nn.Module}

    def check_setup(self) -> None:
        """Raise a ConfigError before the first step if images have no label, and no loss of the user's is in charge."""
        is_own = self.loss is None and type(self).compute_loss is SupervisedTrainer.compute_loss
        if is_own and "train" in self.data and (number := num_unlabelled(getattr(self.data["train"], "dataset", None))):
            raise ConfigError(
                f"data.train: {number} samples have no label (-1), and {type(self).__name__} learns from labels. Leave "
                "these samples out, or give a loss that does, such as torch.nn.CrossEntropyLoss(ignore_index=-1)."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores, (batch, classes)."""
        scores: Tensor = self.module["backbone"](images)
        return scores

    def predict(self) -> Tensor:
        """Return class scores for the current batch, (batch, classes)."""
        is_dict = isinstance(self.batch, dict)
        images = self.batch[image_key(self.batch) if is_dict else 0]
        is_list_of_one = isinstance(images, list) and len(images) == 1  # as a `MultiView` of one view makes
        return self.forward(images[0] if is_list_of_one else images)

    def compute_loss(self) -> dict[str, Tensor]:
        """Return the loss, by the name "loss", between the class scores and the labels of the current batch."""
        labels = labels_in(self.batch)
        if labels is None or (self.loss is None and not isinstance(labels, Tensor)):
            raise DataError(
                f"{type(self).__name__} needs batches (images, labels), but this one is {describe_batch(self.batch)}. "
                "Have the data set give (image, label), or a dict with 'image' and 'label'."
            )
        criterion = self.loss if self.loss is not None else nn.functional.cross_entropy
        return {"loss": criterion(self.predict(), labels)}  # scores (batch, classes), labels (batch,)
