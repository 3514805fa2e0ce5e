"""Every method: two ranks learn what one does, a killed run ends as one left alone, and bad input is named."""

from __future__ import annotations

import functools

import pytest
import torch
from endings import ending, same
from methods import METHODS, TWO, VIEW, backbone, head, images, make, plain, train
from torch import nn

from stable_ssl import ConfigError, DataError, losses, modules, trainers
from stable_ssl.augmentations import MultiView, RandomMask
from stable_ssl.data import Loader
from stable_ssl.monitors import RankMe

NAMES = list(METHODS)
KILLED = ["moco", "dino", "mae"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs that nothing disturbed, of one rank."""
    folder = tmp_path_factory.mktemp("alone")
    train(NAMES, folder)
    return folder


@pytest.fixture(scope="module")
def both_alone(tmp_path_factory):
    """Runs that nothing disturbed, of two ranks with half the batch each."""
    from ranks import Ranks

    folder = tmp_path_factory.mktemp("both_alone")
    Ranks(train, NAMES, folder, 8).results(timeout=120)
    return folder


@pytest.fixture(scope="module")
def both_killed(tmp_path_factory):
    """The same runs, each killed at its third step; then two other ranks go on with all of them."""
    from ranks import Ranks

    folder = tmp_path_factory.mktemp("both_killed")
    for name in NAMES:
        assert Ranks(train, [name], folder, 8, 3).join() == [-9, -9]
    Ranks(train, NAMES, folder, 8).results(timeout=120)
    return folder


@pytest.mark.parametrize("name", [name for name in NAMES if "batch_norm" not in name])
def test_two_ranks_on_halves_learn_what_one_does_on_the_whole_batch(alone, both_alone, name):
    first, second = (torch.load(both_alone / name / f"rank_{rank}.pt") for rank in (0, 1))
    expected = torch.load(alone / name / "rank_0.pt")
    assert first.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(first[key], second[key]), key
            torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")
        else:
            assert first[key] == value


@pytest.fixture(scope="module")
def both_sharded(tmp_path_factory):
    """Runs of two ranks that divide the modules, by FSDP2; three methods were killed at their third step and went on."""
    from ranks import Ranks

    folder = tmp_path_factory.mktemp("both_sharded")
    for name in KILLED:
        assert Ranks(train, [name], folder, 8, 3, "fsdp").join() == [-9, -9]
    Ranks(train, NAMES, folder, 8, None, "fsdp").results(timeout=120)
    Ranks(train, KILLED, folder / "alone", 8, None, "fsdp").results(timeout=120)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_that_divide_the_modules_learn_what_two_with_copies_do(both_alone, both_sharded, name):
    expected = torch.load(both_alone / name / "rank_0.pt")
    found = torch.load(both_sharded / name / "rank_0.pt")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_that_divides_the_modules_ends_as_one_left_alone(both_sharded, name):
    assert any((both_sharded / name / "checkpoints").glob("step_*/shards/__1_0.distcp"))
    for rank in (0, 1):
        ours, alone = (torch.load(f / name / f"rank_{rank}.pt") for f in (both_sharded, both_sharded / "alone"))
        assert same(ours, alone)
    assert same(ending(both_sharded / name), ending(both_sharded / "alone" / name))


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_ends_as_one_left_alone(alone, start_ranks, tmp_path, name):
    killed = start_ranks(train, [name], tmp_path, 16, 3, world_size=1)
    assert killed.join() == [-9]
    train([name], tmp_path)
    assert same(ending(tmp_path / name), ending(alone / name))


@pytest.mark.parametrize("name", NAMES)
def test_two_killed_ranks_end_as_two_left_alone(both_alone, both_killed, name):
    assert same(ending(both_killed / name), ending(both_alone / name))


def test_statistics_of_two_ranks_teachers_and_students_are_the_same_after_an_epoch_and_not_each_others(both_alone):
    first, second = (torch.load(both_alone / "byol_with_batch_norm" / f"rank_{rank}.pt") for rank in (0, 1))
    statistics = [key for key in first if "running" in key]
    assert len(statistics) == 4
    for key in statistics:
        assert torch.equal(first[key], second[key]), key
        assert "student" in key or not torch.equal(first[key], first[key.replace("teacher", "student")])


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_same_bits_with_and_without_probes_and_monitors(alone, tmp_path, name):
    trainer = make(name, tmp_path / "run", probes=False, logger={"monitor": {"train": {"rankme": RankMe()}}})
    trainer()
    expected = torch.load(alone / name / "rank_0.pt")
    for key, value in trainer.state_dict().items():
        watched = expected[key]
        assert torch.equal(value, watched) if isinstance(value, torch.Tensor) else value == watched, key


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls(tmp_path, name):
    adam = functools.partial(torch.optim.AdamW, lr=3e-3)
    trainer = make(name, tmp_path / "run", optim={"epochs": 30, "optimizer": adam})
    trainer()
    values = [record["train/loss_ssl"] for record in trainer.get_logs()]
    assert all(map(torch.isfinite, torch.tensor(values)))
    if name not in (
        "byol",
        "byol_with_batch_norm",
        "dino",
        "ijepa",
        "moco",
    ):  # whose targets or negatives move with the student
        assert sum(values[-10:]) < sum(values[:10]) - 0.01 * abs(sum(values[:10]))


def test_a_method_without_labels_trains(tmp_path):
    for name in ("simclr", "dino", "mae", "ijepa"):
        trainer = make(name, tmp_path / name, probes=False, optim={"epochs": 1})
        trainer.data["train"] = Loader(images().tensors[0], 16, views=trainer.data["train"].views)
        trainer()
        assert trainer.global_step == 4


BAD = {
    "one view where two are needed": ("simclr", {"views": MultiView([VIEW])}, "needs 2 views of each image, not 1"),
    "three views for a loss of two": ("vicreg", {"views": MultiView([VIEW] * 3)}, "needs 2 views of each image, not 3"),
    "one view for a student": ("byol", {"views": MultiView([VIEW])}, "needs at least 2 views of each image, not 1"),
    "four views where it is not symmetric": ("moco", {"views": MultiView([VIEW] * 4)}, "needs 2 views"),
    "a batch of one": ("barlow_twins", {"batch_size": 1}, "needs at least 2 images in a batch"),
    "a last batch of one": ("vicreg", {"batch_size": 9, "drop_last": False}, "set drop_last: true"),
}


@pytest.mark.parametrize(("name", "data", "message"), BAD.values(), ids=BAD)
def test_data_that_do_not_suit_a_method_are_an_error_at_set_up(tmp_path, name, data, message):
    trainer = make(name, tmp_path / "run")
    trainer.data["train"] = Loader(images(), **{"batch_size": 16, "views": TWO, "drop_last": True, **data})
    with pytest.raises(ConfigError, match=message):
        trainer.setup()


MODULES = {
    "a backbone with a teacher, a projector without": ("byol", {"projector": head()}, "module.projector: must be a Tea"),
    "not symmetric without a teacher": ("moco", plain(), "symmetric: false needs a teacher"),
    "a decoder of other patches": ("mae", {"decoder": modules.PatchPredictor((2, 2), 32, 4, 16, num_heads=2)}, "module.backbone has .4, 4. patches"),
    "a target encoder of another width": ("ijepa", {"target_encoder": modules.ViT(8, 2, 16, 1, 1, in_channels=1)}, "its weights differ in name or shape"),
    "a backbone that can't mask": ("mae", {"backbone": backbone()}, "needs a ViT"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "networks", "message"), MODULES.values(), ids=MODULES)
def test_modules_that_do_not_suit_a_method_are_an_error_at_set_up(tmp_path, name, networks, message):
    trainer = make(name, tmp_path / "run")
    trainer.module.update(networks)
    with pytest.raises(ConfigError, match=message):
        trainer.setup()


def test_a_loss_that_is_missing_or_not_wanted_is_an_error_at_set_up(tmp_path):
    for name, loss, message in (
        ("byol", None, "such as NegativeCosineSimilarity"),
        ("swav", losses.NTXEntLoss(), "needs a SwAVLoss"),
        ("simclr", losses.MoCoLoss(8, 40), "use a SelfDistillationTrainer"),
    ):
        trainer = make(name, tmp_path / name)
        trainer.loss = loss
        with pytest.raises(ConfigError, match=message):
            trainer.setup()


FIRST_STEP = {
    "a queue of another width": ("moco", losses.MoCoLoss(16, 40), "set loss.dim to 8, or the projector's output to 16"),
    "prototypes of another width": (
        "swav",
        losses.SwAVLoss(16, 12),
        "set loss.dim to 8, or the projector's output to 16",
    ),
}


@pytest.mark.parametrize(("name", "loss", "message"), FIRST_STEP.values(), ids=FIRST_STEP)
def test_an_embedding_of_another_width_is_named_at_the_first_step(tmp_path, name, loss, message):
    trainer = make(name, tmp_path / "run")
    trainer.loss = loss
    with pytest.raises(ValueError, match=message):
        trainer()


@pytest.mark.parametrize("name", ["simclr", "mae"])
def test_a_probe_is_not_trained_without_labels_and_the_log_says_so(tmp_path, name, capsys):
    trainer = make(name, tmp_path / "run", optim={"epochs": 1})
    trainer.logger["level"] = 30
    trainer.data["train"] = Loader(images().tensors[0], 16, views=trainer.data["train"].views)
    trainer.setup()
    before = [p.clone() for p in trainer.module["backbone_classifier"].parameters()]
    trainer.launch()
    said = capsys.readouterr().err
    assert said.count("is not trained: the batch has no labels.") == 1
    assert "no gradient reaches it" not in said
    assert all(map(torch.equal, trainer.module["backbone_classifier"].parameters(), before))
    assert "train/loss" in trainer.get_logs()[-1]


def test_labels_that_are_missing_where_a_loss_needs_them_are_named_at_the_first_step(tmp_path):
    optim = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 1}
    logger = {"dump_path": tmp_path / "supervised", "level": 50}
    data = {"train": Loader(images().tensors[0].float(), 16)}
    trainer = trainers.SupervisedTrainer(data, {"backbone": backbone()}, {"device": "cpu"}, optim, logger)
    with pytest.raises(DataError, match=r"needs batches \(images, labels\), but this one is float32 \(16, 1, 8, 8\)"):
        trainer()


@pytest.mark.parametrize("label", [0.5, "cat", torch.zeros(3, dtype=torch.int64)])
def test_labels_that_are_no_class_indices_stop_probes_at_the_first_step(tmp_path, label):
    trainer = make("simclr", tmp_path / "run")
    trainer.data["train"] = Loader([(image.numpy().transpose(1, 2, 0), label) for image, _ in images()], 16, views=TWO)
    with pytest.raises(DataError, match=r"\['backbone_classifier'\] need labels, int64 \(batch,\)"):
        trainer()


def test_dino_leaves_a_loss_unused_and_says_so(tmp_path, capsys):
    trainer = make("dino", tmp_path / "run")
    trainer.logger["level"] = 30
    trainer.loss = losses.NTXEntLoss()
    trainer.setup()
    assert isinstance(trainer.loss, losses.DINOLoss)
    assert trainer.center is trainer.loss.center
    assert "loss is unused: DINOTrainer makes its own" in capsys.readouterr().err


@pytest.mark.parametrize("probe", [nn.Linear(7, 4), nn.Linear(8, 1)], ids=["width", "classes"])
def test_a_probe_that_does_not_suit_is_named(tmp_path, probe):
    trainer = make("simclr", tmp_path / "run")
    trainer.module["projector_classifier"] = probe
    with pytest.raises((RuntimeError, IndexError)) as caught:
        trainer()
    assert any("module.projector_classifier gets features (32, 8)" in note for note in caught.value.__notes__)


def test_a_module_that_nothing_uses_is_named(tmp_path, capsys):
    trainer = make("simclr", tmp_path / "run", optim={"epochs": 1})
    trainer.logger["level"] = 30
    trainer.module["projektor"] = nn.Linear(8, 8)
    trainer()
    said = capsys.readouterr().err
    assert said.count("no gradient reaches it") == 1
    assert "module.projektor: no gradient" in said


@pytest.mark.parametrize(
    ("name", "parameter"), [("dino", "warmup_epochs_temperature_teacher"), ("swav", "queue_start_epoch")]
)
def test_a_negative_number_of_epochs_is_refused(tmp_path, name, parameter):
    with pytest.raises(ConfigError, match=f"{parameter}: -1 is not a count"):
        make(name, tmp_path / "run", **{parameter: -1}).setup()


def test_masks_of_other_patches_are_named_at_the_first_step(tmp_path):
    trainer = make("mae", tmp_path / "run")
    trainer.data["train"] = Loader(images(), 16, views=MultiView([VIEW], [RandomMask((2, 2), 0.5)]))
    with pytest.raises(ValueError, match="the masks have 4 patches, and the views 4 × 4"):
        trainer()


def test_missing_masks_are_named_at_the_first_step(tmp_path):
    trainer = make("mae", tmp_path / "run")
    trainer.data["train"] = Loader(images(), 16, views=VIEW)
    with pytest.raises(DataError, match="needs 1 mask of type bool after the view"):
        trainer()


def test_a_ratio_of_all_or_nothing_and_patches_that_do_not_fill_the_image_are_refused():
    for ratio in (0, 1):
        with pytest.raises(ValueError, match="must hide at least one, and leave one"):
            RandomMask((4, 4), ratio)
    with pytest.raises(ValueError, match="5 does not divide the image size of 32"):
        modules.ViT(32, 5)


def test_a_momentum_out_of_range_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="base_ema_coefficient: 1.5 is not between 0 and 1"):
        make("ijepa", tmp_path / "run", base_ema_coefficient=1.5).setup()


def test_the_teachers_of_one_step_follow_once_and_by_the_schedule(tmp_path):
    trainer = make("byol", tmp_path / "run", optim={"epochs": 1, "accumulation_steps": 2})
    trainer.setup()
    pair = trainer.module["backbone"]
    before = [p.clone() for p in pair.teacher.parameters()]
    seen = []
    trainer.after_fit_step = lambda: (
        seen.append([p.clone() for p in pair.student.parameters()]) if trainer.stepped else None
    )
    trainer.launch()
    assert len(seen) == 2
    for students, coefficient in zip(seen, (0.9, 0.95), strict=True):  # halfway along the cosine from 0.9 to 1
        before = [coefficient * t + (1 - coefficient) * s for t, s in zip(before, students, strict=True)]
    for teacher, expected in zip(pair.teacher.parameters(), before, strict=True):
        torch.testing.assert_close(teacher, expected)


@pytest.mark.parametrize("who", ["teacher", "student"])
@pytest.mark.parametrize("name", ["byol", "moco", "ijepa"])
def test_the_network_that_is_evaluated_is_also_the_one_that_probes_learn_from(tmp_path, name, who):
    trainer = make(name, tmp_path / "run", evaluate_with=who)
    trainer.setup()
    view_1, view_2 = views = torch.rand(2, 16, 1, 8, 8)
    is_context = torch.arange(16).expand(16, 16) < 5
    masks = [is_context, ~is_context[:, None]]
    trainer.batch = [[view_1, *masks] if name == "ijepa" else list(views), torch.zeros(16, dtype=torch.long)]
    if name == "ijepa":
        student, teacher = trainer.module["context_encoder"], trainer.module["target_encoder"]
    else:
        student, teacher = trainer.module["backbone"].student, trainer.module["backbone"].teacher
    for parameter in student.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    expected = {
        ("byol", "teacher"): lambda: torch.cat([teacher(view_1), teacher(view_2)]),
        ("byol", "student"): lambda: torch.cat([student(view_1), student(view_2)]),
        ("moco", "teacher"): lambda: teacher(view_2),
        ("moco", "student"): lambda: student(view_1),
        ("ijepa", "teacher"): lambda: teacher(view_1),
        ("ijepa", "student"): lambda: student.forward_patches(view_1, torch.arange(5).expand(16, 5)).mean(1),
    }[name, who]
    trainer.compute_loss()
    torch.testing.assert_close(torch.cat(trainer.latest_representations), expected().detach())
    torch.testing.assert_close(trainer.embed(trainer.batch), (student if who == "student" else teacher)(view_1))


def test_ijepa_calls_its_networks_as_today(tmp_path):
    trainer = make("ijepa", tmp_path / "run", logger={"level": 20}, optim={"epochs": 1, "max_steps": 1})
    trainer()
    assert "early 2025" not in (tmp_path / "run" / "console.log").read_text()


def test_another_network_to_evaluate_is_refused(tmp_path):
    for name in ("byol", "ijepa"):
        with pytest.raises(ConfigError, match="evaluate_with: 'both' is neither 'teacher' nor 'student'"):
            make(name, tmp_path / name, evaluate_with="both").setup()


def test_dinos_teacher_temperature_rises_and_its_prototypes_wait(tmp_path):
    trainer = make("dino", tmp_path / "run", optim={"epochs": 3}, warmup_epochs_temperature_teacher=3)
    seen = []
    trainer.after_fit_epoch = lambda: seen.append(
        (trainer.loss.temperature_teacher, trainer.module["projector"].student.prototypes.weight.clone())
    )
    trainer.setup()
    begun = trainer.module["projector"].student.prototypes.weight.clone()
    trainer.launch()
    assert [temperature for temperature, _ in seen] == pytest.approx([0.04, 0.055, 0.07])
    assert torch.equal(seen[0][1], begun)
    assert not torch.equal(seen[1][1], begun)


def test_what_compute_loss_asks_of_two_methods_is_what_their_papers_say(tmp_path):
    # BYOL: both directions, the predictor on the student's side alone.
    trainer = make("byol", tmp_path / "byol")
    trainer.setup()
    view_1, view_2 = torch.rand(2, 16, 1, 8, 8)
    trainer.batch = [[view_1, view_2], torch.zeros(16, dtype=torch.long)]
    found = trainer.compute_loss()["loss_ssl"]
    f, g, q = (trainer.module[name] for name in ("backbone", "projector", "predictor"))
    cosine = nn.functional.cosine_similarity
    one = cosine(q(g.student(f.student(view_1))), g.teacher(f.teacher(view_2))).mean()
    other = cosine(q(g.student(f.student(view_2))), g.teacher(f.teacher(view_1))).mean()
    torch.testing.assert_close(found, (2 - 2 * one) + (2 - 2 * other))
    trainer.loss = losses.NegativeCosineSimilarity()
    torch.testing.assert_close(trainer.compute_loss()["loss_ssl"], -(one + other) / 2)
    # DINO: the teacher sees the first two views, and no view is its own target.
    trainer = make("dino", tmp_path / "dino")
    trainer.setup()
    trainer.begin_epoch(0)
    views = [view_1, view_2, torch.rand(16, 1, 4, 4)]
    trainer.batch = [views, torch.zeros(16, dtype=torch.long)]
    f, g = (trainer.module[name] for name in ("backbone", "projector"))
    centre, terms = trainer.loss.center.clone(), []
    targets = [((g.teacher(f.teacher(view)) - centre) / 0.04).softmax(1) for view in views[:2]]
    for i, view in enumerate(views):
        scores = (g.student(f.student(view)) / 0.1).log_softmax(1)
        terms += [-(target * scores).sum(1).mean() for j, target in enumerate(targets) if i != j]
    torch.testing.assert_close(trainer.compute_loss()["loss_ssl"], torch.stack(terms).mean())
    mean = torch.cat([g.teacher(f.teacher(view)) for view in views[:2]]).mean(0)
    torch.testing.assert_close(trainer.loss.center, 0.9 * centre + 0.1 * mean)


def test_old_predictive_batches_are_pairs_with_parameters(tmp_path):
    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8 + 2, 8)

        def forward(self, z, context_params, target_params):
            return self.layer(torch.cat([z, target_params - context_params], 1))

    def pairs():
        for _ in range(4):
            yield ((torch.rand(8, 5), torch.rand(8, 2)), (torch.rand(8, 5), torch.rand(8, 2)))

    class Data(torch.utils.data.IterableDataset):
        def __iter__(self):
            return pairs()

        def __len__(self):
            return 4

    networks = {"context_encoder": nn.Linear(5, 8), "target_encoder": nn.Linear(5, 8), "predictor": Conditioned()}
    trainer = trainers.JointEmbeddingPredictiveTrainer(
        {"train": torch.utils.data.DataLoader(Data(), batch_size=None)},
        networks,
        {"device": "cpu"},
        {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "epochs": 1},
        {"dump_path": tmp_path / "run", "level": 50},
        nn.functional.mse_loss,
    )
    trainer.setup()
    assert torch.equal(networks["context_encoder"].weight, networks["target_encoder"].weight)
    trainer.launch()
    assert trainer.global_step == 4
    assert not torch.equal(networks["context_encoder"].weight, networks["target_encoder"].weight)
