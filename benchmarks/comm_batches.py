"""Rows, choices and expectations of a layer: every rank of a test or proof computes them for itself, bit for bit."""

from __future__ import annotations

import torch

from janus.comm import reference

torch.set_num_threads(1)
H, K, C = 5, 3, 2
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def payload(first: int, b: int, layer: int) -> torch.Tensor:
    """Rows that say which global token and layer they are, exact in every dtype: at most 256 distinct integers."""
    token = torch.arange(first, first + b).view(-1, 1) * 37
    return ((token + torch.arange(H) * 11 + layer * 5) % 256 - 128).float()


class Batch:
    """All ranks' rows and choices of one layer, the same on every rank."""

    def __init__(self, topology, counts, layer, dtype, gate, mixed):
        self.counts, self.topology = counts, topology
        starts = [sum(counts[:a]) for a in range(len(counts))]
        self.x = [payload(first, b, layer).to(dtype) for first, b in zip(starts, counts, strict=True)]
        rng = torch.Generator().manual_seed(layer)
        slots = topology.n_experts * C
        ids = [torch.randint(-1, slots, (b, K), generator=rng) for b in counts]
        # with mixed weights every other rank gives the model's dtype; what is received is float32 and still exact
        weights = [torch.rand(b, K, generator=rng) for b in counts]
        self.weights = [w.to(dtype) if mixed and a % 2 else w for a, w in enumerate(weights)]
        # ranks without tokens say nothing about their weights
        kinds = {w.dtype for w in self.weights if len(w)}
        self.weights_dtype = torch.float32 if torch.float32 in kinds else dtype
        self.ids = [i.to(torch.int32) if a % 2 else i for a, i in enumerate(ids)]
        self.choices = {"ids": self.ids, "weights": [w.float() for w in self.weights], "slots": C}
        self.choices = self.choices if gate == "attention" else {}
        self.got = [reference.receive(self.x, g, **self.choices) for g in range(topology.n_experts)]
        # an expert's answer depends on the instance, so a sum over the wrong ones, or in another order, shows
        self.y = [(rows.float() * (0.37 + g)).to(dtype) for g, (rows, _, _) in enumerate(self.got)]

    def home(self, a):
        keep = {k: v for k, v in self.choices.items() if k != "weights"}
        return reference.combine(self.y, self.counts, self.topology, **keep)[a]


def same_bits(a, b):
    whole = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}[a.dtype]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(whole), b.view(whole))


def one_layer(ex, batch, layer):
    """Dispatch and combine, or receive and reply; compare everything bit for bit."""
    at = ex.topology.instance(ex.rank)
    if ex.role == "attention":
        chosen = {"physical_ids": batch.ids[at], "weights": batch.weights[at]} if batch.choices else {}
        x = batch.x[at].clone()
        handle = ex.dispatch(x, layer=layer, **chosen)
        x.fill_(float("nan"))  # the caller may reuse its rows at once
        assert same_bits(ex.combine(handle), batch.home(at))
        return
    x_all, handle = ex.receive()
    rows, ids, weights = batch.got[at]
    assert handle.layer == layer
    assert same_bits(x_all, rows)
    if batch.choices:
        assert torch.equal(handle.physical_ids, ids)
        assert same_bits(handle.weights, weights.to(batch.weights_dtype))
    else:
        assert handle.physical_ids is None
        assert handle.counts == tuple(batch.counts)
    y = batch.y[at].clone()
    ex.reply(y, handle)
    y.fill_(float("nan"))
