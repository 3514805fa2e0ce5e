"""What W&B wrote to a run's folder."""

from __future__ import annotations

import json


def log_records(data):
    """Yield the records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    position, parts = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # a block's end that no header fits in
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def all_records(folder):
    from wandb.proto import wandb_internal_pb2

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in log_records(path.read_bytes()):
            yield wandb_internal_pb2.Record.FromString(data)


def wandb_records(folder):
    """Return what was logged, a dict per record."""
    return [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for record in all_records(folder)
        if record.HasField("history")
    ]


def wandb_run(folder):
    """Return W&B's record of the run itself."""
    return next(record.run for record in all_records(folder) if record.HasField("run"))
