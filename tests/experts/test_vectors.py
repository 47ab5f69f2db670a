"""The pieces of vector code alone: numbers of every kind read and written exactly, tiles that agree with each other."""

import numba
import numpy as np
import pytest
import torch

from janus.experts.cpu import team, vectors
from janus.experts.cpu.inner import GROUP, inner
from janus.experts.cpu.outer import outer
from janus.experts.cpu.sorting import sort

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _every_half(dtype):
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_every_half_is_read_exactly(kind):
    load = vectors.loaded(kind)

    @numba.njit
    def read(address, out):
        for i in range(len(out)):
            out[i] = load(address + 2 * i)

    numbers, out = _every_half(DTYPES[kind]), np.empty(2**16, np.float32)
    read(numbers.data_ptr(), out)
    np.testing.assert_array_equal(out, numbers.float().numpy())


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_floats_are_written_as_torch_rounds_them(kind):
    store = vectors.stored(kind)

    @numba.njit
    def write(values, address, size):
        for i in range(len(values)):
            store(address + size * i, values[i])

    g = torch.Generator().manual_seed(0)
    values = torch.randint(-(2**31), 2**31, (20_000,), generator=g).to(torch.int32).view(torch.float32)
    ties = _every_half(torch.bfloat16).float().view(torch.int32) + 2**15
    values = torch.cat([values, ties.view(torch.float32), torch.tensor([0.0, -0.0, 65504.0, 65520.0, 1e-8])])
    out = torch.empty(len(values), dtype=DTYPES[kind])
    write(values.numpy(), out.data_ptr(), out.element_size())
    want = values.to(DTYPES[kind])
    assert torch.equal(out.isnan(), want.isnan())
    real = ~want.isnan()
    assert torch.equal(out[real], want[real])


def _quantized(kind, rows, n):
    g = torch.Generator().manual_seed(n)
    stored = torch.randn(rows, n, generator=g) * 40
    stored = stored.round().clamp(-127, 127).to(torch.int8) if kind == "int8" else stored.to(torch.float8_e4m3fn)
    scales = torch.rand(rows, -(-n // GROUP), generator=g) + 0.5
    return stored, scales, stored.double() * scales.double().repeat_interleave(GROUP, 1)[:, :n]


KINDS = [*DTYPES, "int8", "fp8", *(["bfloat16 pairs"] if vectors.has_pairs() else [])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_has_the_same_bits_in_every_tile_and_equals_the_reference(kind):
    for n in (1, 15, 16, 37, 127, 128, 129, 300):
        x = torch.randn(4, n, generator=torch.Generator().manual_seed(1))
        x = x.bfloat16() if kind == "bfloat16 pairs" else x
        if kind in DTYPES or kind == "bfloat16 pairs":
            stored = torch.randn(4, n, generator=torch.Generator().manual_seed(2)).to(DTYPES[kind.split()[0]])
            scales, exact = torch.empty(0), stored.double()
        else:
            stored, scales, exact = _quantized(kind, 4, n)
        made = {}
        for rows, tokens in ((vectors.tile()[1], 4), (1, 1), (1, 3)):
            made[rows, tokens] = _run_inner(kind, rows, tokens, stored, scales, x)
        want = exact @ x.double().t()
        for out in made.values():
            rows, tokens = out.shape
            np.testing.assert_array_equal(out, next(iter(made.values()))[:rows, :tokens])
            # float32 sums of n terms
            np.testing.assert_allclose(out, want[:rows, :tokens], atol=1e-6 * float(exact.abs().max()) * n)


def _compiled(tile):
    @numba.njit
    def run(*a):
        tile(a[0], a[1], a[2], a[3], a[4], a[5])

    return run


def _run_inner(kind, rows, tokens, stored, scales, x):
    tile, size = inner(kind, rows, tokens), stored.element_size()

    @numba.njit
    def run(*a):
        tile(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8])

    where = np.array([row.data_ptr() for row in x], np.int64)
    out = np.full((rows, tokens), np.nan, np.float32)
    per_row = 4 * scales.stride(0) if scales.numel() else 0
    run(
        stored.data_ptr(),
        stored.stride(0) * size,
        scales.data_ptr(),
        per_row,
        where.ctypes.data,
        x.shape[1],
        out.ctypes.data,
        0,
        vectors.LINE,
    )
    return out


@pytest.mark.parametrize("kind", DTYPES)
def test_columns_have_the_same_bits_in_every_tile(kind):
    for columns in (1, 15, 64, 101):
        matrix = torch.randn(4, columns, generator=torch.Generator().manual_seed(2)).to(DTYPES[kind])
        x = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
        first = _run_outer(kind, 4, 4, matrix, x)
        np.testing.assert_allclose(first, x.double() @ matrix.double(), atol=1e-5)
        for rows, tokens in ((4, 1), (1, 4), (1, 1)):
            out = np.zeros((tokens, columns), np.float32)
            for row in range(0, 4, rows):
                _run_outer(kind, rows, tokens, matrix[row:], x[:, row:], out)
            np.testing.assert_array_equal(out, first[:tokens])


def _run_outer(kind, rows, tokens, matrix, x, out=None):
    out = np.zeros((tokens, matrix.shape[1]), np.float32) if out is None else out
    where = np.array([row.data_ptr() for row in x], np.int64)
    stride = matrix.stride(0) * matrix.element_size()
    run = _compiled(outer(kind, rows, tokens))
    run(matrix.data_ptr(), stride, where.ctypes.data, matrix.shape[1], out.ctypes.data, out.strides[0])
    return out


def test_entries_are_sorted_by_slot_in_the_order_asked_for_then_by_token():
    ids = np.array([[2, 0], [-1, 2], [0, 1], [2, -1]])
    runs = sort(ids, np.array([2, 1, 0, 3]))
    assert runs.slots.tolist() == [2, 1, 0]
    assert runs.starts.tolist() == [0, 3, 4, 6]
    assert runs.entries.tolist() == [0, 3, 6, 5, 1, 4]
    assert runs.tokens.tolist() == [0, 1, 3, 2, 0, 2]
    assert [len(part) for part in sort(np.full((3, 2), -1), np.array([0]))] == [0, 1, 0, 0]
    assert [len(part) for part in sort(np.empty((0, 2), np.int64), np.array([0]))] == [0, 1, 0, 0]


@pytest.mark.parametrize("openmp", [True, False])
def test_every_item_of_a_job_is_done_once_by_whichever_threads_there_are(monkeypatch, openmp):
    if not openmp:
        monkeypatch.setattr(team, "_openmp", lambda: None)

    @numba.cfunc("void(int64)")
    def job(address):
        data = numba.carray(vectors.pointer(address), (1001,), np.int64)
        while True:
            item = vectors.fetch_and_add(address)
            if item >= 1000:
                break
            data[item + 1] += item

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    data = np.zeros(1001, np.int64)
    team.run(job, data.ctypes.data)
    assert data[1:].tolist() == list(range(1000))
