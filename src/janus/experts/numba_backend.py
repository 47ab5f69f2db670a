"""The chosen slots by compiled vector code on the CPU, at the speed of its memory: compute="numba"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from janus.experts.activation import recognise
from janus.experts.checks import NATIVE
from janus.experts.cpu import columns, team
from janus.experts.cpu.jobs import ACTIVATE, DOWN, JOB, JOB_BYTES, NARROW, NUM_PHASES, UP, WIDEN
from janus.experts.cpu.pages import enlarge
from janus.experts.cpu.phases import Kinds, codes, phases
from janus.experts.cpu.preparing import prepare, workspace_bytes
from janus.experts.cpu.vectors import SIZES, has_pairs
from janus.experts.quantized import FORMATS

if TYPE_CHECKING:
    from janus.experts.slots import ExpertSlots

KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
STORED = KINDS | {format.dtype: name for name, format in FORMATS.items()}
ALONE = 2**19  # bytes of weights that one thread reads before another one is awake
ACTIVATED = 8192  # numbers of a block of the activation: microseconds
ITEMS_PER_THREAD = {False: 8, True: 2}  # [in, out]: enough that threads end together, few enough for long reads


def why_not(slots: ExpertSlots) -> str:
    """Why these slots cannot be run; empty when they can."""
    if slots.device.type != "cpu":
        return f"numba runs on the CPU, the weights are on {slots.device.type!r}"
    if slots.dtype not in KINDS:
        return f"the weights are {slots.dtype}, which is none of {', '.join(KINDS.values())}"
    return ""


def make(slots: ExpertSlots) -> NumbaEngine:
    """The engine of these slots; what they need is compiled at their first call, if this machine has not yet (seconds)."""
    return NumbaEngine(slots)


class _Order(NamedTuple):
    """The slots in the order of their ranks, of the buffer `ranks`, and their address."""

    ranks: Any
    slots: np.ndarray[Any, np.dtype[np.int64]]
    address: int


class _Template(NamedTuple):
    """Jobs for the parameters at these addresses, their own address, and bytes of a slot."""

    parameters: tuple[int, ...]
    jobs: np.ndarray[Any, Any]
    address: int
    slot_bytes: int


class NumbaEngine:
    """Reads each activated slot's weights once, in blocks of rows that threads share; float32 sums.

    Where the activation is a formula we know (`batch_invariant`), a token's result depends on its own row, ids and
    weights alone, bit for bit: not on the batch it comes in, the placement or the number of threads. Another one is run
    by the family's own code, as are its last bits.

    Args:
        slots: to run.
    """

    def __init__(self, slots: ExpertSlots) -> None:
        self.slots, self.activation = slots, recognise(slots.layout)
        self.batch_invariant = self.activation is not None
        self.prepare, self.phases = prepare(), phases()
        stored, plain = STORED[slots.down_proj.dtype], KINDS[slots.dtype]
        pairs = stored == "bfloat16" and has_pairs() and not slots.layout.is_transposed
        inner, matrix = ("bfloat16", "bfloat16 pairs") if pairs else ("float32", stored)
        bias = plain if slots.layout.has_bias else "float32"  # the same code for slots without
        self.kinds = Kinds(matrix, bias, plain, inner, "float32" if self.activation else plain)
        # What a call finds ready. With cold caches each look-up costs a microsecond: numbers, not what gives them.
        self._sorted: _Order | None = None
        self._told: _Template | None = None
        self._rows: dict[torch.dtype, tuple[int, int, int, int]] = {}  # as `_row_bytes` gives them
        for p in slots._parameters.values():
            if p is not None:
                enlarge(p, now=True)

    def needed(self, T: int, K: int) -> int:
        """Bytes of workspace of a call: for T tokens of K experts each, beside its output."""
        return workspace_bytes(T, K, self.slots.num_slots, self._row_bytes(self.slots.dtype))

    def __call__(self, x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """As `ExpertSlots.forward`."""
        return self.run(x_TH, slots_TK, weights_TK, x_TH.dtype)

    def run(
        self, x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """As `ExpertSlots.forward`, the output in `dtype`: that of the slots, or float32."""
        (T, H), K = x_TH.shape, slots_TK.shape[1]
        y_TH = torch.empty(T, H, dtype=dtype)
        if not T * K:
            return y_TH.zero_()
        order, template, row_bytes = self._order(), self._template(), self._row_bytes(dtype)  # compiled code reads them
        S = len(order.slots)
        work = torch.empty(workspace_bytes(T, K, S, row_bytes), dtype=torch.uint8)
        ids_TK = (slots_TK if slots_TK.dtype in NATIVE else slots_TK.long()).contiguous()
        factors_TK, x_TH = weights_TK.contiguous().float(), x_TH.contiguous()
        active = self.prepare.ctypes(
            template.address, work.data_ptr(), order.address, S, ids_TK.data_ptr(), ids_TK.dtype is torch.int64,
            factors_TK.data_ptr(), T, K, x_TH.data_ptr(), H * x_TH.element_size(), y_TH.data_ptr(), H * dtype.itemsize,
            row_bytes[0], row_bytes[1], torch.get_num_threads(),
        )  # fmt: skip
        if not active:
            return y_TH.zero_()
        self._run(work, alone=active * template.slot_bytes < ALONE)
        return y_TH

    def _run(self, work: torch.Tensor, *, alone: bool) -> None:
        code = self.phases
        if self.activation is not None:
            team.run(code, work.data_ptr(), alone=alone)
            return
        jobs = work.numpy()[: NUM_PHASES * JOB_BYTES].view(JOB)
        later = jobs[["items"]][DOWN:].copy()
        jobs["items"][DOWN:] = 0
        team.run(code, work.data_ptr())
        N, between = int(jobs["rows"][ACTIVATE]), self.slots.dtype
        up_N = _at(work, jobs["x"][ACTIVATE], N * int(jobs["x_stride"][ACTIVATE])).view(between).view(N, -1)
        h_N = _at(work, jobs["out"][ACTIVATE], N * int(jobs["out_stride"][ACTIVATE]))
        inner = torch.bfloat16 if self.kinds.inner == "bfloat16" else torch.float32
        h_N.view(inner).view(N, -1).copy_(self.slots.layout.activate(up_N))
        jobs["items"][:DOWN] = 0
        jobs["items"][DOWN:] = later["items"]
        jobs["counter"] = jobs["done"] = 0
        team.run(code, work.data_ptr())

    def _row_bytes(self, dtype: torch.dtype) -> tuple[int, int, int, int]:
        """Of the parts of the workspace, as `preparing.workspace_bytes` takes them; for a result of that dtype."""
        if dtype in self._rows:
            return self._rows[dtype]
        layout, kinds = self.slots.layout, self.kinds
        x_row = 0 if kinds.plain == kinds.inner else layout.hidden_size * SIZES[kinds.inner]
        y_row = 0 if dtype == torch.float32 else 4 * layout.hidden_size
        width = layout.width * (2 if layout.has_gate else 1)
        self._rows[dtype] = x_row, y_row, width * SIZES[kinds.between], layout.width * SIZES[kinds.inner]
        return self._rows[dtype]

    def _order(self) -> _Order:
        rank_S, order = self.slots._buffers["rank_S"], self._sorted
        assert rank_S is not None
        if order is None or order.ranks is not rank_S:
            slots = np.argsort(rank_S.numpy())
            order = self._sorted = _Order(rank_S, slots, slots.ctypes.data)
        return order

    def _template(self) -> _Template:
        """What jobs are told in every call; parameters may have been replaced since the last one."""
        slots, layout, template = self.slots, self.slots.layout, self._told
        now = tuple([p.data_ptr() for p in slots._parameters.values() if p is not None])
        if template is None or template.parameters != now:
            jobs = np.zeros(NUM_PHASES, JOB)
            jobs["code"] = codes(self.kinds, self.activation, layout.is_transposed)
            _, _, up_row, h_row = self._row_bytes(slots.dtype)
            self._tell(jobs[UP], layout.up)
            self._tell(jobs[DOWN], "down_proj")
            jobs[UP]["out_stride"] = jobs[ACTIVATE]["x_stride"] = up_row
            jobs[ACTIVATE]["out_stride"] = jobs[DOWN]["x_stride"] = h_row
            jobs[ACTIVATE]["n"], jobs[ACTIVATE]["items"] = layout.width, self.activation is not None
            jobs[ACTIVATE]["block_rows"] = max(1, ACTIVATED // layout.width)
            for copy in (WIDEN, NARROW):
                jobs[copy]["n"], jobs[copy]["x_stride"] = layout.hidden_size, 4 * layout.hidden_size
            jobs[DOWN]["out_stride"] = 4 * layout.hidden_size
            template = self._told = _Template(now, jobs, jobs.ctypes.data, slots.nbytes // slots.num_slots)
        return template

    def _tell(self, job: Any, name: str) -> None:
        parts, transposed = self.slots._parameters, self.slots.layout.is_transposed
        matrix, bias, scales = self.slots.get_parameter(name), parts.get(f"{name}_bias"), parts.get(f"{name}_scale")
        rows, n = reversed(matrix.shape[1:]) if transposed else matrix.shape[1:]
        told = {
            "matrix": matrix.data_ptr(),
            "rows": rows,
            "n": n,
            "scale_rows": 1,
            "items": ITEMS_PER_THREAD[transposed],
        }
        told |= {
            "slot_stride": matrix.stride(0) * matrix.element_size(),
            "row_stride": matrix.stride(1) * matrix.element_size(),
        }
        # least and most of a block, until `preparing` cuts them
        told |= {"block_rows": 64, "blocks": columns.PANEL} if transposed else {"block_rows": 4, "blocks": rows}
        if scales is not None and self.slots.format is not None:
            told |= {"scales": scales.data_ptr(), "scale_slot_stride": 4 * scales.stride(0)}
            told |= {"scale_row_stride": 4 * scales.stride(1), "scale_rows": self.slots.format.block[0]}
        if bias is not None:
            told |= {"bias": bias.data_ptr(), "bias_stride": bias.stride(0) * bias.element_size()}
        for field, value in told.items():
            job[field] = value


def _at(work: torch.Tensor, address: Any, size: int) -> torch.Tensor:
    first = int(address) - work.data_ptr()
    return work[first : first + size]
