"""Teachers, heads, views through one network, and transformers that leave out patches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stable_ssl import modules
from stable_ssl.modules import PatchPredictor, TeacherStudentModule, ViT, forward_views
from stable_ssl.modules.vit import patchify, places_of, positions, take


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def moved(module):
    for p in module.parameters():
        p.data += torch.randn_like(p)
    return module


def test_a_teachers_parameters_are_the_students_moving_average():
    pair = TeacherStudentModule(network(), base_ema_coefficient=0.9, final_ema_coefficient=1.0)
    for progress in (0.0, 0.3, 1.0):
        moved(pair.student)(torch.randn(5, 4))
        m = 1 - 0.1 * (math.cos(math.pi * progress) + 1) / 2
        pairs = zip(pair.teacher.parameters(), pair.student.parameters(), strict=True)
        expected = [(m * teacher + (1 - m) * student).detach() for teacher, student in pairs]
        pair.update_teacher(progress)
        for value, mean in zip(pair.teacher.parameters(), expected, strict=True):
            torch.testing.assert_close(value, mean)


def test_a_teachers_statistics_are_those_of_its_own_forward_passes():
    pair = TeacherStudentModule(network())
    mean, var = torch.zeros(6), torch.ones(6)
    for _ in range(3):
        x = torch.randn(5, 4)
        seen = pair.teacher[0](x).detach()
        mean, var = 0.9 * mean + 0.1 * seen.mean(0), 0.9 * var + 0.1 * seen.var(0)
        pair.forward_teacher(x)
        moved(pair.student)(torch.randn(5, 4))
        pair.update_teacher(0.5)
    norm = pair.teacher[1]
    torch.testing.assert_close((norm.running_mean, norm.running_var), (mean, var))
    assert norm.num_batches_tracked == 3
    pair.eval()
    pair(torch.randn(5, 4))
    assert norm.num_batches_tracked == 3


def test_statistics_of_a_teacher_in_evaluation_mode_follow_the_students():
    pair = TeacherStudentModule(network(), base_ema_coefficient=0.75, final_ema_coefficient=0.75)
    pair.teacher.eval()
    mean = torch.zeros(6)
    for count in (1, 2, 3):
        pair(torch.randn(5, 4))
        pair.student(torch.randn(5, 4))
        mean = 0.75 * mean + 0.25 * pair.student[1].running_mean
        pair.update_teacher(0.5)
        torch.testing.assert_close(pair.teacher[1].running_mean, mean)
        assert pair.teacher[1].num_batches_tracked == count


def test_a_teacher_has_no_gradient_and_is_what_a_plain_call_runs():
    pair = TeacherStudentModule(network())
    moved(pair.student)
    pair.eval()
    x = torch.randn(3, 4)
    assert torch.equal(pair(x), pair.teacher(x))
    assert not pair(x).requires_grad
    assert torch.equal(pair.forward_student(x), pair.student(x))
    assert all(not p.requires_grad for p in pair.teacher.parameters())


def test_a_warm_start_has_the_students_weights_and_a_cold_one_its_own(caplog):
    caplog.set_level("INFO")
    warm, cold = TeacherStudentModule(network()), TeacherStudentModule(network(), warm_init=False)
    assert all(torch.equal(a, b) for a, b in zip(warm.teacher.parameters(), warm.student.parameters(), strict=True))
    assert not torch.equal(cold.teacher[0].weight, cold.student[0].weight)
    assert caplog.text.count("the teacher begins with weights of its own") == 1


def test_a_linear_momentum_is_on_the_line_between_both_coefficients():
    pair = TeacherStudentModule(nn.Linear(1, 1), True, 0.9, 0.98, "linear")
    nn.init.zeros_(pair.teacher.weight), nn.init.ones_(pair.student.weight)
    pair.update_teacher(0.25)
    assert float(pair.teacher.weight) == pytest.approx(1 - 0.92)
    with pytest.raises(ValueError, match="ema_schedule: 'constant' is neither 'cosine' nor 'linear'"):
        TeacherStudentModule(network(), ema_schedule="constant")


def test_a_coefficient_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"base_ema_coefficient: 1.1 is not between 0 and 1"):
        TeacherStudentModule(network(), base_ema_coefficient=1.1)


HEADS = {
    "SimCLRProjector": ({"dim": 8, "hidden_dim": 16, "out_dim": 4}, 4, 0),
    "MoCoProjector": ({"dim": 8, "hidden_dim": 16, "out_dim": 4}, 4, 0),
    "SwAVProjector": ({"dim": 8, "hidden_dim": 16, "out_dim": 4}, 4, 1),
    "VICRegProjector": ({"dim": 8, "hidden_dim": 16, "out_dim": 4}, 4, 2),
    "BarlowTwinsProjector": ({"dim": 8, "hidden_dim": 16, "out_dim": 4}, 4, 2),
    "BYOLProjector": ({"dim": 8, "hidden_dim": 16, "out_dim": 4}, 4, 1),
    "BYOLPredictor": ({"dim": 8, "hidden_dim": 16, "out_dim": 8}, 8, 1),
    "SimSiamProjector": ({"dim": 8, "hidden_dim": 16, "out_dim": 4}, 4, 3),
    "SimSiamPredictor": ({"dim": 8, "hidden_dim": 2}, 8, 1),
    "DINOHead": ({"dim": 8, "out_dim": 12, "hidden_dim": 16, "bottleneck_dim": 4}, 12, 0),
}


@pytest.mark.parametrize(("name", "options", "width", "num_norms"), [(k, *v) for k, v in HEADS.items()], ids=HEADS)
def test_a_head_has_the_widths_and_normalisations_of_its_paper(name, options, width, num_norms):
    head = getattr(modules, name)(**options)
    assert head(torch.randn(5, 8)).shape == (5, width)
    assert sum(isinstance(part, nn.BatchNorm1d) for part in head.modules()) == num_norms


def test_dinos_scores_are_cosines():
    head = modules.DINOHead(8, out_dim=12, hidden_dim=16, bottleneck_dim=4)
    x = torch.randn(5, 8)
    expected = nn.functional.cosine_similarity(head.mlp(x)[:, None], head.prototypes.weight[None], dim=2)
    torch.testing.assert_close(head(x), expected)


@pytest.mark.parametrize(("has_norm", "join"), [(False, False), (True, False), (True, True)])
def test_views_of_one_size_go_through_a_network_together_unless_it_has_batch_norm_and_they_are_not_joined(
    has_norm, join
):
    calls = []

    class Counting(nn.Sequential):
        def forward(self, x):
            calls.append(x.shape)
            return super().forward(x)

    net = Counting(nn.AdaptiveAvgPool2d(2), nn.Flatten(), *([nn.BatchNorm1d(4)] if has_norm else []))
    views = [torch.randn(3, 1, size, size) for size in (8, 4, 8, 4)]
    outputs = forward_views(net, views, join=join)
    assert len(calls) == (4 if has_norm and not join else 2)
    for place, (output, view) in enumerate(zip(outputs, views, strict=True)):
        alike = torch.cat([other for other in views if other.shape == view.shape])
        torch.testing.assert_close(output, net(alike).chunk(2)[place // 2] if join else net(view))


def vit(**options):
    torch.manual_seed(0)
    return ViT(**{"image_size": 8, "patch_size": 2, "dim": 16, "depth": 2, "num_heads": 2, **options})


def test_a_vit_left_with_some_patches_does_as_one_that_never_had_the_others():
    net, images = vit(), torch.randn(3, 3, 8, 8)
    mask = torch.rand(3, 16) < 0.4
    mask[0, :3], mask[1] = True, False
    mask[1, 5] = True
    places, is_real = places_of(mask)
    outputs = net.forward_patches(images, places, is_real)
    for row in range(3):
        alone = net.forward_patches(images[row : row + 1], mask[row].nonzero().T)
        torch.testing.assert_close(outputs[row][is_real[row]], alone[0])
    assert is_real.sum(1).tolist() == mask.sum(1).tolist()


def test_an_image_with_no_patch_left_spoils_nothing():
    net, images = vit(), torch.randn(2, 3, 8, 8)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 4:9] = True
    tokens = net.forward_patches(images, *places_of(mask))
    tokens.square().mean().backward()
    assert tokens.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    torch.testing.assert_close(tokens[0], net.forward_patches(images[:1], mask[0].nonzero().T)[0])


def test_a_vits_representation_is_the_mean_of_its_patches_and_takes_other_sizes():
    net = vit()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(net(images), net.forward_patches(images).mean(1))
    assert net(torch.randn(2, 3, 4, 12)).shape == (2, 16)
    with pytest.raises(ValueError, match="2 does not divide the size of views of 7 × 8 pixels"):
        net(torch.randn(2, 3, 7, 8))


def test_a_class_token_has_no_position_and_is_the_representation_unless_the_mean_is_asked_for():
    net, images = vit(class_token=True), torch.randn(3, 3, 8, 8)
    tokens = net.embed(images).flatten(2).transpose(1, 2) + positions((4, 4), (4, 4), 16)
    outputs = net.blocks(torch.cat([net.class_token.expand(3, 1, -1), tokens], dim=1))
    torch.testing.assert_close(net(images), outputs[:, 0])
    torch.testing.assert_close(net.forward_patches(images), outputs[:, 1:])
    mask = torch.rand(3, 16) < 0.4
    mask[0, :3] = True
    places, is_real = places_of(mask)
    for pooling in ("class", "mean"):
        net.pooling = pooling
        found = net.pool(net.forward_tokens(images, places, is_real), is_real)
        for row in range(3):
            alone = net.forward_tokens(images[row : row + 1], mask[row].nonzero().T)
            expected = alone[:, 0] if pooling == "class" else alone[:, 1:].mean(1)
            torch.testing.assert_close(found[row : row + 1], expected)
    with pytest.raises(ValueError, match="pooling: 'class' must be 'mean', or 'class' together with class_token"):
        vit(pooling="class")


def test_compiling_is_of_what_masked_methods_run_too():
    net, images = vit(), torch.randn(2, 3, 8, 8)
    names, before, calls = list(net.state_dict()), net.forward_patches(images), []

    def backend(graph, inputs):
        calls.append(graph)
        return graph

    net.compile(backend=backend)
    torch.testing.assert_close(net.forward_patches(images), before)
    assert calls
    assert list(net.state_dict()) == names


def test_layers_of_a_vit_begin_with_weights_of_their_own():
    first, second = vit().blocks.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_positions_tell_places_apart_and_stretch_over_a_larger_grid():
    table = positions((4, 4), (4, 4), 16)
    assert len({tuple(row.tolist()) for row in table}) == 16
    assert torch.equal(table[0, :8], torch.tensor([0.0] * 4 + [1.0] * 4))  # sines and cosines of 0
    fine = positions((8, 8), (4, 4), 16).reshape(8, 8, 16)
    middle = (torch.tensor([0.5]) - 0.25).sin()  # the second of 8 rows lies at 0.25 of 4
    torch.testing.assert_close(fine[1, 0, 0], middle[0])


def test_a_predictor_depends_on_where_it_is_asked_and_not_on_filling():
    torch.manual_seed(0)
    net = PatchPredictor((4, 4), 16, 5, hidden_dim=8, depth=2, num_heads=2)
    tokens, mask = torch.randn(2, 6, 16), torch.zeros(2, 16, dtype=torch.bool)
    mask[0, :4] = mask[1, :6] = True
    places, is_real = places_of(mask)
    wanted, is_wanted = places_of(~mask)
    outputs = net(tokens, places, is_real, wanted, is_wanted)
    assert outputs.shape == (2, 12, 5)
    alone = net(tokens[:1, :4], places[:1, :4], is_real[:1, :4], wanted[:1], is_wanted[:1])
    torch.testing.assert_close(outputs[:1], alone)
    assert not torch.allclose(outputs[0, 0], outputs[0, 1])


def test_patches_are_cut_row_by_row():
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for number in range(6):
        row, column = divmod(number, 3)
        cut = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(patches[:, number], cut.permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(take(patches, torch.tensor([[5, 0], [1, 1]]))[1, 0], patches[1, 1])
