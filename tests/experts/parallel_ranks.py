"""What one rank does in the tests of expert parallelism; every rank computes its own expectation, alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import tiny
import torch
import torch.distributed as dist
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from janus import JanusError, JanusMoELayer, Placement, balance, convert
from janus.errors import PeerLost
from janus.experts.members import ExpertGroup
from janus.types import Topology

torch.set_num_threads(1)
balance(np.zeros((1, 1), dtype=np.int64), Placement.contiguous(1, 1))  # compiles once, before the forks
H = 12


def meet() -> tuple[int, int]:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = os.environ["JANUS_RENDEZVOUS"]
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world, timeout=timedelta(seconds=20))
    return rank, world


def experts(E: int, dtype: torch.dtype = torch.float32, hidden: int = H) -> MixtralExperts:
    config = MixtralConfig(hidden_size=hidden, intermediate_size=10, num_local_experts=E)
    config._experts_implementation = "eager"
    made, g = MixtralExperts(config).requires_grad_(False), torch.Generator().manual_seed(E)
    for p in made.parameters():
        p.copy_(torch.randn(p.shape, generator=g))
    return made.to(dtype)


def replicated(E: int, G: int, C: int, layers: int = 1) -> Placement:
    """Every expert somewhere, replicas and empty slots as the dice fall."""
    rng, maps = np.random.default_rng(E * 100 + G * 10 + C), []
    for _ in range(layers):
        slots = np.full((G, C), -1)
        for i, e in enumerate(rng.permutation(E)):
            slots[i % G, i // G] = e  # C * G >= E
        for g, c in np.argwhere(slots < 0)[::2]:
            others = np.setdiff1d(np.arange(E), slots[g])
            slots[g, c] = rng.choice(others) if len(others) else -1
        maps.append(slots)
    return Placement(maps, E)


def batch(rank: int, tokens: int, E: int, K: int, turn: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of one rank: some choices are -1, and some experts are favoured."""
    g = torch.Generator().manual_seed(1000 * turn + rank)
    ids = torch.rand(tokens, E, generator=g).pow(torch.linspace(1, 4, E)).topk(K).indices
    ids = torch.where(torch.rand(tokens, K, generator=g) < 0.1, -1, ids)
    return torch.randn(tokens, H, generator=g), ids, torch.rand(tokens, K, generator=g)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    """Float32 rounding of a sum of K terms in another order; the terms are as large as the largest result."""
    scale = float(want.abs().max()) if want.numel() else 1.0
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * scale)


def parallel_same(cases: list[dict], topology: dict | None = None) -> dict:
    """Every case against the layer with all experts at hand, twice, in every regime; bit for bit among themselves."""
    rank, world = meet()
    where = Topology(**topology) if topology else None
    me = [*where.attention_ranks, *where.expert_ranks].index(rank) if where else rank
    seen = {"rows": [], "idle": 0}
    for turn, case in enumerate(cases):
        E, K, scope, method = case["E"], case["K"], case["scope"], case.get("method", "exact")
        placement, whole = replicated(E, world, case["C"]), experts(E)
        x, ids, weights = batch(me, case["tokens"][me], E, K, turn)
        want, found = JanusMoELayer(whole)(x, ids, weights), []
        for regime in ("direct", "gather", "auto"):
            group = ExpertGroup(where, scope=scope, regime=regime, timeout_s=15)
            layer = JanusMoELayer(whole, placement, group=group, balance=method)
            assert layer.slots.num_slots == case["C"]
            found += [layer(x, ids, weights), layer(x, ids, weights)]
            if regime == "direct":
                seen["rows"].append(check_traffic(layer, placement, case, turn, me, 2))
        close(found[0], want)
        assert world > 1 or torch.equal(found[0], want), "alone, there is one part per token"
        assert all(torch.equal(found[0].view(torch.int32), other.view(torch.int32)) for other in found)
        seen["idle"] += not len(x)
    return seen


