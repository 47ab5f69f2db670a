"""Large pages: memory moves onto them where the system has them; contents and address stay."""

from pathlib import Path

import pytest
import torch

from janus.experts.cpu import pages

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture
def tensor():
    return torch.arange(2**24, dtype=torch.float32)  # 64 MiB, touched


@pytest.mark.skipif(not THP.exists() or "[never]" in THP.read_text(), reason="no transparent huge pages here")
def test_touched_memory_moves_onto_large_pages_and_keeps_its_contents(tensor):
    before, address = pages.large_bytes(), tensor.data_ptr()
    pages.enlarge(tensor, now=True)
    gained = pages.large_bytes() - before
    if gained == 0:
        pytest.skip("this kernel does not collapse pages on request (Linux >= 6.1 does)")
    assert gained >= tensor.nbytes // 2
    assert tensor.data_ptr() == address
    assert torch.equal(tensor, torch.arange(2**24, dtype=torch.float32))


@pytest.mark.parametrize("how", ["small", "switched off", "no madvise", "meta"])
def test_nothing_happens_where_it_is_not_wanted_or_not_there(tensor, monkeypatch, how):
    asked = []
    monkeypatch.setattr(pages, "_madvise", lambda: None if how == "no madvise" else lambda *a: asked.append(a))
    if how == "switched off":
        monkeypatch.setenv(pages.SWITCH, "0")
    given = {"small": tensor[:10].clone(), "meta": tensor.to("meta")}.get(how, tensor)
    pages.enlarge(given, now=True)
    assert asked == []


def test_only_whole_pages_within_the_tensor_are_asked_for(tensor, monkeypatch):
    asked = []
    monkeypatch.setattr(pages, "_madvise", lambda: lambda *a: asked.append(a))
    pages.enlarge(tensor, now=False)
    pages.enlarge(tensor, now=True)
    assert [advice for _, _, advice in asked] == [pages.HUGEPAGE, pages.HUGEPAGE, pages.COLLAPSE]
    for first, length, _ in asked:
        assert first % pages.PAGE == length % pages.PAGE == 0
        assert tensor.data_ptr() <= first
        assert first + length <= tensor.data_ptr() + tensor.nbytes
