"""Declared views are the same bytes wherever and whenever the loader makes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from toys import Toy

from stable_ssl import ConfigError, DataError
from stable_ssl.augmentations import EvalView, HorizontalFlip, MultiView, SimCLRViews, View
from stable_ssl.data import Digits, Images, Loader

VIEWS = SimCLRViews(12, mean=[0.5], std=[0.5])


class Read(Dataset):
    """Images that are read anew each time, as far as the loader knows."""

    def __init__(self, dataset, kind="pil"):
        self.dataset, self.kind = dataset, kind

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset.images[index], self.dataset.targets[index]
        if self.kind == "tensor":
            return torch.from_numpy(np.array(image))[None], label
        return (image if self.kind == "pil" else np.array(image)), label


def batches(dataset, batch_size=16, epoch=1, start=0, **options):
    made = Loader(dataset, batch_size, views=options.pop("views", VIEWS), shuffle=True, **options)
    made.bind(seed=5, name="train")
    try:
        return list(made.batches(epoch, start))
    finally:
        made.close()


def by_sample(found):
    """Return the views and label of each sample, by its index."""
    return {
        index: [*(view[place] for view in views), labels[place]]
        for indices, (views, labels) in found
        for place, index in enumerate(indices)
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(a, b) for index in one for a, b in zip(one[index], other[index], strict=True))


@pytest.fixture(scope="module")
def digits():
    return Digits("test", size=14)


def test_a_list_of_views_is_a_multi_view_and_an_operation_a_view():
    assert Loader(Digits(), 8, views=list(VIEWS.views)).views == MultiView(VIEWS.views)
    assert Loader(Digits(), 8, views=HorizontalFlip()).views == MultiView([View([HorizontalFlip()])])
    assert repr(Loader(Digits(), 8, views=HorizontalFlip()).views) == repr(View([HorizontalFlip()]))
    both = [HorizontalFlip(), VIEWS.views[0]]
    assert Loader(Digits(), 8, views=both).views == MultiView([View([HorizontalFlip()]), VIEWS.views[0]])


def test_a_batch_is_a_list_of_views_and_the_labels(digits):
    indices, (views, labels) = batches(digits)[0]
    assert [(view.shape, view.dtype) for view in views] == [((16, 1, 12, 12), torch.float32)] * 2
    assert labels.tolist() == [digits.targets[index] for index in indices]
    assert not torch.equal(*views)
    expected = VIEWS.make(np.stack([np.array(digits.images[i])[:, :, None] for i in indices]), 5, 1, indices)
    assert all(map(torch.equal, views, expected))


@pytest.mark.parametrize("kind", ["pil", "tensor", "array"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_views_of_images_in_memory_are_those_that_workers_make(digits, kind, num_workers):
    assert_same(by_sample(batches(digits)), by_sample(batches(Read(digits, kind), 7, num_workers=num_workers)))


def test_an_epoch_may_be_entered_anywhere_and_epochs_differ(digits):
    whole, part = batches(digits), batches(digits, start=3)
    assert_same(by_sample(whole[3:]), by_sample(part))
    other = by_sample(batches(digits, epoch=2))
    assert not torch.equal(by_sample(whole)[0][0], other[0][0])


def test_images_of_several_sizes_are_held_too():
    images = [Image.fromarray(np.full((8 + i, 9, 3), i, np.uint8)) for i in range(4)]
    samples = [(image, 0) for image in images]
    views = MultiView([EvalView(8)])
    (_, (made, _)), *_ = batches(samples, 4, views=views)
    assert made[0].shape == (4, 3, 8, 8)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_device_makes_the_same_of_images_in_memory_and_of_those_that_workers_read(digits, num_workers):
    """Torch makes them here, on the device that the run has."""
    on_cpu, held = by_sample(batches(digits)), by_sample(batches(digits, on="device"))
    read = by_sample(batches(Read(digits), 7, on="device", num_workers=num_workers))
    assert_same(held, read)
    different = [
        (a - b).abs() > 1e-4 for index in held for a, b in zip(held[index][:2], on_cpu[index][:2], strict=True)
    ]
    assert torch.stack(different).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("on", "words"),
    [
        ("auto", "views are made on the CPU: the run's device is cpu"),
        ("cpu", "views are made on the CPU: on is 'cpu'"),
        ("device", "views are made on cpu: on is 'device'"),
    ],
)
def test_the_log_says_where_views_are_made_and_why(digits, caplog, on, words):
    with caplog.at_level("INFO", "stable_ssl"):
        batches(digits, on=on)
    assert words in caplog.text


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.zeros((8, 8, 2), np.uint8), ConfigError, r"data.train.views: view 0: .* 1 or 3 channels, not of 2"),
        (np.zeros((8, 8, 3)), DataError, "sample 0 is float64"),
    ],
)
def test_views_that_do_not_suit_the_images_are_an_error_at_set_up(make_toy, image, error, words):
    with pytest.raises(error, match=words):
        make_toy(data={"train": Loader([(image, 0)] * 8, 4, views=VIEWS)}).setup()


def test_an_image_too_small_for_the_views_is_an_error_at_set_up(make_toy):
    loader = Loader([(np.zeros((8, 8, 3), np.uint8), 0)] * 8, 4, views=EvalView(8, resize=4))
    with pytest.raises(ConfigError, match="sample 0 has only 4 × 4 pixels"):
        make_toy(data={"train": loader}).setup()


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_pictures_in_other_modes_are_taken_as_colours(mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)).convert(mode)
    view = EvalView(8)
    (_, (made, _)), *_ = batches([(image, 0)], 1, views=view)
    assert torch.equal(made, view(image.convert("RGB"))[None])
    assert torch.equal(made[0], view(image))


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_pictures_of_more_than_a_byte_are_refused(mode):
    with pytest.raises(DataError, match="sample 0 is"):
        batches([(Image.new(mode, (8, 8)), 0)], 1, views=EvalView(8))


def test_an_evaluation_view_is_a_tensor(digits):
    (_, (images, _)), *_ = batches(Subset(digits, range(20)), views=EvalView(12, mean=[0.5], std=[0.5]))
    assert images.shape == (16, 1, 12, 12)


def test_ranks_make_together_what_one_makes(digits):
    whole = by_sample(batches(digits))
    for world_size in (2, 3):
        found = {}
        for rank in range(world_size):
            loader = Loader(digits, 7, views=VIEWS, shuffle=True)
            loader.bind(5, "train", rank, world_size)
            found |= by_sample(loader.batches(1))
        assert_same(found, whole)


def digits_in_a_folder(folder):
    """Return digits as JPEG files, which are decoded for each batch."""
    digits = Digits("test", size=14)
    for number, (image, label) in enumerate(zip(digits.images, digits.targets, strict=True)):
        path = folder / str(label) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return Images(folder, labels="folder", in_memory=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "355 images are held in memory (0.1 MB)"),
        ({"on": "device"}, "355 images are held in memory (0.1 MB)"),
        ({"num_workers": 2}, "since a Read may give"),
        ({"num_workers": 2, "on": "device"}, "since a Read may give"),
        ({"files": True}, "images are decoded and views made in threads"),
    ],
    ids=str,
)
def test_a_run_with_declared_views_says_where_they_are_made_and_resumes_exactly(make_toy, tmp_path, options, said):
    class TwoViews(Toy):
        def compute_loss(self):
            (one, two), labels = self.batch
            return torch.nn.functional.cross_entropy(self.forward(one.flatten(1) - two.flatten(1)), labels)

    def make(folder, cls=TwoViews):
        dataset = Read(Digits("test", size=14)) if "num_workers" in options else Digits("test", size=14)
        dataset = files if "files" in options else dataset
        loaded = {key: value for key, value in options.items() if key != "files"}
        data = {"train": Loader(dataset, 64, views=VIEWS, shuffle=True, **loaded)}
        torch.manual_seed(0)
        module = {"backbone": torch.nn.Linear(144, 10)}
        return make_toy(cls, data, module, logger={"dump_path": tmp_path / folder, "level": 20})

    class Stopped(TwoViews):
        def after_fit_step(self):
            if self.global_step == 8:
                raise KeyboardInterrupt

    files = digits_in_a_folder(tmp_path / "digits") if "files" in options else None
    alone = make("alone")
    alone()
    assert said in (tmp_path / "alone" / "console.log").read_text()
    Stopped.__name__ = "TwoViews"
    Stopped.__qualname__ = TwoViews.__qualname__
    with pytest.raises(KeyboardInterrupt):
        make("stopped", Stopped)()
    again = make("stopped")
    again()
    assert all(map(torch.equal, again.parameters(), alone.parameters()))


@pytest.mark.parametrize(
    ("dataset", "options", "error", "words"),
    [
        ([(torch.ones(3, 8, 8), 0)], {}, DataError, r"sample 0 is float32 \(3, 8, 8\); declared views are made of"),
        ([(np.zeros((8, 8, 3), np.uint8), 0)], {"collate_fn": list}, ConfigError, "collate_fn"),
        ([(np.zeros((8, 8, 3), np.uint8), 0)], {"batch_size": None}, ConfigError, "batch_size"),
        ([(np.zeros((8, 8, 2), np.uint8), 0)], {}, ValueError, "needs images of 1 or 3 channels, not of 2"),
        ([{"image": 0}], {}, DataError, "sample 0 is int64"),
        (
            [(np.zeros((8, 8, 3), np.uint8), 0)],
            {"on": "gpu"},
            ConfigError,
            "on: must be 'auto', 'cpu' or 'device', not 'gpu'",
        ),
        (
            [(torch.ones(3), 0)],
            {"on": "device", "views": None},
            ConfigError,
            "on: must be 'auto' without declared views",
        ),
        (
            [(np.zeros((8 + i, 8, 1), np.uint8), 0) for i in range(2)],
            {"on": "device"},
            DataError,
            "views on a device need images of one size",
        ),
    ],
)
def test_what_views_can_not_be_made_of_is_named(dataset, options, error, words):
    with pytest.raises(error, match=words):
        batches(dataset, **{"batch_size": 2, **options})


def test_a_data_set_that_may_change_is_read_each_time(digits):
    class Changing(Digits):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return (np.asarray(image) + np.uint8(torch.randint(9, ()))).astype(np.uint8), label

    changing = Changing("test", size=14)
    changing.transform = np.asarray
    assert not read_alike(Loader(changing, 7, views=EvalView(14, mean=[0.5], std=[0.5])))


def read_alike(loader):
    """Say whether a loader gives the same images in two epochs."""
    loader.bind(0, "train")
    loader.prepare(torch.device("cpu"))
    one, two = (images_of(list(loader.batches(epoch))) for epoch in (1, 2))
    return all(torch.equal(one_of[0], two_of[0]) for one_of, two_of in zip(one, two, strict=True))


def test_a_folder_read_by_a_function_of_the_user_s_is_read_each_time(tmp_path):
    (tmp_path / "one").mkdir()
    for number in range(4):
        Image.new("L", (8, 8), number).save(tmp_path / "one" / f"{number}.png")

    def noisy(path):
        return Image.new("L", (8, 8), int(torch.randint(200, ())))

    view = EvalView(8, mean=[0.5], std=[0.5])
    assert not read_alike(Loader(ImageFolder(str(tmp_path), loader=noisy), 4, views=view))
    assert read_alike(Loader(ImageFolder(str(tmp_path)), 4, views=EvalView(8)))


def test_images_that_take_more_memory_than_may_be_taken_are_read_by_the_batch(digits, monkeypatch, caplog):
    caplog.set_level("INFO", "stable_ssl")
    monkeypatch.setattr("stable_ssl.data.in_memory.free_memory", lambda: 14 * 64 * 4 - 1)
    found = batches(Digits("test", size=8), views=EvalView(8, mean=[0.5], std=[0.5]))
    assert "views are made where samples are read: the images would take about" in caplog.text
    caplog.clear()
    monkeypatch.undo()
    again = batches(Digits("test", size=8), views=EvalView(8, mean=[0.5], std=[0.5]))
    assert "images are held in memory" in caplog.text
    for one, two in zip(images_of(found), images_of(again), strict=True):
        assert torch.equal(one[0], two[0])


def images_of(found):
    images = {index: images[place] for indices, (images, _) in found for place, index in enumerate(indices)}
    return [[images[index]] for index in sorted(images)]
