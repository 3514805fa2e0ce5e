"""The page of messages: the package prints each of them, and the page is that of the table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from stable_ssl.messages import MESSAGES, table

ROOT = Path(__file__).parents[2]


def texts():
    """Yield all texts in the source; "…" stands for each value that is filled in."""
    for path in sorted((ROOT / "src/stable_ssl").rglob("*.py")):
        if path.name != "messages.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    yield "".join(parts)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"%[-.\d]*[sdgfr]", "…", node.value)


def test_the_package_prints_each_message_of_the_table():
    source = "\n".join(text.replace("\n", " ") for text in texts())
    missing = [
        message.text for group in MESSAGES.values() for message in group if message.text.strip("…") not in source
    ]
    assert not missing


def test_the_page_is_that_of_the_table():
    assert "\n".join(table()) in (ROOT / "docs/troubleshooting.md").read_text()
