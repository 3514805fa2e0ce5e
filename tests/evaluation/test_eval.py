"""`stable-ssl eval` and `embed`: records, the table, several processes, and bad input."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import processes
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch.utils.data import Dataset

import stable_ssl
from stable_ssl import ConfigError
from stable_ssl.cli import main
from stable_ssl.data import Digits
from stable_ssl.evaluation import evaluate
from stable_ssl.evaluation.augmented.linear import LinearProbeTrainer
from stable_ssl.evaluation.jobs import TrainingJob
from stable_ssl.evaluation.presets import PROTOCOLS
from stable_ssl.evaluation.protocol import Figure
from stable_ssl.evaluation.request import Request
from stable_ssl.evaluation.results import in_words, record, save, saved, show
from stable_ssl.evaluation.sets import EvaluationData
from stable_ssl.evaluation.sources import open_source

COMMAND = Path(sys.executable).with_name("stable-ssl")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(digits_run, tmp_path):
    """A copy of a run, so that its records are its own."""
    return shutil.copytree(digits_run("simclr_digits", "logger.eval_at_start=true"), tmp_path / "run")


def test_a_runs_features_before_and_after_training_are_measured_on_its_own_sets(run, capsys):
    assert main(["eval", str(run), "--protocol", "knn", "simpleshot"]) == 0
    table = capsys.readouterr().out
    records = {(one["protocol"], one["global_step"]): one for one in saved(run)}
    assert [*records] == [("knn", 0), ("simpleshot", 0), ("knn", 2), ("simpleshot", 2)]
    backbone = stable_ssl.load(run)["backbone"]
    with torch.no_grad():
        (x, y), (x_test, y_test) = (
            (backbone(torch.stack([one[0] for one in digits])).numpy(), digits.targets)
            for digits in (Digits("train"), Digits("test"))
        )
    figure = records["knn", 2]["figures"]["knn"]
    for accuracy, chosen in zip(figure["by_seed"], figure["chosen"], strict=True):
        weights = lambda distances: np.exp((1 - distances) / 0.07)
        theirs = KNeighborsClassifier(chosen["k"], metric="cosine", weights=weights).fit(x, y).score(x_test, y_test)
        assert accuracy == pytest.approx(theirs, abs=1 / len(y_test))
    data = {key: value for key, value in records["knn", 2]["data"].items() if key != "fingerprint"}
    assert data == {"name": "its own Digits", "train": 1442, "test": 355, "classes": 10}
    for one in records.values():
        assert all(in_words(figure) in table for figure in one["figures"].values())


def test_the_same_from_two_processes_is_the_same_record_to_the_byte(run, tmp_path):
    line = ["eval", str(run), "--protocol", "knn", "simpleshot", "--cache", "none"]
    found = {}
    for number in ("1", "2"):
        done = processes.run([COMMAND, *line, "--world-size", number])
        assert done.returncode == 0, done.stderr
        found[number] = {file.name: file.read_bytes() for file in (run / "evaluations").glob("*.json")}
        shutil.rmtree(run / "evaluations")
    assert found["1"] == found["2"]
    assert len(found["1"]) == 4


def test_a_folder_with_train_and_val_or_of_classes_is_evaluated_on(run, photos, tmp_path):
    (one,) = evaluate(run / "weights" / "initial.safetensors", "simpleshot", data=photos, size=16)
    assert one["data"].items() >= {"name": str(photos), "train": 24, "test": 6, "classes": 3}.items()
    split = tmp_path / "split"
    for part in ("train", "val"):
        shutil.copytree(photos, split / part)
    (two,) = evaluate(run / "weights" / "initial.safetensors", "simpleshot", data=split, size=16)
    assert two["data"].items() >= {"name": str(split), "train": 30, "test": 30, "classes": 3}.items()


def test_a_record_of_other_weights_is_never_overwritten(tmp_path, run):
    figures = {0: [Figure("knn", 0.5, "representation")]}
    subject = open_source(run)
    data = {"name": "a/photos", "train": 1, "test": 1, "classes": 2, "fingerprint": "f"}
    made = {**record(subject, PROTOCOLS["knn"], data, (16, 16), figures, {}, "line"), "view": "v"}
    first = save(made, tmp_path / "records")
    assert save(made, tmp_path / "records") == first
    other = save({**made, "digest": "other"}, tmp_path / "records")
    assert (first.name, other.name) == ("knn_photos_step_2.json", "knn_photos_step_2_2.json")
    unknown = {**made, "data": {**data, "fingerprint": None}}
    assert save(unknown, tmp_path / "records") != save(unknown, tmp_path / "records")


def test_means_and_deviations_over_seeds_are_kept_apart_by_features_if_a_protocol_gives_several(run, capsys):
    figures = {
        seed: [Figure("knn", value, "class"), Figure("knn", value / 2, "patches")]
        for seed, value in ((0, 0.6), (1, 0.8))
    }
    data = {"name": "x", "train": 1, "test": 1, "classes": 2}
    made = record(open_source(run), PROTOCOLS["knn"], data, (16, 16), figures, {}, "line")
    assert {name: (one["accuracy"], one["std"]) for name, one in made["figures"].items()} == {
        "knn, class": (pytest.approx(0.7), pytest.approx(0.02**0.5)),
        "knn, patches": (pytest.approx(0.35), pytest.approx(0.02**0.5 / 2)),
    }
    show([made])
    assert "70.00 ± 14.14 %" in capsys.readouterr().out


def grey(photos):
    Image.new("L", (12, 12)).save(photos / "red" / "grey.png")


@pytest.mark.parametrize(
    ("words", "change", "told"),
    [
        (["nowhere"], None, "'nowhere' is no source: no run, no file of a run, and neither timm/NAME nor torchvision/NAME"),
        (["torchvision/resnet19"], None, "torchvision has no classifier 'resnet19'"),
        (["RUN", "--protocol", "held_out"], None, "--protocol: there is no 'held_out'. There are held-out"),
        (["RUN", "--features", "class"], None, "--features: 'RUN before training' gives no 'class'. It gives representation"),
        (["RUN", "--data", "foto"], None, "--data: 'foto' is no folder, no file of `stable-ssl prepare`, and no recipe"),
        (["RUN", "--data", "photos", "--labels", "none"], None, "its training set has no labels, so that nothing can be measured"),
        (["RUN", "--data", "photos", "--size", "16", "--protocol", "dino-knn", "--features", "representation"], None, "200"),
        (["RUN", "--data", "split", "--size", "16"], "classes", "have different classes"),
        (["RUN", "--seeds", "0"], None, "--seeds: 0 is not a whole number of at least 1."),
        (["RUN", "--few-shot", "0", "--protocol", "solo-100"], None, "--few-shot: 0 is neither a number of at least 1"),
        (["RUN", "--few-shot", "x", "--protocol", "solo-100"], None, "--few-shot: 'x' is neither a number of images"),
        (["RUN", "--few-shot", "10%"], None, "--few-shot: nothing in held-out trains on augmented images. Leave it out."),
        (["RUN", "--epochs", "3"], None, "--epochs: nothing in held-out trains on augmented images. Leave it out."),
        (["RUN", "--seeds", "3", "--protocol", "simpleshot"], None, "--seeds: nothing in simpleshot has anything random."),
        (["RUN", "--features", "class", "--protocol", "mae-finetune"], None, "--features: nothing in mae-finetune compares"),
        (["RUN", "--size", "0"], None, "--size: 0 is not a whole number of at least 1, and not native."),
        (["RUN", "--device", "gpu"], None, "--device: 'gpu' is none of auto, cpu, cuda, cuda:N and mps."),
        (["RUN", "--protocol", "dino-knn"], None, "--protocol dino-knn: 'RUN before training' gives no 'class'."),
        (["RUN", "--size", "big"], None, "--size: 'big' is no number of pixels, and not native."),
        (["RUN", "--network", "student"], None, "--network student: 'RUN"),
        (["RUN", "--data", "photos", "root=/data"], None, "root: a folder takes no such setting, but levels, on_error, in_memory."),
        (["RUN", "--labels", "folder"], None, "--labels folder: they are for a folder in --data, and none is given."),
        (["RUN", "--network", "student", "--backbone", "resnet18"], None, "--network: it is for runs, and --backbone"),
        (["RUN", "root=/data"], None, "root=/data changes a recipe or folder of --data, and none is given."),
        (["EMPTY"], "empty", "has neither weights nor a checkpoint"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line_and_nothing_is_written(run, photos, tmp_path, capsys, words, change, told):
    if change == "classes":
        for part, classes in (("train", ("red", "green")), ("val", ("red", "blue"))):
            for name in classes:
                shutil.copytree(photos / name, tmp_path / "split" / part / name)
    if change == "empty":
        shutil.copytree(run, tmp_path / "EMPTY", ignore=shutil.ignore_patterns("weights", "checkpoints"))
    run.rename(tmp_path / "RUN")
    assert main(["eval", *words]) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line
    assert not (tmp_path / "RUN" / "evaluations").exists()


def test_embed_writes_features_with_paths_labels_and_neighbours(digits_run, photos, tmp_path, capsys):
    mae = str(digits_run("mae_digits"))
    line = ["embed", mae, "photos", "--size", "16", "--features", "class", "patches", "--neighbours", "3"]
    assert main([*line, "--out", "f.parquet"]) == 0
    table = pyarrow.parquet.read_table("f.parquet").to_pydict()
    names = sorted(f"{path.parent.name}/{path.name}" for path in photos.rglob("*.png"))
    assert table["path"] == names
    assert [name.partition("/")[0] for name in names] == table["class_name"]
    features = np.array(table["class"])
    distances, _ = NearestNeighbors(n_neighbors=4, metric="cosine").fit(features).kneighbors(features)
    assert np.allclose(1 - distances[:, 1:], table["similarities"], atol=1e-5)
    cosines = 1 - cdist(features, features, "cosine")  # several images are about as near, so rows may be others
    assert np.allclose(np.take_along_axis(cosines, np.array(table["neighbours"]), 1), table["similarities"], atol=1e-5)
    assert not (np.array(table["neighbours"]) == np.arange(30)[:, None]).any()
    assert main([*line, "--out", "f.npz"]) == 0
    with np.load("f.npz") as file:
        assert np.array_equal(file["patches"], np.array(table["patches"], np.float32))
    capsys.readouterr()
    digits = ["embed", mae, "digits", "--features", "class", "size=16", "--out", "d.npz"]
    assert main([*digits, "--size", "16"]) == 0
    assert main([*line, "--out", "f.npz"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_places_may_be_texts_and_an_unknown_option_is_named(run, photos, tmp_path):
    weights = run / "weights" / "initial.safetensors"
    evaluate(weights, "simpleshot", photos, size=16, cache="none", out="records")
    assert [file.name for file in (tmp_path / "records").glob("*.json")] == ["simpleshot_photos_step_0.json"]
    with pytest.raises(stable_ssl.ConfigError, match="chache: unknown option.*Did you mean 'cache'?"):
        evaluate(weights, chache="none")


def test_labels_of_a_csv_file_are_the_classes(run, photos, tmp_path):
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for path in sorted(photos.rglob("*.png")):
            rows.writerow([path.relative_to(photos), "warm" if path.parent.name == "red" else "cold"])
    (one,) = evaluate(run / "weights" / "initial.safetensors", "simpleshot", photos, labels="labels.csv", size=16)
    assert one["data"]["classes"] == 2
    assert json.loads(json.dumps(one)) == one


def test_figures_that_can_be_had_are_shown_and_kept_if_others_can_not(run, photos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["eval", str(run / "weights" / "final.safetensors"), "--data", str(photos), "--size", "16"]
    words += ["--features", "representation", "--protocol", "dino-knn", "simpleshot"]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "nearest-mean" in out
    assert err == (
        "stable-ssl: dino-knn: 200 neighbours are more than the 24 labelled training images. The protocol knn takes "
        "those k that fit.\n"
    )
    assert len([*run.glob("evaluations/simpleshot*.json")]) == 1
    assert main([*words[:-2], "simpleshot", "--out", str(tmp_path / "file")]) == 2
    out, err = capsys.readouterr()
    assert "nearest-mean" in out
    assert "16 × 16 pixels; setting chosen by: nothing; one seed" in out
    assert re.search("^stable-ssl: simpleshot: --out: no record can be written to '.*/file': File exists", err)


def test_a_corrupt_image_is_left_out_by_a_setting_and_counts_once_it_is_mended(run, photos, tmp_path, capsys):
    path = photos / "red" / "00.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    weights = str(run / "weights" / "initial.safetensors")
    line = ["eval", weights, "--protocol", "simpleshot", "--size", "16", "--out", "records", "--data", "photos"]
    assert main(line) == 1
    assert "on_error=skip on the command line" in capsys.readouterr().err
    assert main([*line, "on_error=skip"]) == 0
    assert main(["embed", weights, "photos", "on_error=skip", "--size", "16", "--out", "f.npz"]) == 0
    with np.load("f.npz") as file:
        names = sorted(f"{path.parent.name}/{path.name}" for path in photos.rglob("*.png"))
        assert file["path"].tolist() == [name for name in names if name != "red/00.png"]
    path.write_bytes(whole)
    assert main([*line, "on_error=skip"]) == 0
    one, two = (json.loads(path.read_text())["data"] for path in sorted((tmp_path / "records").glob("*.json")))
    assert {one["train"] + one["test"], two["train"] + two["test"]} == {29, 30}
    assert one["fingerprint"] != two["fingerprint"]


def test_paths_of_a_folder_with_train_and_test_begin_at_the_folder(run, photos, tmp_path):
    for part in ("train", "test"):
        shutil.copytree(photos, tmp_path / "split" / part)
    weights = str(run / "weights" / "initial.safetensors")
    assert main(["embed", weights, "split/", "--size", "16", "--out", "f.npz"]) == 0
    with np.load("f.npz") as file:
        assert len({*file["path"]}) == 60
        assert all(Path("split", path).is_file() for path in file["path"])
        assert [path.partition("/")[0] for path in file["path"]] == file["split"].tolist()


def test_a_protocol_that_trains_is_repeated_on_other_few_images(run, photos, tmp_path):
    options = {"size": 16, "epochs": 1, "batch": 2, "few_shot": 2, "seeds": 2}
    (record,) = evaluate(run / "weights" / "final.safetensors", "solo-100", photos, out=tmp_path / "out", **options)
    assert record["seeds"] == [0, 1]
    assert record["options"] == {"size": 16, "batch": 2, "epochs": 1, "few_shot": 2}
    (figure,) = record["figures"].values()
    assert all("images: 2 of each class instead of all" in details["departures"] for details in figure["details"])
    assert len([*(tmp_path / "out" / "training").iterdir()]) == 2
    assert len({path.read_text() for path in tmp_path.glob("out/training/*/config.yaml")}) == 2


class Noise(Dataset):
    """Noise with labels, both drawn by a seed."""

    def __init__(self, seed, channels=1):
        draw = np.random.default_rng(seed)
        self.pixels = draw.integers(0, 256, (40, 16, 16, channels)).astype(np.uint8)
        self.labels = draw.permutation([0, 1] * 20)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.pixels[index], int(self.labels[index])


def test_a_training_on_data_that_can_not_be_told_from_others_is_not_taken_for_theirs(run, tmp_path, monkeypatch):
    steps, loss = [], LinearProbeTrainer.compute_loss
    monkeypatch.setattr(LinearProbeTrainer, "compute_loss", lambda trainer: steps.append(1) or loss(trainer))
    options = {"size": 16, "epochs": 1, "batch": 4, "out": tmp_path / "out"}
    pairs = [(Noise(seed), Noise(seed)) for seed in (0, 1)]
    evaluate(run / "weights" / "final.safetensors", "solo-100", pairs, **options)
    evaluate(run / "weights" / "final.safetensors", "solo-100", pairs[1], **options)
    assert len(steps) == 3 * 10
    data = EvaluationData("own", *pairs[0])
    job = TrainingJob(open_source(run), PROTOCOLS["solo-100"], data)
    with pytest.raises(ConfigError, match=r"^--world-size: .* can't be told from others"), job._place(Request([]), 2):
        pass
    assert not (tmp_path / "out" / "training").exists()
    colours = Noise(0, channels=3)
    with pytest.raises(
        ConfigError, match="^solo-100: '.*' takes images of 1 channels, and the first one to train on has 3"
    ):
        evaluate(run / "weights" / "final.safetensors", "solo-100", (colours, colours), **options)


def test_one_image_of_each_class_is_not_all_of_them(run, photos, tmp_path):
    options = {"size": 16, "epochs": 1, "batch": 3, "few_shot": 1, "out": tmp_path / "out"}
    (record,) = evaluate(run / "weights" / "final.safetensors", "solo-100", photos, **options)
    assert record["figures"]["solo-100"]["details"][0]["images per step"] == 3
    config = next(tmp_path.glob("out/training/*/metrics.jsonl")).read_text()
    assert '"global_step": 1' in config
    assert '"global_step": 2' not in config
