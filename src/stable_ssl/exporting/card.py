"""The model card of an export: what the network is, what it was trained on, and its figures with their protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..evaluation.results import in_words, saved
from ..weights.runs import path_of_backbone
from .backbone import Backbone


def write_card(backbone: Backbone, folder: Path, library: str, lines: Callable[[Path], list[str]]) -> None:
    """Write `README.md` in the form of Hugging Face's model cards. Its licence is left to the user."""
    trainer = backbone.found.run.trainer
    progress = {"Epoch": backbone.progress.get("epoch"), "Step": backbone.progress.get("global_step")}
    facts = {
        "Method": " with ".join(filter(None, (_name(trainer), _name(trainer.get("loss"))))),
        "Network": f"{backbone.kind}, `{backbone.found.path}` of the run",
        "Data": _data(trainer),
        **{name: number for name, number in progress.items() if number is not None},
    }
    text = [
        "---",
        f"library_name: {library}",
        "tags: [self-supervised-learning, stable-ssl]",
        "pipeline_tag: image-feature-extraction",
        "---",
        "",
        "# A backbone trained with stable-ssl",
        "",
        *(f"- {name}: {value}" for name, value in facts.items() if value),
        "",
        "```python",
        *lines(Path(".")),
        f"# {backbone.images.in_words}",
        "```",
        "",
        *_table(figures_of(backbone)),
        "",
    ]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")


def figures_of(backbone: Backbone) -> list[dict[str, str]]:
    """Return the figures that evaluations of the run gave for this network at this step, as rows of a table."""
    return [
        {
            "protocol": record["protocol"],
            "figure": name,
            "accuracy": in_words(figure),
            "data": Path(record["data"]["name"]).name,
            "features": ", ".join(figure["features"]),
            "chosen on": record["chosen_on"],
            "seeds": str(len(record["seeds"])),
        }
        for record in saved(backbone.run)
        if record.get("global_step") == backbone.progress.get("global_step")
        and ".".join(path_of_backbone(backbone.found.run.trainer, record.get("network"))) == backbone.found.path
        for name, figure in record["figures"].items()
    ]


def _table(rows: list[dict[str, str]]) -> list[str]:
    columns = [*dict.fromkeys(key for row in rows for key in row)]
    if not rows:
        return []
    return [
        "## Evaluation",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(row.get(column, '') for column in columns)} |" for row in rows),
    ]


def _name(node: Any) -> str:
    """Return the name of what a node builds; "" if it is no node."""
    return str(node["_target_"]).rpartition(".")[2] if isinstance(node, Mapping) and "_target_" in node else ""


def _data(trainer: Mapping[str, Any]) -> str:
    """Return what the run was trained on: the data set, and the name of its folder without the way to it."""
    loader = (trainer.get("data") or {}).get("train")
    dataset = loader.get("dataset", loader) if isinstance(loader, Mapping) else None
    if not isinstance(dataset, Mapping):
        return ""
    places = (dataset.get(key) for key in ("root", "path", "name", "urls"))
    place = next((Path(value).name for value in places if isinstance(value, str)), "")
    return " ".join(filter(None, (_name(dataset), place)))
