"""The views of published methods, ready to use.

All have values normalised by ImageNet's mean and standard deviation unless told otherwise, and draw by torchvision's
distributions. Blurs have 23 taps at 224 pixels and are shorter or longer in proportion to the view (SimCLR, appendix A:
a tenth of the image). Resizing is bilinear throughout; DINO's own code is bicubic.
"""

from __future__ import annotations

from collections.abc import Sequence

from .masks import BlockMasks, RandomMask, patch_grid
from .operations import (
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Normalize,
    Operation,
    RandomResizedCrop,
    Resize,
    Solarize,
)
from .views import MultiView, View

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# BYOL's, taken over by most later methods: brightness, contrast, saturation, hue.
_BYOL_JITTER = (0.4, 0.4, 0.2, 0.1)


def _view(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    scale: Sequence[float] = (0.08, 1.0),
    jitter: tuple[float, float, float, float] = _BYOL_JITTER,
    blur: float = 0.0,
    solarize: float = 0.0,
) -> View:
    """Return a view of crop, flip, colours, grey with p = 0.2, and of blur and solarisation with the given p."""
    operations: list[Operation] = [
        RandomResizedCrop(size, scale=scale),
        HorizontalFlip(0.5),
        ColorJitter(*jitter, p=0.8),
        Grayscale(0.2),
    ]
    if blur:
        operations.append(GaussianBlur(round(size / 20) * 2 + 1, (0.1, 2.0), blur))
    if solarize:
        operations.append(Solarize(128, solarize))
    return View([*operations, Normalize(mean, std)])


