"""Which images are evaluated on, which settings change that, and what is told of those that can't be taken."""

from __future__ import annotations

import pytest

from stable_ssl import ConfigError
from stable_ssl.evaluation.request import Request


@pytest.mark.parametrize("limit", [-1.0, float("nan"), "20"])
def test_a_limit_of_the_cache_is_at_least_0(limit):
    Request(["run"], limit=0).check()
    with pytest.raises(ConfigError, match="--cache-limit: .* is not a number of at least 0."):
        Request(["run"], limit=limit).check()
