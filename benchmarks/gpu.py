"""All that this repository measures on one CUDA GPU, within eight minutes.

    python benchmarks/gpu.py [--only NAME …] [--cifar10 FOLDER] [--json FILE] [--minutes 8]
    python benchmarks/gpu.py --rehearse [--only NAME …] [--json FILE]
    python benchmarks/gpu.py --from FILE

The first line writes tables into the docs, and what they are made of into FILE (benchmarks/gpu.json). Measurements come
in the order of their worth, each in a process of its own with a limit of time. After each of them, its table and FILE
are written. What fails, or does not fit into the time, is "not run", with the reason. A second call replaces what it
measures and keeps the rest.

`--rehearse` does the same on the CPU with tiny sizes, in two minutes. It changes no table, but prints them, and says in
each row that it is a rehearsal. `--from` writes the tables from the FILE of another machine, where the docs did not
come back. `--cifar10` is a folder with `train*.parquet`; without it, images of CIFAR-10's number and size are random.

On a fresh machine that has torch for its GPU:

    pip install -e '.[bench]' pytest && python benchmarks/gpu.py

If it has no network but torch, torchvision, numpy, numba, scikit-learn, pillow, safetensors, rich, jinja2, torchmetrics
and pytest, then wheels of these are needed, which `pip download` gets elsewhere: hydra-core, omegaconf,
antlr4-python3-runtime, hydra-submitit-launcher, submitit, cloudpickle, simplejpeg, pydantic, pydantic-core,
annotated-types, typing-inspection. The rows of other libraries need kornia, kornia-rs and lightly, `--cifar10` pyarrow.
Then `PYTHONPATH=src python benchmarks/gpu.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_measurements as measurements
import torch
from gpu_measurements import REHEARSAL, Rows, Scale
from tables import read_table, write_table

HERE = Path(__file__).resolve()
DOCS = HERE.parent.parent / "docs"
NO_GPU = "no GPU"


@dataclass(frozen=True)
class Measurement:
    """A measurement, the columns of its table, and the table's place.

    `columns` has the title of each key of a row's values, and how the value is formatted.
    """

    rows: Callable[[Scale], Rows]
    seconds: int
    columns: Mapping[str, tuple[str, str]]
    page: str = "gpu.md"


TIME, PEAK = {"time": ("ms", ",.1f")}, {"peak": ("peak, GiB", ".2f")}
FASTER = {"faster": ("stable-ssl is faster by", ".2f")}
MEASUREMENTS = {
    "tests": Measurement(
        measurements.tests,
        80,
        {
            "passed": ("passed", "d"), "failed": ("failed", "d"), "skipped": ("skipped", "d"),
            "late": ("not begun in the time", "d"), "names": ("which failed", "s"),
        },
    ),
    "resume": Measurement(
        measurements.resume,
        70,
        {"same": ("same to the bit", "s"), "steps": ("steps", "d"), "killed": ("killed in step", "d")},
    ),
    "views": Measurement(
        measurements.views,
        45,
        {
            "rate": ("views/s", ",.0f"), "faster": ("stable-ssl is faster by", ".2f"),
            "python": ("ms in Python per batch", ".2f"), "share": ("of a ViT-S/16 step", ".1%"),
        },
        "views.md",
    ),
    "vit": Measurement(
        measurements.vit,
        40,
        {**TIME, "share": ("of a step", ".0%"), "rate": ("images/s", ",.0f"), **PEAK},
    ),
    "cifar": Measurement(
        measurements.cifar,
        60,
        {
            "images": ("images", "s"), "rate": ("images/s", ",.0f"), "minutes": ("200 epochs, min", ",.0f"),
            "step": ("ms per step", ".1f"), "own": ("of it forward, backward, optimizer", ".1f"), **PEAK,
        },
    ),
    "check": Measurement(
        measurements.estimates,
        55,
        {
            "memory": ("memory, estimate (MiB)", ",.0f"), "real_memory": ("real", ",.0f"), "ratio": ("ratio", ".2f"),
            "shortest": ("step, estimate (ms): from", ",.1f"), "longest": ("to", ",.1f"), "time": ("real", ",.1f"),
            "flops": ("GFLOPs, estimate", ",.0f"), "counted": ("counted", ",.0f"), "rate": ("TFLOP/s", ",.1f"),
        },
        "check.md",
    ),
    "compile": Measurement(
        measurements.compiled,
        90,
        {"time": ("ms per step", ",.1f"), "faster": ("faster than eager by", ".2f"),
         "first": ("first steps take more by, s", ".1f"), **PEAK},
    ),
    "losses": Measurement(
        measurements.loss, 30, {"time": ("ms", ",.2f"), "peak": ("MB", ",.0f")}, "losses.md"
    ),
    "heads": Measurement(measurements.classifiers, 40, {"time": ("s", ",.3f"), **FASTER}),
}  # fmt: skip


# In the process of one measurement ------------------------------------------------------------------------------------


def facts(scale: Scale) -> dict[str, Any]:
    """Return where and when this runs."""
    name, driver = platform.machine() + " CPU", None
    if scale.device == "cuda":
        name = torch.cuda.get_device_name()
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    return {
        "device": name,
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rehearsal": scale.is_rehearsal,
    }


def why_not(error: BaseException) -> str:
    """Return the reason for which a row was not run, in a line."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) < 160 else text[:160] + ' …'}"


