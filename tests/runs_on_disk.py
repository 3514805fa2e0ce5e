"""Folders of runs that are written at once, without training."""

from __future__ import annotations

import json

import torch
import yaml
from torch import nn
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.resnet import Bottleneck

from stable_ssl.nodes import build
from stable_ssl.weights.files import save_weights

EVAL_VIEW = {
    "_target_": "stable_ssl.augmentations.EvalView",
    "size": 32,
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.2],
}


def write_run(folder, modules, size=32, **trainer):
    """Write a run with these nodes as modules, whose values are random, and return its modules."""
    made = nn.ModuleDict({name: build(node, name) for name, node in modules.items()})
    channels = next((layer.in_channels for layer in made.modules() if isinstance(layer, nn.Conv2d)), 3)
    view = {**EVAL_VIEW, "size": size, "mean": EVAL_VIEW["mean"][:channels], "std": EVAL_VIEW["std"][:channels]}
    data = {
        "train": {"_target_": "stable_ssl.data.Loader", "dataset": {"_target_": "stable_ssl.data.Digits"}},
        "test": {"_target_": "stable_ssl.data.Loader", "views": view},
    }
    target = "stable_ssl.trainers.SupervisedTrainer"
    config = {"trainer": {"_target_": target, "data": data, "module": modules, **trainer}}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point() and value.dim() < 4:
                value.add_(0.1 * torch.randn_like(value))
    save_weights(folder / "weights" / "final.safetensors", made.state_dict(), {"global_step": 7})
    return made.eval()


def pair(node):
    """Return the node of a student and its teacher."""
    return {"_target_": "stable_ssl.modules.TeacherStudentModule", "student": node}


def network(name, **options):
    """Return the node of a network that `load_backbone` makes."""
    return {"_target_": "stable_ssl.modules.load_backbone", "name": name, **options}


def vit(**options):
    """Return the node of a small ViT."""
    small = {"image_size": 32, "patch_size": 8, "dim": 48, "depth": 2, "num_heads": 4}
    return {"_target_": "stable_ssl.modules.ViT", **small, **options}


def headless_vit():
    """Return a small vision transformer of torchvision, without its last layer."""
    made = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96)
    nn.init.normal_(made.encoder.pos_embedding, std=0.2)
    made.heads.head = nn.Identity()
    return made


def narrow_resnet():
    """Return a ResNet of bottlenecks for grey images that no library has a name for, without its last layer."""
    made = ResNet(Bottleneck, [1, 1, 1, 1])
    made.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    made.fc = nn.Identity()
    return made


class TinyVisionTransformer(nn.Module):
    """A user's own network, with the name of one of timm."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)

    def forward(self, images):
        """Return (batch, 8)."""
        return self.embed(images).mean((2, 3))


def fixed_network():
    """Return a network for images of 32 × 32 pixels only."""
    return nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(), nn.Linear(128, 4))


def features_of(module, images):
    """Return what a network computes."""
    with torch.no_grad():
        return module.eval()(images)
