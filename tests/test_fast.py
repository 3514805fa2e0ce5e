"""`make fast` finds the tests of a changed file."""

from __future__ import annotations

from pathlib import Path

import fast
import pytest

IMPORTING = {
    "tests/losses/test_pairs.py": {"stable_ssl.losses.ntxent", "toys"},
    "tests/test_config.py": {"stable_ssl", "stable_ssl.config"},
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("src/stable_ssl/losses/ntxent.py", ["tests/losses/test_pairs.py", "tests/losses"]),
        ("src/stable_ssl/config.py", ["tests/test_config.py", "tests/test_config.py"]),
        ("src/stable_ssl/base.py", [*fast.OF_BASE, "tests/test_base.py"]),
        ("tests/losses/test_pairs.py", ["tests/losses/test_pairs.py"]),
        ("tests/toys.py", ["tests/losses/test_pairs.py"]),
        ("docs/views.md", []),
    ],
)
def test_a_changed_file_has_the_tests_that_import_it_and_those_of_its_room(changed, expected):
    found = [test for test in fast.tests_of(Path(changed), IMPORTING) if "test_examples" not in test]
    assert found == expected


def test_the_tests_of_the_page_are_there():
    for test in fast.OF_BASE:
        file, _, name = test.partition("::")
        assert f"def {name}" in (fast.ROOT / file).read_text()
