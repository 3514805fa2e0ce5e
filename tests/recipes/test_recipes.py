"""Every recipe trains, and every method composes with every data set and backbone that suits it."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from stable_ssl import ConfigError
from stable_ssl.cli import main
from stable_ssl.compose import RECIPES, compose, composer, recipe_names, resolved
from stable_ssl.data import HuggingFaceDataset

METHODS, DATA, BACKBONES = (recipe_names(kind) for kind in ("method", "data", "backbone"))
NAMED = [name for name in recipe_names() if name not in METHODS]
MASKED = {"ijepa", "mae"}
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000}
WIDTHS = {
    "convmixer": 64, "resnet9": 128, "resnet18": 512, "resnet50": 2048, "timm/resnet10t": 512,
    "timm/vit_tiny_patch16_224": 192, "vit_base": 768, "vit_digits": 128, "vit_small": 384, "vit_tiny": 192,
}  # fmt: skip

# Neither CIFAR-10 nor Imagenette can be downloaded here: noise of their shape, and few samples.
NOISE = "{_target_: torchvision.datasets.FakeData, size: 4, image_size: [3, 32, 32], num_classes: 10}"
SMALL = [
    *(f"data.{name}.dataset={value}" for value in ("null", NOISE) for name in ("train", "test")),
    "data.train.batch_size=2",
    "neighbours=3",
    "size=32",
    "optim.max_steps=1",
]


def options_of(method: str) -> list[str]:
    """Return the backbones that suit a method, as overrides of the key `backbone`."""
    assert WIDTHS.keys() >= {*BACKBONES} - {"timm"}
    assert not any(name.startswith(".") for name in recipe_names("projector"))
    vits = [name for name in WIDTHS if name.startswith("vit")]
    return vits if method in MASKED else [*WIDTHS]


def train(*words: str, folder: str) -> list[dict]:
    """Run a command in one epoch of few steps, and return its records."""
    few = ["optim.epochs=1", "logger.log_every_step=1", "hardware.precision=fp32", f"logger.dump_path={folder}"]
    assert main(["train", *words, *few]) == 0
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMED)
def test_a_recipe_trains_and_evaluates(name, tmp_path):
    is_masked, is_digits = name.split("_")[0] in MASKED, name.endswith("digits")
    depth = ["backbone.depth=1", "patch_predictor.depth=1"] if is_masked else []
    depth += ["backbone.depth=1"] if name == "lejepa_imagenette" else []
    records = train(name, "optim.max_steps=3", *([] if is_digits else SMALL), *depth, folder=tmp_path / "run")
    assert any("train/loss" in record for record in records)
    assert not is_digits or 0 < records[-1]["test/accuracy"] <= 1
    assert "test/accuracy" in records[-1]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Return the overrides that give each data set a root; those of one's own have three classes of RGB images."""
    pyarrow, parquet, datasets = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet", "datasets"))
    folder, table, saved, tars = (tmp_path_factory.mktemp(name) for name in ("folder", "table", "saved", "tars"))
    splits = {}
    for split in ("train", "val"):
        rows = []
        for label, number in itertools.product(range(3), range(4)):
            path = folder / split / f"class_{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 36), (80 * label, 60 * number, 9)).save(path)
            rows.append({"image": {"bytes": path.read_bytes(), "path": None}, "label": label})
        with tarfile.open(tars / f"{split}-0.tar", "w") as tar:
            for number, row in enumerate(rows):
                for ending, content in (("png", row["image"]["bytes"]), ("cls", str(row["label"]).encode())):
                    member = tarfile.TarInfo(f"{number}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        parquet.write_table(pyarrow.Table.from_pylist(rows), table / f"{split}.parquet")
        splits[split] = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict(splits).save_to_disk(saved)
    prepared = folder / "prepared"
    assert main(["prepare", str(folder / "train"), "--labels", "folder", "--out", str(prepared)]) == 0
    given = {"folder": folder, "imagenet": folder, "parquet": table, "huggingface": saved, "webdataset": tars}
    given["prepared"] = prepared
    found = {name: [f"root={path}"] for name, path in given.items()}
    for name in ("parquet", "huggingface", "webdataset"):
        found[name].append("test_split=val")
    found["images"] = [f"root={folder}/train", "labels=folder"]
    return {name: found.get(name, []) for name in DATA}


def check_combinations(method, pairs, roots):
    """Compose a method with pairs of data set and backbone. The widths and the numbers of classes are known."""
    with composer(RECIPES, method) as (composed, complete):
        for data, network in pairs:
            overrides = complete([f"data={data}", f"backbone={network}", "size=32", *roots[data]])
            trainer = resolved(composed(overrides))["trainer"]
            assert trainer["logger"]["metric"]["test"]["accuracy"]["num_classes"] == CLASSES.get(data, 3)
            assert all(root.removeprefix("root=") in json.dumps(trainer["data"]["train"]) for root in roots[data][:1])
            if method != "supervised":
                probe = trainer["module"]["backbone_classifier"]
                assert (probe["in_features"], probe["out_features"]) == (WIDTHS[network], CLASSES.get(data, 3))


@pytest.mark.parametrize("number", range(len(METHODS)))
def test_a_method_composes_with_a_data_set_and_a_backbone(number, roots):
    networks = options_of(METHODS[number])
    check_combinations(METHODS[number], [(DATA[number % len(DATA)], networks[number % len(networks)])], roots)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_composes_with_every_data_set_and_backbone_that_suit_it(method, roots):
    check_combinations(method, itertools.product(DATA, options_of(method)), roots)


@pytest.mark.parametrize(
    ("method", "data", "network"),
    [
        ("dino", "parquet", "timm/vit_tiny_patch16_224"),
        ("simclr", "folder", "resnet18"),
        ("moco", "huggingface", "convmixer"),
        ("swav", "webdataset", "timm/resnet10t"),
        ("ijepa", "parquet", "vit_tiny"),
        ("mae", "digits", "vit_digits"),
        ("lejepa", "digits", "convmixer"),
        ("supervised", "prepared", "resnet9"),
        ("byol", "images", "resnet9"),
    ],
)
def test_a_sample_of_the_combinations_trains_two_steps(method, data, network, roots, tmp_path):
    few = ["size=32", "data.train.batch_size=4", "neighbours=3", "optim.max_steps=2"]
    smaller = {
        "dino": ["projector.out_dim=64", "backbone.depth=1"],
        "moco": ["trainer.loss.queue_size=64"],
        "swav": ["trainer.loss.num_prototypes=8"],
        "ijepa": ["backbone.depth=1", "patch_predictor.depth=1"],
        "mae": ["patch_predictor.depth=1"],
    }
    words = [f"data={data}", f"backbone={network}", *roots[data], *few, *smaller.get(method, [])]
    records = train(method, *words, folder=tmp_path / "run")
    assert sum("train/loss" in record for record in records) == 2
    assert "test/accuracy" in records[-1]


def test_a_recipe_with_another_data_set_or_backbone_keeps_the_rest(roots):
    with composer(RECIPES, "simclr_cifar10") as (composed, complete):

        def trainer(*overrides):
            return resolved(composed(complete(overrides)))["trainer"]

        own, other = trainer(), trainer("data=parquet", *roots["parquet"], "size=32", "backbone=resnet50")
    assert other["module"]["backbone"]["name"] == "resnet50"
    assert other["data"]["train"]["dataset"]["_target_"] == "stable_ssl.data.Parquet"
    assert (own["loss"], own["optim"]) == (other["loss"], other["optim"])


@pytest.mark.parametrize(
    ("sizes", "local"), [("size=16", 8), ("size=28 patch_size=7", 7), ("size=32 patch_size=16", 16)]
)
def test_small_views_have_at_least_8_pixels_rounded_down_to_whole_patches(sizes, local, roots):
    views = compose("dino", ["data=folder", *roots["folder"], *sizes.split()])["trainer"]["data"]["train"]["views"]
    assert views["local_size"] == local


@pytest.mark.parametrize("method", ["mae", "ijepa"])
def test_methods_that_hide_patches_take_vision_transformers_of_timm_and_refuse_other_networks(method):
    pytest.importorskip("timm", reason="timm is not installed: pip install '.[timm]'")
    trainer = compose(method, ["backbone=timm/vit_tiny_patch16_224", "data=digits", "size=64"])["trainer"]
    module = trainer["module"]
    assert (module.get("decoder") or module["predictor"])["grid"] == [4, 4]  # its patches have 16 pixels, not 8
    assert [mask["grid"] for mask in trainer["data"]["train"]["views"]["masks"]] == [[4, 4]]
    for network in ("resnet9", "timm/resnet18"):
        with pytest.raises(ConfigError, match="such as MAE and I-JEPA, need a ViT. ViTs are: backbone=vit_tiny"):
            compose(method, [f"backbone={network}", "data=digits", "size=16"])


def test_what_a_recipe_needs_is_said_by_name(tmp_path):
    def refusal(*overrides):
        with pytest.raises(ConfigError) as caught:
            compose("dino", overrides)
        return str(caught.value)

    assert "refers to root, which you must give, as in root=VALUE." in refusal("data=folder")
    assert "there is no 'data/cifar11'. Did you mean 'cifar10'?" in refusal("data=cifar11")
    assert "timm has no 'vit_tinny'." in refusal("backbone=timm/vit_tinny")
    assert "'/nowhere/train' is no folder of classes" in refusal("data=folder", "root=/nowhere")
    assert "size: 'abc' is not an integer from 1." in refusal("size=abc")
    assert "size: 0 is not an integer from 1." in refusal("size=0")
    picture = Image.new("RGB", (8, 8))
    for split in ("train", "test"):
        (tmp_path / split / "only").mkdir(parents=True)
        picture.save(tmp_path / split / "only" / "1.png")
    said = refusal("data=folder", f"root={tmp_path}")
    assert "dataset: it has one class only, so nothing can be" in said
    assert "~logger.metric ~logger.monitor.test ~data.bank ~module.backbone_classifier" in said


def test_the_command_lists_all_four_kinds_a_line_each_and_shows_options(capsys):
    assert main(["recipes"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    found = {kind: [name for own, name, _ in lines if own == kind] for kind in ("method", "data", "backbone", "recipe")}
    assert found == {"method": METHODS, "data": DATA, "backbone": BACKBONES, "recipe": NAMED}
    assert all(text and not text.startswith(("@", "#")) for _, _, text in lines)
    assert main(["recipes", "show", "parquet"]) == 0
    assert "path: ${root}/${train_split}*.parquet" in capsys.readouterr().out


def test_a_file_without_recipes_may_have_a_key_that_is_named_like_one_of_their_groups(tmp_path):
    (tmp_path / "mine.yaml").write_text("backbone: resnet18\ntrainer: {name: '${backbone}'}\n")
    assert compose(str(tmp_path / "mine.yaml"), ["backbone=resnet50"]) == {"trainer": {"name": "resnet50"}}


def test_the_docs_say_whose_every_recipe_is():
    docs = (Path(__file__).parent.parent.parent / "docs" / "methods.md").read_text()
    rows = {line.split("`")[1] for line in docs.splitlines() if line.startswith("| `")}
    missing = [name for name in [*METHODS, *NAMED] if name not in rows and not name.endswith("_digits")]
    assert not missing


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "optimzer=adamw",
            "there is no key 'optimzer'. Did you mean 'optimizer'? For an attribute of the trainer, write +",
        ),
        ("sizee=16", "there is no key 'sizee'. Did you mean 'size'?"),
        ("neighbors=5", "there is no key 'neighbors'. Did you mean 'neighbours'?"),
    ],
)
def test_a_misspelt_key_of_a_recipe_is_refused(override, said):
    with pytest.raises(ConfigError) as caught:
        compose("simclr", [override])
    assert said in str(caught.value)
    assert compose("simclr", ["lamb=0.5", f"+{override}"])["trainer"]["lamb"] == 0.5


