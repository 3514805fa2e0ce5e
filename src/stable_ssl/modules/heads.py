"""Projectors and predictors as the papers have them; `dim` is the width of the representation."""

from __future__ import annotations

import itertools

from torch import Tensor, nn


def _perceptron(
    *sizes: int,
    norm: bool = True,
    hidden_bias: bool = False,
    last_bias: bool = True,
    last_norm: bool = False,
    activation: type[nn.Module] = nn.ReLU,
) -> list[nn.Module]:
    """Return linear layers, with batch normalisation and activation between; `last_norm` has no scale and shift."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(sizes[:-1]):
        layers.append(nn.Linear(width_in, width_out, bias=hidden_bias or not norm))
        layers += [nn.BatchNorm1d(width_out)] if norm else []
        layers.append(activation())
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=last_bias))
    return [*layers, nn.BatchNorm1d(sizes[-1], affine=False)] if last_norm else layers


class SimCLRProjector(nn.Sequential):
    """Two layers (Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020,
    section 2.1): Linear, ReLU, Linear."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 2048, out_dim: int = 128):
        super().__init__(*_perceptron(dim, hidden_dim, out_dim, norm=False))


class MoCoProjector(SimCLRProjector):
    """SimCLR's (Chen et al., "Improved baselines with momentum contrastive learning", 2020, section 2)."""


class SwAVProjector(nn.Sequential):
    """Two layers with batch normalisation between them (Caron et al., "Unsupervised learning of visual features by
    contrasting cluster assignments", NeurIPS 2020, appendix A)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 2048, out_dim: int = 128):
        super().__init__(*_perceptron(dim, hidden_dim, out_dim, hidden_bias=True))


class VICRegProjector(nn.Sequential):
    """Three layers of one width, batch normalisation after the first two (Bardes et al., "VICReg", ICLR 2022,
    section 4.2)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 8192, out_dim: int = 8192):
        super().__init__(*_perceptron(dim, hidden_dim, hidden_dim, out_dim, hidden_bias=True, last_bias=False))


class BarlowTwinsProjector(nn.Sequential):
    """Three layers of one width without biases (Zbontar et al., "Barlow Twins", ICML 2021, section 2.2)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 8192, out_dim: int = 8192):
        super().__init__(*_perceptron(dim, hidden_dim, hidden_dim, out_dim, last_bias=False))


class BYOLProjector(nn.Sequential):
    """Two layers with batch normalisation between them (Grill et al., "Bootstrap your own latent", NeurIPS 2020,
    section 3.3)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 4096, out_dim: int = 256):
        super().__init__(*_perceptron(dim, hidden_dim, out_dim, hidden_bias=True, last_bias=False))


class BYOLPredictor(BYOLProjector):
    """As the projector, from embeddings to embeddings."""

    def __init__(self, dim: int = 256, hidden_dim: int = 4096, out_dim: int = 256):
        super().__init__(dim, hidden_dim, out_dim)


class SimSiamProjector(nn.Sequential):
    """Three layers, each followed by batch normalisation, the last without scale and shift (Chen and He, "Exploring
    simple Siamese representation learning", CVPR 2021, section 3, and its code)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 2048, out_dim: int = 2048):
        super().__init__(*_perceptron(dim, hidden_dim, hidden_dim, out_dim, last_bias=False, last_norm=True))


class SimSiamPredictor(nn.Sequential):
    """Two layers with a bottleneck (Chen and He, "Exploring simple Siamese representation learning", CVPR 2021,
    section 3)."""

    def __init__(self, dim: int = 2048, hidden_dim: int = 512):
        super().__init__(*_perceptron(dim, hidden_dim, dim))


class DINOHead(nn.Module):
    """Three layers with GELU, unit length, and scores for prototypes (Caron et al., "Emerging properties in
    self-supervised vision transformers", ICCV 2021, section 3.1 and appendix C, and its code).

    Parameters
    ----------
    dim
        Width of the representation.
    out_dim
        How many prototypes there are.
    hidden_dim, bottleneck_dim
        Widths of the hidden layers, and of the vectors of unit length.
    batch_norm
        Normalise before each GELU, as for ConvNets.
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

    def forward(self, representations: Tensor) -> Tensor:
        """Return scores, the cosines with each prototype, (batch, out_dim)."""
        return nn.functional.normalize(self.mlp(representations)) @ nn.functional.normalize(self.prototypes.weight).T
