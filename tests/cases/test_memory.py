"""Memory: what an error says when it ran out, and the memory format of volumes."""

import errno
import json
import os
import re

import numpy as np
import pytest
import torch
from torch import nn

from stable_ssl import Loader
from tests.toys import Toy, toy_dataset

FIGURES = r"this machine has \d+\.\d GiB, and this process has taken up to \d+\.\d\. Lower "


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(2**50), lambda: np.empty(2**60, np.uint8)], ids=["torch", "numpy"]
)
def test_memory_that_ran_out_in_training_is_told_with_what_to_lower(make_toy, tmp_path, allocate):
    class Large(Toy):
        def compute_loss(self):
            if self.global_step == 2:
                allocate()
            return super().compute_loss()

    with pytest.raises((torch.OutOfMemoryError, MemoryError)) as caught:
        make_toy(Large, accumulation_steps=2, epochs=4)()
    remedy = (
        r"data.train.batch_size \(8 per process\) and raise optim.accumulation_steps \(2\) as much, or set "
        r"hardware.precision \(fp32\) to bf16\.$"
    )
    assert re.match(f"Memory ran out at step 2: {FIGURES}{remedy}", str(caught.value))
    assert "allocate" in str(caught.value.__cause__)
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "failed"


def test_memory_that_ran_out_in_an_evaluation_is_that_of_its_set(make_toy):
    class Large(Toy):
        def before_eval_step(self):
            torch.empty(2**50)

    data = {"train": Loader(toy_dataset(), 8), "test": Loader(toy_dataset(), 6)}
    said = FIGURES + r"data.test.batch_size \(6 per process\)"
    with pytest.raises(torch.OutOfMemoryError, match=said):
        make_toy(Large, data, hardware={"precision": "bf16"})()


class Huge(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        return np.empty(2**60, np.uint8) if index == 9 else toy_dataset()[index]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_memory_that_ran_out_for_a_sample_names_it(make_toy, num_workers):
    workers = r"data.train.num_workers \(1\), or " * num_workers
    said = f"^Memory ran out at step [01], as sample 9 of data.train was read: {FIGURES}{workers}data.train.batch_size"
    with pytest.raises(MemoryError, match=said):
        make_toy(data={"train": Loader(Huge(), 8, num_workers=num_workers)})()


@pytest.mark.parametrize(
    ("hook", "remedy"),
    [
        ("before_fit", "the size of the modules, or of what the hooks make: no batch has been read yet"),
        ("before_fit_step", "the size of the batches that data.train gives and raise"),
    ],
)
def test_what_to_lower_if_the_batch_size_is_not_known(make_toy, hook, remedy):
    def fail(self):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    batches = [list(toy_dataset().tensors)]
    with pytest.raises(MemoryError, match=FIGURES + remedy):
        make_toy(type("Large", (Toy,), {hook: fail}), {"train": batches})()


def test_volumes_train_with_channels_last(make_toy):
    formats = {}

    class Seeing(Toy):
        def compute_loss(self):
            formats.update({p.ndim: p.stride() for p in self.module["backbone"].parameters()})
            return super().compute_loss()

    volumes = [[torch.rand(4, 1, 4, 8, 8), torch.zeros(4, dtype=torch.long)]]
    network = nn.Sequential(
        nn.Conv3d(1, 2, 3), nn.Flatten(2), nn.Unflatten(2, (8, 9)), nn.Conv2d(2, 3, 3), nn.Flatten()
    )
    make_toy(Seeing, {"train": volumes}, {"backbone": network}, {"channels_last": True})()
    assert formats[5] == (27, 27, 9, 3, 1)
    assert formats[4] == (18, 1, 6, 2)
