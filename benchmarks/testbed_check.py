"""What the ports of the test network really carry: plain TCP between its nodes, measured by the receivers.

These functions run on ranks (see testbed_ranks.py); `self_check` drives them and prints the report.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed import Testbed

_PORT = 7700
_CHUNK = bytes(1 << 18)
_TIMEOUT_S = 20.0
_listener: socket.socket | None = None


def listen() -> None:
    """Accept connections from now on; call it on every rank before any traffic."""
    global _listener  # noqa: PLW0603 - one per process, kept between calls
    _listener = _listener or socket.create_server(("", _PORT + _rank()), backlog=64)
    _listener.settimeout(_TIMEOUT_S)


def stream(pairs: list[list[int]], addresses: list[str], seconds: float, size: int = 0) -> dict[str, float]:
    """Every pair's first rank sends to its second, all at once, for `seconds` or until `size` bytes are through.

    Returns:
        On a receiver its payload in Mbit/s, {"mbit": ..., "seconds": ...}; on others {}.
    """
    me = _rank()
    for_me = sum(to == me for _, to in pairs)
    senders = [threading.Thread(target=_send, args=(addresses[to], to, seconds, size)) for a, to in pairs if a == me]
    for sender in senders:
        sender.start()
    result = _receive(for_me, warm_s=0.0 if size else 0.1 * seconds) if for_me else {}
    for sender in senders:
        sender.join()
    return result


def ping(pair: list[int], addresses: list[str], count: int, size: int) -> float:
    """The median round trip of `size` bytes between two ranks, in seconds; 0.0 on others."""
    first, second = pair
    if _rank() == first:
        with socket.create_connection((addresses[second], _PORT + second), _TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sorted(_round_trip(connection, size) for _ in range(count))[count // 2]
    if _rank() == second:
        assert _listener
        with _listener.accept()[0] as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(size, socket.MSG_WAITALL):
                connection.sendall(data)
    return 0.0


def _rank() -> int:
    return int(os.environ["RANK"])


def _round_trip(connection: socket.socket, size: int) -> float:
    started = time.perf_counter()
    connection.sendall(bytes(size))
    connection.recv(size, socket.MSG_WAITALL)
    return time.perf_counter() - started


def _send(address: str, to: int, seconds: float, size: int) -> None:
    with socket.create_connection((address, _PORT + to), _TIMEOUT_S) as connection:
        if size:
            connection.sendall(bytes(size))
            return
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            connection.sendall(_CHUNK)


def _receive(connections: int, warm_s: float) -> dict[str, float]:
    """Bytes of all connections over the time from the first one's start (plus `warm_s`) to the first one's end."""
    assert _listener
    opened = [_listener.accept()[0] for _ in range(connections)]
    counts, ends = [0] * connections, [0.0] * connections
    started = time.monotonic()

    def drain(index: int) -> None:
        buffer = bytearray(1 << 18)
        while got := opened[index].recv_into(buffer):
            ends[index] = time.monotonic()
            if ends[index] >= started + warm_s and not any(done):
                counts[index] += got
        done[index] = True

    done = [False] * connections
    readers = [threading.Thread(target=drain, args=(index,)) for index in range(connections)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for connection in opened:
        connection.close()
    seconds = min(ends) - started - warm_s
    return {"mbit": sum(counts) * 8 / 1e6 / seconds, "seconds": seconds}


def self_check(bed: Testbed, seconds: float = 1.0) -> list[dict[str, Any]]:
    """Rows of what was tried and what came through; needs three nodes or more for the last shapes."""
    node_of_rank = [0, 0, *range(1, bed.nodes)]  # ranks 0 and 1 share node 0, rank r > 1 is alone on node r - 1
    addresses = [bed.addresses[node] for node in node_of_rank]
    shapes = {"inside one node": [[0, 1]]}
    if bed.nodes > 1:
        shapes |= {"one direction": [[0, 2]], "both directions": [[0, 2], [2, 0]]}
    if bed.nodes > 2:
        shapes |= {"2 -> 1 incast": [[2, 0], [3, 0]], "1 -> 2 fan-out": [[0, 2], [0, 3]]}
        others = range(2, bed.nodes + 1)
        shapes["all to all"] = [[a, b] for a in (0, *others) for b in (0, *others) if a != b]
    with bed.ranks(node_of_rank, "testbed_check", path=[os.path.dirname(__file__)]) as ranks:
        ranks.call("listen")
        rows = [_try(bed, ranks, name, pairs, addresses, seconds) for name, pairs in shapes.items()]
        if bed.nodes > 1:
            trips = ranks.call("ping", pair=[0, 2], addresses=addresses, count=200, size=100)
            rows.append({"shape": "round trip of 100 bytes", "ms": trips[0] * 1e3})
    return rows


def _try(bed: Testbed, ranks: Any, name: str, pairs: list[list[int]], addresses: list[str], seconds: float) -> dict:
    before = bed.port_bytes()
    values = ranks.call("stream", pairs=pairs, addresses=addresses, seconds=seconds)
    after = bed.port_bytes()
    into = [value["mbit"] for value in values if value]
    frames = sum(new[1] - old[1] for new, old in zip(after, before, strict=True))
    return {"shape": name, "mbit": into, "port_bytes": frames}
