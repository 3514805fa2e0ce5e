"""The Slurm job of a run: its limits, what it asks for, and whether it can be requeued."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from ...exceptions import nearest
from ...runtime.files import size_in_words, time_in_words
from ..report import Report
from ..sections import section
from ..stage import Stage
from .host import on_node

SIGNAL_SECONDS = 90  # submitit's own delay
BYTES_OF_PROCESS = 2 * 10**9  # of host memory, with torch and its CUDA libraries
_GPU_KEYS = ("gpus_per_node", "slurm_gpus_per_task", "slurm_gres", "slurm_num_gpus")


def check_slurm(stage: Stage) -> None:
    """Check the Slurm job that the run is meant for, if it is meant for one.

    Slurm's own commands are asked if they are here: for the partition's limits, and whether jobs are requeued.
    """
    job = stage.slurm
    if job is None:
        return
    _check_tasks(stage, job)
    _check_time(stage, job)
    _check_memory(stage, job)
    partitions = _partitions(stage, job)
    _check_requeue(stage, job, partitions)
    asked = _asked(job)
    stage.report.tell("slurm", **asked)
    words = {
        "timeout_min": "minutes",
        "nodes": "nodes",
        "tasks_per_node": "tasks per node",
        "gpus_per_node": "GPUs per node",
    }
    texts = [f"{word}: {asked[key]}" for key, word in words.items() if key in asked]
    stage.report.tell("slurm", summary=", ".join(texts))


def _asked(job: Mapping[str, Any]) -> dict[str, Any]:
    names = ("timeout_min", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb", "slurm_partition")
    return {name.removeprefix("slurm_"): job[name] for name in names if name in job}


def _more(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return further options of sbatch, without the dashes that people may have written."""
    given = job.get("slurm_additional_parameters") or {}
    return {str(key).lstrip("-").replace("_", "-"): value for key, value in given.items()}


# What it asks for ---------------------------------------------------------------------------------------------------


def _check_tasks(stage: Stage, job: Mapping[str, Any]) -> None:
    """Compare processes, tasks, GPUs and CPUs."""
    report, hardware = stage.report, section(stage, "hardware")
    per_node = job.get("tasks_per_node", 1)
    tasks, world = job.get("nodes", 1) * per_node, hardware.get("world_size")
    if world not in (None, tasks):
        report.error(
            "slurm",
            f"hardware.world_size: {world}, but slurm.nodes × slurm.tasks is {tasks}. Make the two agree (slurm.tasks "
            "is slurm.gpus by default).",
        )
    elif world is None and stage.world_size not in (1, tasks):
        report.warn(
            "slurm", f"slurm.nodes × slurm.tasks is {tasks}, but the check was for {stage.world_size} processes."
        )
    device = str(hardware.get("device") or "auto")
    gpus = job.get("gpus_per_node")
    asks = any(job.get(key) for key in _GPU_KEYS) or any(
        "gpu" in f"{k} {v}" or k == "gres" for k, v in _more(job).items()
    )
    if device.startswith(("auto", "cuda")) and not asks:
        what = "so Slurm gives it none" + (", and the run ends" if device != "auto" else ", and it computes on the CPU")
        (report.error if device != "auto" and gpus == 0 else report.warn)(
            "slurm", f"slurm.gpus: the job asks for no GPU, {what}. Set slurm.gpus=1, or hardware.device=cpu."
        )
    elif gpus and device.startswith(("auto", "cuda")) and gpus != per_node:
        if gpus < per_node:
            text = f"{per_node} tasks on each node have {gpus} GPU{'s' * (gpus != 1)}, but each process needs its own"
            report.error("slurm", f"slurm.tasks: {text}. Set slurm.tasks={gpus}.")
        else:
            text = f"a node's {per_node} tasks use one GPU each, so {gpus - per_node} of {gpus} are idle"
            report.warn("slurm", f"slurm.gpus: {text}. Leave slurm.tasks out, or ask for fewer GPUs.")
    elif gpus and device == "cpu":
        report.warn("slurm", f"slurm.gpus: {gpus}, but hardware.device is cpu, so they are idle.")
    _check_cpus(stage, job)


def _check_cpus(stage: Stage, job: Mapping[str, Any]) -> None:
    """Compare the CPUs of a task with the workers that read the training set."""
    if any(key in job for key in ("slurm_cpus_per_gpu", "slurm_exclusive")) or "cpus-per-task" in _more(job):
        return
    cpus = job.get("cpus_per_task")
    train = section(stage, "data").get("train")
    workers = train.get("num_workers") or 0 if isinstance(train, Mapping) else getattr(train, "num_workers", 0)
    if cpus is None:
        stage.report.warn(
            "slurm",
            "slurm.cpus: it is not set, so Slurm gives each task one CPU, as a rule. Set it to what reading needs.",
        )
    elif workers > cpus:
        stage.report.warn(
            "slurm", f"slurm.cpus: {cpus} per task, but data.train.num_workers is {workers}. Ask for as many CPUs."
        )


