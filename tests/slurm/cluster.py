"""A real Slurm of two nodes on this machine, without systemd, cgroups or a database."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo", "squeue")
NODES = ("n1", "n2")
KILL_WAIT = 3
PATIENCE = 180.0  # of everything that is waited for; a machine may be busy

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# The time for which a credential counts is how long a requeued job waits, too: two minutes, if nobody says.
AuthInfo=socket={root}/munge.socket,cred_expire={cred_expire}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
{user_signal}
ReturnToService=2
JobRequeue=1
KillWait={kill_wait}
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=DEFAULT Nodes=ALL State=UP MaxTime=INFINITE DefaultTime=60 OverSubscribe=NO
PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=low_at_once PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]


def _search_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def poll(what: str, function, seconds: float = PATIENCE):
    """Return what a function returns as soon as that counts as true."""
    deadline = time.monotonic() + seconds
    while not (result := function()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
    return result


class Cluster:
    """Slurm's commands, and where it came from here, its daemons.

    Parameters
    ----------
    sends_user_signal
        Whether a job that is preempted gets the signal that it asked for; if not, as Slurm does by itself, SIGTERM.
    """

    def __init__(self, sends_user_signal: bool = True):
        self.sends_user_signal = sends_user_signal
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH_", "SRUN_", "SUBMITIT_"))}
        self.env = {**clean, "PATH": _search_path(), "OMP_NUM_THREADS": "1"}
        self._daemons: dict[str, subprocess.Popen] = {}
        self.is_there = False

    @property
    def is_own(self) -> bool:
        return bool(self._daemons)

    @classmethod
    def found(cls) -> Cluster | None:
        """Return the cluster that this machine belongs to, where it has the partitions that the tests need."""
        there = cls()
        if "SLURM_CONF" in os.environ:
            there.env["SLURM_CONF"] = os.environ["SLURM_CONF"]
        try:
            partitions = there("sinfo", "-h", "-o", "%R", timeout=10).split()
            there.sends_user_signal = "preempt_send_user_signal" in there("scontrol", "show", "config", timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        there.is_there = {"low", "low_at_once", "high"} <= set(partitions) and there.sends_user_signal
        return there if there.is_there else None

    def __call__(self, *command: object, timeout: float = 60, **options) -> str:
        """Run one of Slurm's commands."""
        done = subprocess.run(
            [str(part) for part in command], env=self.env, check=True, capture_output=True, text=True, timeout=timeout,
            **options,
        )  # fmt: skip
        return done.stdout

    # The daemons, in the foreground as children of this process ------------------------------------------------------

    def start(self) -> None:
        self.is_there = True
        # Sockets get names of up to 107 characters, of which Slurm needs about thirty.
        parent = tempfile.gettempdir()
        self.root = Path(tempfile.mkdtemp(prefix="slurm_", dir=parent if len(parent) < 55 else "/tmp"))
        conf, host = self.root / "slurm.conf", socket.gethostname().split(".")[0]
        self._ports = _free_ports(1 + len(NODES))
        conf.write_text(
            CONF.format(
                root=self.root, host=host, user=getpass.getuser(), ports=self._ports, kill_wait=KILL_WAIT,
                cred_expire=KILL_WAIT + 4,  # more, or a node that comes back still has the job
                user_signal="SlurmctldParameters=preempt_send_user_signal" if self.sends_user_signal else "",
                nodes="\n".join(
                    f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000"
                    for name, port in zip(NODES, self._ports[1:], strict=True)
                ),
            )
        )  # fmt: skip
        for name in ("state", *NODES):
            (self.root / name).mkdir()
        self.env["SLURM_CONF"] = str(conf)
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        own = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{option}={self.root}/munge.{ending}" for option, ending in own.items()]
        self._launch("munged", "munged", "--foreground", "--force", *files)
        poll("munged", (self.root / "munge.socket").exists, 30)
        self._launch("slurmctld", "slurmctld", "-D", "-f", conf)
        for name in NODES:
            self.start_node(name)
        self.await_nodes()

    def start_node(self, name: str) -> None:
        self._launch(name, "slurmd", "-D", "-f", self.env["SLURM_CONF"], "-N", name)

    def await_nodes(self) -> None:
        def ready():
            states = self("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split()
            return len(states) == len(NODES) and set(states) <= {"idle", "mixed", "allocated", "completing"}

        poll("the nodes", lambda: self._answers(ready), 60)

    def _launch(self, name: str, *command: object) -> None:
        with open(self.root / f"{name}.log", "a") as log:
            # What belongs to a node carries its name, down to the processes of its jobs.
            self._daemons[name] = subprocess.Popen(
                [str(part) for part in command], env={**self.env, "SLURMD_NODENAME": name}, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @staticmethod
    def _answers(function) -> object:
        try:
            return function()
        except subprocess.SubprocessError:  # slurmctld is not there yet
            return None

    def stop(self) -> None:
        if "slurmctld" in self._daemons:
            self._answers(self.cancel)
        for process in reversed(self._daemons.values()):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._kill_processes()
        shutil.rmtree(self.root, ignore_errors=True)

    def cancel(self, folder: Path | str = "/") -> None:
        """End the jobs that were submitted from a folder."""

        def left():
            lines = self("squeue", "-h", "-o", "%i %Z").splitlines()
            return [line.split()[0] for line in lines if Path(line.split(maxsplit=1)[1]).is_relative_to(folder)]

        if jobs := left():
            self("scancel", *jobs)
            poll("the jobs to end", lambda: not left(), 60)

    def _kill_processes(self, node: str | None = None) -> None:
        """End what runs of jobs of this cluster, or of one of its nodes: their environment says that they do."""
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended, or is somebody else's
                env = dict(text.partition("=")[::2] for text in entry.read_bytes().decode(errors="replace").split("\0"))
                is_ours = env.get("SLURM_CONF") == self.env["SLURM_CONF"] and "SLURMD_NODENAME" in env
                if is_ours and node in (None, env["SLURMD_NODENAME"]):
                    os.kill(int(entry.parent.name), signal.SIGKILL)

    def crash(self, node: str) -> None:
        """Let a node fail: all that runs on it is gone, and Slurm is told so (it would find out in minutes)."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        self._kill_processes(node)
        self("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def mend(self, node: str) -> None:
        self.start_node(node)
        self._answers(lambda: self("scontrol", "update", f"nodename={node}", "state=resume"))
        self.await_nodes()

    # Jobs ------------------------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> dict[str, str]:
        """Return what Slurm knows of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self("scontrol", "-o", "show", "job", job_id)))

    def restarts(self, job_id: str) -> int:
        return int(self.job(job_id)["Restarts"])

    def preempt(self, nodes: int = len(NODES)) -> None:
        """Submit a short job that needs whole nodes, from a partition that comes first."""
        self(
            "sbatch", "--partition=high", f"--nodes={nodes}", "--exclusive", "--output=/dev/null", "--wrap=sleep 1",
            cwd="/tmp",
        )  # fmt: skip

    def is_complete(self, job_id: str) -> bool:
        """Say whether a job came to its end; fail where it ended otherwise."""
        state = self.job(job_id)["JobState"]
        assert state not in ("FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"), state
        return state == "COMPLETED"

    def await_state(self, job_id: str, state: str) -> None:
        poll(f"job {job_id} to be {state}", lambda: self.job(job_id)["JobState"] == state)

    def await_end(self, job_id: str) -> None:
        poll(f"job {job_id} to end", lambda: self.is_complete(job_id))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
