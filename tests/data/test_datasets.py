from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from stable_ssl import ConfigError
from stable_ssl.data import Digits, HuggingFaceDataset, ImageFolder, Loader, MultiViewSampler, Parquet


def png(value):
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_digits_are_the_real_ones_split_for_good():
    from sklearn.datasets import load_digits

    train, test = Digits("train", size=8), Digits("test", size=8)
    assert (len(train), len(test)) == (1442, 355)
    image, label = train[0]
    assert image.shape == (1, 8, 8)
    np.testing.assert_allclose(image[0].numpy() * 16, load_digits().images[0], atol=0.05)
    assert label == load_digits().target[0]
    counts = np.bincount(test.targets) / np.bincount(train.targets)
    assert counts.min() > 0.23
    assert counts.max() < 0.26


def test_digits_scale_up_and_take_a_transform():
    assert Digits(size=16)[0][0].shape == (1, 16, 16)
    assert Digits(transform=lambda image: image.mode)[0][0] == "L"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Digits("valid"), "split: must be 'train' or 'test', not 'valid'"),
        (lambda: Digits(size=True), "size: must be a number of pixels, at least 1, not True"),
        (lambda: Digits(size=0, transform=3), "size: .* not 0.\ntransform: must be a function of an image, or none, not 3"),
        (lambda: ImageFolder(5, transform="flip"), "root: must be a folder, not 5.\ntransform: .* not 'flip'"),
        (lambda: Parquet([]), r"path: must be a file, a folder, a pattern, or a list of these, not \[\]"),
        (lambda: Parquet("a", image=0, label=False), "image: must be the name of a column, not 0.\nlabel: .* not False"),
        (lambda: MultiViewSampler([]), r"transforms: must be a list of functions of an image, not \[\]"),
        (lambda: MultiViewSampler([1]), r"transforms: .* not \[1\]"),
        (lambda: HuggingFaceDataset("a", x="image", y=1), "y: must be the name of a column, or none, not 1"),
        (lambda: HuggingFaceDataset([1]), r"path: must be a name on the hub, .* or a Dataset, not \[1\]"),
        (lambda: HuggingFaceDataset("a", y="label"), "y: must be none, since x is none, not 'label'"),
        (lambda: HuggingFaceDataset("a", transform=len), "transform: must be a dict of functions, one per column, or none"),
        (lambda: HuggingFaceDataset("a", transform={"b": 1}), "transform: .* not {'b': 1}"),
        (lambda: HuggingFaceDataset("a", x="b", y="c", transform={}), "transform: must be a function of an image, or none"),
        (lambda: HuggingFaceDataset("a", add_index="no"), "add_index: must be true or false, not 'no'"),
        (lambda: HuggingFaceDataset("a", x="b", y="c", add_index=True), "add_index: must be false, since samples of x and y"),
        (lambda: HuggingFaceDataset("a", rename_columns=["b"]), "rename_columns: must be a dict of names, or none"),
        (lambda: HuggingFaceDataset("a", remove_columns="b"), "remove_columns: must be a list of names, or none, not 'b'"),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_a_data_set_is_named_with_its_value(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.fixture(params=["bytes", "struct"])
def parquet(tmp_path, request):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [png(10 * i) for i in range(5)]
    column = images if request.param == "bytes" else [{"bytes": b, "path": None} for b in images]
    pq.write_table(pa.table({"image": column[:3], "label": [0, 1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": column[3:], "label": [3, 4]}), tmp_path / "b.parquet")
    return tmp_path


@pytest.mark.parametrize("pattern", ["", "*.parquet"])
def test_parquet_reads_images_and_labels_of_all_files(parquet, pattern):
    dataset = Parquet(parquet / pattern if pattern else parquet)
    assert [int(image[0, 0, 0] * 255 + 0.5) for image, _ in (dataset[i] for i in range(5))] == [
        0,
        10,
        20,
        30,
        40,
    ]
    assert [dataset[i][1] for i in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("parquet", ["struct"], indirect=True)
def test_parquet_travels_to_a_spawned_worker_without_its_bytes(parquet):
    dataset = Parquet(parquet)
    assert len(pickle.dumps(dataset)) < 2000
    batches = list(Loader(dataset, 5, num_workers=1, multiprocessing_context="spawn"))
    assert batches[0][1].tolist() == [0, 1, 2, 3, 4]


def test_parquet_without_its_columns_or_files_is_refused(parquet, tmp_path):
    with pytest.raises(ConfigError, match=r"no column \['img'\]; it has \['image', 'label'\]"):
        Parquet(parquet, image="img")
    with pytest.raises(ConfigError, match="no Parquet file"):
        Parquet(tmp_path / "none.parquet")


def test_hugging_face_data_as_tuples_and_as_dicts(parquet):
    options = {"data_files": str(parquet / "a.parquet"), "split": "train"}
    labels = HuggingFaceDataset("parquet", x="label", y="label", transform=lambda label: label + 1, **options)
    assert [labels[i] for i in range(3)] == [(1, 0), (2, 1), (3, 2)]
    by_place = HuggingFaceDataset("parquet", "label", "label", lambda label: label + 1, **options)
    assert by_place[2] == (3, 2)
    with pytest.warns(UserWarning, match="trust_remote_code"):
        dicts = HuggingFaceDataset(
            "parquet", rename_columns={"label": "target"}, remove_columns=["image"], add_index=True,
            transform={"target": lambda label: -label}, trust_remote_code=True, **options,
        )  # fmt: skip
    assert dicts[2] == {"target": -2, "index": 2}
    for wrong in ({"x": "image", "y": "lable"}, {"transform": {"lable": len}}, {"remove_columns": ["lable"]}):
        with pytest.raises(ConfigError, match=r"no column \['lable'\]"):
            HuggingFaceDataset("parquet", **wrong, **options)


def test_hugging_face_data_saved_to_disk(tmp_path):
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": [1, 2]})}).save_to_disk(tmp_path / "saved")
    assert len(HuggingFaceDataset(str(tmp_path / "saved"), split="train")) == 2
    with pytest.raises(ConfigError, match=r"split: missing; .* has \['train'\]"):
        HuggingFaceDataset(str(tmp_path / "saved"))


def test_one_transform_gives_the_bare_view_and_several_a_list():
    assert MultiViewSampler([lambda x: x + 1])(1) == 2
    assert MultiViewSampler([lambda x: x + 1, lambda x: -x])(1) == [2, -1]


def test_views_replace_the_image_of_a_sample():
    ((views, labels),) = Loader([(torch.ones(2), 5)], 1, views=[lambda x: x, lambda x: -x])
    assert [view.tolist() for view in views] == [[[1, 1]], [[-1, -1]]]
    assert labels.tolist() == [5]
