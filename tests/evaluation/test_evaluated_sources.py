"""What a user names becomes a network, a view and facts; features are those of independent code."""

from __future__ import annotations

import pytest
import timm
import torch
from torchvision import models

import stable_ssl
from stable_ssl import ConfigError
from stable_ssl.augmentations import EvalView
from stable_ssl.data import Digits
from stable_ssl.evaluation.networks import Features, feature_names
from stable_ssl.evaluation.sources import before_training, open_source, without_last_layer
from stable_ssl.evaluation.subject import Subject
from stable_ssl.modules import ViT


def subject_of(network, size=32):
    return Subject("net", network.eval(), EvalView(size), (size, size), (0.5,) * 3, (0.5,) * 3, network)


def digits(number=4):
    return torch.stack([Digits("test")[i][0] for i in range(number)])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_features_of_the_last_blocks_are_those_of_timm(name):
    network = timm.create_model(name, num_classes=0, img_size=56 if "14" in name else 64, depth=5).eval()
    images = torch.randn(2, 3, *network.patch_embed.img_size)
    blocks = network.forward_intermediates(
        images, indices=4, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    tokens = [prefix[:, 0] for _, prefix in blocks]
    patches = blocks[-1][0].mean(1)
    expected = {
        "class": tokens[-1],
        "class:4": torch.cat(tokens, 1),
        "class+patches": torch.cat([tokens[-1], patches], 1),
        "class:4+patches": torch.cat([*tokens, patches], 1),
        "patches": patches,
    }
    found = Features(subject_of(network), [*expected])(images)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_features_of_our_and_torchvisions_vits_are_those_of_their_own_outputs():
    ours = ViT(32, 8, 48, depth=3, class_token=True).eval()
    images = torch.randn(2, 3, 32, 32)
    found = Features(subject_of(ours), ["representation", "class", "patches"])(images)
    assert torch.equal(found["class"], ours(images))
    assert torch.equal(found["representation"], ours(images))
    assert torch.equal(found["patches"], ours.forward_patches(images).mean(1))
    theirs = models.VisionTransformer(32, 8, 3, 4, 48, 96).eval()
    theirs.heads = torch.nn.Identity()
    with torch.no_grad():  # torch's attention has another path then, with other last bits
        assert torch.equal(Features(subject_of(theirs), ["class"])(images)["class"], theirs(images))


def test_networks_whose_class_token_comes_after_their_blocks_give_no_features_of_tokens():
    network = timm.create_model("cait_xxs24_224", num_classes=0, depth=2)
    assert feature_names(subject_of(network)) == ["representation"]


def test_a_feature_that_no_module_gives_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"gives no 'class'\. It gives representation\."):
        Features(subject_of(models.resnet18()), ["class"])
    vit = subject_of(ViT(32, 8, 48, depth=3, class_token=True))
    assert feature_names(vit) == ["representation", "class", "class+patches", "class:3", "class:3+patches", "patches"]
    with pytest.raises(ConfigError, match=r"'class:4'.*up to 3.*Did you mean 'class:3'"):
        Features(vit, ["class:4"])


def test_a_runs_representation_and_embedding_are_those_of_its_modules(digits_run):
    run = digits_run("simclr_digits")
    modules, subject = stable_ssl.load(run), open_source(run)
    found = Features(subject, ["representation", "embedding"])(digits())
    assert torch.equal(found["representation"], modules["backbone"](digits()))
    assert torch.equal(found["embedding"], modules["projector"](modules["backbone"](digits())))
    assert subject.facts["global_step"] == 2


def test_a_run_with_a_teacher_is_evaluated_by_what_its_trainer_evaluates_unless_an_option_says_otherwise(digits_run):
    run = digits_run("byol_digits", "evaluate_with=teacher")
    pair = stable_ssl.load(run)["backbone"]
    for option, network in ((None, pair.teacher), ("teacher", pair.teacher), ("student", pair.student)):
        subject = open_source(run, network=option)
        assert torch.equal(Features(subject, ["representation"])(digits())["representation"], network(digits()))
        assert subject.facts["network"] == (option or "teacher")
    assert not torch.equal(pair.teacher(digits()), pair.student(digits()))
    with pytest.raises(ConfigError, match="has no teacher"):
        open_source(digits_run("simclr_digits"), network="teacher")


def test_a_teacher_and_a_student_of_one_run_have_different_digests(digits_run):
    run = digits_run("ijepa_digits")  # its trainer holds both, so that they are told apart by name only
    digests = [open_source(run, network=name).digest for name in (None, "teacher", "student")]
    assert digests[0] == digests[1] != digests[2]


def test_a_classifier_is_evaluated_without_its_last_layer(digits_run):
    run = digits_run("supervised_digits")
    network = stable_ssl.load(run)["backbone"]
    inputs = []
    network.fc.register_forward_hook(lambda layer, given, output: inputs.append(given[0]))
    network(digits())
    found = Features(open_source(run), ["representation"])(digits())["representation"]
    assert torch.equal(found, inputs[0])


def test_a_classifier_of_timm_whose_head_pools_keeps_the_pooling():
    network, images = timm.create_model("test_convnext", num_classes=5).eval(), torch.randn(2, 3, 64, 64)
    expected = network.forward_head(network.forward_features(images), pre_logits=True)
    assert torch.equal(without_last_layer(network)(images), expected)
    assert network(images).shape == (2, 5)


def test_a_run_that_was_evaluated_before_training_can_be_opened_as_it_was_then(digits_run):
    run = digits_run("simclr_digits", "logger.eval_at_start=true")
    first, last = open_source(before_training(run)), open_source(run)
    assert (first.facts["global_step"], last.facts["global_step"]) == (0, 2)
    assert first.digest != last.digest
    assert before_training(digits_run("simclr_digits")) is None


def test_a_network_of_torchvision_sees_images_as_its_weights_were_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = models.resnet18()
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    subject = open_source("torchvision/resnet18")
    images = torch.randn(2, 3, 64, 64)
    network.fc = torch.nn.Identity()
    assert torch.equal(subject.network(images), network.eval()(images))
    assert (subject.size, tuple(subject.mean)) == ((224, 224), (0.485, 0.456, 0.406))
    image = torch.randint(0, 256, (3, 300, 260), dtype=torch.uint8)
    theirs = models.ResNet18_Weights.DEFAULT.transforms()(image)
    ours, _ = subject.view.make(image.permute(1, 2, 0)[None].numpy(), 0, 0, [0])[0], None
    assert (ours[0] - theirs).abs().max() < 0.05


def test_a_file_of_weights_of_no_run_needs_the_name_of_its_network(tmp_path):
    network = models.resnet18()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    subject = open_source(tmp_path / "weights.pth", backbone="resnet18")
    network.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(subject.network(images), network.eval()(images))
    with pytest.raises(ConfigError, match="--backbone NAME says which network"):
        open_source(tmp_path / "weights.pth")
