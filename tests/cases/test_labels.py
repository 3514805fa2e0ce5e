"""Samples as people have them: labels of any kind, none at all, dicts, and any number of parts."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from stable_ssl import ConfigError, DataError, JointEmbeddingTrainer, NTXEntLoss, SupervisedTrainer
from stable_ssl.augmentations import HorizontalFlip, MultiView, RandomResizedCrop, View
from stable_ssl.data import HuggingFaceDataset, ImageFolder, Loader, Parquet
from stable_ssl.monitors import KNN

VIEW = View([RandomResizedCrop(8), HorizontalFlip()])
IMAGES = np.random.default_rng(0).integers(0, 255, (8, 10, 10, 3), dtype=np.uint8)
BOXES = [{"boxes": torch.ones(i % 3 + 1, 4), "id": i} for i in range(8)]
REST = {
    "none": lambda i: (),
    "None": lambda i: (None,),
    "None among numbers": lambda i: (i if i % 2 else None,),
    "number": lambda i: (0.5 * i,),
    "word": lambda i: (f"cat {i}",),
    "many": lambda i: (torch.ones(14),),
    "dict": lambda i: ({"a": i, "b": torch.zeros(2)},),
    "boxes": lambda i: (BOXES[i],),
    "label and file name": lambda i: (i % 2, f"{i}.png"),
}


class Samples(torch.utils.data.Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.make(index)


def pretrain(make_toy, loader, **options):
    torch.manual_seed(0)
    modules = {"backbone": nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), "projector": nn.Linear(8, 4)}
    if options.pop("probe", False):
        modules["backbone_classifier"] = nn.Linear(8, 2)
    data = {"train": loader, **options.pop("sets", {})}
    trainer = make_toy(JointEmbeddingTrainer, data, modules, loss=NTXEntLoss(), epochs=1, **options)
    trainer()
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.module["backbone"].parameters()])


def as_tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[:, :8, :8] / 255


@pytest.mark.parametrize("kind", REST)
@pytest.mark.parametrize("views", [MultiView([VIEW, VIEW]), [as_tensor, as_tensor]], ids=["declared", "transforms"])
def test_labels_that_nothing_uses_change_nothing(make_toy, tmp_path, kind, views):
    def trained(make, name):
        return weights(pretrain(make_toy, Loader(Samples(make), 4, views=views), logger={"dump_path": tmp_path / name}))

    other = trained(lambda i: (IMAGES[i], *REST[kind](i)), "other")
    assert torch.equal(other, trained(lambda i: (IMAGES[i], i % 2), "classes"))


def test_what_makes_no_tensor_stays_a_list_and_the_rest_does_not():
    for num_workers in (0, 1):
        loader = Loader(Samples(lambda i: (IMAGES[i], BOXES[i], None)), 8, views=[VIEW, VIEW], num_workers=num_workers)
        (_, boxes, nothing) = next(iter(loader))
        assert [len(item) for item in boxes["boxes"]] == [1, 2, 3, 1, 2, 3, 1, 2]
        assert boxes["id"].tolist() == list(range(8))
        assert nothing == [None] * 8


def test_one_view_is_not_taken_for_two_with_its_labels(make_toy):
    class OneView(JointEmbeddingTrainer):
        def view_counts(self):
            return 1, None

        def compute_loss(self):
            (view,) = self.views()
            representations = self.forward(view)
            self.watch([representations])
            return representations.square().mean()

    loader = Loader(Samples(lambda i: (IMAGES[i], torch.ones(14), "a")), 4, views=VIEW)
    modules = {"backbone": nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), "projector": nn.Linear(8, 4)}
    trainer = make_toy(OneView, {"train": loader}, modules, loss=NTXEntLoss(), epochs=1)
    trainer()
    assert trainer.global_step == len(loader)
    assert trainer.batch[0].shape == (4, 3, 8, 8)  # the view, and not a list of it and the labels


def dicts(image, label):
    return Samples(lambda i: {"name": f"{i}.png", label: i % 2, image: IMAGES[i]})


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label"), ("photo", "target")])
def test_dicts_train_probes_and_feed_metrics_and_monitors(make_toy, tmp_path, image, label):
    def run(dataset, name):
        plain = View([RandomResizedCrop(8, scale=(1, 1), ratio=(1, 1))])
        metric = MulticlassAccuracy(2, average="micro")
        logger = {"dump_path": tmp_path / name, "metric": {"test": {"accuracy": metric}}}
        logger["monitor"] = {"test": {"knn": KNN("bank", k=3)}}
        sets = {name: Loader(dataset, 4, views=plain) for name in ("bank", "test")}
        trainer = pretrain(make_toy, Loader(dataset, 4, views=[VIEW, VIEW]), probe=True, sets=sets, logger=logger)
        (last,) = [record for record in trainer.get_logs() if "test/accuracy" in record]
        return weights(trainer), {key: value for key, value in last.items() if key.startswith("test/")}

    of_dicts = run(dicts(image, label), "dicts")
    of_pairs = run(Samples(lambda i: (IMAGES[i], i % 2)), "pairs")
    assert torch.equal(of_dicts[0], of_pairs[0])
    assert of_dicts[1] == of_pairs[1]
    assert len(of_dicts[1]) == 2


@pytest.mark.parametrize("views", [VIEW, as_tensor], ids=["declared", "transform"])
def test_the_batch_of_dicts_is_a_dict_with_views_for_the_image(views):
    batch = next(iter(Loader(dicts("image", "label"), 4, views=[views, views])))
    assert list(batch) == ["name", "label", "image"]
    assert [view.shape for view in batch["image"]] == [(4, 3, 8, 8)] * 2
    assert batch["label"].tolist() == [0, 1, 0, 1]


def test_a_dict_with_two_images_is_explained():
    loader = Loader(Samples(lambda i: {"left": IMAGES[i], "right": IMAGES[i]}), 4, views=VIEW)
    with pytest.raises(DataError, match=r"dict of \['left', 'right'\].* may all be the image.*call it 'image'"):
        list(loader)


def supervised(make_toy, make, loss=None):
    loader = Loader(Samples(make), 4, views=VIEW)
    torch.manual_seed(0)
    network = {"backbone": nn.Sequential(nn.Flatten(), nn.Linear(192, 2))}
    trainer = make_toy(SupervisedTrainer, {"train": loader}, network, loss=loss, epochs=1)
    trainer()
    return trainer.get_logs()


def test_supervised_training_takes_more_parts_dicts_and_labels_that_suit_its_loss(make_toy, tmp_path):
    def path(name):
        return functools.partial(make_toy, logger={"dump_path": tmp_path / name})

    def losses(records):
        return [record["train/loss"] for record in records]

    pairs = losses(supervised(path("pairs"), lambda i: (IMAGES[i], i % 2)))
    assert losses(supervised(path("parts"), lambda i: (IMAGES[i], i % 2, f"{i}.png"))) == pairs
    assert losses(supervised(path("dict"), lambda i: {"image": IMAGES[i], "label": i % 2})) == pairs
    of_several = nn.functional.binary_cross_entropy_with_logits
    assert len(losses(supervised(path("many"), lambda i: (IMAGES[i], torch.ones(2)), loss=of_several))) == len(pairs)


@pytest.mark.parametrize("rest", [(), ("cat",), (None,)])
def test_supervised_training_says_which_labels_it_needs(make_toy, rest):
    with pytest.raises(DataError, match=r"needs batches \(images, labels\), but this one is .*or a dict with 'image'"):
        supervised(make_toy, lambda i: (IMAGES[i], *rest))


def test_supervised_training_refuses_images_without_a_label_unless_its_loss_knows_them(make_toy):
    class Some(Samples):
        targets = [0, 1, -1, -1, 0, 1, 0, -1]

    def make(loss):
        loader = Loader(Some(lambda index: (torch.ones(4) * index, Some.targets[index])), 8)
        return make_toy(SupervisedTrainer, {"train": loader}, {"backbone": nn.Linear(4, 2)}, loss=loss, epochs=1)

    with pytest.raises(ConfigError, match=r"3 samples have no label \(-1\), and SupervisedTrainer learns from labels"):
        make(None).setup()
    make(nn.CrossEntropyLoss(ignore_index=-1))()


@pytest.mark.parametrize(
    "sample", [lambda i: torch.ones(8), lambda i: (torch.ones(8),), lambda i: {"image": torch.ones(8)}]
)
def test_a_metric_without_labels_says_so(make_toy, sample):
    class Guess(SupervisedTrainer):
        def predict(self):
            return torch.zeros(4, 2)

    logger = {"metric": {"test": {"accuracy": MulticlassAccuracy(2)}}}
    with pytest.raises(DataError, match=r"logger.metric.test.accuracy needs labels, but the batch is"):
        make_toy(Guess, {"test": Loader(Samples(sample), 4)}, logger=logger)()


def test_labels_of_minus_1_do_not_count_as_wrong_in_silence(make_toy):
    class Guess(SupervisedTrainer):
        def predict(self):
            return torch.eye(2)[[0, 0, 1, 0]]

    def evaluate(labels, **options):
        logger = {"metric": {"test": {"accuracy": MulticlassAccuracy(2, average="micro", **options)}}}
        trainer = make_toy(Guess, {"test": Loader(Samples(lambda i: (torch.ones(8), labels[i % 4])), 4)}, logger=logger)
        trainer()
        return trainer.get_logs()[-1]["test/accuracy"]

    for labels in ([-1] * 4, [-1, 0, 1, 0]):
        with pytest.raises(DataError, match="test.accuracy needs labels, but some are -1, which stands for no label"):
            evaluate(labels)
    assert evaluate([-1, 0, 1, 0], ignore_index=-1) == 1


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "all" / "below").mkdir(parents=True)
    for place, value in (("b.png", 1), ("a.png", 2), ("below/c.png", 3)):
        Image.fromarray(np.full((9, 9, 3), value, np.uint8)).save(tmp_path / "all" / place)
    return tmp_path / "all"


def test_a_folder_without_classes(folder):
    with pytest.raises(ConfigError, match="For all images below it, without labels, set labels to false"):
        ImageFolder(folder / "below")
    loader = Loader(ImageFolder(folder, labels=False), 3, views=View([RandomResizedCrop(8)]))
    images, labels = next(iter(loader))
    assert [round(float(image.mean() * 255)) for image in images] == [2, 1, 3]
    assert labels.tolist() == [-1, -1, -1]


def test_tables_without_labels(folder, tmp_path):
    import datasets

    paths = [str(path) for path in sorted(folder.rglob("*.png"))]
    table = datasets.Dataset.from_dict({"image": paths}, features=datasets.Features({"image": datasets.Image()}))
    for dataset in (HuggingFaceDataset(table.select([0, 2]), x="image"), HuggingFaceDataset(table, x="image")):
        views, labels = next(iter(Loader(dataset, 2, views=[VIEW, VIEW])))
        assert ([view.shape for view in views], labels.tolist()) == ([(2, 3, 8, 8)] * 2, [-1, -1])
    assert list(next(iter(Loader(HuggingFaceDataset(table), 2, views=[VIEW, VIEW])))) == ["image"]
    both = datasets.DatasetDict(train=table)
    assert len(HuggingFaceDataset(both, x="image", split="train")) == 3
    with pytest.raises(ConfigError, match=r"split: 'test' is unknown; 'DatasetDict' has \['train'\]"):
        HuggingFaceDataset(both, x="image", split="test")
    table.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="Without labels, set label to none"):
        Parquet(tmp_path / "a.parquet")
    assert Parquet(tmp_path / "a.parquet", label=None).targets == [-1, -1, -1]


def test_streams_say_how_they_are_read(folder):
    with pytest.raises(ConfigError, match="streaming: .* Leave streaming out, or use a HuggingFaceStream instead"):
        HuggingFaceDataset("imagefolder", data_dir=str(folder), split="train", streaming=True)

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(3))

        def __len__(self):
            return 3

    with pytest.raises(ConfigError, match="dataset: a Stream is a stream.*torch's DataLoader"):
        Loader(Stream())


@pytest.mark.parametrize("views", [MultiView([VIEW, VIEW]), [as_tensor, as_tensor]], ids=["declared", "transforms"])
@pytest.mark.parametrize(
    "make", [lambda i: IMAGES[i], lambda i: (IMAGES[i],), lambda i: {"img": IMAGES[i], "label": 1}],
    ids=["images only", "one part", "dict"],
)  # fmt: skip
def test_views_of_samples_without_labels_and_of_dicts_are_drawn(make, views):
    from stable_ssl.cli.views import CELL, MARGIN, draw

    picture = draw({"data": {"train": Loader(Samples(make), 4, views=views)}}, 2, 0)
    assert picture.width == 3 * (CELL + 2 * MARGIN)  # the image and two views


def test_labels_that_the_outputs_lack_are_told_with_their_range(make_toy):
    labels = torch.arange(1, 9)
    made = Loader(torch.utils.data.TensorDataset(torch.randn(8, 8), labels), 8)
    with pytest.raises(IndexError) as caught:
        make_toy(SupervisedTrainer, {"train": made}, {"backbone": nn.Linear(8, 8)})()
    assert "[float32 (8, 8), int64 (8,) from 1 to 8]" in caught.value.__notes__[0]


def test_ranges_of_samples_do_not_hide_what_makes_no_batch():
    tokens = [torch.arange(number, number + 2 + number // 5) for number in range(6)]
    with pytest.raises(DataError, match=r"make no batch: int64 \(2,\); int64 \(3,\)\. They"):
        list(Loader(tokens, 6))
