"""What a strategy shards of a network, and what it refuses. No process group is needed."""

from __future__ import annotations

import torch
from torch import nn

from stable_ssl.engine.shardable import blocks_of, methods_of, roots_of, unshardable
from stable_ssl.modules import TeacherStudentModule, ViT


def test_the_networks_that_are_called_are_sharded_and_their_repeated_blocks():
    networks = {
        "backbone": TeacherStudentModule(ViT(8, 2, dim=32, depth=3, num_heads=2)),
        "heads": nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)]),
        "pool": nn.Flatten(),
    }
    roots = roots_of(networks)
    assert list(roots) == ["backbone.student", "backbone.teacher", "heads.0", "heads.1"]
    vit = roots["backbone.student"]
    assert [name for name, part in vit.named_modules() if part in blocks_of(vit)] == [
        f"blocks.layers.{number}" for number in range(3)
    ]
    assert "forward_patches" in methods_of(vit)
    assert blocks_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))) == []


def test_what_can_not_be_sharded_is_named_once_per_network():
    scaled = nn.Linear(2, 2)
    scaled.scale = nn.Parameter(torch.tensor(1.0))
    shared, mixed = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    tied = nn.Sequential(shared)
    found = unshardable("fsdp", roots_of({"scaled": scaled, "shared": shared, "tied": tied, "mixed": mixed}))
    assert [sentence.split(":")[0] for sentence in found] == [
        "module.scaled.scale",
        "module.tied.0.weight",
        "module.mixed",
    ]
    assert "Give it the shape (1,)" in found[0]
    assert "float64" in found[2]
    assert "take strategy ddp" in found[2]
