"""The views of published methods, ready to use.

Values are normalised by ImageNet's mean and standard deviation unless other numbers are given. Distributions are those
of torchvision.

A blur has 23 taps at 224 pixels, and more or fewer in proportion to the view (SimCLR, appendix A: 10 % of the image).
It has at least the 13 that cover 3 of its largest standard deviations, if the view is large enough: the other methods
blur with PIL, whose kernel follows from the standard deviation at every size.

Resizing is bilinear unless `interpolation` is "bicubic", as in the authors' code of SimCLR, BYOL, Barlow Twins, VICReg,
MAE and DINO. MoCo v2, SimSiam, SwAV and I-JEPA are bilinear there too.
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
from .operations.base import Size
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
    interpolation: str = "bilinear",
) -> View:
    """Return a view that crops, flips, changes colours, and makes 20 % of the images grey.

    `blur` and `solarize` are the probabilities of these operations.
    """
    operations: list[Operation] = [
        RandomResizedCrop(size, scale=scale, interpolation=interpolation),
        HorizontalFlip(0.5),
        ColorJitter(*jitter, p=0.8),
        Grayscale(0.2),
    ]
    if blur:
        radius = min(max(round(size / 20), 6), size - 1)
        operations.append(GaussianBlur(2 * radius + 1, (0.1, 2.0), blur))
    if solarize:
        operations.append(Solarize(128, solarize))
    return View([*operations, Normalize(mean, std)])


class SimCLRViews(MultiView):
    """Two views as in SimCLR (Chen et al., "A simple framework for contrastive learning of visual representations",
    ICML 2020, appendix A).

    Parameters
    ----------
    size
        Height and width of the views, in pixels.
    strength
        Factor of the colour changes. None: 1, but 0.5 for views below 64 pixels, as for CIFAR-10 (appendix B.9).
    blur
        Whether half of the views are blurred. None: from 64 pixels on (appendix B.9).
    mean, std
        Of values from 0 to 1, one number per channel.
    interpolation
        How crops are resized: "bilinear" or "bicubic".
    """

    def __init__(
        self,
        size: int = 224,
        strength: float | None = None,
        blur: bool | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: str = "bilinear",
    ):
        strength = (0.5 if size < 64 else 1.0) if strength is None else strength
        blur = size >= 64 if blur is None else blur
        jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
        view = _view(size, mean, std, jitter=jitter, blur=0.5 * blur, interpolation=interpolation)
        super().__init__([view] * 2)


class MoCoViews(MultiView):
    """Two views as in MoCo v2 (Chen et al., "Improved baselines with momentum contrastive learning", 2020).

    Parameters
    ----------
    size
        Height and width of the views, in pixels.
    mean, std
        Of values from 0 to 1, one number per channel.
    blur
        Whether half of the views are blurred.
    scale
        Range of the crops' areas, as fractions of the image's.
    interpolation
        How crops are resized: "bilinear" or "bicubic".
    """

    def __init__(
        self,
        size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        blur: bool = True,
        scale: Sequence[float] = (0.2, 1.0),
        interpolation: str = "bilinear",
    ):
        jitter = (0.4, 0.4, 0.4, 0.1)
        view = _view(size, mean, std, scale, jitter=jitter, blur=0.5 * blur, interpolation=interpolation)
        super().__init__([view] * 2)


class BYOLViews(MultiView):
    """Two views, drawn differently, as in BYOL (Grill et al., "Bootstrap your own latent", NeurIPS 2020, table 6).

    Parameters
    ----------
    size
        Height and width of the views, in pixels.
    mean, std
        Of values from 0 to 1, one number per channel.
    blur
        Whether the first view is always blurred, and the second sometimes.
    interpolation
        How crops are resized: "bilinear" or "bicubic".
    """

    def __init__(
        self,
        size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        blur: bool = True,
        interpolation: str = "bilinear",
    ):
        first = _view(size, mean, std, blur=1.0 * blur, interpolation=interpolation)
        second = _view(size, mean, std, blur=0.1 * blur, solarize=0.2, interpolation=interpolation)
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
        Height and width of the views, in pixels.
    mean, std
        Of values from 0 to 1, one number per channel.
    blur
        Whether half of the views are blurred.
    scale
        Range of the crops' areas, as fractions of the image's.
    interpolation
        How crops are resized: "bilinear" or "bicubic".
    """

    def __init__(
        self,
        size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        blur: bool = True,
        scale: Sequence[float] = (0.08, 1.0),
        interpolation: str = "bilinear",
    ):
        view = _view(size, mean, std, scale, blur=0.5 * blur, solarize=0.1, interpolation=interpolation)
        super().__init__([view] * 2)


