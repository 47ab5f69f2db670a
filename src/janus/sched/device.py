"""A balancer on a GPU: tables and buffers that live there, and the two launches of a call.

Under TRITON_INTERPRET=1 the same code runs on CPU tensors, slowly: that is how it is tested where there is no GPU.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from janus.errors import JanusError
from janus.sched import kernel as _kernel
from janus.sched.arrays import refuse_masked
from janus.sched.backends import KERNEL_LIMITS
from janus.sched.host import check_tokens
from janus.sched.stats import SUMS
from janus.sched.tables import LayerTables
from janus.types.placement import IntArray, Placement
from janus.types.rounding import next_power_of_2

kernel: Any = _kernel  # a launch takes num_warps, which the kernel's own signature does not have
MAX_TOP_K = KERNEL_LIMITS["experts per token"]
DTYPES = (torch.int64, torch.int32)


@dataclass(frozen=True)
class Launch:
    """How the work is cut; the ids do not depend on it.

    Attributes:
        counters: most programs that count; each leaves one row for every program that solves to sum.
        counted: fewest entries worth a program of their own.
        count_block: entries that a counting program looks at together.
        rewriters: most programs that solve and rewrite.
        block: entries that such a program rewrites together.
        warps: warps of a counting program; those that solve have one, so that minima stay within it.
    """

    counters: int = 32
    counted: int = 1024
    count_block: int = 1024
    rewriters: int = 256
    block: int = 256
    warps: int = 4


def constants_of(
    E: int, G: int, C: int, method: str, *, max_tokens: int, record_load: bool, launch: Launch
) -> dict[str, Any]:
    """Compile-time constants of `kernel.solve`; with keys of 31 bits each minimum is one instruction."""
    # at least a warp of lanes, so that a minimum takes the whole of it
    EP, GP = max(32, next_power_of_2(E)), max(32, next_power_of_2(G))
    instance, load = (GP - 1).bit_length(), C.bit_length()
    spent = (max_tokens * MAX_TOP_K).bit_length() if method == "exact" else 0
    narrow = instance + load + spent <= 31
    key = {"ID": instance, "SHIFT": 31 - load if narrow else 40, "NARROW": narrow}
    cut = {"PARTS": 16, "CB": min(16, next_power_of_2(C)), "BLOCK": launch.block}
    return {"E": E, "EP": EP, "G": G, "GP": GP, **key, **cut, "EXACT": method == "exact", "RECORD": record_load}


class DeviceEngine:
    """What a `Balancer` runs on a GPU.

    Args:
        placement: where the replicas are.
        method: "exact" or "greedy".
        max_tokens: most tokens of one call.
        device: a torch device.
        num_layers: L, rows of the statistics.
        check_ids: refuse ids out of range, at the price of a host sync.
        record_load: count the entries of each expert.
        launch: how the work is cut.

    Attributes:
        sums: int64 [L, 8] on the device, see `stats.SUMS`.
        expert_load: int64 [L, E] on the device, or [0, E] when not recorded.
    """

    def __init__(
        self,
        placement: Placement,
        method: str,
        max_tokens: int,
        device: Any,
        *,
        num_layers: int = 1,
        check_ids: bool = False,
        record_load: bool = False,
        launch: Launch = Launch(),
    ) -> None:
        _check_limits(placement, max_tokens)
        self.device = _device(device)
        self.max_tokens, self._check, self._launch = max_tokens, check_ids, launch
        self.E, self.G, self.C = placement.num_experts, placement.num_instances, placement.slots_per_instance
        self._constants = constants_of(
            self.E, self.G, self.C, method, max_tokens=max_tokens, record_load=record_load, launch=launch
        )
        self.EP, self.GP = self._constants["EP"], self._constants["GP"]
        # made inside inference mode, buffers could not be reset outside it
        with self._here(), torch.inference_mode(False):
            self._tables = [self._table(placement, row, method) for row in range(placement.num_layers)]
            self._buffers(num_layers, record_load)
            for dtype in DTYPES:  # compile now what the first batch would wait for
                ids = torch.zeros((0, 1), dtype=dtype, device=self.device)
                self._solve(ids, self._count(ids), 0, 0)
            self.reset()

    def _table(self, placement: Placement, row: int, method: str) -> tuple[torch.Tensor, torch.Tensor, int]:
        """What `kernel.solve` reads of one layer: the integer table, the sets of hosts, experts with one replica."""
        t = LayerTables.build(placement, row, method)
        E, EP, GP, C = self.E, self.EP, self.GP, self.C
        slot_of, slots, masks = np.full((EP, GP), -1), np.full((C, GP), -1), np.zeros((2, EP), dtype=np.uint64)
        order, first = np.zeros(EP), np.zeros(EP)
        order[:E], first[:E] = t.order, t.log2phy[:, 0] // C
        r = np.flatnonzero(t.phy2log >= 0)
        e, g, c = t.phy2log[r], r // C, r % C
        slot_of[e, g] = r
        slots[c, g] = np.where(t.logcnt[e] == 1, e, -2 - e)
        np.bitwise_or.at(masks, (g // 64, e), np.uint64(1) << (g % 64).astype(np.uint64))
        table = np.concatenate([order, first, slot_of.ravel(), slots.ravel()]).astype(np.int32)
        words = masks.astype(np.uint32).view(np.int32) if GP <= 32 else masks.view(np.int64)
        return self._put(table), self._put(words), int((t.logcnt == 1).sum())

    def _put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _buffers(self, num_layers: int, record_load: bool) -> None:
        launch, new = self._launch, lambda *shape, dtype: torch.zeros(shape, dtype=dtype, device=self.device)
        entries = self.max_tokens * MAX_TOP_K
        self._programs = max(1, min(launch.rewriters, -(-entries // launch.block)))
        self._out = new(max(1, entries), dtype=torch.int64)
        self._partial = new(launch.counters, self.EP, dtype=torch.int32)
        self._wrong = new(launch.counters, dtype=torch.int32)
        self._scratch = new(self._programs, 4, self.EP, dtype=torch.int32)
        self._last = new(2 * self.EP + self.GP + 3, dtype=torch.int32)
        self.sums = new(num_layers, len(SUMS), dtype=torch.int64)
        # rows of EP, not E: a pointer aligned otherwise than the first layer's would be compiled for once more
        self.expert_load = new(num_layers if record_load else 0, self.EP, dtype=torch.int64)[:, : self.E]
        # without a record the kernel is given some tensor that it leaves alone
        self._tallies = list(zip(self.sums, self.expert_load if record_load else self.sums, strict=True))

    def __call__(self, topk_ids: Any, row: int, layer: int) -> torch.Tensor:
        """Physical ids [T, K] by map `row`, counted for `layer`: a view that the next call overwrites."""
        ids = self._checked(topk_ids)
        with self._here():
            parts = self._count(ids)
            if self._check and int(self._wrong[:parts].sum()):  # host sync here; before anything is added up
                self._refuse(ids)
            return self._solve(ids, parts, row, layer)

    def _count(self, ids: torch.Tensor) -> int:
        """Launch `kernel.count`; how many programs left a row."""
        n, launch = ids.numel(), self._launch
        parts = max(1, min(launch.counters, -(-n // launch.counted)))
        kernel.count[(parts,)](
            ids, self._partial, self._wrong, n, -(-n // parts), self.E, self.EP, launch.count_block,
            num_warps=launch.warps, enable_fp_fusion=True,
        )  # fmt: skip
        return parts

    def _solve(self, ids: torch.Tensor, parts: int, row: int, layer: int) -> torch.Tensor:
        """Launch `kernel.solve`; the view of the physical ids."""
        n = ids.numel()
        out = self._out.view(ids.dtype)[:n]
        programs = max(1, min(self._programs, -(-n // self._launch.block)))
        table, masks, singles = self._tables[row]
        kernel.solve[(programs,)](
            ids, out, self._partial, self._wrong, table, masks, self._scratch, self._last, *self._tallies[layer],
            n, parts, self.C, singles, **self._constants, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
        return out.view(ids.shape)

    def _checked(self, topk_ids: Any) -> torch.Tensor:
        """What can be seen without asking the device."""
        ids = as_tensor(topk_ids)
        if self._check and capturing(self.device):
            rule = "check_ids=True waits for the GPU, and cannot be captured in a CUDA graph"
            raise JanusError("sched.option", f"{rule}; make the Balancer without it, and watch stats.bad_ids")
        if ids.device != self.device:
            remedy = "move topk_ids there, or make the Balancer for their device"
            raise JanusError(
                "sched.device", f"this Balancer runs on {self.device}, got topk_ids on {ids.device}; {remedy}"
            )
        if ids.dtype not in DTYPES:
            raise JanusError(
                "sched.dtype", f"on a GPU topk_ids must be int32 or int64, got {ids.dtype}; cast them once"
            )
        if ids.ndim != 2:
            remedy = "reshape to one row per token"
            raise JanusError("sched.shape", f"topk_ids must be [T, K], got shape {tuple(ids.shape)}; {remedy}")
        if not ids.is_contiguous():
            remedy = "call topk_ids.contiguous() outside the captured part"
            raise JanusError("sched.contiguous", f"topk_ids must be contiguous, got strides {ids.stride()}; {remedy}")
        check_tokens(len(ids), self.max_tokens)
        if ids.shape[1] > MAX_TOP_K:
            remedy = "use backend 'numba' on the CPU"
            raise JanusError(
                "sched.limit", f"on a GPU a token has at most {MAX_TOP_K} experts, got {ids.shape[1]}; {remedy}"
            )
        return ids

    def _refuse(self, ids: torch.Tensor) -> None:
        flat = ids.flatten()
        position = int(((flat < -1) | (flat >= self.E)).nonzero()[0, 0])
        t, k = divmod(position, ids.shape[1])
        rule = f"topk_ids hold -1 or an expert in 0..{self.E - 1}"
        remedy = "was the placement made for this model?"
        raise JanusError("sched.range", f"{rule}; token {t}, choice {k} holds {int(flat[position])}; {remedy}")

    @property
    def load(self) -> torch.Tensor:
        """int32 [G] on the device: activated slots of each instance in the last batch; a view."""
        return self._last[2 * self.EP : 2 * self.EP + self.G]

    def last_batch(self) -> tuple[IntArray, IntArray, IntArray, int, int]:
        """(replica [E], load [G], tokens_per_slot [R], a_max, lower bound) of the last batch, on the host."""
        last = self._last.cpu().numpy()  # host sync here
        replica, tokens = last[: self.E], last[self.EP : self.EP + self.E]
        per_slot = np.zeros(self.G * self.C, dtype=np.int32)
        per_slot[replica[replica >= 0]] = tokens[replica >= 0]
        load = last[2 * self.EP : 2 * self.EP + self.G]
        return replica.copy(), load.copy(), per_slot, int(last[-3]), int(last[-2])

    def reset(self) -> None:
        """Forget the sums and the recorded load."""
        self.sums.zero_()
        self.expert_load.zero_()

    def _here(self) -> Any:
        """Triton launches on the current device, which need not be ours."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()


