"""Network namespaces that stand for machines, joined by a switch with the latency and the rate of a slow network.

    python benchmarks/slow_network.py        (as root) measures what the network does between two of its machines

The kernel's own emulation of latency (`tc qdisc … netem`) is not part of every kernel. So the switch is a process: it
reads Ethernet frames from all machines, holds each for the latency, and lets pass what the rate allows. A frame here is
what the sender's kernel hands over, up to 64 kB of TCP, so a few thousand per second make 1 Gbit/s.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import shutil
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from types import TracebackType

LATENCY = 0.5e-3  # seconds in one direction, so a round trip takes 1 ms
RATE = 1e9 / 8  # bytes per second, from and to each machine
DEVICE = "eth0"  # its name on each machine

# Of linux/if_packet.h, linux/if_ether.h and asm/socket.h; Python has no names for them.
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, ETH_P_ALL, SO_RCVBUFFORCE = 263, 15, 23, 3, 33
VNET_HDR = 10  # bytes: what is left to do for the frame, its checksum and its division into packets
BROADCAST = 0xFF


class SlowNetwork:
    """Machines that last as long as the `with` block.

    Parameters
    ----------
    size
        Number of machines.

    Raises
    ------
    OSError
        This process may not make namespaces, or there is no `ip`; the message says which.
    """

    _switching: subprocess.Popen

    def __init__(self, size: int):
        if os.geteuid():
            raise OSError("network namespaces need root")
        if not shutil.which("ip"):
            raise OSError("there is no `ip` (iproute2)")
        self.addresses = [f"10.231.0.{rank + 1}" for rank in range(size)]
        self._names = [f"ranks{os.getpid()}-{rank}" for rank in range(size)]
        self._switch = f"ranks{os.getpid()}-switch"
        self._stack = ExitStack()

    def command(self, rank: int) -> list[str]:
        """Return what comes before a command for it to run on a machine."""
        return ["ip", "netns", "exec", self._names[rank]]

    def __enter__(self) -> SlowNetwork:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.close()

    def _build(self) -> None:
        for name in [self._switch, *self._names]:
            self._stack.callback(subprocess.run, ["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)
            _ip("netns", "add", name)
        for rank, (name, address) in enumerate(zip(self._names, self.addresses, strict=True)):
            port = ["link", "add", f"port{rank}", "netns", self._switch, "type", "veth"]
            _ip(*port, "peer", "name", DEVICE, "address", f"02:00:00:00:00:{rank:02x}", "netns", name)
            _ip("-n", self._switch, "link", "set", f"port{rank}", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
            for device in (DEVICE, "lo"):
                _ip("-n", name, "link", "set", device, "up")
        command = ["ip", "netns", "exec", self._switch, sys.executable, __file__, "switch", str(len(self._names))]
        self._switching = subprocess.Popen(command)
        self._stack.callback(self._switching.wait)
        self._stack.callback(self._switching.kill)

    def measure(self) -> tuple[float, float]:
        """Return the median round trip, in ms, and the rate, in Mbit/s, of TCP between machines 0 and 1.

        Raises
        ------
        OSError
            The switch has ended, or the machines do not reach each other.
        """
        address = self.addresses[0]
        server = subprocess.Popen([*self.command(0), sys.executable, __file__, "server", address])
        try:
            command = [*self.command(1), sys.executable, __file__, "client", address]
            done = subprocess.run(command, capture_output=True, text=True)
        finally:
            server.kill()
            server.wait()
        if self._switching.poll() is not None:
            raise OSError(f"the switch ended with status {self._switching.returncode}")
        if done.returncode:
            message = done.stderr.strip().rpartition("\n")[2]  # without the traceback
            raise OSError(f"machine 1 does not reach machine 0: {message}")
        round_trip, rate = json.loads(done.stdout)
        return round_trip, rate


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"`ip {' '.join(words)}` failed: {done.stderr.strip()}")


# The processes of the network ----------------------------------------------------------------------------------------


def switch(num_ports: int) -> None:
    """Pass on frames between ports, until the process is killed. The last byte of an address is the port's number."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # it wakes on time, however busy the machine is
    ports = [_open_port(number) for number in range(num_ports)]
    numbers = {port.fileno(): number for number, port in enumerate(ports)}
    free_from, free_to = [0.0] * num_ports, [0.0] * num_ports  # when the cables are free again, in each direction
    held: list[tuple[float, int, int, bytes]] = []  # (time at which it is due, order, port, frame)
    order = 0
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        for descriptor in select.select(list(numbers), [], [], wait)[0]:
            source, frame = numbers[descriptor], os.read(descriptor, 1 << 17)
            target, now = frame[VNET_HDR + 5], time.monotonic()
            for port in range(num_ports) if target == BROADCAST else [target] if target < num_ports else []:
                if port != source:
                    begin = max(now, free_from[source], free_to[port])
                    free_from[source] = free_to[port] = begin + (len(frame) - VNET_HDR) / RATE
                    order += 1
                    heapq.heappush(held, (free_to[port] + LATENCY, order, port, frame))
        while held and held[0][0] <= time.monotonic():
            *_, port, frame = heapq.heappop(held)
            ports[port].send(frame)


def _open_port(number: int) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    port.bind((f"port{number}", ETH_P_ALL))
    return port


PORT, NUM_PINGS, NUM_BYTES = 29499, 200, 1 << 25


def server(address: str) -> None:
    """Answer single bytes, then one byte after `NUM_BYTES`."""
    with socket.create_server((address, PORT)) as listening:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(NUM_PINGS):
            connection.sendall(connection.recv(1))
        left = NUM_BYTES
        while left:
            left -= len(connection.recv(min(left, 1 << 20)))
        connection.sendall(b"!")
        connection.recv(1)


def client(address: str) -> None:
    """Print the median round trip in ms and the rate in Mbit/s, as JSON."""
    deadline = time.monotonic() + 10
    while True:
        try:
            connection = socket.create_connection((address, PORT), timeout=10)  # and for each answer
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    seconds = []
    for _ in range(NUM_PINGS):
        start = time.perf_counter()
        connection.sendall(b"?")
        connection.recv(1)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    connection.sendall(bytes(NUM_BYTES))
    connection.recv(1)
    rate = NUM_BYTES * 8 / 1e6 / (time.perf_counter() - start)
    print(json.dumps([statistics.median(seconds) * 1e3, rate]))


def main() -> None:
    roles = {"switch": lambda size: switch(int(size)), "server": server, "client": client}
    if len(sys.argv) > 1:
        roles[sys.argv[1]](sys.argv[2])
    else:
        with SlowNetwork(2) as network:
            print("round trip {:.2f} ms, {:.0f} Mbit/s".format(*network.measure()))


if __name__ == "__main__":
    main()