class SwAVViews(MultiView):
    """Two large views and some small ones, as in SwAV (Caron et al., "Unsupervised learning of visual features by
    contrasting cluster assignments", NeurIPS 2020, appendix A).

    Parameters
    ----------
    size, local_size
        Height and width of the large and the small views, in pixels.
    num_local
        How many small views there are.
    mean, std
        Of values from 0 to 1, one number per channel.
    interpolation
        How crops are resized: "bilinear" or "bicubic".
    """

    def __init__(
        self,
        size: int = 224,
        num_local: int = 6,
        local_size: int = 96,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: str = "bilinear",
    ):
        jitter = (0.8, 0.8, 0.8, 0.2)
        large, small = (
            _view(side, mean, std, scale, jitter=jitter, blur=0.5, interpolation=interpolation)
            for side, scale in ((size, (0.14, 1.0)), (local_size, (0.05, 0.14)))
        )
        super().__init__([large] * 2 + [small] * num_local)


class DINOViews(MultiView):
    """Two global views, drawn differently, and some local ones, as in DINO (Caron et al., "Emerging properties in
    self-supervised vision transformers", ICCV 2021, and its code).

    Parameters
    ----------
    size, local_size
        Height and width of the global and the local views, in pixels.
    num_local
        How many local views there are.
    scale, local_scale
        Ranges of the crops' areas, as fractions of the image's.
    mean, std
        Of values from 0 to 1, one number per channel.
    interpolation
        How crops are resized: "bilinear" or "bicubic".
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
        interpolation: str = "bilinear",
    ):
        first = _view(size, mean, std, scale, blur=1.0, interpolation=interpolation)
        second = _view(size, mean, std, scale, blur=0.1, solarize=0.2, interpolation=interpolation)
        local = _view(local_size, mean, std, local_scale, blur=0.5, interpolation=interpolation)
        super().__init__([first, second] + [local] * num_local)


class MAEViews(MultiView):
    """One view and a mask of its hidden patches, as in MAE (He et al., "Masked autoencoders are scalable vision
    learners", CVPR 2022, section 3 and table 8). A batch is `[view, is_hidden]`; the mask is (batch, patches).

    Parameters
    ----------
    size
        Height and width of the view, in pixels, or one number for a square.
    patch_size
        Height and width of a patch, in pixels.
    ratio
        The fraction of hidden patches.
    mean, std
        Of values from 0 to 1, one number per channel.
    scale
        Range of the crop's area, as a fraction of the image's.
    interpolation
        How crops are resized: "bilinear" or "bicubic".
    """

    def __init__(
        self,
        size: Size = 224,
        patch_size: int = 16,
        ratio: float = 0.75,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        scale: Sequence[float] = (0.2, 1.0),
        interpolation: str = "bilinear",
    ):
        crop = RandomResizedCrop(size, scale, interpolation=interpolation)
        view = View([crop, HorizontalFlip(0.5), Normalize(mean, std)])
        super().__init__([view], [RandomMask(patch_grid(size, patch_size), ratio)])


class IJEPAViews(MultiView):
    """One view, its context and its targets, as in I-JEPA (Assran et al., "Self-supervised learning from images with a
    joint-embedding predictive architecture", CVPR 2023, section 3 and appendix A). A batch is
    `[view, is_context, is_target]`; the masks are (batch, patches) and (batch, targets, patches). `BlockMasks` says
    what differs from the authors' code.

    Parameters
    ----------
    size
        Height and width of the view, in pixels, or one number for a square.
    patch_size
        Height and width of a patch, in pixels.
    num_targets, min_context
        Target blocks per image, and patches that the context must keep.
    mean, std
        Of values from 0 to 1, one number per channel.
    interpolation
        How crops are resized: "bilinear" or "bicubic".
    """

    def __init__(
        self,
        size: Size = 224,
        patch_size: int = 14,
        num_targets: int = 4,
        min_context: int = 10,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: str = "bilinear",
    ):
        view = View([RandomResizedCrop(size, (0.3, 1.0), interpolation=interpolation), Normalize(mean, std)])
        grid = patch_grid(size, patch_size)
        super().__init__([view], [BlockMasks(grid, num_targets=num_targets, min_context=min_context)])


class EvalView(View):
    """The middle of the image, with nothing random: supervised ImageNet models are evaluated on it.

    Parameters
    ----------
    size
        Height and width of the view, in pixels, or one number for a square.
    resize
        Length of the image's shorter side before the middle is cut out. None: 8 / 7 of `size`, as 256 is of 224, but
        `size` itself below 64 pixels. Of views that are no squares, it is by default the image that is resized as a
        whole, and nothing is cut off.
    mean, std
        Of values from 0 to 1, one number per channel.
    interpolation
        How the image is resized: "bilinear" or "bicubic".
    """

    def __init__(
        self,
        size: Size = 224,
        resize: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: str = "bilinear",
    ):
        shorter: Size = resize or size
        if resize is None and isinstance(size, int):
            shorter = size if size < 64 else round(size * 256 / 224)
        super().__init__([Resize(shorter, interpolation), CenterCrop(size), Normalize(mean, std)])
