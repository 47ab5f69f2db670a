"""compute="mixed": busy slots by torch, the others by numba, one sum."""

import entries
import pytest
import torch
from entries import LAYOUTS, error, plain

from janus.experts import mixed


def _busy(T, E=6, K=3):
    """Expert 0 has every token, the others share the rest."""
    g = torch.Generator().manual_seed(0)
    ids = torch.stack(
        [torch.cat([torch.zeros(1).long(), 1 + torch.randperm(E - 1, generator=g)[: K - 1]]) for _ in range(T)]
    )
    return torch.randn(T, 24, generator=g), ids, torch.rand(T, K, generator=g)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYOUTS)
def test_busy_and_other_slots_add_up_to_the_reference(name, dtype):
    slots = entries.slots(entries.layout(24, 20, **LAYOUTS[name]), 6, dtype, compute="mixed")
    x, ids, weights = _busy(30)
    x, engine = x.to(dtype), slots.engine("mixed")
    for most in (0, 15, 64):  # all by torch, some, none
        engine.most = most
        assert error(slots(x, ids, weights), plain(slots, x, ids, weights)) < (1e-5 if dtype.itemsize == 4 else 2e-2)


def test_slots_below_the_limit_have_the_bits_of_numba():
    slots = entries.slots(entries.layout(24, 20), 6, compute="auto")
    assert slots.compute == "mixed"
    x, ids, weights = _busy(30)
    assert torch.equal(slots(x, ids, weights), slots.engine("numba")(x, ids, weights))
    slots.engine("mixed").most = 15
    x, ids, weights = _busy(30)
    assert not torch.equal(slots(x, ids, weights), slots.engine("numba")(x, ids, weights))


def test_the_limit_is_lower_where_torch_is_the_faster_one(monkeypatch):
    def limit(kind=None, dtype=torch.float32, **options):
        layout = entries.layout(24, 20, **LAYOUTS[kind] if kind else {})
        return mixed.most_tokens(entries.slots(layout, 2, dtype, compute="mixed", **options))

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    tiles = limit(dtype=torch.bfloat16), limit(dtype=torch.bfloat16, quantize="int8")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    plain = limit(dtype=torch.bfloat16), limit(dtype=torch.bfloat16, quantize="int8")
    assert all(with_tiles < without for with_tiles, without in zip(tiles, plain, strict=True))
    assert limit("transposed") < limit(dtype=torch.float16) < limit() <= plain[0] < plain[1]
    monkeypatch.setattr(mixed, "LONG", 8)
    assert limit() < plain[0]