def _check_memory(stage: Stage, job: Mapping[str, Any]) -> None:
    """Compare the host memory that is asked for with what processes and a checkpoint's copy need."""
    asked = job.get("mem_gb")
    if asked is None:
        return
    facts, tasks = stage.report.facts, job.get("tasks_per_node", 1)
    copy = facts.get("disk", {}).get("checkpoint_bytes", 0)  # of the first process
    parts = facts.get("memory", {}).get("host_parts", {"process": BYTES_OF_PROCESS, "checkpoint": copy})
    needed = on_node(parts, tasks)
    if needed > asked * 2**30:
        who = f"{tasks} processes need" if tasks > 1 else "the process needs"
        with_copy = f", with a copy of the checkpoint ({size_in_words(copy)})" if copy else ""
        text = f"{asked} GB per node, but {who} about {size_in_words(needed)}{with_copy}"
        stage.report.warn("slurm", f"slurm.mem: {text}. Ask for more.")


# Time ---------------------------------------------------------------------------------------------------------------


def _check_time(stage: Stage, job: Mapping[str, Any]) -> None:
    """Compare the time limit with the run, and the time after the signal with a step and a checkpoint."""
    report, facts = stage.report, stage.report.facts
    limit, delay = 60 * job.get("timeout_min", 60), job.get("slurm_signal_delay_s", SIGNAL_SECONDS)
    own = section(stage, "hardware").get("time_limit")
    if isinstance(own, int | float) and 60 * own >= limit - delay:
        report.warn(
            "slurm",
            f"hardware.time_limit: {own:g} minutes, but Slurm stops the job after {time_in_words(limit - delay)}, so "
            "the limit is never reached. Leave it out, or make it shorter.",
        )
    times, disk = facts.get("time", {}), facts.get("disk", {})
    step, run = times.get("step_seconds", [0.0, 0.0]), times.get("run_seconds", [0.0])[0]
    size, speed = disk.get("checkpoint_bytes", 0), disk.get("bytes_per_second")
    # Copying, writing and its checksum were tried in the temporary folder; the disk of the run may be slower.
    saving = facts.get("step", {}).get("seconds_of_checkpoint", 0.0) + (size / speed if speed else 0.0)
    if saving:
        report.tell("slurm", seconds_per_checkpoint=round(saving, 1))
    if delay >= limit:
        report.warn(
            "slurm",
            f"slurm.time: the signal to stop comes {delay} s before the end, and the job has {time_in_words(limit)}. "
            "So it is told to stop as soon as it has begun. Give it more time, or set slurm.signal_delay_s.",
        )
    elif step[1] + saving > delay:
        report.warn(
            "slurm",
            f"slurm.signal_delay_s: the signal to stop comes {delay} s before the end, but a step and a checkpoint may "
            f"take {time_in_words(step[1] + saving)}. Set it to at least {round(2 * (step[1] + saving))} s.",
        )
    if run > limit:
        number = int(run // max(limit - delay, 1))
        report.warn(
            "slurm",
            f"slurm.time: the run takes {time_in_words(run)} at least, and the job has {time_in_words(limit)}. "
            f"So it is requeued {'about once' if number == 1 else f'about {number} times'}, if Slurm may do so.",
        )


# What Slurm says ----------------------------------------------------------------------------------------------------


def _ask(*command: str) -> str:
    """Return what one of Slurm's commands prints; nothing if it is not here, or does not answer."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _partitions(stage: Stage, job: Mapping[str, Any]) -> list[dict[str, str]]:
    """Check the job against the limits of its partition. Return what Slurm says of the partitions that it may be in."""
    lines = _ask("scontrol", "--oneliner", "show", "partition").splitlines()
    known = {part["PartitionName"]: part for part in (_pairs(line) for line in lines) if "PartitionName" in part}
    if not known:
        return []
    report, wanted = stage.report, str(job.get("slurm_partition") or "")
    names = [name for name in wanted.split(",") if name] or [
        n for n, part in known.items() if part.get("Default") == "YES"
    ]
    for name in [name for name in names if name not in known]:
        report.error(
            "slurm", f"slurm.partition: there is no '{name}'.{nearest(name, known)} There are {', '.join(known)}."
        )
    if not names:
        report.error("slurm", f"slurm.partition: Slurm has no default. Name one of {', '.join(known)}.")
    found = [known[name] for name in names if name in known]
    if found:
        _check_limits(report, job, found)
        _check_nodes(report, job, [part["PartitionName"] for part in found])
    return found


def _pairs(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\S+?)=(\S*)", line))


def _check_limits(report: Report, job: Mapping[str, Any], found: list[dict[str, str]]) -> None:
    """Report a time limit or a number of nodes that no partition of the job allows."""
    names, minutes = "/".join(part["PartitionName"] for part in found), job.get("timeout_min", 60)
    limits = [_minutes(part.get("MaxTime", "UNLIMITED")) for part in found]
    if all(limit is not None and limit < minutes for limit in limits):
        most = max(limit for limit in limits if limit is not None)
        say = report.warn if job.get("slurm_qos") else report.error  # a quality of service may allow more
        say(
            "slurm",
            f"slurm.time: {minutes} minutes, but partition {names} allows {most:g}. Ask for no more: the job is "
            "requeued at its end, and the run goes on.",
        )
    most_nodes = [int(part["MaxNodes"]) for part in found if part.get("MaxNodes", "").isdigit()]
    if len(most_nodes) == len(found) and max(most_nodes) < job.get("nodes", 1):
        report.error("slurm", f"slurm.nodes: {job['nodes']}, but partition {names} allows {max(most_nodes)}.")
    if all(part.get("State", "UP") != "UP" for part in found):
        report.warn("slurm", f"slurm.partition: {names} is {found[0]['State']}, so the job would wait.")


def _minutes(text: str) -> float | None:
    """Return a time of Slurm's, such as "1-00:00:00" or "30:00", in minutes; None if it is unlimited or no time."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        return None
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None or len(parts) == 3:  # hours first
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return 1440 * int(days or 0) + 60 * hours + minutes + seconds / 60


def _check_nodes(report: Report, job: Mapping[str, Any], names: list[str]) -> None:
    """Report if no node of the partitions has as many CPUs, as much memory or as many GPUs as the job asks for."""
    lines = _ask("sinfo", "--noheader", "--Node", "--partition", ",".join(names), "--format", "%c %m %G").splitlines()
    nodes = [line.split(maxsplit=2) for line in lines if len(line.split(maxsplit=2)) == 3]
    if not nodes:
        return
    tasks, where = job.get("tasks_per_node", 1), f"of partition {'/'.join(names)}"
    cpus, memory = max(int(node[0].rstrip("+")) for node in nodes), max(int(node[1].rstrip("+")) for node in nodes)
    if (wanted := tasks * job.get("cpus_per_task", 1)) > cpus:
        text = f"{wanted} CPUs on a node (slurm.tasks × slurm.cpus), but no node {where} has more than {cpus}."
        report.error("slurm", f"slurm.cpus: {text}")
    if job.get("mem_gb", 0) * 1024 > memory:
        report.error(
            "slurm", f"slurm.mem: {job['mem_gb']} GB, but no node {where} has more than {memory / 1024:.1f} GB."
        )
    gpus = max(sum(int(count) for count in re.findall(r"gpu:(?:[^:,()]+:)?(\d+)", node[2])) for node in nodes)
    if job.get("gpus_per_node", 0) > gpus:
        report.error("slurm", f"slurm.gpus: {job['gpus_per_node']}, but no node {where} has more than {gpus}.")


def _check_requeue(stage: Stage, job: Mapping[str, Any], partitions: list[dict[str, str]]) -> None:
    """Warn if the job is not requeued at its time limit, or if it is preempted."""
    report, more = stage.report, _more(job)
    lost = "so the run ends with its last checkpoint, and goes on only by `stable-ssl resume RUN`"
    if "no-requeue" in more and more["no-requeue"] is not False:
        report.warn("slurm", f"slurm.additional_parameters: no-requeue keeps Slurm from requeueing the job, {lost}.")
        return
    config = dict(re.findall(r"^(\w+)\s*= (.*)$", _ask("scontrol", "show", "config"), re.MULTILINE))
    if config.get("JobRequeue", "1").strip() == "0" and "requeue" not in more:
        report.warn(
            "slurm",
            f"Slurm's JobRequeue is 0: jobs are not requeued, {lost}. Set "
            "slurm.additional_parameters={requeue: true}, which asks for it.",
        )
    modes = {part["PartitionName"]: part.get("PreemptMode", "") for part in partitions}
    for name, mode in modes.items():
        if "CANCEL" in mode:
            report.warn("slurm", f"slurm.partition: {name} cancels jobs that it preempts (PreemptMode={mode}), {lost}.")
