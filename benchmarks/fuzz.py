"""Damaged files: every kind Janus reads, mutated; each load must give a value or a `JanusError`, soon.

`seeds` writes one valid file of each kind, `damaged` makes a variant of one, `outcome` loads it under a deadline.
"""

from __future__ import annotations

import copy
import io
import json
import re
import signal
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from janus.cli.trace import load_trace
from janus.errors import JanusError
from janus.scale import Cluster, LatencyModel, ModelSpec, SavedPlan, plan
from janus.scale.timing.latency_file import to_dict
from janus.scale.timing.scaled import ScaledLatencyModel, StepTerms
from janus.scale.timing.terms import Activated
from janus.types import Placement, RequestTrace, RoutingTrace, Topology, read_expert_counts

DEADLINE_S = 10.0
CANARY = "JANUS_FUZZ_CANARY"  # the file a pickle in the hostile arrays would write
WORDS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1",
    "0",
    "1e308",
    "9" * 30,
    "9" * 5000,
    "null",
    "true",
    '""',
    "[]",
    "{}",
]
VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**30, 0.5, 1e308, -1e308, 5e-324, "", "x", "\x00", "\ud800", [], {}, [[]],
    [None], {"a": 1}, [[1, 2], [3]], "1" * 400,
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One kind of file: a valid one, and what reads it and looks at what it read."""

    name: str
    valid: bytes
    load: Callable[[Path], Any]


class Bomb:
    """What must never be unpickled: it would write a file beside the one it came in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self.path, "unpickled")


def seeds(folder: Path) -> list[Kind]:
    """A valid file of every kind; the plans are small real ones."""
    rng = np.random.default_rng(0)
    routing = RoutingTrace.from_requests(rng.integers(0, 64, (3, 4, 2, 2)), 64, source="fuzz")
    requests = RequestTrace([0.0, 1.5, 2.25], [100, 30, 7], [10, 20, 1], duration_s=3.0, source="fuzz")
    for value, name in (
        (routing, "routing.npz"),
        (requests, "requests.npz"),
        (Placement([[0, 1], [2, 0]], 3), "p.json"),
    ):
        value.save(folder / name)
    Topology.parse("2A3E", gpus_per_node=2).save(folder / "t.json")
    counts = {"a/b": rng.integers(0, 99, (3, 8)), "c": rng.integers(0, 99, (3, 8))}
    recording = {"topk": rng.integers(0, 32, (2, 3, 2, 4)).astype(np.uint8)}
    as_json = json.dumps({name: value.tolist() for name, value in counts.items()}).encode()
    rate, lengths = servegen()
    return [
        *(Kind(f"plan, {name}", data, use_plan) for name, data in plans().items()),
        Kind("latency model", latency(), use_latency),
        Kind("placement", (folder / "p.json").read_bytes(), Placement.load),
        Kind("topology", (folder / "t.json").read_bytes(), Topology.load),
        Kind("routing trace", (folder / "routing.npz").read_bytes(), use_routing),
        Kind("routing recording", npz(recording), use_routing),
        Kind("expert counts, npz", npz(counts), read_expert_counts),
        Kind("expert counts, JSON", as_json, read_expert_counts),
        Kind("requests, npz", (folder / "requests.npz").read_bytes(), use_requests),
        Kind("requests, Azure", AZURE, use_requests),
        Kind("requests, BurstGPT", BURST, use_requests),
        Kind("requests, Mooncake", MOONCAKE, use_requests),
        Kind("rates, ServeGen", rate, lambda path: served(path, beside(path, lengths))),
        Kind("lengths, ServeGen", lengths, lambda path: served(beside(path, rate), path)),
        Kind("any trace", (folder / "routing.npz").read_bytes(), load_trace),
        Kind("model config", config(), ModelSpec.from_config),
    ]


AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
BURST = b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n45.5,ChatGPT,1087,230,1317,API log\n"
MOONCAKE = b'{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n{"timestamp": 3000, "input_length": 12, "output_length": 9}\n'


