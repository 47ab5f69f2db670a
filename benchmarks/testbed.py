"""Several "nodes" on one machine: network namespaces on a bridge, every port limited to a rate in each direction.

    with Testbed(nodes=4, rate_mbit=200) as bed:
        with bed.ranks([0, 0, 1, 1, 2, 2, 3, 3], module="my_scenarios", path=["folder"]) as ranks:
            values = ranks.call("function_name", deadline_s=60, some_argument=1)

Namespaces have no name and no process of their own: they live as long as this process holds them open and ranks run in
them. The kernel removes them, their links and their queues when the last of these ends, however it ends. Links are
made inside the namespaces, so the machine's own network never shows any of it. `python benchmarks/testbed.py` checks
what the ports really carry.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from testbed_check import self_check
from testbed_ranks import Nursery, Ranks, TestbedError, check, enter_namespace

TOOLS = ("ip", "tc", "bridge")
MAX_NODES = 200  # one /24
INTERFACE = "eth0"  # every node's name for its port
MTU = 9000  # jumbo frames: 99.3 % of the bytes on the wire are payload, with 1500 it is 95.7 %
SEGMENTS = 2  # frames TCP hands over at once; with the burst it bounds what passes above the rate
BURST_BYTES = 20_000  # > SEGMENTS * MTU, or every packet is cut in software
BURST_S = 0.0004  # what a late timer may lose at high rates without losing the rate
WINDOW_BYTES = 262_144  # what one connection may have under way
QUEUE_BYTES = 1024 * WINDOW_BYTES  # a port drops nothing below 1024 connections: many to one costs time, no time-outs
RTO_MIN_MS = 2000  # nothing is lost, so a late acknowledgement only means a long queue
SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "1",  # no neighbour discovery among the bytes counted
    "net/ipv6/conf/default/disable_ipv6": "1",
    "net/ipv4/tcp_congestion_control": "reno",  # without loss or pacing the window is the whole control
    "net/ipv4/tcp_slow_start_after_idle": "0",
    "net/ipv4/tcp_no_metrics_save": "1",
    "net/ipv4/tcp_early_retrans": "0",  # nothing is lost: no probes of the tail
    "net/ipv4/tcp_wmem": f"4096 {WINDOW_BYTES} {WINDOW_BYTES}",
    "net/ipv4/tcp_rmem": f"4096 {2 * WINDOW_BYTES} {4 * WINDOW_BYTES}",
}
_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"


@functools.cache
def unavailable() -> str:
    """Why no test network can be built here; "" when one can (it builds one to find out)."""
    if not sys.platform.startswith("linux"):
        return f"network namespaces need Linux, this is {sys.platform}"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"no command {', '.join(missing)} (package iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Testbed(nodes=1, rate_mbit=100):
            return ""
    except (TestbedError, OSError) as error:
        return f"network namespaces, veth, bridge or tc tbf are not permitted here: {error}"


class Testbed:
    """`nodes` network namespaces on one bridge; each port carries `rate_mbit` Mbit/s out and as much in.

    Ranks of one node reach each other over its loopback, without limit. Node i has the address `addresses[i]`.
    """

    __test__ = False  # not a test, though its name begins like one

    def __init__(self, nodes: int, rate_mbit: float) -> None:
        if not 1 <= nodes <= MAX_NODES:
            raise TestbedError(f"nodes must be 1..{MAX_NODES}, got {nodes}")
        self.nodes, self.rate_mbit = nodes, 0.0
        self.addresses = tuple(f"10.77.0.{1 + node}" for node in range(nodes))
        self._nurseries: dict[tuple[str, ...], Nursery] = {}
        self._open = contextlib.ExitStack()  # what it closes is all that keeps the network alive
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            self._switch = self._hold(_new_namespace())
            self._nodes = [self._hold(_new_namespace()) for _ in range(nodes)]
            self._wire()
            self.set_rate(rate_mbit)
            on_error.pop_all()

    def __enter__(self) -> Testbed:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all ranks and let go of the namespaces; the kernel takes the rest down."""
        self._open.close()
        self._nurseries.clear()

    def set_rate(self, rate_mbit: float) -> None:
        """Limit every port to `rate_mbit` Mbit/s (frames with their headers) in each direction, from now on."""
        if not 1 <= rate_mbit <= 100_000:
            raise TestbedError(f"rate_mbit must be 1..100000, got {rate_mbit}")
        # `replace` of a queue that is there keeps what waits in it, and its counters
        _run(self._switch, "tc", [_tbf(f"port{node}", rate_mbit) for node in range(self.nodes)])
        for namespace in self._nodes:
            _run(namespace, "tc", [_tbf(INTERFACE, rate_mbit)])
        self.rate_mbit = rate_mbit

    def port_bytes(self) -> list[tuple[int, int]]:
        """Bytes that have left and entered each node through its port, with headers, as the limits count them."""
        ports = _sent(self._switch)
        return [(_sent(namespace)[INTERFACE], ports[f"port{node}"]) for node, namespace in enumerate(self._nodes)]

    def ranks(
        self,
        node_of_rank: Sequence[int],
        module: str,
        path: Sequence[str | Path] = (),
        env: dict[str, str] | None = None,
    ) -> Ranks:
        """Start one process per rank in its node; they import `module` and wait for `Ranks.call`.

        The module is imported once per test network, by a process that ranks are forked from: it must start no threads
        and no process group when it is imported. `path` goes before `sys.path`.
        """
        if wrong := [node for node in node_of_rank if not 0 <= node < self.nodes]:
            raise TestbedError(f"node_of_rank must name nodes 0..{self.nodes - 1}, got {wrong[0]}")
        key = (module, *map(str, path))
        if key not in self._nurseries:
            self._nurseries[key] = self._open.enter_context(Nursery(*key))
        places = [(f"/proc/{os.getpid()}/fd/{self._nodes[node]}", {"TESTBED_NODE": str(node)}) for node in node_of_rank]
        return Ranks(self._nurseries[key], places, {"GLOO_SOCKET_IFNAME": INTERFACE, **(env or {})})

    def _hold(self, namespace: int) -> int:
        self._open.callback(os.close, namespace)
        return namespace

    def _wire(self) -> None:
        """Links, addresses and the kernel's settings; all neighbours are known, so that nothing but payload travels."""
        for number, namespace in enumerate((self._switch, *self._nodes)):
            with _inside(namespace):
                _write_sysctls(SYSCTLS | _one_core(number))
        macs = [f"02:00:0a:4d:00:{node:02x}" for node in range(self.nodes)]
        steps = ["link add bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set bridge up"]
        size = f"gso_max_size {SEGMENTS * MTU}"
        _run(self._switch, "ip", steps)
        for node, (mac, namespace) in enumerate(zip(macs, self._nodes, strict=True)):
            with _inside(self._switch):
                _write_sysctls(_one_core(node))
            there = f"name {INTERFACE} mtu {MTU} address {mac} netns /proc/{os.getpid()}/fd/{namespace}"
            steps = [f"link add port{node} mtu {MTU} type veth peer {there}"]
            steps += [f"link set port{node} {size} master bridge", f"link set port{node} up"]
            _run(self._switch, "ip", steps)
        _run(self._switch, "bridge", [f"fdb add {mac} dev port{i} master static" for i, mac in enumerate(macs)])
        for node, namespace in enumerate(self._nodes):
            steps = ["link set lo up", f"link set {INTERFACE} {size}", f"link set {INTERFACE} up"]
            steps += [f"address add {self.addresses[node]}/24 dev {INTERFACE}"]
            steps += [f"route change 10.77.0.0/24 dev {INTERFACE} src {self.addresses[node]} rto_min {RTO_MIN_MS}ms"]
            others = (other for other in range(self.nodes) if other != node)
            steps += [f"neigh add {self.addresses[i]} lladdr {macs[i]} dev {INTERFACE} nud permanent" for i in others]
            _run(namespace, "ip", steps)