def test_a_runs_own_configuration_has_no_keys_of_recipes(tmp_path):
    train("supervised_digits", "optim.max_steps=1", folder=tmp_path / "run")
    with pytest.raises(ConfigError, match="this run has no key 'size'.*such as data.train.dataset.root"):
        compose(str(tmp_path / "run" / "config.yaml"), ["size=32"])


def test_classes_that_are_numbered_otherwise_are_named(roots, tmp_path, caplog):
    folder = Path(roots["folder"][0].removeprefix("root="))
    for name, kept in (("train", range(3)), ("val", (1, 2))):
        for label in kept:
            shutil.copytree(folder / name / f"class_{label}", tmp_path / "data" / name / f"class_{label}")
    few = ["backbone=resnet9", "size=16", "optim.max_steps=1", "logger.eval_every_epoch=0", "data.train.batch_size=4"]
    train("supervised", "data=folder", f"root={tmp_path / 'data'}", *few, folder=tmp_path / "run")
    said = (tmp_path / "run" / "console.log").read_text()
    assert "data.test: its classes are not those of data.train" in said
    assert "They differ in ['class_0']" in said


def test_a_saved_data_set_without_splits_has_no_other_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"image": 1, "label": 0}]).save_to_disk(tmp_path)
    with pytest.raises(ConfigError, match="split: 'test' is unknown; '.*' holds one data set, of the split 'train'"):
        HuggingFaceDataset(str(tmp_path), split="test")


def test_a_supervised_network_takes_the_one_view_of_data_that_declare_a_list(tmp_path):
    few = ["optim.epochs=1", "optim.max_steps=1", "logger.level=40", f"logger.dump_path={tmp_path}"]
    assert main(["train", "supervised", "data=digits", "backbone=resnet9", *few]) == 0
