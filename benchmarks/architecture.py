"""Draws the rooms of `src/stable_ssl`, and who imports whom, from the source's own import statements.

    python benchmarks/architecture.py    # writes docs/architecture.svg

A room is in a row above all rooms that it imports. An arrow that follows from others is left out: if `cli` imports
`base`, and `base` imports `engine`, there is no arrow from `cli` to `engine`.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from test_structure import FILES, SOURCE, file_of, imports_of

PATH = SOURCE.parent.parent / "docs" / "architecture.svg"
# Several files that are drawn as one room.
GROUPS = {
    "configuration": (
        "compose",
        "explaining",
        "overrides",
        "resolvers",
        "config",
        "nodes",
        "arguments",
        "trials",
        "fields",
        "lines",
        "signatures",
    )
}
# These would only add arrows from everywhere, or have none.
LEFT_OUT = ("__init__", "__main__", "__about__", "exceptions", "compat", "reader", "utils", "recipes", "messages")
# Per room: its first and its last column, and what is in it.
ROOMS = {
    "cli": (1.5, 1.5, "a file per command"),
    "api": (1.5, 1.5, "pretrain, check, branch"),
    "pretraining": (1.5, 1.5, "from a folder of images", "to a recipe"),
    "rehearsal": (2.6, 2.6, "check: before the queue"),
    "exporting": (0.3, 0.3, "backbones for other libraries"),
    "evaluation": (0.3, 0.3, "protocols, embedding"),
    "loading": (0.3, 0.3, "a run's modules"),
    "instantiate": (1.5, 1.5, "YAML becomes a trainer"),
    "trainers": (3, 3, "a file per family"),
    "base": (1.5, 1.5, "BaseTrainer:", "a run from top to bottom"),
    "modules": (0.2, 0.2, "networks and heads"),
    "losses": (3, 3, "a file per loss"),
    "engine": (2.2, 2.2, "session, building, stepping,", "saving, agreement, …"),
    "optimizers": (5, 5, "LARS, weight decay"),
    "configuration": (2, 2, "config, nodes, arguments,", "compose, fields, signatures"),
    "data": (2, 2, "order, reading, Loader"),
    "loggers": (4, 4, "console, metrics.jsonl"),
    "monitors": (0.5, 0.5, "RankMe, LiDAR, kNN"),
    "augmentations": (2, 2, "views and masks"),
    "schedulers": (0, 0, "learning rates"),
    "weights": (0, 0, "reading files of weights,", "matching keys"),
    "runtime": (1, 5, "seeding, checkpoint files, processes, devices,", "precision, signals, a run's folder"),
}
WIDTH, HEIGHT, BETWEEN_COLUMNS, BETWEEN_ROWS, MARGIN = 200, 62, 16, 40, 20

Graph = dict[str, set[str]]


def room_of(path: Path) -> str:
    """Return the room of a file."""
    name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return next((group for group, names in GROUPS.items() if name in names), name)


def read_graph() -> Graph:
    """Return the rooms that each room imports, without those that are left out."""
    graph: Graph = {room: set() for path in FILES if (room := room_of(path)) not in LEFT_OUT}
    if unplaced := graph.keys() ^ ROOMS.keys():
        raise SystemExit(
            f"{sorted(unplaced)}: a room is new or gone. Give ROOMS its columns and words, or take it out."
        )
    for path in FILES:
        room = room_of(path)
        if room in graph:
            graph[room] |= {room_of(file_of(name)) for name in imports_of(path)} & graph.keys() - {room}
    return graph


def reachable(graph: Graph, room: str) -> set[str]:
    """Return all rooms that a room imports, directly or by way of others."""
    return graph[room].union(*(reachable(graph, other) for other in graph[room]))


def reduced(graph: Graph) -> Graph:
    """Return the graph without the arrows that follow from others."""
    return {
        room: targets - set().union(*(reachable(graph, other) for other in targets)) for room, targets in graph.items()
    }


def rows(graph: Graph) -> dict[str, int]:
    """Return the row of each room, 0 for the lowest: right below the lowest room that imports it."""
    lowest: dict[str, int] = {}

    def height(room: str) -> int:
        if room not in lowest:
            lowest[room] = 1 + max(map(height, graph[room]), default=-1)
        return lowest[room]

    row: dict[str, int] = {}
    for room in sorted(graph, key=height, reverse=True):
        importers = [row[other] for other, targets in graph.items() if room in targets]
        row[room] = min(importers) - 1 if importers else height(room)
    return row


def span(room: str) -> tuple[float, float]:
    """Return the left and the right edge of a room's box."""
    first, last, *_ = ROOMS[room]
    pitch = WIDTH + BETWEEN_COLUMNS
    return MARGIN + first * pitch, MARGIN + last * pitch + WIDTH


def ends(source: str, target: str) -> tuple[float, float]:
    """Return where an arrow leaves a box and where it enters another: straight down if one is above the other."""
    (left, right), (other_left, other_right) = span(source), span(target)
    begin, end = max(left, other_left), min(right, other_right)
    if begin < end:
        return (begin + end) / 2, (begin + end) / 2
    return (right - 24, other_left + 24) if left < other_left else (left + 24, other_right - 24)


def check_clear(source: str, target: str, row: dict[str, int]) -> None:
    """Refuse an arrow that would go through another box: its room needs another column."""
    begin, end = ends(source, target)
    for room, place in row.items():
        if row[target] < place < row[source]:
            x = begin + (end - begin) * (row[source] - place) / (row[source] - row[target])
            if span(room)[0] - 8 < x < span(room)[1] + 8:
                raise SystemExit(
                    f"The arrow from {source} to {target} goes through {room}. Change their columns in ROOMS."
                )


def drawing() -> str:
    """Return the drawing, as SVG."""
    graph = read_graph()
    row, arrows = rows(graph), reduced(graph)
    top = {room: MARGIN + (max(row.values()) - place) * (HEIGHT + BETWEEN_ROWS) for room, place in row.items()}
    width, height = max(span(room)[1] for room in graph) + MARGIN, max(top.values()) + HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="Helvetica, Arial, sans-serif" text-anchor="middle">',
        "<title>The rooms of stable-ssl. An arrow means: imports.</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#456"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
    ]
    for source in ROOMS:
        for target in (room for room in ROOMS if room in arrows[source]):
            check_clear(source, target, row)
            begin, end = ends(source, target)
            lines.append(
                f'<path d="M{begin:g} {top[source] + HEIGHT:g} {end:g} {top[target]:g}" stroke="#456" '
                f'stroke-width="1.5" marker-end="url(#head)"><title>{source} imports {target}</title></path>'
            )
    for room, (_, _, *words) in ROOMS.items():
        left, right = span(room)
        fill = "#ffe3a8" if room in ("base", "engine") else "#e6eef5"
        lines.append(
            f'<rect x="{left:g}" y="{top[room]:g}" width="{right - left:g}" height="{HEIGHT}" rx="6" fill="{fill}" '
            'stroke="#456"/>'
        )
        baseline = top[room] + (22 if len(words) > 1 else 28)
        for number, text in enumerate([room, *words]):
            style = 'font-size="13" fill="#333"' if number else 'font-size="16" font-weight="bold" fill="#123"'
            y = baseline + 16 * number
            lines.append(f'<text x="{(left + right) / 2:g}" y="{y:g}" {style}>{escape(text, quote=False)}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PATH.write_text(drawing())
    print(f"{PATH} is written.")