def _tbf(link: str, rate_mbit: float) -> str:
    burst = max(BURST_BYTES, round(rate_mbit * 1e6 / 8 * BURST_S))
    return f"qdisc replace dev {link} root handle 1: tbf rate {round(rate_mbit * 1e6)}bit burst {burst} limit {QUEUE_BYTES}"


def _sent(namespace: int) -> dict[str, int]:
    """Bytes sent by the limited queue of every link in the namespace."""
    with _inside(namespace):
        text = subprocess.run(["tc", "-s", "-j", "qdisc", "show"], capture_output=True, text=True, check=True).stdout
    return {queue["dev"]: queue["bytes"] for queue in json.loads(text) if queue["kind"] == "tbf"}


def _run(namespace: int, tool: str, lines: Sequence[str]) -> None:
    """Give the lines to `ip`, `tc` or `bridge` inside the namespace."""
    with _inside(namespace):
        words = [tool, "-batch", "-"]
        done = subprocess.run(words, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    if done.returncode:
        raise TestbedError(f"{tool} refused: {(done.stderr or done.stdout).strip()}")


def _one_core(number: int) -> dict[str, str]:
    """New links hand all they receive to one core: frames that two cores deliver would overtake each other."""
    cores = [core for core in sorted(os.sched_getaffinity(0)) if core < 32] or [0]
    return {"net/core/rps_default_mask": f"{1 << cores[number % len(cores)]:x}"}


def _write_sysctls(values: dict[str, str]) -> None:
    for name, value in values.items():
        file = Path("/proc/sys", name)
        try:
            if file.exists():  # a kernel without IPv6 has no switch for it
                file.write_text(value)
        except OSError as error:
            raise TestbedError(f"the kernel refused {name} = {value}: {error}") from error


def _new_namespace() -> int:
    """An open file of a new network namespace: it lives while the file is open."""
    home = os.open(_OWN, os.O_RDONLY)
    try:
        check(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET), "unshare")
        return os.open(_OWN, os.O_RDONLY)
    finally:
        enter_namespace(home)
        os.close(home)


@contextlib.contextmanager
def _inside(namespace: int) -> Iterator[None]:
    """This thread, and what it starts, is in the namespace; other threads stay where they are."""
    home = os.open(_OWN, os.O_RDONLY)
    try:
        enter_namespace(namespace)
        yield
    finally:
        enter_namespace(home)
        os.close(home)


def main() -> None:
    """Print what the ports carry, as a share of their limit."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rate", type=float, default=200.0, help="Mbit/s of every port, in each direction")
    parser.add_argument("--seconds", type=float, default=1.0, help="of every measurement")
    options = parser.parse_args()
    if reason := unavailable():
        sys.exit(f"no test network here: {reason}")
    with Testbed(options.nodes, options.rate) as bed:
        for row in self_check(bed, options.seconds):
            if "ms" in row:
                print(f"{row['shape']:24}  {row['ms']:.3f} ms")
                continue
            shares = " ".join(f"{100 * mbit / options.rate:7.1f} %" for mbit in row["mbit"])
            print(f"{row['shape']:24}{shares}   ({row['port_bytes'] / 1e6:.1f} MB through the ports)")


if __name__ == "__main__":
    main()
