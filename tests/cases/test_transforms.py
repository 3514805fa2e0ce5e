"""Pipelines of albumentations, wherever they hide: they work, are seeded, and what can't be seeded is named.

`Compose` has albumentations' interface: a generator of its own, `set_random_seed`, and a call by keyword.
"""

from __future__ import annotations

import functools
import logging
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from stable_ssl.data import Digits, Loader, MultiViewSampler
from stable_ssl.data.hidden import find_seedable
from stable_ssl.runtime.seeding import Stream, derive_seed

of_user = None  # a test's module
IMAGE = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)


class Compose:
    def __init__(self, *transforms, inner=None):
        self.transforms, self.inner, self.rng = transforms, inner, np.random.default_rng()

    def set_random_seed(self, seed):
        self.rng = np.random.default_rng(seed)
        for transform in self.transforms:
            transform.set_random_seed(seed)

    def __call__(self, *args, **data):
        if args:
            raise KeyError("You have to pass data to augmentations as named arguments, for example: aug(image=image)")
        for transform in (*self.transforms, *([self.inner] if self.inner else [])):
            data = transform(**data)
        return {"image": data["image"] + self.rng.integers(2**20)}


GLOBAL = Compose()


def by_global(image):
    return GLOBAL(image=image)["image"]


def apply(image, pipeline):
    return pipeline(image=image)["image"]


def closed(pipeline):
    return lambda image: (lambda inner: pipeline(image=inner)["image"])(image)


def with_default(made):
    return lambda image, pipeline=made: apply(image, pipeline)


def as_dict(function):
    return lambda image: {"image": function(image)}


class Slots:
    __slots__ = ("pipelines",)

    def __init__(self, pipeline):
        self.pipelines = {"train": [pipeline]}

    def __call__(self, image):
        return self.pipelines["train"][0](image=image)["image"]


class OfClass:
    pipeline = Compose()

    def __call__(self, image):
        return self.pipeline(image=image)["image"]


class Images(torch.utils.data.Dataset):
    def __init__(self, **parts):
        vars(self).update(parts)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return (self.augment(IMAGE) if hasattr(self, "augment") else IMAGE), index


HIDDEN = {
    "as it is": lambda: Compose(),
    "nested": lambda: Compose(Compose(), Compose(Compose())),
    "global": lambda: by_global,
    "closure": lambda: closed(Compose()),
    "default": lambda: with_default(Compose()),
    "partial": lambda: functools.partial(apply, pipeline=Compose()),
    "partial of a partial": lambda: functools.partial(functools.partial(apply, pipeline=Compose())),
    "method": lambda: Slots(Compose()).__call__,
    "slots": lambda: Slots(Compose()),
    "class": lambda: OfClass(),
    "that its outer one does not seed": lambda: Compose(inner=Compose()),
    "in a function of a pipeline": lambda: Compose(inner=as_dict(closed(Compose()))),
}


def drawn(dataset, num_workers=0, **options):
    loader = Loader(dataset, 1, num_workers=num_workers, **options)
    try:
        return [[int(image.flatten()[0]) for _, (image, _) in loader.batches(epoch)] for epoch in (0, 1)]
    finally:
        loader.close()


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_pipeline_is_seeded_wherever_it_hides(kind, caplog):
    make = HIDDEN[kind]
    first = drawn(Images(), views=make())
    assert drawn(Images(), views=make()) == first
    assert len({number for epoch in first for number in epoch}) == 12  # samples and epochs differ
    if kind != "as it is":
        if kind not in ("nested", "that its outer one does not seed", "in a function of a pipeline"):
            assert drawn(Images(augment=make())) == first
        assert not caplog.text


def test_workers_give_the_same_views():
    for options in ({}, {"persistent_workers": True}):
        assert drawn(Images(), 2, views=by_global, **options) == drawn(Images(), views=by_global)


def test_the_seed_is_a_function_of_seed_epoch_and_index():
    for epoch, numbers in enumerate(drawn(Images(), views=Compose())):
        seeds = [derive_seed(0, Stream.SAMPLE, epoch, index) & 0xFFFFFFFF for index in range(6)]
        assert numbers == [int(np.random.default_rng(seed).integers(2**20)) for seed in seeds]


