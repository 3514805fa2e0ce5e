"""Projectors and predictors with the layers and widths of their papers.

A projector maps representations (batch, dim) to embeddings (batch, out_dim). A predictor maps embeddings to embeddings.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


def _perceptron(
    *sizes: int,
    norm: bool = True,
    hidden_bias: bool = False,
    last_bias: bool = True,
    last_norm: bool = False,
    activation: type[nn.Module] = nn.ReLU,
) -> list[nn.Module]:
    """Return linear layers with batch normalisation and an activation between them.

    Parameters
    ----------
    *sizes
        Width of the input, widths of the hidden layers, width of the output.
    norm
        Whether the hidden layers are normalised.
    hidden_bias, last_bias
        Whether the hidden layers and the last layer have a bias. Without `norm`, hidden layers always have one.
    last_norm
        Whether the output is normalised, without scale and shift.
    activation
        Class of the activations.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(sizes[:-1]):
        layers.append(nn.Linear(width_in, width_out, bias=hidden_bias or not norm))
        layers += [nn.BatchNorm1d(width_out)] if norm else []
        layers.append(activation())
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=last_bias))
    return [*layers, nn.BatchNorm1d(sizes[-1], affine=False)] if last_norm else layers


class SimCLRProjector(nn.Sequential):
    """SimCLR's projector: Linear, ReLU, Linear (Chen et al., "A simple framework for contrastive learning of visual
    representations", ICML 2020, section 2.1).

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import SimCLRProjector
    >>> SimCLRProjector(dim=512)(torch.zeros(4, 512)).shape
    torch.Size([4, 128])
    """

    def __init__(self, dim: int = 2048, hidden_dim: int = 2048, out_dim: int = 128):
        super().__init__(*_perceptron(dim, hidden_dim, out_dim, norm=False))


class MoCoProjector(SimCLRProjector):
    """The projector of MoCo v2, which equals SimCLR's (Chen et al., "Improved baselines with momentum contrastive
    learning", 2020, section 2)."""


class SwAVProjector(nn.Sequential):
    """SwAV's projector: two layers with batch normalisation and ReLU between them (Caron et al., "Unsupervised learning
    of visual features by contrasting cluster assignments", NeurIPS 2020, appendix A)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 2048, out_dim: int = 128):
        super().__init__(*_perceptron(dim, hidden_dim, out_dim, hidden_bias=True))


class VICRegProjector(nn.Sequential):
    """VICReg's projector: three layers of the same width, the first two with batch normalisation and ReLU (Bardes et
    al., "VICReg", ICLR 2022, section 4.2)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 8192, out_dim: int = 8192):
        super().__init__(*_perceptron(dim, hidden_dim, hidden_dim, out_dim, hidden_bias=True, last_bias=False))


class LeJEPAProjector(nn.Sequential):
    """The projector of LeJEPA's minimal example: three layers with biases, the first two with batch normalisation and
    ReLU (github.com/rbalestr-lab/lejepa, MINIMAL.md)."""

    def __init__(self, dim: int = 512, hidden_dim: int = 2048, out_dim: int = 16):
        super().__init__(*_perceptron(dim, hidden_dim, hidden_dim, out_dim, hidden_bias=True))


class BarlowTwinsProjector(nn.Sequential):
    """Barlow Twins' projector: three layers of the same width without biases, the first two with batch normalisation
    and ReLU (Zbontar et al., "Barlow Twins", ICML 2021, section 2.2)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 8192, out_dim: int = 8192):
        super().__init__(*_perceptron(dim, hidden_dim, hidden_dim, out_dim, last_bias=False))


class BYOLProjector(nn.Sequential):
    """BYOL's projector: two layers with batch normalisation and ReLU between them (Grill et al., "Bootstrap your own
    latent", NeurIPS 2020, section 3.3)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 4096, out_dim: int = 256):
        super().__init__(*_perceptron(dim, hidden_dim, out_dim, hidden_bias=True, last_bias=False))


class BYOLPredictor(BYOLProjector):
    """BYOL's predictor: the layers of its projector, from embeddings to embeddings of the same width."""

    def __init__(self, dim: int = 256, hidden_dim: int = 4096, out_dim: int = 256):
        super().__init__(dim, hidden_dim, out_dim)


class SimSiamProjector(nn.Sequential):
    """SimSiam's projector: three layers, each with batch normalisation; that of the output has no scale and shift (Chen
    and He, "Exploring simple Siamese representation learning", CVPR 2021, section 3, and the authors' code)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 2048, out_dim: int = 2048):
        super().__init__(*_perceptron(dim, hidden_dim, hidden_dim, out_dim, last_bias=False, last_norm=True))


class SimSiamPredictor(nn.Sequential):
    """SimSiam's predictor: two layers with a bottleneck of width `hidden_dim` between them (Chen and He, "Exploring
    simple Siamese representation learning", CVPR 2021, section 3)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 512):
        super().__init__(*_perceptron(dim, hidden_dim, dim))


class DINOHead(nn.Module):
    """DINO's projector: three layers with GELU, whose outputs at unit length are compared with prototypes (Caron et
    al., "Emerging properties in self-supervised vision transformers", ICCV 2021, section 3.1 and appendix C, and the
    authors' code).

    Parameters
    ----------
    dim
        Width of the representation.
    out_dim
        Number of prototypes, which is the width of the output.
    hidden_dim
        Width of the two hidden layers.
    bottleneck_dim
        Width of the vectors of unit length.
    batch_norm
        Whether to normalise before each GELU. The paper does so for convolutional networks.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import DINOHead
    >>> DINOHead(dim=192, out_dim=1024)(torch.zeros(4, 192)).shape
    torch.Size([4, 1024])
    """

    def __init__(
        self,
        dim: int = 384,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        batch_norm: bool = False,
    ):
        super().__init__()
        self.mlp = nn.Sequential(
            *_perceptron(dim, hidden_dim, hidden_dim, bottleneck_dim, norm=batch_norm, activation=nn.GELU)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.prototypes = nn.Linear(bottleneck_dim, out_dim, bias=False)

    def forward(self, representations: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out_dim"]:
        """Return scores: the cosine of the angle between each image's vector and each prototype."""
        units = nn.functional.normalize(self.mlp(representations))  # (batch, bottleneck_dim)
        return units @ nn.functional.normalize(self.prototypes.weight).T
