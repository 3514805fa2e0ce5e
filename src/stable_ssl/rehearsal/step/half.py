"""A small run in bf16 on the CPU that takes the numbers of each operation as CUDA would."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from ..stage import Stage
from .explained import at, named
from .hearing import Heard
from .tries import SmallRun, Tries

SECONDS = 5.0  # that the run may have taken in fp32; a CPU may be ten times as slow in bf16

# How CUDA's autocast treats operations other than that of the CPU, by torch's "Automatic Mixed Precision".
_IN_FP32 = {
    "pow", "__rpow__", "__rdiv__", "__rtruediv__", "acos", "asin", "binary_cross_entropy_with_logits", "cosh",
    "cosine_embedding_loss", "cdist", "cosine_similarity", "cross_entropy", "cumprod", "cumsum", "dist",
    "erfinv", "exp", "expm1", "group_norm", "hinge_embedding_loss", "kl_div", "l1_loss", "layer_norm",
    "linalg_matrix_norm", "linalg_norm", "linalg_vector_norm", "log", "log10", "log1p", "log2", "log_softmax",
    "logsumexp", "margin_ranking_loss", "mse_loss", "multi_margin_loss", "multilabel_margin_loss", "nll_loss",
    "norm", "normalize", "pdist", "poisson_nll_loss", "prod", "reciprocal", "renorm", "rsqrt", "sinh",
    "smooth_l1_loss", "soft_margin_loss", "softmax", "softmin", "softplus", "sum", "tan", "triplet_margin_loss",
}  # fmt: skip
_IN_WIDEST = {
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sample", "index_put", "scatter_add",
    "tensordot",
}  # fmt: skip
_UNCHANGED = {
    "cholesky", "cholesky_inverse", "cholesky_solve", "geqrf", "index_copy", "inverse", "lu_solve",
    "nanquantile", "orgqr", "ormqr", "pinverse", "polar", "qr", "quantile", "svd", "triangular_solve",
    "view_as_complex",
}  # fmt: skip


class AsOnCuda(TorchFunctionMode):
    """Has the CPU's autocast in the block convert the numbers of each operation as CUDA's does.

    It converts those that CUDA's computes in fp32, leaves alone those that only the CPU's converts, and refuses what
    CUDA's refuses. CUDA's autocast counts as on, so that a block in which the user's code turns it off is known.
    """

    def __enter__(self) -> AsOnCuda:
        """Begin."""
        torch.set_autocast_enabled("cuda", True)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End."""
        super().__exit__(*error)
        torch.set_autocast_enabled("cuda", False)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if not (torch.is_autocast_enabled("cpu") and torch.is_autocast_enabled("cuda")):
            with torch.autocast("cpu", enabled=False):
                return function(*args, **kwargs)
        if name == "binary_cross_entropy":
            raise RuntimeError("CUDA refuses binary_cross_entropy under autocast: give scores to its *_with_logits")
        kind: torch.dtype | None = None
        if name in _IN_FP32:
            kind = torch.float32
        elif name in _IN_WIDEST:
            kinds = {leaf.dtype for leaf in tree_leaves((args, kwargs)) if _is_narrow(leaf, torch.float64)}
            kind = torch.float32 if len(kinds) > 1 else None
        is_left_alone = kind is not None or name in _UNCHANGED or name.startswith(("linalg_", "fft_"))
        if kind is not None:
            args, kwargs = tree_map(lambda leaf: leaf.to(kind) if _is_narrow(leaf, kind) else leaf, (args, kwargs))
        with torch.autocast("cpu", enabled=False) if is_left_alone else nullcontext():
            return function(*args, **kwargs)


def _is_narrow(leaf: Any, kind: torch.dtype) -> bool:
    """Return whether something is a tensor of floats with fewer bits than `kind`."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.itemsize < kind.itemsize


def check_in_half(stage: Stage, run: SmallRun, tries: Tries) -> None:
    """Warn if a run that is to compute in bf16 or fp16 fails in bf16 on the CPU, although it does not in fp32.

    It is a warning, since a CPU lacks some operations in bf16 that CUDA has.
    """
    hardware = stage.make().hardware
    precision = hardware["precision"]
    if precision == "fp32":
        return
    again: SmallRun | None = None
    if run.seconds <= SECONDS:
        with Heard().listening(), nullcontext() if hardware["device"] == "cpu" else AsOnCuda():
            again = tries.in_half(run.size)
    if again and again.error and again.place:
        error, place = again.error, again.place
        where = place.method or place.key or "the run"
        stage.report.warn(
            "step",
            f"hardware.precision: {precision}: {where} fails if it is tried in bf16 on the CPU, and not in fp32: "
            f"{named(error)}{at(place)} Give it float32 there: .float(), in a block "
            "of torch.autocast(self.device.type, enabled=False).",
        )
    stage.report.tell("step", tried_in_half=again is not None)
