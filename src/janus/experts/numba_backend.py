"""The chosen slots by compiled vector code on the CPU, at the speed of its memory: compute="numba"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from janus.experts.activation import recognise
from janus.experts.cpu import columns, rows, team
from janus.experts.cpu.activating import activate_job
from janus.experts.cpu.jobs import JOB
from janus.experts.cpu.sorting import Runs, sort
from janus.experts.quantized import FORMATS

if TYPE_CHECKING:
    from janus.experts.slots import ExpertSlots

KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
STORED = KINDS | {format.dtype: name for name, format in FORMATS.items()}
LEAST_ACTIVATED = 8192  # numbers that are worth a thread: microseconds
ITEMS_PER_THREAD = {False: 8, True: 2}  # [in, out]: enough that threads end together, few enough for long reads


def why_not(slots: ExpertSlots) -> str:
    """Why these slots cannot be run; empty when they can."""
    if slots.device.type != "cpu":
        return f"numba runs on the CPU, the weights are on {slots.device.type!r}"
    if slots.dtype not in KINDS:
        return f"the weights are {slots.dtype}, which is none of {', '.join(KINDS.values())}"
    return ""


def make(slots: ExpertSlots) -> NumbaEngine:
    """The engine of these slots; compiles when a machine first sees a dtype (seconds)."""
    return NumbaEngine(slots)


class NumbaEngine:
    """Reads each activated slot's weights once, in blocks of rows that threads share; float32 sums.

    Where the activation is a formula we know (`batch_invariant`), a token's result depends on its own row, ids and
    weights alone, bit for bit: not on the batch it comes in, the placement or the number of threads. Another one is run
    by the family's own code, as are its last bits.

    Args:
        slots: to run.
    """

    workspace_bytes = 0

    def __init__(self, slots: ExpertSlots) -> None:
        self.slots = slots
        kinds = STORED[slots.get_parameter("down_proj").dtype], KINDS[slots.dtype]
        jobs = columns if slots.layout.is_transposed else rows
        known = recognise(slots.layout)
        self.activate = activate_job(known) if known else None
        self.batch_invariant = known is not None
        self.between = torch.float32 if known else slots.dtype
        self.up, self.down = jobs.up_job(*kinds, KINDS[self.between]), jobs.down_job(*kinds)

    def __call__(self, x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """As `ExpertSlots.forward`."""
        runs = sort(slots_TK.contiguous().numpy(), self.slots.rank_S.numpy())
        y_TH = torch.zeros(x_TH.shape, dtype=torch.float32)
        if len(runs.slots):
            factors_N = weights_TK.detach().reshape(-1).float().numpy()[runs.entries]
            self.run(runs, x_TH, factors_N, y_TH)
        return y_TH.to(x_TH.dtype)

    def run(self, runs: Runs, x_TH: torch.Tensor, factors_N: npt.NDArray[np.float32], y_TH: torch.Tensor) -> None:
        """Add what the slots of `runs` compute to `y_TH` (float32)."""
        layout = self.slots.layout
        num_up = layout.shapes[layout.up][1 if layout.is_transposed else 0]
        up_N = torch.empty(len(runs.entries), num_up, dtype=self.between)
        self._run(self.up, layout.up, runs, factors_N, x_TH.detach().float(), up_N)
        h_NF = self._activated(up_N)
        self._run(self.down, "down_proj", runs, factors_N, h_NF, y_TH)

    def _activated(self, up_N: torch.Tensor) -> torch.Tensor:
        if self.activate is None:
            return self.slots.layout.activate(up_N).float()
        h_NF = torch.empty(len(up_N), self.slots.layout.width, dtype=torch.float32)
        block = max(1, LEAST_ACTIVATED // h_NF.shape[1])
        told = {
            "blocks": -(-len(up_N) // block), "block_rows": block, "rows": len(up_N), "n": h_NF.shape[1],
            "x": up_N.data_ptr(), "x_stride": up_N.stride(0) * up_N.element_size(),
            "out": h_NF.data_ptr(), "out_stride": 4 * h_NF.stride(0),
        }  # fmt: skip
        _start(self.activate, told, alone=told["blocks"] == 1)
        return h_NF

    def _run(self, job: Any, name: str, runs: Runs, factors_N: Any, x: torch.Tensor, out: torch.Tensor) -> None:
        parts = self.slots._parameters
        matrix, bias, scales = self.slots.get_parameter(name), parts.get(f"{name}_bias"), parts.get(f"{name}_scale")
        x, size = x.contiguous(), matrix.element_size()
        num_rows, n = reversed(matrix.shape[1:]) if self.slots.layout.is_transposed else matrix.shape[1:]
        sharing = len(runs.slots) if job is self.up else 1
        items = -(-ITEMS_PER_THREAD[self.slots.layout.is_transposed] * torch.get_num_threads() // sharing)
        least, most = (64, columns.PANEL) if self.slots.layout.is_transposed else (4, num_rows)
        block = min(most, max(least, -(-num_rows // items) // least * least))
        told = {
            "blocks": -(-num_rows // block), "block_rows": block,
            "active": len(runs.slots), "slots": runs.slots.ctypes.data, "starts": runs.starts.ctypes.data,
            "tokens": runs.tokens.ctypes.data, "factors": factors_N.ctypes.data,
            "matrix": matrix.data_ptr(), "slot_stride": matrix.stride(0) * size, "row_stride": matrix.stride(1) * size,
            "rows": num_rows, "n": n, "scale_rows": 1, "x": x.data_ptr(), "x_stride": x.stride(0) * 4,
            "out": out.data_ptr(), "out_stride": out.stride(0) * out.element_size(),
        }  # fmt: skip
        if scales is not None:
            told |= {"scales": scales.data_ptr(), "scale_slot_stride": 4 * scales.stride(0)}
            told |= {"scale_row_stride": 4 * scales.stride(1), "scale_rows": self.slots.format.block[0]}
        if bias is not None:
            told |= {"bias": bias.data_ptr(), "bias_stride": bias.stride(0) * bias.element_size()}
        _start(job, told)


def _start(job: Any, told: dict[str, int], *, alone: bool = False) -> None:
    counter = np.zeros(1, np.int64)
    told["counter"] = counter.ctypes.data
    data = np.array([tuple(told.get(name, 0) for name in JOB.names or ())], JOB)
    team.run(job, data.ctypes.data, alone=alone)
