"""What `check` says of data sets: each fault is named with its key, the sample, and what to do; sound sets are not."""

from __future__ import annotations

import functools
import itertools
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from stable_ssl.augmentations import CenterCrop, HorizontalFlip, Normalize, RandomResizedCrop, View
from stable_ssl.data import ImageFolder, Images, Loader
from stable_ssl.rehearsal.report import Report
from stable_ssl.rehearsal.samples.looking import NUM_LOOKED_AT, NUM_MEASURED, Looker, chosen, look_at
from stable_ssl.rehearsal.samples.sets import check_first_samples, check_samples
from stable_ssl.rehearsal.stage import Stage, maker_of
from stable_ssl.trainers import SupervisedTrainer

VIEW = View([RandomResizedCrop(16), HorizontalFlip()])
JOINT = "stable_ssl.trainers.JointEmbeddingTrainer"
SUPERVISED = "stable_ssl.trainers.SupervisedTrainer"


def picture(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def pairs(labels, shape=(20, 20, 3)):
    return [(picture(*shape), label) for label in labels]


class Own(torch.utils.data.Dataset):
    """A user's data set: a function of the index."""

    def __init__(self, make, length=30, **attributes):
        self.make, self.length = make, length
        vars(self).update(attributes)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.make(index)


@pytest.fixture
def report(tmp_path):
    """Return a function that checks sets, and returns the report."""

    def check(data, target=JOINT, module=None, metric=None, part=check_samples, monitor=None, **stage):
        config = {"trainer": {"_target_": target, "data": data, "logger": {"monitor": monitor or {}}}}
        made = Stage(config, maker_of(config), tmp_path, Report(), **stage)
        made.built.update({f"data.{name}": loader for name, loader in data.items()})
        made.built.update({f"module.{name}": one for name, one in (module or {}).items()})
        made.built.update({f"logger.metric.{name}": one for name, one in (metric or {}).items()})
        part(made)
        return made.report

    return check


def said(report, level):
    return [finding.text for finding in report.of(level)]


def folder_of(path, sizes, mode="RGB", classes=("a", "b")):
    for name in classes:
        (path / name).mkdir(parents=True)
    for number, size in enumerate(sizes):
        image = Image.fromarray(picture(*size, 3)).convert(mode)
        image.save(path / classes[number % len(classes)] / f"{number:02}.png")
    return path


def test_sound_sets_have_figures_and_no_finding(report, tmp_path):
    root = folder_of(tmp_path / "images", [(24, 30)] * 39 + [(40, 50)])
    train, test = (
        Loader(Images(root, "folder", split=split), 8, views=VIEW, shuffle=split == "train")
        for split in ("train", "test")
    )
    head, metric = {"backbone_classifier": nn.Linear(4, 2)}, {"test.accuracy": MulticlassAccuracy(2)}
    found = report({"train": train, "test": test}, module=head, metric=metric)
    assert found.findings == []
    facts = found.facts["data"]["train"]
    assert (facts["images"], facts["looked_at"], facts["classes"], facts["channels"]) == (32, 32, 2, {"3": 32})
    assert (facts["smallest"], facts["median"]) == ([24, 30], [24, 30])
    assert facts["sizes"] == ("24 × 30" if facts["largest"] == [24, 30] else "24 × 30 to 40 × 50")
    pixels = np.stack(
        [np.asarray(train.dataset[index][0]) for index in range(32) if train.dataset[index][0].shape[0] == 24]
    )
    assert np.allclose(facts["mean"], pixels.mean((0, 1, 2)) / 255, atol=0.01)


def test_samples_are_spread_over_the_set_and_always_the_same():
    indices = chosen(100_000, is_all=False)
    assert len(set(indices)) == NUM_LOOKED_AT
    assert indices == chosen(100_000, is_all=False)
    assert {0, 99_999} <= set(indices)
    assert np.diff(sorted(indices)).max() < 3000  # two parts, at most
    assert sorted(chosen(120, is_all=False))[-1] == 119
    assert chosen(120, is_all=True) == list(range(120))


def test_what_is_kept_of_each_of_many_samples_is_small():
    loader = Loader(Own(lambda index: (picture(2, 2, 3), 0), NUM_MEASURED + 1))
    loader.bind(0, "train")
    first, *_, last = look_at(Looker(loader.dataset, "train", 0, False), loader, range(NUM_MEASURED + 1), is_all=True)
    assert (first.mean.shape, last.mean, last.square) == ((3,), None, None)
    assert last.kind is first.kind
    assert not hasattr(last, "__dict__")


def test_unreadable_samples_are_named_and_all_are_read_only_if_asked(report, tmp_path):
    root = folder_of(tmp_path / "images", [(20, 20)] * 150)
    dataset = ImageFolder(root)
    broken = next(index for index in range(150) if index not in chosen(150, is_all=False))
    for index in (0, broken):
        file = tmp_path / dataset.samples[index][0]
        file.write_bytes(file.read_bytes()[:100])
    make = functools.partial(Loader, dataset, 8, views=VIEW, shuffle=True)
    (few,) = said(report({"train": make()}), "error")
    assert "data.train: sample 0 (" in few
    assert dataset.samples[0][0] in few
    assert "1 of 100" in few
    assert "--all-data" in few
    (every,) = said(report({"train": make()}, all_data=True), "error")
    assert f"sample {broken} (" in every
    assert "sample 0 (" in every
    assert "2 of 150" in every
    (first,) = said(report({"train": make()}, part=check_first_samples), "error")
    assert "sample 0 (" in first
    assert "unreadable=skip" in first
    skipped = report({"train": make(unreadable="skip")})
    assert said(skipped, "error") == []
    assert "leaves them out" in said(skipped, "warning")[0]


ODD = {
    "it ends before its length": (Own(lambda i: (picture(20, 20, 3), 0) if i < 20 else [][0], 30), "sample 29", "IndexError"),
    "a float tensor for declared views": (Own(lambda i: (torch.rand(3, 20, 20), 0)), "sample 0 is float32", "uint8"),
    "nothing": (Own(lambda i: None), "sample 0 is a NoneType", "declared views are made of"),
    "a dict without an image": (Own(lambda i: {"text": "a"}), "sample 0", "Have the data set call it 'image'"),
    "RGB after many grey ones": (Own(lambda i: (picture(20, 20, 3 if i % 29 else 1), 0), 29 * 32), "is RGB, but 32 others are grey", "channels=3"),
    "two numbers of channels": (Own(lambda i: (picture(20, 20, 3 if i % 2 else 4), 0)), "sample 1 has 3 and sample 0 has 4", "one kind"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_samples_of_which_no_view_can_be_made_are_errors(report, name):
    dataset, *words = ODD[name]
    errors = said(report({"train": Loader(dataset, 8, views=VIEW, shuffle=True)}), "error")
    assert [all(word in text for word in ("data.train", *words)) for text in errors] == [True], errors


def test_views_that_do_not_suit_the_images_name_the_view_and_the_image(report):
    mixed = Own(lambda i: (picture(20 if i == 17 else 40, 40, 3), 0))
    (small,) = said(report({"train": Loader(mixed, 8, views=View([CenterCrop(32)]), shuffle=True)}), "error")
    assert "data.train.views: " in small
    assert "sample 17 has only 20 × 40 pixels" in small
    assert "CenterCrop" in small
    grey, normal = Own(lambda i: (picture(20, 20, 1), 0)), Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    (channels,) = said(
        report({"train": Loader(grey, 8, views=View([normal]), shuffle=True)}, part=check_first_samples), "error"
    )
    assert "data.train.views: " in channels
    assert "Normalize" in channels
    assert "1 channel." in channels
    (device,) = said(report({"train": Loader(mixed, 8, views=VIEW, on="device", shuffle=True)}), "error")
    assert "data.train.on: 'device' needs images of one size" in device
    assert "20 × 40" in device


def test_images_smaller_than_their_views_and_a_foreign_normalisation_are_warnings(report):
    dark = Own(lambda i: (picture(20, 20, 3) // 16, 0))
    views = View([RandomResizedCrop(64), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    small, mean, std = said(report({"train": Loader(dark, 8, views=views, shuffle=True)}), "warning")
    assert "30 of 30 images are smaller than the views of 64 × 64" in small
    assert "sample 0 with 20 × 20" in small
    assert "mean of Normalize is 0.485, 0.456, 0.406" in mean
    assert "std of Normalize is 0.229" in std
    levels = View([Normalize((123.0, 116.0, 103.0), (58.0, 57.0, 57.0))])
    bright = Own(lambda i: (picture(20, 20, 3), 0))
    assert all(
        "not for levels" in text
        for text in said(report({"train": Loader(bright, 8, views=levels, shuffle=True)}), "warning")
    )
    usual = View([Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    assert report({"train": Loader(bright, 8, views=usual, shuffle=True)}).findings == []


PLAIN = {
    "sizes": (lambda i: (torch.rand(3, 20 + i % 2, 20), 0), "error", "these samples make no batch"),
    "mixed modes": (lambda i: (torch.rand(3 if i % 2 else 1, 20, 20), 0), "error", "these samples make no batch"),
    "PIL": (lambda i: (Image.fromarray(picture(20, 20, 3)), 0), "error", "these samples make no batch"),
    "not finite": (lambda i: (torch.rand(3, 9, 9) * (float("nan") if i == 3 else 1), 0), "warning", "sample 3 has values that are not finite"),
    "double": (lambda i: (torch.rand(3, 20, 20).double(), 0), "warning", "sample 0 is float64"),
    "levels": (lambda i: (255 * torch.rand(3, 20, 20), 0), "warning", "as if they were not scaled"),
    "white": (lambda i: (torch.ones(3, 20, 20), 0), "warning", "30 of 30 images that were read have one value"),
    "other each time": (lambda i: (torch.rand(3, 20, 20, generator=_private), 0), "warning", "sample 0 has other values when it is read again"),
}  # fmt: skip
_private = torch.Generator()


@pytest.mark.parametrize("name", PLAIN)
def test_samples_without_declared_views_that_make_no_batch_or_odd_values(report, name):
    make, level, words = PLAIN[name]
    found = report({"train": Loader(Own(make), 8, shuffle=True)})
    assert [words in text and "data.train" in text for text in said(found, level)] == [True], found.findings
    assert len(found.findings) == 1


def test_the_samples_that_a_loss_may_fail_with_are_noted(report):
    images = torch.rand(200, 3, 9, 9)
    images[30], images[60, 0, 0, 0], images[90] = 0.5, float("nan"), images[90] + 5
    odd = []
    report({"train": Loader(Own(lambda i: (images[i], {120: 4, 150: -1}.get(i, 1)), 200), 8)}, all_data=True, odd=odd)
    assert odd == [60, 30, 90, 120, 150]


@pytest.mark.parametrize(
    "sample", [(), {}, None, {"a": 1}, torch.rand(3, 8, 8).to_sparse(), torch.rand(8).requires_grad_(), object()]
)
def test_samples_of_any_kind_break_nothing(report, sample):
    found = report({"train": Loader(Own(lambda i: sample), 8, shuffle=True, collate_fn=list)})
    assert found.findings == []
    assert found.facts["data"]["train"]["images"] == 30


def test_a_transform_that_fails_for_some_images_is_named(report):
    def transform(image):
        assert np.asarray(image).shape[2] == 3, "needs RGB"
        return torch.rand(3, 8, 8)

    dataset = Own(lambda i: (picture(20, 20, 4 if i == 11 else 3), 0))
    (error,) = said(report({"train": Loader(dataset, 8, views=transform, shuffle=True)}), "error")
    assert "data.train: sample 11 can't be read: AssertionError: needs RGB" in error


# Labels -------------------------------------------------------------------------------------------------------------

TEN = list(range(10)) * 3
LABELS = {
    "too few in a probe": (TEN, 5, None, "error", "module.backbone_classifier: it has 5 classes (out_features), from 0 to 4, but data.train has the label 9 (sample 9). It needs 10."),
    "too many in a probe": (TEN, 1000, None, "warning", "module.backbone_classifier: it has 1000 classes (out_features), but data.train has 10 only"),
    "too few in a metric": (TEN, 10, 5, "error", "logger.metric.train.accuracy: it has 5 classes (num_classes)"),
    "counted from 1": ([1, 2, 3] * 10, 3, None, "error", "The classes seem to be counted from 1: count them from 0 to 2."),
    "from 1 with room": ([1, 2, 3] * 10, 4, None, "warning", "the labels run from 1 to 3, so they seem to be counted from 1"),
    "one class": ([2] * 30, 3, None, "warning", "data.train: all samples have the class 2"),
    "an empty class": ([0, 1, 3] * 10, 4, None, "warning", "data.train: 1 of 4 classes have no sample: 2."),
    "none for a metric": ([0, 1, -1] * 10, 2, 2, "error", "logger.metric.train.accuracy: it needs labels, but data.train has 10 samples with the label -1, which is no class (sample 2)"),
    "none for a probe": ([-1] * 30, 2, None, "warning", "module.backbone_classifier: it has nothing to learn from"),
    "floats": ([1.0] * 30, 2, None, "error", "data.train: module.backbone_classifier needs labels that are whole numbers, -1 for none, and there are floats, such as 1.0, in 30 samples"),
    "texts": (["cat"] * 30, 2, None, "error", "and there are texts, such as 'cat', in 30 samples"),
    "many labels": ([torch.ones(14)] * 30, 2, None, "error", "and there are float32 (14,) in 30 samples"),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_do_not_suit_heads_and_metrics(report, name):
    labels, head, metric, level, words = LABELS[name]
    found = report(
        {"train": Loader(pairs(labels), 8, views=VIEW, shuffle=True)},
        module={"backbone_classifier": nn.Sequential(nn.LayerNorm(4), nn.Linear(4, head))},
        metric={"train.accuracy": MulticlassAccuracy(metric)} if metric else {},
    )
    assert [words in text for text in said(found, level)] == [True], found.findings
    assert len(found.findings) == 1


@pytest.mark.parametrize("labels", [[0.5] * 30, ["cat"] * 30, [None] * 30, [-1] * 30, [torch.ones(14)] * 30])
def test_labels_that_nothing_uses_may_be_anything(report, labels):
    dataset = Own(pairs(labels).__getitem__, targets=[0] * 30)  # other labels than its samples have
    assert report({"train": Loader(dataset, 8, views=VIEW, shuffle=True)}).findings == []


def test_a_supervised_network_with_too_few_scores_is_an_error(report):
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    make = functools.partial(report, {"train": Loader(pairs(TEN), 8, views=VIEW, shuffle=True)}, SUPERVISED)
    (error,) = said(make(module={"backbone": network}), "error")
    assert "module.backbone: it has 4 classes" in error
    assert "the label 9 (sample 9)" in error
    assert make(module={"backbone": nn.Sequential(network, nn.Linear(4, 10))}).findings == []
    assert make(module={"backbone": nn.Sequential(network, nn.ReLU())}).findings == []  # not known for sure


class OwnLoss(SupervisedTrainer):
    def compute_loss(self):
        return self.predict().sum()


def test_a_supervised_network_of_a_users_own_loss_gets_a_warning(report):
    for labels, wanted in ((TEN, 1), ([-1] * 30, 0), ([0.5] * 30, 0), ([0] * 30, 0)):
        data = {"train": Loader(pairs(labels), 8, views=VIEW, shuffle=True)}
        found = report(data, f"{__name__}.OwnLoss", module={"backbone": nn.Linear(768, 4)})
        levels = [finding.level for finding in found.findings if finding.text.startswith("module.backbone: it has 4")]
        assert levels == ["warning"] * wanted


def test_labels_that_a_collate_fn_or_the_loss_may_change_are_no_errors(report):
    network = {"backbone": nn.Sequential(nn.Flatten(), nn.Linear(768, 4))}
    soft = [(torch.rand(3, 16, 16), torch.rand(4)) for _ in range(30)]
    assert report({"train": Loader(soft, 8, shuffle=True)}, SUPERVISED, module=network).findings == []
    mapped = [(torch.rand(3, 16, 16), f"c{number % 4}") for number in range(30)]
    found = report({"train": Loader(mapped, 8, shuffle=True, collate_fn=list)}, SUPERVISED, module=network)
    [text], errors = said(found, "warning"), said(found, "error")
    assert text.endswith("Number the classes in the data set.")  # the backbone can't be left out
    assert errors == []


def test_labels_of_a_list_count_for_all_samples_unless_the_samples_say_otherwise(report):
    rare = [0] * 4999 + [7]
    head = {"backbone_classifier": nn.Linear(4, 7)}
    listed = Own(lambda i: (picture(20, 20, 3), rare[i]), 5000, targets=rare)
    (error,) = said(report({"train": Loader(listed, 8, views=VIEW, shuffle=True)}, module=head), "error")
    assert "the label 7 (sample 4999)" in error
    mapped = Own(lambda i: (picture(20, 20, 3), i % 7), 5000, targets=rare)
    assert report({"train": Loader(mapped, 8, views=VIEW, shuffle=True)}, module=head).findings == []


# Several sets, and their sizes ---------------------------------------------------------------------------------------


def test_sets_that_share_files_or_number_classes_otherwise_are_warnings(report, tmp_path):
    root = folder_of(tmp_path / "one", [(20, 20)] * 20)
    other = folder_of(tmp_path / "two", [(20, 20)] * 20, classes=("b", "c"))
    train = Loader(Images(root, "folder"), 8, views=VIEW, shuffle=True)
    same, apart = (Loader(Images(path, "folder"), 8, views=VIEW) for path in (root, other))
    (both,) = said(report({"train": train, "test": same}), "warning")
    assert "data.test: 20 files are in data.train too: " in both
    assert "a/00.png" in both
    (order,) = said(report({"train": train, "test": apart}), "warning")
    assert "data.test: its classes are not those of data.train" in order
    assert "['a', 'c']" in order
    bank = {"test": {"knn": {"_target_": "stable_ssl.monitors.KNN", "bank": "test"}}}
    assert report({"train": train, "test": same}, monitor=bank).findings == []
    assert report({"train": train, "bank": same}).findings == []


def test_evaluation_images_that_are_not_normalised_as_training_images_are_a_warning(report):
    one, other = (View([CenterCrop(16), Normalize((mean,), (0.25,))]) for mean in (0.5, 0.45))
    make = functools.partial(Loader, pairs([0, 1] * 15), 8)
    train = make(views=one, shuffle=True)
    assert report({"train": train, "test": make(views=one)}).findings == []
    for views, words in (
        (other, "with mean 0.45 and std 0.25, and those of data.train with mean 0.5"),
        (View([CenterCrop(16)]), "normalised by nothing, and"),
    ):
        (warning,) = said(report({"train": train, "test": make(views=views)}), "warning")
        assert warning.startswith("data.test.views: ")
        assert words in warning


def test_what_several_sets_have_in_common_is_said_once(report):
    sets = {
        name: Loader(pairs([0.5] * 30), 8, views=View([CenterCrop(32)]), shuffle=True) for name in ("train", "bank")
    }
    (error,) = said(report(sets), "error")
    assert error.startswith("data.train.views: sample 0 has only 20 × 20 pixels")
    assert error.endswith("So it is with data.bank.")


def test_the_quick_part_builds_what_is_not_built_and_downloads_nothing(report, tmp_path):
    def loader(target, **arguments):
        return {"_target_": "stable_ssl.data.Loader", "dataset": {"_target_": target, **arguments}, "batch_size": 4}

    root = folder_of(tmp_path / "images", [(20, 20)] * 4)
    (root / "b" / "01.png").write_bytes(b"")
    (root / "a" / "00.png").write_bytes(b"")
    data = {
        "train": loader("stable_ssl.data.ImageFolder", root=str(root)),
        "test": loader("torchvision.datasets.CIFAR10", root=str(tmp_path / "cifar"), download=True),
    }
    found = report(data, part=lambda stage: (stage.built.clear(), check_first_samples(stage)))
    (error,), (warning,) = said(found, "error"), said(found, "warning")
    assert "data.train: sample 0 (" in error
    assert "data.test.dataset: CIFAR10 is not in" in warning
    assert not (tmp_path / "cifar").exists()


SIZES = {
    "more than there are": ({"batch_size": 64}, 1, "warning", "data.train.batch_size: 64 is more than the 30 samples"),
    "drop_last on four processes": ({"batch_size": 8, "drop_last": True}, 4, "error", "data.train.batch_size: 30 samples make no batch of 8 on each of 4 processes with drop_last"),
    "one for the last batch": ({"batch_size": 29}, 1, "warning", "data.train.drop_last: false, and 30 samples in batches of 29 leave 1"),
    "the order of the data set": ({"batch_size": 8, "shuffle": False}, 1, "warning", "data.train.shuffle: false, and each epoch has the order of the data set"),
    "a sampler beyond the end": ({"batch_size": 8, "shuffle": False, "sampler": [0, 30]}, 1, "error", "data.train.sampler: it gives the sample 30, but the data set has 30"),
    "a sampler of nothing": ({"batch_size": 8, "shuffle": False, "sampler": []}, 1, "error", "data.train.sampler: it gives 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_batches_that_do_not_suit_the_number_of_samples(report, name):
    options, world, level, words = SIZES[name]
    loader = Loader(pairs([0, 1] * 15), views=VIEW, **{"shuffle": True, **options})
    found = report({"train": loader}, world_size=world)
    assert [words in text for text in said(found, level)] == [True], found.findings
    assert len(found.findings) == 1


def test_samples_in_the_order_of_their_classes_are_told_although_not_all_are_read(report):
    loader = Loader(pairs([0] * 100 + [1] * 100), 8, views=VIEW)
    (text,) = said(report({"train": loader}), "warning")
    assert text.startswith("data.train.shuffle: false, and the samples are in the order of their classes")


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        yield from self.samples


def test_a_few_batches_of_a_stream_are_read_and_no_more(report):
    taken: list[int] = []
    endless = ((torch.rand(3, 8, 8), taken.append(number) or number % 10) for number in itertools.count())
    stream = torch.utils.data.DataLoader(Stream(endless), 4)
    found = report({"train": stream}, module={"backbone_classifier": nn.Linear(4, 5)})
    assert ["the label 7" in text for text in said(found, "error")] == [True]
    assert len(taken) == 8
    (empty,) = said(report({"train": torch.utils.data.DataLoader(Stream([]), 4)}), "error")
    assert empty == "data.train: it gives no batch."
    remote = (urllib.request.urlopen("http://192.0.2.1/shard.tar", timeout=1) for _ in range(3))
    (missing,) = said(report({"train": torch.utils.data.DataLoader(Stream(remote), 4)}), "warning")
    assert "A check reads none over the network" in missing
    failing = (1 / 0 for _ in range(3))
    (error,) = said(
        report({"train": torch.utils.data.DataLoader(Stream(failing), 4)}, part=check_first_samples), "error"
    )
    assert "data.train: its batches can't be read: ZeroDivisionError" in error
