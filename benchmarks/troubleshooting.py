"""The page of messages and remedies, docs/troubleshooting.md, written from the table in the source.

python benchmarks/troubleshooting.py
"""

from __future__ import annotations

from pathlib import Path

from tables import write_table

from stable_ssl.messages import table

PAGE = Path(__file__).parent.parent / "docs/troubleshooting.md"

if __name__ == "__main__":
    write_table(PAGE, "messages", table())
