"""`stable-ssl pretrain`: one line from a folder of images to a backbone, without a word about recipes."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tables import read_table

import stable_ssl
from stable_ssl import DataError
from stable_ssl.augmentations import EvalView
from stable_ssl.cli import main
from stable_ssl.data import Images
from stable_ssl.modules import load_backbone
from stable_ssl.pretraining.planning import choose_batch, choose_epochs, choose_size, plan
from stable_ssl.pretraining.request import MASKED, METHOD, parse
from stable_ssl.pretraining.sets import find_sets
from stable_ssl.pretraining.timing import Pace

COMMAND = Path(sys.executable).with_name("stable-ssl")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Twelve images of three colours, in a folder per colour."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "photos" / ("red", "green", "blue")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (36, 44, 3)).astype(np.uint8)
        pixels[..., number % 3] += 120
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def the_run():
    (run,) = Path("runs").iterdir()
    return run


def records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines]


def features_by_printed_lines(said):
    """Run the three lines that are printed at the end, and return what they compute."""
    lines = [line.removeprefix("    ") for line in said.splitlines() if line.startswith("    ")]
    assert len(lines) == 3
    found: dict = {}
    exec("\n".join(lines), found)
    return found["features"]


def test_one_line_makes_a_backbone_that_three_lines_use(photos, capsys):
    line = ["pretrain", "photos", "--labels", "folder", "--epochs", "2", "--size", "16", "hardware.seed=3"]
    assert main(line) == 0
    said, run = capsys.readouterr().out, the_run()
    assert "Nearest neighbours find the class of" in said
    first, *_, last = [record for record in records(run) if "test/accuracy" in record]
    assert (first["global_step"], last["global_step"]) == (0, 2)

    images = Images(photos, channels=3, transform=EvalView(16))
    network = load_backbone("resnet9", widths=[16, 32, 64, 128]).eval()
    weights = load_file(run / "weights" / "final.safetensors")
    network.load_state_dict({k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")})
    expected = network(images[0][0][None])
    assert torch.equal(features_by_printed_lines(said), expected)

    before = (run / "metrics.jsonl").read_bytes()
    assert main(line) == 0  # shows the same again, and does nothing
    again = capsys.readouterr().out
    assert "is finished" in again
    assert again.endswith(said[said.index("Nearest neighbours") :])
    found = stable_ssl.pretrain("photos/", ["hardware.seed=3"], labels="folder", epochs=2, size=16)
    assert torch.equal(found.backbone(found.view(Image.open(images.path_of(0)))[None]), expected)
    grey = Image.open(images.path_of(0)).convert("L")
    assert torch.equal(found.view(grey), found.view(grey.convert("RGB")))
    assert found.results["train/loss_ssl"][1] == records(run)[-2]["train/loss_ssl"]
    assert (run / "metrics.jsonl").read_bytes() == before

    assert main(["train", str(run / "config.yaml"), "logger.dump_path=anew"]) == 0
    assert records(Path("anew")) == records(run)
    assert main([*line[:-1], "hardware.seed=4", "--out", str(run)]) == 2
    assert "overrides was ['hardware.seed=3'], now it is ['hardware.seed=4']" in capsys.readouterr().err


def test_grey_images_need_one_mean_and_the_error_says_so(photos, capsys):
    line = ["pretrain", "photos", "--epochs", "1", "--size", "16", "views=writing", "channels=1"]
    assert main(line) != 0
    said = capsys.readouterr().err
    assert "needs images of 3 channels, not of 1. channels=3 of the data set makes RGB" in said
    assert "mean=[0.5] std=[0.25]" in said


@pytest.mark.parametrize(
    ("method", "options", "dim"),
    [
        ("ijepa", ["--size", "40", "backbone.depth=1", "patch_predictor.depth=1"], 128),
        ("byol", ["--size", "16", "views=writing"], 128),
    ],
)
def test_without_labels_the_loss_and_the_rank_are_shown(photos, capsys, method, options, dim):
    assert main(["pretrain", "photos", "--method", method, "--epochs", "1", *options]) == 0
    said, run = capsys.readouterr().out, the_run()
    assert "--labels folder measures with them" in said
    assert "RankMe" in said
    assert "Nearest neighbours" not in said
    trainer = yaml.safe_load((run / "config.yaml").read_text())["trainer"]
    assert list(trainer["data"]) == ["train"]
    features = features_by_printed_lines(said)
    assert features.shape == (1, dim)
    name = {"ijepa": "target_encoder", "byol": "backbone.student"}[method]
    network = stable_ssl.load(run).get_submodule(name)
    image = Images(photos, channels=3, transform=EvalView(int(options[1])))[0][0]
    assert torch.equal(features, network(image[None]))


def test_a_run_of_some_minutes_is_measured_once_and_goes_on_after_ctrl_c(photos):
    line = [
        COMMAND,
        "pretrain",
        "photos",
        "--minutes",
        "0.02",
        "--size",
        "16",
        "views=writing",
        "logger.checkpoint_every_step=1",
    ]
    with open("said", "w") as said:
        process = processes.start(line, cwd=photos.parent, stdout=said)
        while not list(Path("runs").glob("*/checkpoints/step_*/meta.json")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
    assert "was stopped; the same line goes on" in Path("said").read_text()
    run = the_run()
    config = (run / "config.yaml").read_text()
    optim, facts = yaml.safe_load(config)["trainer"]["optim"], yaml.safe_load(config)["pretrain"]
    steps = optim["epochs"] * optim["max_steps"]
    assert -1 < 1.2 / facts["seconds_per_step"] - steps < optim["epochs"] + 1
    done = processes.run(line, cwd=photos.parent)
    assert done.returncode == 0, done.stderr
    assert "going on with the run" in done.stdout
    assert "a step takes" not in done.stdout
    assert yaml.safe_load((run / "config.yaml").read_text()) == yaml.safe_load(config)
    assert json.loads((run / "status.json").read_text())["progress"]["global_step"] == steps


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "'nowhere' is not there"),
        (["photos/red/0.png"], "is a file; give the folder"),
        (["empty"], "has no images"),
        (["texts"], "has no images"),
        (["one"], "has 1 image to train on; at least 2 are needed"),
        (["photos", "--method", "simcrl"], "there is no method 'simcrl'. Did you mean 'simclr'?"),
        (["photos", "--method", "supervised"], "learns from labels: `stable-ssl train supervised data=images"),
        (["photos", "--method", "mae", "--backbone", "resnet18"], "mae hides patches, so it needs a transformer"),
        (["photos", "--backbone", "resnet_9"], "there is no backbone 'resnet_9'. Did you mean 'resnet9'?"),
        (["photos", "--size", "big"], "--size: 'big' is not an integer from 8 to 4096"),
        (["photos", "--size", "-3"], "--size: '-3' is not an integer from 8"),
        (["photos", "--epochs", "1.5"], "--epochs: '1.5' is not an integer from 1"),
        (["photos", "--minutes", "nan"], "--minutes: 'nan' is not a number above 0"),
        (["photos", "--epochs", "1", "--minutes", "1"], "give one of them"),
        (["photos", "--labels", "label.csv"], "--labels: 'label.csv' is not there, and not in '"),
        (["photos", "--labels", "label.csv"], "Did you mean 'labels.csv'?"),
        (["photos", "--labels", "Folders"], "Did you mean 'folder'?"),
        (["photos", "--labels", "photos"], "'photos' is a folder. Labels are none, folder (each folder in '"),
        (["photos", "--out", "one/image.png/run"], "one/image.png' is a file. Give another --out."),
        (["photos", "--out", "one/image.png"], "one/image.png' is a file. Give another --out."),
        (["photos", "--out", "photos/red/.."], "--out: 'photos/red/..' has the images, and the run's files would lie"),
        (["photos", "--out", "photos/red"], "--out: 'photos/red' has the images"),
        (["photos/red", "--labels", "folder"], "has 0 sub-folders; it must have one per class"),
        (["photos", "data=cifar10"], "pretrain has an option for that: FOLDER"),
        (["photos", "hardware.world_size=2"], "pretrain begins in one process"),
        (["photos", "views=affine"], "take views=writing"),
        (["photos", "100"], "'100': this is neither an option nor key=value"),
    ],
)
def test_a_request_that_can_not_be_carried_out_is_refused_in_a_sentence(photos, capsys, args, said):
    for name in ("empty", "texts", "one"):
        Path(name).mkdir()
    for name in ("texts/a.txt", "photos/labels.csv"):
        Path(name).write_text("no image")
    Image.new("RGB", (40, 40)).save("one/image.png")
    assert main(["pretrain", *args]) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_full_disk_is_refused_at_the_start_and_a_stop_without_a_checkpoint_promises_nothing(
    photos, capsys, small_disk
):
    filler, line = small_disk / "filler", ["pretrain", "photos", "--size", "16", "--out", str(small_disk / "run")]
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(bytes(free))
    assert main(line) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"stable-ssl: pretrain: --out: '{small_disk}/run")
    assert said[-1].endswith(
        "can't be written: No space left on device. Make room on its disk, or choose another folder."
    )
    filler.write_bytes(bytes(free - 300_000))  # room for all but a checkpoint, which is larger even before a step

    def interrupt():
        while not (small_disk / "run" / "metrics.jsonl").exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main(line) == 130
    thread.join()
    assert not list((small_disk / "run").glob("checkpoints/*"))
    assert "was stopped; the same line begins anew, since nothing was saved." in capsys.readouterr().out


@pytest.mark.parametrize("is_own", [False, True])
def test_an_image_that_fails_later_ends_the_command_in_sentences_and_own_code_with_a_traceback(
    photos, capsys, monkeypatch, is_own
):
    Path("own_views.py").write_text("""