def as_tensor(topk_ids: Any) -> torch.Tensor:
    """`topk_ids` as a tensor: NumPy arrays become CPU tensors, other things a `JanusError`."""
    refuse_masked(topk_ids)
    if isinstance(topk_ids, np.ndarray) and topk_ids.dtype.kind in "iu":
        # a copy: what is read-only or of another byte order is no tensor
        return torch.from_numpy(np.array(topk_ids, dtype=topk_ids.dtype.newbyteorder("="), order="C"))
    if not isinstance(topk_ids, torch.Tensor):
        got = getattr(topk_ids, "dtype", type(topk_ids).__name__)
        code = "sched.dtype" if isinstance(topk_ids, np.ndarray) else "sched.input"
        rule = "topk_ids must be an integer NumPy array or torch tensor [T, K]"
        raise JanusError(code, f"{rule}, got {got}; torch.as_tensor(..., device=...) makes one")
    return topk_ids


def capturing(device: torch.device) -> bool:
    """Is a CUDA graph being recorded?"""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _device(device: Any) -> torch.device:
    named = torch.device(device)
    if named.type == "cuda":
        if not torch.cuda.is_available():
            raise JanusError("sched.device", f"device {str(named)!r} needs a CUDA GPU and torch sees none; use 'cpu'")
        index = torch.cuda.current_device() if named.index is None else named.index
        if index >= torch.cuda.device_count():
            rule = f"torch sees {torch.cuda.device_count()} GPUs, numbered from 0"
            raise JanusError("sched.device", f"{rule}, got device {str(named)!r}; choose one of them")
        return torch.device("cuda", index)
    if any(isinstance(function, kernel.triton.JITFunction) for function in (kernel.solve, kernel.tl.sum)):
        remedy = "set TRITON_INTERPRET=1 before triton is imported, or choose 'numba'"
        raise JanusError(
            "sched.device", f"triton was imported as a compiler, and device 'cpu' needs its interpreter; {remedy}"
        )
    return torch.device("cpu")


def _check_limits(placement: Placement, max_tokens: int) -> None:
    named = {
        "experts": placement.num_experts,
        "instances": placement.num_instances,
        "slots per instance": placement.slots_per_instance,
        "tokens": max_tokens,
    }
    for name, value in named.items():
        most = KERNEL_LIMITS[name]
        if value > most:
            remedy = "use backend 'numba' with device='cpu'"
            raise JanusError("sched.limit", f"backend 'triton' takes at most {most} {name}, got {value}; {remedy}")