@pytest.mark.parametrize("views", [[Compose(), Compose()], MultiViewSampler([Compose(), Compose()])])
def test_two_pipelines_draw_two_views(views):
    (one, two), _ = next(iter(Loader(Images(), 6, views=views)))
    assert not torch.equal(one, two)


def test_a_pipeline_gets_bytes_with_the_channels_last():
    class Look(Compose):
        def __call__(self, *, image):
            assert type(image) is np.ndarray
            assert image.flags.writeable
            return {"image": torch.tensor([*image.shape, int(image.max())])}

    grey, colour = Image.new("L", (4, 6), 7), torch.full((3, 6, 4), 9, dtype=torch.uint8)
    assert next(iter(Loader([grey], views=Look()))).tolist() == [[6, 4, 1, 7]]
    assert next(iter(Loader([(colour, 1)], views=[Look()])))[0].tolist() == [[6, 4, 3, 9]]
    assert next(iter(Loader(Digits(size=8), 1, views=Look())))[0].tolist() == [[8, 8, 1, 239]]


class Private:
    def __init__(self, generator):
        self.generator = generator

    def __call__(self, image):
        return image


@pytest.mark.parametrize(
    "generator", [np.random.default_rng(), random.Random(), np.random.RandomState(), torch.Generator()],
    ids=lambda generator: type(generator).__name__,
)  # fmt: skip
def test_a_generator_that_can_not_be_seeded_is_named_once(generator, caplog):
    pipeline = Compose(inner=Private(generator).__call__)
    loader = Loader(Images(augment=lambda image: image, others=[Private(generator), pipeline]), 6)
    with caplog.at_level(logging.WARNING):
        loader.bind(0, "train")
        for epoch in (0, 1):
            list(loader.batches(epoch))
            loader.close()
    (record,) = caplog.records
    assert "data.train: these generators can't be seeded" in record.message
    assert f"dataset.others.0.generator ({type(generator).__name__})." in record.message


rng = np.random.default_rng()


class Named:
    """An attribute has the name of a global variable that nothing uses."""

    def __init__(self, image=None):
        self.rng = "torch"

    def __call__(self, image):
        return image if self.rng else None


def test_an_attribute_is_not_taken_for_a_global_variable_of_its_name(caplog):
    list(Loader(Images(augment=Named().__call__), 6, views=[Named(), lambda image: Named()(image)]))
    assert not caplog.text


def test_what_a_function_takes_from_a_module_is_found(tmp_path, monkeypatch):
    (tmp_path / "of_user.py").write_text(
        "import numpy\nrng = numpy.random.default_rng()\ndef same(image): return image\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(globals(), "of_user", __import__("of_user"))

    def at_once(image):
        return image + of_user.rng.random()

    def by_another_name(image):
        module = of_user
        return image + module.rng.random()

    def other(image):
        return of_user.same(image) if image.rng else None

    assert [len(find_seedable(function)[1]) for function in (at_once, by_another_name, other)] == [1, 1, 0]


def test_views_are_named_as_they_were_given(caplog):
    for views in (Private(random.Random()), [Named(), Private(random.Random())]):
        list(Loader(Images(augment=Private(random.Random())), 6, views=views))
    first, second = (record.message for record in caplog.records)
    assert "each run: views.generator (Random), dataset.augment.generator (Random)." in first
    assert "each run: views.1.generator (Random), dataset.augment.generator (Random)." in second


def test_default_generators_and_data_are_no_reason_to_warn(caplog):
    numbers, draw = list(range(2000)), np.random.rand
    list(Loader(Images(augment=lambda image: image + int(draw() + random.random()), numbers=numbers, path="a"), 6))
    assert not caplog.text


def test_a_reader_travels_with_what_it_seeds():
    from stable_ssl.data.reading import Reader

    reader = pickle.loads(pickle.dumps(Reader(Images(augment=by_global), 0, "train")))
    assert [part is GLOBAL for part in reader.seedable] == [True]