def servegen() -> tuple[bytes, bytes]:
    """Rates and lengths of one client for twenty minutes."""
    rate = (
        b"client_id,t_seconds,rate_rps,cv,pattern,param1,param2\n0,0,0.02,1,Gamma,0.8,60\n0,600,0.01,1,Weibull,0.9,50\n"
    )
    head = "client_id,t_seconds," + ",".join(f"{k}_{s}" for k in ("input", "output") for s in ("mean", "p50", "p95"))
    return rate, f"{head}\n0,0,264.0,143.0,793.0,1398.5,1172.0,3211.0\n".encode()


def plans() -> dict[str, bytes]:
    """A feasible plan and an infeasible one."""
    few: dict[str, Any] = {
        "context": 400,
        "max_attention": 2,
        "max_experts": 2,
        "max_batch": 64,
        "trace": [range(1, 65)],
    }
    card = Cluster("h100-sxm")
    made = {"feasible": plan("olmoe-1b-7b", card, demand=500, slo=50, **few)}
    made["infeasible"] = plan("olmoe-1b-7b", card, demand=500, slo=0.1, **few)
    return {name: json.dumps(value.to_dict()).encode() for name, value in made.items()}


def latency() -> bytes:
    """A model fitted to one whole step, terms and all."""
    base = LatencyModel.roofline(ModelSpec.from_config("olmoe-1b-7b"), Cluster("h100-sxm"))
    return json.dumps(to_dict(ScaledLatencyModel(base, StepTerms(1.5, 2.0, 0.1), ["1A1E at B = 64"]))).encode()


def config() -> bytes:
    from importlib.resources import files

    return (files("janus") / "data" / "configs" / "deepseek-v2-lite.json").read_bytes()


def npz(arrays: dict[str, Any], *, pickled: bool = False) -> bytes:
    """An npz in memory; object arrays only where asked for."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=pickled)
            archive.writestr(f"{name}.npy", member.getvalue())
    return buffer.getvalue()


def use_plan(path: Path) -> Any:
    found = SavedPlan.load(path)
    return found.gpus, found.batch, found.tpot_ms, found.verdict, found.topology, found.placement


def use_latency(path: Path) -> Any:
    found = LatencyModel.load(path)
    return found.breakdown(4, 400, 8, Activated(5.0, 30.0), 100.0).tpot, found.provenance


def use_routing(path: Path) -> Any:
    return RoutingTrace.load(path).counts()


def use_requests(path: Path) -> Any:
    return RequestTrace.load(path).summary()


def served(rate: Path, lengths: Path) -> Any:
    return RequestTrace.from_servegen(rate, lengths, hours=1)


def beside(path: Path, data: bytes) -> Path:
    """The undamaged other half of a pair of files."""
    other = path.with_suffix(".other")
    other.write_bytes(data)
    return other


def damaged(kind: Kind, others: list[Kind], rng: np.random.Generator, canary: Path) -> bytes:
    """A variant of a valid file, by one or a few of the ways below."""
    data = kind.valid
    if rng.random() < 0.03:
        return others[rng.integers(len(others))].valid  # the wrong kind
    structured = _npz_variant if data[:2] == b"PK" else _json_variant if data[:1] == b"{" else _text_variant
    if rng.random() < 0.6:
        data = structured(data, rng, canary)
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 4)):
            data = BYTES[rng.integers(len(BYTES))](data, rng)
    return data


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(min(len(out), int(rng.integers(1, 9)))):
        out[rng.integers(len(out))] = rng.integers(256)
    return bytes(out)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data) + 1)]


def _span(data: bytes, rng: np.random.Generator) -> bytes:
    """Removes a span, or says it twice."""
    a, b = sorted(int(n) for n in rng.integers(len(data) + 1, size=2))
    return data[:a] + data[b:] if rng.random() < 0.5 else data[:b] + data[a:]


def _junk(data: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(data) + 1))
    return data[:at] + rng.bytes(int(rng.integers(1, 65))) + data[at:]


def _deep(data: bytes, rng: np.random.Generator) -> bytes:
    return b"[" * int(rng.integers(1, 200_000)) + data


BYTES = [_flip, _cut, _span, _junk, _deep, lambda data, rng: b"", lambda data, rng: data + b"\x00" * 64]


def _text_variant(data: bytes, rng: np.random.Generator, canary: Path) -> bytes:
    """One number or word replaced."""
    text = data.decode("utf-8", "replace")
    found = list(re.finditer(r"-?\d[\d.:\-]*|\w+", text))
    at = found[rng.integers(len(found))]
    return (text[: at.start()] + WORDS[rng.integers(len(WORDS))] + text[at.end() :]).encode()


def _json_variant(data: bytes, rng: np.random.Generator, canary: Path) -> bytes:
    """A value replaced, a field dropped or renamed, or a word of the text replaced."""
    if rng.random() < 0.3 or data.count(b"\n") > 1:
        return _text_variant(data, rng, canary)
    value = json.loads(data)
    for _ in range(rng.integers(1, 3)):
        holders = list(_holders(value))
        holder = holders[rng.integers(len(holders))]
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[rng.integers(len(keys))]
        way = rng.random()
        if way < 0.2:
            del holder[key]
        elif way < 0.3 and isinstance(holder, dict):
            holder[key + "x"] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
        if not isinstance(value, dict) or not value:
            break
    return json.dumps(value).encode()


def _holders(value: Any) -> Iterator[Any]:
    """Every object and list that holds something."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