class Refuse:
    def __init__(self, **options):
        pass
    def __call__(self, image):
        raise ValueError("my own")
""")
    monkeypatch.syspath_prepend(str(photos.parent))
    damaged = photos / "green" / "7.png"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:1000] + bytes(500) + content[1500:])  # its beginning and its end are whole
    options = ["on_error=skip", "in_memory=false", "--labels", "folder", "data.train.batch_size=4", "neighbours=4"]
    if is_own:
        options = ["data.train.views={_target_: own_views.Refuse}", "--no-check"]
    assert main(["pretrain", "photos", "--epochs", "1", "--size", "16", *options]) == 1
    said = capsys.readouterr().err
    if is_own:
        assert "Traceback" in said
        assert "own_views.py" in said
        return
    assert "Traceback" not in said
    assert f"('{damaged}') can't be read: OSError" in said
    skips = re.search(r"leave them out by ((?:data[.]\w+[.]unreadable=skip )+)", said)[1].split()
    assert main(["pretrain", "photos", "--epochs", "1", "--size", "16", *options, *skips]) == 0
    images = Images(photos, on_error="skip")
    with pytest.raises(DataError, match=f"'{damaged}' can't be read: OSError"):
        [images[index] for index in range(12)]


def test_several_processes_are_refused(photos, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["pretrain", "photos"]) == 2
    assert "torchrun started 2 processes, and pretrain begins in one" in capsys.readouterr().err


def test_a_folder_of_splits_is_trained_on_in_part(tmp_path):
    for name in ("train/cat", "train/dog", "val/cat", "val/dog", "flat/a", "flat/b"):
        (tmp_path / name).mkdir(parents=True)
    split = find_sets(tmp_path, None)
    assert (split.train, split.test, split.labels) == (tmp_path / "train", tmp_path / "val", "folder")
    assert "trains on" in split.notes[0]
    none = find_sets(tmp_path, "none")
    assert (none.train, none.test, none.labels) == (tmp_path / "train", None, "none")
    whole = find_sets(tmp_path, "labels.csv")
    assert (whole.train, whole.test, whole.labels) == (tmp_path, None, "labels.csv")
    flat = find_sets(tmp_path / "flat", None)
    assert (flat.train, flat.labels) == (tmp_path / "flat", "none")
    assert "--labels folder measures" in flat.notes[0]
    (tmp_path / "val" / "bird").mkdir()
    assert find_sets(tmp_path, None).labels == "none"
    with pytest.raises(stable_ssl.ConfigError, match="different classes: only one of them has bird"):
        find_sets(tmp_path, "folder")


def test_what_labels_measure_on_is_held_out_or_has_a_folder_of_its_own(photos):
    csv = photos / "labels.csv"
    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.glob("*/*.png"))]
    csv.write_text("\n".join(["path,label", *rows[:9]]))
    with_csv = plan(parse("photos", labels="photos/labels.csv"), print)["trainer"]
    train, test = (with_csv["data"][name]["dataset"] for name in ("train", "test"))
    assert (train["labels"], train["split"], test["split"]) == (str(csv), "train", "test")
    assert with_csv["logger"]["metric"]["test"]["accuracy"]["num_classes"] == 3
    said: list[str] = []
    csv.write_text("\n".join(["path,label", *rows[:8], *(f"{row.split(',')[0]}," for row in rows[8:])]))
    few = plan(parse("photos", labels="photos/labels.csv"), said.append)["trainer"]
    assert said[:2] == [said[0], "6 of them have a label"]
    assert said[0].startswith("10 images to train on")
    assert few["logger"]["monitor"]["test"]["knn"]["k"] == 6
    csv.unlink()
    for split in ("train", "val"):
        shutil.copytree(photos, photos.parent / "splits" / split)
    with_splits = plan(parse("splits"), print)["trainer"]
    train, test = (with_splits["data"][name]["dataset"] for name in ("train", "test"))
    assert (train["root"], test["root"]) == tuple(str(photos.parent / "splits" / name) for name in ("train", "val"))
    assert (train["labels"], train["split"], test["split"]) == ("folder", None, None)
    assert with_splits["logger"]["monitor"]["test"]["knn"]["k"] == 12


def test_size_batch_and_epochs_follow_from_the_images():
    for side, size in ((20, 32), (63, 32), (64, 64), (100, 96), (200, 128), (375, 224)):
        assert choose_size(np.array([[side, side + 9]] * 3 + [[9, 9]])) == size
    for number, batch in ((2, 2), (17, 16), (100, 16), (600, 128), (5000, 256)):
        assert choose_batch(number, "simclr", 0.0) == batch
    assert choose_batch(5000, "mae", 0.0) == 64
    assert choose_batch(5000, "simclr", 1e12) == 16
    seen = {(10, 224): 100, (5000, 32): 100, (10_000, 32): 50, (200, 224): 51, (10**6, 32): 20}
    assert {given: choose_epochs(*given) for given in seen} == seen
    for seconds, per_epoch, shape in ((0.5, 50, (3, 40)), (0.5, 500, (1, 120)), (7.0, 3, (3, 2)), (100.0, 3, (1, 1))):
        pace = Pace(seconds, per_epoch)
        assert pace.settings(1) == [f"optim.epochs={shape[0]}", f"optim.max_steps={shape[1]}"]
        assert pace.steps(1) == shape[0] * shape[1]


def test_the_images_held_out_are_a_function_of_their_paths(photos):
    for name in ("red/100.png", "red/101.png", "single/0.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(photos / name)
    parts = {split: Images(photos, "folder", split=split) for split in (None, "train", "test")}
    assert sorted(parts["train"].files + parts["test"].files) == parts[None].files
    assert np.bincount(parts["test"].targets, minlength=4).tolist() == [1, 1, 1, 0]  # blue, green, red, single
    assert parts["test"].sizes.shape == (3, 2)
    (photos / "red/102.png").write_bytes((photos / "red/100.png").read_bytes())
    changed = set(Images(photos, "folder", split="test").files) ^ set(parts["test"].files)
    assert not [file for file in changed if not file.startswith("red/")]


def test_a_folder_may_have_any_printable_name(photos):
    folder = photos.rename(photos.parent / "it's \\ a=b, [c] \\'é")
    lines: list[str] = []
    config = plan(parse(folder, labels="folder"), lines.append)
    assert config["trainer"]["data"]["train"]["dataset"]["root"] == str(folder)
    assert lines[0].startswith("9 images to train on, of 36 × 44 pixels")
    (photos.parent / "${odd}").mkdir()
    with pytest.raises(stable_ssl.ConfigError, match="Rename the folder"):
        parse("${odd}")


def test_the_default_method_gains_most_per_minute_of_those_on_the_default_backbone():
    table = read_table(Path(__file__).parents[2] / "docs" / "methods.md", "per minute")
    rates = {row[1].strip(): float(row[5]) for line in table[2:] if (row := line.split("|"))}
    assert max(rates.keys() - MASKED, key=rates.get) == METHOD


def test_the_same_arguments_mean_the_same_folder(photos):
    folder = parse("photos", method="simclr").place()
    assert folder == parse(photos / "red" / "..").place() == parse("./photos/").place()
    others = [parse("photos", size=32), parse("photos", ["a=1"]), parse("photos", method="byol"), parse(".")]
    assert len({folder, *(other.place() for other in others)}) == 5
    assert parse("photos", "a=1") == parse("photos", ["a=1"])
    with contextlib.chdir(photos.parent / "photos"):
        assert parse("../photos").place() == folder