def check_traffic(layer: JanusMoELayer, placement: Placement, case: dict, turn: int, me: int, calls: int) -> int:
    """A token travels once to each other rank that it needs, and once back; the batch is balanced as a whole."""
    E, K, G, C, scope = case["E"], case["K"], placement.num_instances, placement.slots_per_instance, case["scope"]
    batches = [batch(r, n, E, K, turn)[1] for r, n in enumerate(case["tokens"])]
    whole = [torch.cat(batches)] if scope == "batch" else batches
    judged = [balance(ids, placement, method=case.get("method", "exact")) for ids in whole]
    mine = judged[0 if scope == "batch" else me]
    assert layer.parallel.last is None or layer.parallel.last.load.tolist() == mine.load.tolist()
    physical = torch.cat([a.physical_ids for a in judged]).tolist()
    owners = [r for r, ids in enumerate(batches) for _ in ids]
    pairs = {
        (owner, t, r // C) for t, (owner, row) in enumerate(zip(owners, physical, strict=True)) for r in row if r >= 0
    }
    away = sum(owner != g for owner, _, g in pairs)
    row = 4 * (H + K) + (4 * K if scope == "rank" else 0) + 4 * H  # out and back
    notice = 4 * (7 + (64 if scope == "batch" else 0))
    sent = torch.tensor(layer.parallel.group.bytes_sent)
    dist.all_reduce(sent)
    assert int(sent) == calls * (away * row + G * (G - 1) * notice)
    return away


def parallel_halves(dtype: str) -> None:
    """Half types: weights in one dtype, routing weights in another; partial sums are rounded once per rank."""
    rank, world = meet()
    kind = getattr(torch, dtype)
    whole = experts(6, kind)
    x, ids, weights = batch(rank, 3 + rank, 6, 3)
    layer = JanusMoELayer(whole, replicated(6, world, 4), group=dist.group.WORLD)
    got = layer(x.to(kind), ids.to(torch.int32), weights)
    want = JanusMoELayer(experts(6, torch.float64))(x.to(kind).double(), ids, weights.double())
    assert got.dtype == kind
    assert float((got.double() - want).abs().max() / want.abs().max()) < 2e-2


def parallel_sizes() -> list[int]:
    """Batches that outgrow what the previous one needed, by far, and shrink again; rank 0 has them all or none."""
    rank, world = meet()
    whole, sizes = experts(5), [1, 300, 2, 0, 40, 0, 700]
    layer = JanusMoELayer(whole, replicated(5, world, 5), group=dist.group.WORLD)
    for turn, size in enumerate(sizes):
        tokens = size if (rank == 0) == (turn % 2 == 0) else 0
        x, ids, weights = batch(rank, tokens, 5, 2, turn)
        close(layer(x, ids, weights), JanusMoELayer(whole)(x, ids, weights))
        if turn == 3:
            layer.idle()
            assert layer.parallel.last is None
    return sizes


def said_by(call: Callable[[], object]) -> list[str]:
    try:
        call()
    except JanusError as error:
        return [error.code, error.message]
    except PeerLost as error:
        return [f"lost {error.phase}", str(error.peer)]
    return ["", ""]


def parallel_contract(per_rank: list[dict]) -> list[str]:
    """Each rank's own arguments of a layer."""
    rank, world = meet()
    mine = {"E": 6, "C": 3, "hidden": H, "dtype": "float32", "instances": world} | per_rank[rank]
    whole = experts(mine["E"], getattr(torch, mine["dtype"]), mine["hidden"])
    placement = replicated(mine["E"], mine["instances"], mine["C"])
    group = ExpertGroup(scope=mine.get("scope", "batch"), timeout_s=5)
    options = {"balance": mine.get("method", "exact"), "quantize": mine.get("quantize")}
    return said_by(lambda: JanusMoELayer(whole, placement, group=group, **options))


def parallel_calls(scope: str) -> dict[str, list[str]]:
    """Calls that do not fit together, each followed by one that does: the group goes on."""
    rank, world = meet()
    whole, group = experts(6), ExpertGroup(scope=scope, timeout_s=5)
    layers = [JanusMoELayer(whole, replicated(6, world, 3, layers=2), group=group, layer=i) for i in range(2)]
    layer, odd = layers[0], rank == 1
    x, ids, weights = batch(rank, 4, 6, 2)
    good = layer(x, ids, weights)
    with torch.enable_grad():
        grown = said_by(lambda: layer(x.requires_grad_(), ids, weights))
    x = x.detach()
    found = {
        "gradient": grown,
        "shape": said_by(lambda: layer(x[:, :5] if odd else x, ids, weights)),
        "no tensor": said_by(lambda: layer(x, ids.tolist() if odd else ids, weights)),
        "top_k": said_by(lambda: layer(x, *((t[:, :1] if odd else t) for t in (ids, weights)))),
        "dtype": said_by(lambda: layer(x.double() if odd else x, ids, weights)),
        "weights": said_by(lambda: layer(x, ids, weights.bfloat16() if odd else weights)),
        "ids": said_by(lambda: layer(x, ids.float() if odd else ids, weights)),
        "kind": said_by(lambda: layer(x.to(torch.complex64) if odd else x, ids, weights)),
        "range": said_by(lambda: layer(x, ids + 2**40 if odd else ids, weights)),
        "order": said_by(lambda: layers[odd](x, ids, weights)),
        "none": said_by(lambda: layer(x[:0], ids[:0], weights[:0]) if odd else layer.idle()),
    }
    assert torch.equal(layer(x, ids, weights), good)
    return found


def parallel_lost(victim: int, sig: str, timeout_s: float) -> list:
    """`victim` ends between two calls; the others say whom they lost, and after how long."""
    rank, world = meet()
    layer = JanusMoELayer(experts(6), replicated(6, world, 3), group=ExpertGroup(timeout_s=timeout_s))
    call = batch(rank, 4, 6, 2)
    layer(*call)
    dist.barrier()
    if rank == victim:
        if sig == "SIGSTOP":
            open(os.path.join(os.environ["SCENARIO_FOLDER"], f"stopped{rank}"), "w").close()
        os.kill(os.getpid(), getattr(signal, sig))
        time.sleep(100)
    started = time.monotonic()
    return [*said_by(lambda: [layer(*call) for _ in range(2)]), time.monotonic() - started]


def parallel_failing(victim: int) -> list:
    """The slots of `victim` fail in its first call; what every rank is told then, and in the next call."""
    rank, world = meet()
    layer = JanusMoELayer(experts(6), replicated(6, world, 3), group=ExpertGroup(timeout_s=2))
    if rank == victim:
        layer.slots.forward = None  # a TypeError, as out of memory would be an error of torch

    def call() -> None:
        try:
            layer(*batch(rank, 4, 6, 2))
        except TypeError as error:
            raise JanusError("test.failed", str(error)) from None

    return [said_by(call), said_by(call)]


def parallel_model(family: str, scope: str) -> dict:
    """A converted model: logits, weights kept, and generation of unequal lengths with transformers' own loop."""
    rank, world = meet()
    plain, model = tiny.build(family), tiny.build(family)
    plain.set_experts_implementation("eager")
    before = sum(p.numel() for p in model.parameters())
    layers = 3 - (family != "olmoe")
    convert(model, replicated(16, world, 9, layers), group=ExpertGroup(scope=scope, timeout_s=15))
    ids = torch.arange(3, 3 + 5 * (rank + 1)).reshape(1 + rank, 5)
    with torch.inference_mode():
        close(model(ids).logits, plain(ids).logits)
    prompt = torch.arange(3, 8 + 3 * rank)[None]
    more = {"max_new_tokens": 4 + 3 * rank, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    same = torch.equal(model.generate(prompt, synced_gpus=True, **more), plain.generate(prompt, **more))
    if rank == 0:  # the only one with a prompt
        same &= torch.equal(model.generate(prompt, synced_gpus=True, **more), plain.generate(prompt, **more))
    else:
        idle_generate(model)
    return {"same": same, "kept": sum(p.numel() for p in model.parameters()), "before": before}


def anybody() -> bool:
    busy = torch.tensor(0.0)
    dist.all_reduce(busy)
    return busy.item() > 0


def idle_generate(model) -> None:
    """As in docs/experts_parallel.md."""
    layers = [m for m in model.modules() if isinstance(m, JanusMoELayer)]
    for layer in layers:  # the others' prefill
        layer.idle()
    going = anybody()  # their first token
    while going and anybody():
        for layer in layers:
            layer.idle()