class SimCLRViews(MultiView):
    """Two views as in SimCLR (Chen et al., "A simple framework for contrastive learning of visual representations",
    ICML 2020, appendix A).

    Parameters
    ----------
    size
        Of the views, in pixels.
    strength
        Of the change of colours. None: 1, and 0.5 for views below 64 pixels, as for CIFAR-10 (appendix B.9).
    blur
        Whether half of the views are blurred. None: yes, but not below 64 pixels (appendix B.9).
    mean, std
        For each channel.
    """

    def __init__(
        self,
        size: int = 224,
        strength: float | None = None,
        blur: bool | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        strength = (0.5 if size < 64 else 1.0) if strength is None else strength
        blur = size >= 64 if blur is None else blur
        jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
        super().__init__([_view(size, mean, std, jitter=jitter, blur=0.5 * blur)] * 2)


class MoCoViews(MultiView):
    """Two views as in MoCo v2 (Chen et al., "Improved baselines with momentum contrastive learning", 2020).

    Parameters
    ----------
    size
        Of the views, in pixels.
    mean, std
        For each channel.
    blur
        Whether half of the views are blurred.
    scale
        Areas of the crops, as fractions of the image's.
    """

    def __init__(
        self,
        size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        blur: bool = True,
        scale: Sequence[float] = (0.2, 1.0),
    ):
        super().__init__([_view(size, mean, std, scale, jitter=(0.4, 0.4, 0.4, 0.1), blur=0.5 * blur)] * 2)


class BYOLViews(MultiView):
    """Two views, drawn differently, as in BYOL (Grill et al., "Bootstrap your own latent", NeurIPS 2020, table 6).

    Parameters
    ----------
    size
        Of the views, in pixels.
    mean, std
        For each channel.
    blur
        Whether the first is blurred, and sometimes the second.
    """

    def __init__(
        self,
        size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        blur: bool = True,
    ):
        first, second = _view(size, mean, std, blur=1.0 * blur), _view(size, mean, std, blur=0.1 * blur, solarize=0.2)
        super().__init__([first, second])


class BarlowViews(BYOLViews):
    """BYOL's views, as in Barlow Twins (Zbontar et al., "Barlow Twins: self-supervised learning via redundancy
    reduction", ICML 2021, section 3)."""


class VICRegViews(MultiView):
    """Two views drawn alike, as in VICReg (Bardes et al., "VICReg: variance-invariance-covariance regularization for
    self-supervised learning", ICLR 2022, appendix C.1). The authors' code draws them as BYOL does: `BYOLViews`.

    Parameters
    ----------
    size
        Of the views, in pixels.
    mean, std
        For each channel.
    blur
        Whether half of the views are blurred.
    scale
        Areas of the crops, as fractions of the image's.
    """

    def __init__(
        self,
        size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        blur: bool = True,
        scale: Sequence[float] = (0.08, 1.0),
    ):
        super().__init__([_view(size, mean, std, scale, blur=0.5 * blur, solarize=0.1)] * 2)


class SwAVViews(MultiView):
    """Two large views and some small ones, as in SwAV (Caron et al., "Unsupervised learning of visual features by
    contrasting cluster assignments", NeurIPS 2020, appendix A)."""

    def __init__(
        self,
        size: int = 224,
        num_local: int = 6,
        local_size: int = 96,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        jitter = (0.8, 0.8, 0.8, 0.2)
        large = _view(size, mean, std, scale=(0.14, 1.0), jitter=jitter, blur=0.5)
        small = _view(local_size, mean, std, scale=(0.05, 0.14), jitter=jitter, blur=0.5)
        super().__init__([large] * 2 + [small] * num_local)


class DINOViews(MultiView):
    """Two global views, drawn differently, and some local ones, as in DINO (Caron et al., "Emerging properties in
    self-supervised vision transformers", ICCV 2021, and its code).

    Parameters
    ----------
    size, local_size
        Of the views, in pixels.
    num_local
        How many local views there are.
    scale, local_scale
        Areas of the crops, as fractions of the image's.
    mean, std
        For each channel.
    """

    def __init__(
        self,
        size: int = 224,
        num_local: int = 8,
        local_size: int = 96,
        scale: Sequence[float] = (0.4, 1.0),
        local_scale: Sequence[float] = (0.05, 0.4),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        first = _view(size, mean, std, scale, blur=1.0)
        second = _view(size, mean, std, scale, blur=0.1, solarize=0.2)
        local = _view(local_size, mean, std, local_scale, blur=0.5)
        super().__init__([first, second] + [local] * num_local)


class MAEViews(MultiView):
    """One view, and which of its patches are hidden, as in MAE (He et al., "Masked autoencoders are scalable vision
    learners", CVPR 2022, section 3 and table 8): `[view, is_hidden]`, (batch, patches).

    Parameters
    ----------
    size, patch_size
        Of the view and its patches, in pixels.
    ratio
        The fraction of the patches that is hidden.
    mean, std
        For each channel.
    scale
        Areas of the crop, as fractions of the image's.
    """

    def __init__(
        self,
        size: int = 224,
        patch_size: int = 16,
        ratio: float = 0.75,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        scale: Sequence[float] = (0.2, 1.0),
    ):
        view = View([RandomResizedCrop(size, scale), HorizontalFlip(0.5), Normalize(mean, std)])
        super().__init__([view], [RandomMask(patch_grid(size, patch_size), ratio)])


class IJEPAViews(MultiView):
    """One view, its context and its targets, as in I-JEPA (Assran et al., "Self-supervised learning from images with a
    joint-embedding predictive architecture", CVPR 2023, section 3 and appendix A): `[view, is_context, is_target]`,
    (batch, patches) and (batch, targets, patches). See `BlockMasks`.

    Parameters
    ----------
    size, patch_size
        Of the view and its patches, in pixels.
    num_targets, min_context
        Target blocks; patches that must be left to the context.
    mean, std
        For each channel.
    """

    def __init__(
        self,
        size: int = 224,
        patch_size: int = 14,
        num_targets: int = 4,
        min_context: int = 10,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        view = View([RandomResizedCrop(size, scale=(0.3, 1.0)), Normalize(mean, std)])
        grid = patch_grid(size, patch_size)
        super().__init__([view], [BlockMasks(grid, num_targets=num_targets, min_context=min_context)])


class EvalView(View):
    """The middle of the image, the same each time: what the supervised ImageNet models are evaluated on.

    Parameters
    ----------
    size
        Of the view, in pixels.
    resize
        What the shorter side is resized to before. None: 256 for 224 and so on, but `size` itself below 64 pixels.
    mean, std
        For each channel.
    """

    def __init__(
        self,
        size: int = 224,
        resize: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        resize = resize or (size if size < 64 else round(size * 256 / 224))
        super().__init__([Resize(resize), CenterCrop(size), Normalize(mean, std)])
