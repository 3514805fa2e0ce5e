"""Operations on tensors of a device, each with what CUDA does there: nothing that counts, a wait, or an error."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from stable_ssl.rehearsal.device.waits import (
    AS_ARRAY,
    BY_HOST_GENERATOR,
    BY_HOST_INDEX,
    CHECKS,
    MIXED,
    READS,
    SHAPE,
    TO_DEVICE,
    TO_HOST,
)


def _set(tensor, key, value):
    tensor[key] = value


def _add_to_total(x):
    total = torch.tensor(0.0)
    total += x.sum()


# By name: the kind, or None, and a function of floats (4, 3), whole numbers 1 (4,) and truths (4,), on the device.
OPERATIONS = {
    "item": (READS, lambda x, n, b: x.sum().item()),
    "bool": (READS, lambda x, n, b: bool(x.sum() > 0)),
    "float": (READS, lambda x, n, b: float(x.sum())),
    "int": (READS, lambda x, n, b: int(n.max())),
    "slice": (READS, lambda x, n, b: x[: n.max()]),
    "range": (READS, lambda x, n, b: range(n.max())),
    "index_by_scalar": (READS, lambda x, n, b: [0, 1][n[0]]),
    "equal": (READS, lambda x, n, b: torch.equal(x, x)),
    "allclose": (READS, lambda x, n, b: torch.allclose(x, x)),
    "contains": (READS, lambda x, n, b: 1.0 in x),
    "repr": (READS, lambda x, n, b: repr(x.sum())),
    "format": (READS, lambda x, n, b: f"{x.sum():.3f}"),
    "tensor_of_tensors": (READS, lambda x, n, b: torch.tensor([x.sum(), x.mean()])),
    "one_hot": (READS, lambda x, n, b: functional.one_hot(n)),
    "cov": (READS, lambda x, n, b: x.T.cov()),
    "tolist": (TO_HOST, lambda x, n, b: x.tolist()),
    "cpu": (TO_HOST, lambda x, n, b: x.cpu()),
    "copy_to_host": (TO_HOST, lambda x, n, b: torch.ones(4, 3).copy_(x)),
    "nonzero": (SHAPE, lambda x, n, b: x.nonzero()),
    "where": (SHAPE, lambda x, n, b: torch.where(b)),
    "mask": (SHAPE, lambda x, n, b: x[b]),
    "set_by_mask": (SHAPE, lambda x, n, b: _set(x, b, torch.ones_like(x[:1]))),
    "masked_select": (SHAPE, lambda x, n, b: x.masked_select(x > 0)),
    "unique": (SHAPE, lambda x, n, b: n.unique()),
    "unique_consecutive": (SHAPE, lambda x, n, b: n.unique_consecutive()),
    "unique_rows": (SHAPE, lambda x, n, b: x.unique(dim=0)),
    "bincount": (SHAPE, lambda x, n, b: n.bincount(minlength=3)),
    "repeat_interleave": (SHAPE, lambda x, n, b: x.repeat_interleave(n, 0)),
    "tensor_of_number": (TO_DEVICE, lambda x, n, b: torch.tensor(0.5, device=x.device)),
    "new_tensor": (TO_DEVICE, lambda x, n, b: x.new_tensor([0.5, 0.5])),
    "as_tensor": (TO_DEVICE, lambda x, n, b: torch.as_tensor(np.ones(3), device=x.device)),
    "to": (TO_DEVICE, lambda x, n, b: torch.ones(4, 3).to(x.device)),
    "copy": (TO_DEVICE, lambda x, n, b: x.copy_(torch.ones(4, 3))),
    "host_index": (BY_HOST_INDEX, lambda x, n, b: x[torch.tensor([1, 2])]),
    "permutation": (BY_HOST_INDEX, lambda x, n, b: x[torch.randperm(4)]),
    "list_index": (BY_HOST_INDEX, lambda x, n, b: x[[1, 2]]),
    "set_by_host_index": (BY_HOST_INDEX, lambda x, n, b: _set(x, torch.tensor([1, 2]), 0.0)),
    "inverse": (CHECKS, lambda x, n, b: torch.linalg.inv(x.T @ x + torch.eye(3, device=x.device))),
    "cholesky": (CHECKS, lambda x, n, b: torch.linalg.cholesky(x.T @ x + torch.eye(3, device=x.device))),
    "eigenvalues": (CHECKS, lambda x, n, b: torch.linalg.eigvalsh(x.T @ x)),
    "singular_values": (CHECKS, lambda x, n, b: torch.linalg.svdvals(x)),
    "multinomial": (CHECKS, lambda x, n, b: torch.multinomial(x[:, 0], 2)),
    "numpy": (AS_ARRAY, lambda x, n, b: x.numpy()),
    "asarray": (AS_ARRAY, lambda x, n, b: np.asarray(x)),
    "add": (MIXED, lambda x, n, b: x + torch.ones(4, 3)),
    "add_scalar_of_device": (MIXED, lambda x, n, b: torch.ones(4, 3) + x.sum()),
    "add_in_place": (MIXED, lambda x, n, b: torch.ones(4, 3).add_(x)),
    "total_on_host": (MIXED, lambda x, n, b: _add_to_total(x)),
    "stack": (MIXED, lambda x, n, b: torch.stack([x.sum(), torch.tensor(1.0)])),
    "cat": (MIXED, lambda x, n, b: torch.cat([x, torch.ones(4, 3)])),
    "matmul": (MIXED, lambda x, n, b: x @ torch.ones(3, 2)),
    "linear": (MIXED, lambda x, n, b: functional.linear(x, torch.ones(2, 3))),
    "cross_entropy": (MIXED, lambda x, n, b: functional.cross_entropy(x, torch.ones(4, dtype=torch.long))),
    "batch_norm": (MIXED, lambda x, n, b: functional.batch_norm(x, torch.ones(3), torch.ones(3))),
    "gather": (MIXED, lambda x, n, b: x.gather(1, torch.zeros(4, 1, dtype=torch.long))),
    "embedding": (MIXED, lambda x, n, b: functional.embedding(torch.zeros(4, dtype=torch.long), x)),
    "masked_fill": (MIXED, lambda x, n, b: x.masked_fill(torch.ones(4, 3, dtype=torch.bool), 0.0)),
    "lerp_of_lists": (MIXED, lambda x, n, b: torch._foreach_lerp_([x], [torch.ones(4, 3)], 0.5)),
    "generator_of_host": (
        BY_HOST_GENERATOR,
        lambda x, n, b: torch.randn(3, device=x.device, generator=torch.Generator()),
    ),
    "noise_by_host": (BY_HOST_GENERATOR, lambda x, n, b: x.normal_(generator=torch.Generator("cpu"))),
    "generator_of_device": (
        None,
        lambda x, n, b: x.normal_(generator=torch.Generator(x.device).manual_seed(0)) + torch.rand_like(x),
    ),
    "generator_for_host": (None, lambda x, n, b: torch.randperm(4, generator=torch.Generator())),
    "scalar_of_host": (None, lambda x, n, b: x * torch.tensor(2.0) + 1),
    "where_scalar_of_host": (None, lambda x, n, b: torch.where(x > 0, x, torch.tensor(2.0))),
    "fill_by_mask": (None, lambda x, n, b: _set(x, b, 0.0)),
    "masked_fill_on_device": (None, lambda x, n, b: x.masked_fill(x > 0, torch.tensor(2.0))),
    "zeros": (None, lambda x, n, b: torch.zeros(3, device=x.device) + torch.arange(3, device=x.device)),
    "to_in_background": (None, lambda x, n, b: torch.ones(4, 3).pin_memory().to(x.device, non_blocking=True)),
    "index_on_device": (None, lambda x, n, b: x[n] + x[torch.randperm(4, device=x.device)]),
    "one_hot_of_known_width": (None, lambda x, n, b: functional.one_hot(n, 5)),
    "known_size": (None, lambda x, n, b: x.repeat_interleave(n, 0, output_size=4)),
    "isfinite": (None, lambda x, n, b: torch.isfinite(x).all() & ~torch.isnan(x).any()),
    "quantile": (None, lambda x, n, b: x.sort().values.cumsum(0) + x.quantile(0.5)),
    "cholesky_ex": (None, lambda x, n, b: torch.linalg.cholesky_ex(x.T @ x)),
    "dropout": (None, lambda x, n, b: functional.dropout(x) + torch.randn_like(x)),
}
