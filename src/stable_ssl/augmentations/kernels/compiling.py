"""How loops are compiled, and the number types and instructions that they share."""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

# Division by zero gives inf as in NumPy: a check would keep loops from being vectorised.
kernel: Any = functools.partial(numba.njit, cache=True, error_model="numpy", nogil=True)

# numba finds out the types of arguments; these names tell a reader what they are.
Array: TypeAlias = Any
Number: TypeAlias = Any

# Arithmetic with Python's numbers would be in float64.
ZERO, ONE, WHITE, TO_UNIT = (np.float32(number) for number in (0, 1, 255, 1 / 255))


@intrinsic
def _fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a · b + c, rounded once, as torch's vectorised `add(…, alpha=…)` does."""
    return types.float32(types.float32, types.float32, types.float32), lambda _, builder, __, args: builder.fma(*args)


fma: Any = _fma
