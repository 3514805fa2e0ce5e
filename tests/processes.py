"""Python processes that start at once, forked from a server that has imported torch and stable_ssl already.

An interpreter that imports stable_ssl needs seconds of CPU time, and the tests start hundreds. A process of `start` or
`run` has the arguments, environment, folder and streams that it is given. It runs its code as `__main__`, and ends as
an interpreter ends. Two things it shares with the server: what is imported, and the seed of `hash`. A test of those
two starts an interpreter by `subprocess`.

All workers of pytest-xdist use one server, which imports at the first request. It ends when the process that started
it does.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import pickle
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

PRELOAD = (
    "stable_ssl.trainers", "stable_ssl.monitors", "stable_ssl.cli.train", "stable_ssl.augmentations.kernels",
    "torchmetrics.classification", "sklearn.datasets", "hydra", "pytest",
)  # fmt: skip
ADDRESS = "STABLE_SSL_TESTS_SERVER"  # of the server's socket, for workers
LENGTH = struct.Struct("!Q")
cpu_seconds = 0.0  # of the processes that this one started here and that have ended
server: subprocess.Popen | None = None  # where this process started it

# The tests' side ------------------------------------------------------------------------------------------------------


class Process:
    """A process that the server forked, to be used like a `subprocess.Popen`."""

    def __init__(self, connection: socket.socket):
        self._connection, self._said = connection, b""
        self.returncode: int | None = None
        self.pid = int(self._line(None))

    def poll(self) -> int | None:
        return self.wait(0, is_late=lambda: None)

    def wait(self, timeout: float | None = None, is_late=None) -> int | None:
        """Return the exit status, as `Popen.wait` does."""
        global cpu_seconds
        if self.returncode is None:
            if (line := self._line(timeout)) is None:
                return is_late() if is_late else self._raise(timeout)
            status, seconds = line.split()
            self.returncode = os.waitstatus_to_exitcode(int(status))
            cpu_seconds += float(seconds)
            self._connection.close()
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _raise(self, timeout):
        raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)

    def _line(self, timeout: float | None) -> bytes | None:
        """Return the server's next line, or None if it does not come in time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._said:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            if not select.select([self._connection], [], [], left)[0]:
                return None
            data = self._connection.recv(4096)
            assert data, "the server that starts processes has ended"
            self._said += data
        line, self._said = self._said.split(b"\n", 1)
        return line


def start(command, *, cwd=None, env=None, stdin=None, stdout=None, stderr=None, start_new_session=False) -> Process:
    """Start Python with a command such as `[sys.executable, "-c", code, argument]`; streams are files, or None."""
    streams = [0 if stdin is None else stdin, 1 if stdout is None else stdout, 2 if stderr is None else stderr]
    request = pickle.dumps(
        {
            "command": [str(part) for part in command],
            "cwd": str(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
            "own_session": start_new_session,
        }
    )
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address())
    fds = [stream if isinstance(stream, int) else stream.fileno() for stream in streams]
    socket.send_fds(connection, [LENGTH.pack(len(request))], fds)
    connection.sendall(request)
    return Process(connection)


def run(command, *, timeout=300, cwd=None, env=None, check=False) -> subprocess.CompletedProcess:
    """Run Python with a command to its end, like `subprocess.run(…, capture_output=True, text=True)`."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr, open(os.devnull) as stdin:
        process = start(command, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        said = []
        for stream in (stdout, stderr):
            stream.seek(0)
            said.append(stream.read().decode())
    done = subprocess.CompletedProcess(command, process.returncode, *said)
    if check:
        done.check_returncode()
    return done


def address() -> str:
    """Return where the server listens; start it if there is none."""
    global server
    if ADDRESS not in os.environ:
        folder = tempfile.mkdtemp(prefix="tests_")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/socket")
        listener.listen(64)
        alive, _ours = os.pipe()  # whose other end this process holds until it ends
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(listener.fileno()), str(alive), folder]
        server = subprocess.Popen(command, env=env, pass_fds=[listener.fileno(), alive], start_new_session=True)
        os.close(alive)
        listener.close()
        os.environ[ADDRESS] = f"{folder}/socket"
    return os.environ[ADDRESS]


# The server's side ----------------------------------------------------------------------------------------------------


def serve(listener: socket.socket, alive: int):
    """Fork a process per request until `alive` is closed; return the request in each forked process only."""
    if alive in select.select([listener, alive], [], [])[0]:
        return None
    preload()
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listener, woken, alive], [], [])
        if woken in ready:
            os.read(woken, 4096)
            reap(running)
        if alive in ready:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            return None
        if listener in ready:
            connection, _ = listener.accept()
            length, fds, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
            with connection.makefile("rb") as stream:
                request = pickle.loads(stream.read(*LENGTH.unpack(length)))
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number, fd in enumerate(fds):
                    os.dup2(fd, number)
                for fd in (*fds, woken, wakes, alive):
                    os.close(fd)
                for opened in (listener, connection, *running.values()):
                    opened.close()
                return request
            running[pid] = connection
            for fd in fds:
                os.close(fd)
            connection.sendall(b"%d\n" % pid)


def preload() -> None:
    for module in PRELOAD:
        __import__(module)
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert len(threads - {"jemalloc_bg_thd"}) <= 1, f"a fork loses threads: {threads}"  # jemalloc starts its own anew
    gc.collect()
    gc.freeze()


def reap(running: dict[int, socket.socket]) -> None:
    """Tell who waits for them of the processes that have ended: the status, and the CPU time."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            with contextlib.suppress(OSError), running.pop(pid) as connection:
                connection.sendall(b"%d %f\n" % (status, used.ru_utime + used.ru_stime))


def become(request: dict) -> None:
    """Do in a forked process what an interpreter does when it starts, and run the command."""
    if request["own_session"]:
        os.setsid()
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.modules["stable_ssl.runtime.launchers"].FOLDER = os.getcwd()  # noted where the library was imported
    tempfile.tempdir = None
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        is_at_once = name == "stderr" or os.isatty(fd) or bool(os.environ.get("PYTHONUNBUFFERED"))
        stream = io.TextIOWrapper(
            open(fd, f"{mode}b", closefd=False), "utf-8", "backslashreplace" if fd == 2 else None,
            line_buffering=is_at_once, write_through=is_at_once and name == "stdout",
        )  # fmt: skip
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    command = request["command"]
    sys.orig_argv = command if command[0] == sys.executable else [sys.executable, *command]
    first, *rest = sys.orig_argv[1:]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*paths, *(path for path in sys.path[1:] if path not in own)]
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if first == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    if first == "-c":
        source, name = rest[0], "<string>"
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
    else:
        source, name = Path(first).read_text(), first
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).resolve().parent))
        main.__file__ = first
    sys.modules["__main__"] = main
    exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)


if __name__ == "__main__":
    request = serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    if request is None:
        __import__("shutil").rmtree(sys.argv[3])
    else:
        become(request)