def _npz_variant(data: bytes, rng: np.random.Generator, canary: Path) -> bytes:
    """An array of another type or shape, one left out or added, a pickle, a header that lies, a member of junk."""
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    name = list(arrays)[rng.integers(len(arrays))]
    old = arrays[name]
    variants: list[Callable[[], Any]] = [
        lambda: old.astype(np.float64) if old.dtype.kind in "iub" else np.array([1.0]),
        lambda: np.full(old.shape, np.nan),
        lambda: np.full(old.shape, 2**63, dtype=np.uint64),
        lambda: np.full(old.shape, -1, dtype=np.int64),
        lambda: old.reshape(-1)[:0],
        lambda: old[None],
        lambda: np.zeros((0, 3, 0), dtype=np.int8),
        lambda: np.array("text"),
        lambda: np.array(["a", "b"]),
        lambda: np.zeros(3, dtype="datetime64[s]"),
        lambda: np.zeros(2, dtype=[("x", "i4"), ("y", "f8")]),
        lambda: old.astype(complex) if old.dtype.kind in "iubf" else np.array(1j),
        lambda: np.array([Bomb(canary)], dtype=object),
    ]
    way = int(rng.integers(len(variants) + 4))
    if way < len(variants):
        arrays[name] = variants[way]()
    elif way == len(variants):
        del arrays[name]
    elif way == len(variants) + 1:
        arrays = {f"../{n}": value for n, value in arrays.items()}
    else:
        return _lying(arrays, name, rng)
    return npz(arrays, pickled=True)


def _lying(arrays: dict[str, Any], name: str, rng: np.random.Generator) -> bytes:
    """A member whose header promises more than it holds, or that is no array."""
    buffer = io.BytesIO(npz(arrays))
    shape = [(10**12,), (2**62, 2**62), (-1,), (10**9, 1, 1, 1), ()][rng.integers(5)]
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
    junk = [header.getvalue() + b"\x00" * 64, rng.bytes(100), b"", b"\x93NUMPY\x09\x09"][rng.integers(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same name twice is what we want
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(f"{name}.npy", junk)
    return buffer.getvalue()


class TooSlowError(BaseException):
    """Not an Exception: nothing may swallow it."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `TooSlowError` in the main thread after so long."""

    def stop(*_: Any) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Kind, path: Path) -> str:
    """ "value", the code of a `JanusError`, or "!" and what happened instead; a warning counts as an exception."""
    try:
        with deadline(DEADLINE_S), warnings.catch_warnings():
            warnings.simplefilter("error")
            kind.load(path)
    except JanusError as error:
        return error.code
    except TooSlowError:
        return f"!no end within {DEADLINE_S:g} s"
    except BaseException as error:  # whatever it is, it is what we look for
        return f"!{type(error).__name__}: {str(error)[:120]}"
    return "value"
