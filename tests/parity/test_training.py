"""Each method's training step is lightly's, or the authors': losses, weights and all state agree after every step."""

from __future__ import annotations

import pytest

pytest.importorskip("lightly", reason="lightly is not installed: pip install '.[dev]'")

from .cases import CASES
from .sides import TOLERANCE, compare

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


@pytest.mark.parametrize("name", CASES)
def test_a_method_trains_as_its_reference(name):
    case = CASES[name]
    found = compare(case.make, case.optimizer)
    assert found
    assert not {kind: value for kind, value in found.items() if not value <= TOLERANCE}