def work(name: str, scale: Scale, out: Path) -> None:
    """Make the rows of a measurement, and write each as a line of JSON once it is there."""
    if scale.is_rehearsal:
        torch.set_num_threads(1)
    with out.open("w", buffering=1) as file:

        def tell(**line: Any) -> None:
            file.write(json.dumps(line) + "\n")

        tell(facts=facts(scale))
        for row, make in MEASUREMENTS[name].rows(scale).items():
            tell(row=row, why=None)  # begun
            try:
                tell(row=row, values={**make(), **({"rehearsal": True} if scale.is_rehearsal else {})})
            except Exception as error:
                print(f"{row}: {error!r}", file=sys.stderr, flush=True)
                tell(row=row, why=why_not(error))
            gc.collect()
            if scale.device == "cuda":
                torch.cuda.empty_cache()


# In the process that starts them --------------------------------------------------------------------------------------


def measure(name: str, arguments: list[str], seconds: float, folder: Path) -> dict[str, Any]:
    """Let a process make a measurement, for so many seconds, and return what it found."""
    out, said = folder / f"{name}.jsonl", folder / f"{name}.log"
    command = [sys.executable, str(HERE), *arguments, "--one", name, "--seconds", str(seconds), "--out", str(out)]
    begun = time.monotonic()
    with said.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):  # what it started, too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    log = said.read_text().strip()
    last = (log.splitlines() or ["it said nothing"])[-1]
    end = (
        f"cut off after {seconds:.3g} s" if status is None else f"the process ended with status {status}: {last[:160]}"
    )
    made: dict[str, Any] = {"seconds": round(time.monotonic() - begun, 1), "facts": {}, "end": None, "rows": {}}
    for line in lines:
        made["facts"].update(line.get("facts", {}))
        if "row" in line:
            made["rows"][line["row"]] = line.get("values") or {"why": line["why"] or end}
    made["end"] = None if status == 0 else end
    if made["end"] or any("why" in values for values in made["rows"].values()):
        made["log"] = log[-4000:]  # the machine may be gone tomorrow
    return made


def row_names(name: str, scale: Scale) -> list[str]:
    return list(MEASUREMENTS[name].rows(scale))


def table(name: str, made: Mapping[str, Any], names: list[str]) -> list[str]:
    """Return the lines of a measurement's table."""
    found, columns = made.get("facts") or {}, MEASUREMENTS[name].columns
    lines = [f"| | {' | '.join(title for title, _ in columns.values())} |", "|---|" + "---|" * len(columns)]
    mark = " (rehearsal)" if found.get("rehearsal") else ""
    for row in names:
        values = made.get("rows", {}).get(row) or {"why": made.get("end") or NO_GPU}
        if "why" in values:
            cells = [f"not run: {values['why']}".replace("|", "\\|"), *[""] * (len(columns) - 1)]
        else:
            cells = ["" if values.get(k) is None else format(values[k], how) for k, (_, how) in columns.items()]
        lines.append(f"| {row}{mark} | {' | '.join(cells)} |")
    if not found:
        return lines
    driver = f", driver {found['driver']}" if found["driver"] else ""
    return [f"{found['device']}{driver}, torch {found['torch']}, {found['date']}:", "", *lines]


def put(name: str, made: Mapping[str, Any], scale: Scale) -> None:
    """Write a measurement's table into its page; of a rehearsal, print it."""
    lines, page = table(name, made, row_names(name, scale)), DOCS / MEASUREMENTS[name].page
    if scale.is_rehearsal or made.get("facts", {}).get("rehearsal"):
        read_table(page, f"gpu {name}")  # it has a place
        print("\n".join([f"\n{page.name}, gpu {name}:", *lines, ""]), flush=True)
    else:
        write_table(page, f"gpu {name}", lines)


def run_all(args: argparse.Namespace, scale: Scale) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make the measurements one after the other; say what each took."""
    deadline, names = time.monotonic() + 60 * args.minutes, args.only or list(MEASUREMENTS)
    passed_on = ["--rehearse"] if args.rehearse else []
    passed_on += ["--cifar10", args.cifar10] if args.cifar10 else []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names, 1):
            left = deadline - time.monotonic()
            print(f"{number} of {len(names)}, {name}: {left:.0f} s are left …", flush=True)
            if left < 10:
                yield name, {"end": f"the {args.minutes:g} minutes were over", "seconds": 0, "rows": {}}
                continue
            made = measure(name, passed_on, min(MEASUREMENTS[name].seconds, left), Path(folder))
            num_made = sum("why" not in values for values in made["rows"].values())
            num_rows = len(row_names(name, scale))
            print(
                f"    {made['seconds']:.0f} s, {num_made} of {num_rows} rows; {made['end'] or 'to its end'}", flush=True
            )
            yield name, made


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--cifar10", metavar="FOLDER", help="of Parquet files; else images are random")
    parser.add_argument("--json", type=Path, help="default: benchmarks/gpu.json; of a rehearsal, none")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--from", type=Path, dest="source", metavar="FILE", help="only write the tables")
    for name, kind in (("--one", str), ("--seconds", float), ("--out", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    scale = dataclasses.replace(REHEARSAL if args.rehearse else Scale(), cifar10=args.cifar10)
    if args.one:
        work(args.one, dataclasses.replace(scale, deadline=time.monotonic() + args.seconds), args.out)
        return 0
    if args.source:
        found = json.loads(args.source.read_text())
        for name in args.only or MEASUREMENTS:
            put(name, found.get(name, {}), scale)
        return 0
    if not args.rehearse and not torch.cuda.is_available():
        print("No CUDA device here, so nothing to measure. --rehearse runs everything on the CPU.")
        return 1
    path = args.json or (None if args.rehearse else HERE.parent / "gpu.json")
    found = json.loads(path.read_text()) if path and path.exists() and not args.rehearse else {}
    for name, made in run_all(args, scale):
        if made["rows"] or name not in found:  # what did not begin leaves what was found earlier
            found[name] = made
        if path:
            path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        put(name, found[name], scale)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
