"""Chosen experts on a GPU: what the kernels can run, and the two to four launches of a call.

Under TRITON_INTERPRET=1 the same code runs on CPU tensors, slowly: that is how it is tested where there is no GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from janus.errors import JanusError
from janus.experts.activation import recognise
from janus.experts.tuning import Cut, Problem, cut_of, power
from janus.experts.workspace import workspace_of

if TYPE_CHECKING:
    from janus.experts.slots import ExpertSlots

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
STORED = {torch.int8: ("int8", 1), torch.float8_e4m3fn: ("fp8", 128)}  # name, outputs that share a scale
MAX_SLOTS, MAX_CHOICES = 4096, 16
FOUND_BY_ALL = 64  # entries up to which every program finds the tiles itself: a square of comparisons
SUMMED_BY_LAST = 64  # tokens up to which the last program of a block of columns adds up
PASS_BYTES = 512 << 20  # of workspace; more tokens than fit it are run in turns
TOKENS_SUMMED, COLUMNS_SUMMED = 4, 256  # by a program of the kernel that adds up many


def why_not(slots: ExpertSlots) -> str:
    """Why the kernels cannot run these slots; empty when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    layout, device = slots.layout, slots.device
    stored = slots.get_parameter("down_proj").dtype
    if device.type == "cpu" and not interpreted():
        return "it runs on a GPU (or on the CPU with TRITON_INTERPRET=1 set before triton is imported)"
    if device.type not in ("cpu", "cuda"):
        return f"it runs on NVIDIA GPUs, these slots are on {device}"
    if slots.dtype not in DTYPES or (stored != slots.dtype and stored not in STORED):
        return f"it takes {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}, int8 and fp8, not {stored}"
    if slots.num_slots > MAX_SLOTS:
        return f"it takes at most {MAX_SLOTS} slots, these are {slots.num_slots}"
    known = {layout.up, "down_proj", f"{layout.up}_bias", "down_proj_bias"}
    if not set(layout.shapes) <= known:
        return f"it knows two projections and their biases, this layout has {sorted(set(layout.shapes) - known)}"
    if not all(slots.get_parameter(name).is_contiguous() for name in layout.shapes):
        return "every parameter must be contiguous"
    needed = (8, 9) if stored == torch.float8_e4m3fn else (8, 0)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < needed:
        return f"{stored} needs a GPU of compute capability {needed[0]}.{needed[1]}"
    return ""


def make(slots: ExpertSlots) -> TritonEngine:
    """The engine of these slots."""
    return TritonEngine(slots)


def interpreted() -> bool:
    """Was triton imported as an interpreter?"""
    kernel: Any = _kernel()
    return not isinstance(kernel.up, kernel.triton.JITFunction)


class TritonEngine:
    """Slots run by the kernels of `kernel`; results do not depend on timing, and ids are never read on the host.

    A call can be captured in a CUDA graph once a batch of its size has run outside: the workspace grows to it then. All
    engines of a device share one workspace; calls in several streams wait for each other.

    Args:
        slots: to run; their parameters are looked up at every call, so that they may be replaced.
        cut: how the work is cut, instead of the tuning table's cut for each batch.

    Raises:
        JanusError: ``experts.limit`` (more than 16 choices of a token), ``experts.workspace`` (in a capture).
    """

    def __init__(self, slots: ExpertSlots, cut: Cut | None = None) -> None:
        self.slots, self._cut = slots, cut
        layout = slots.layout
        self.up, self.pair = layout.up, 2 if layout.has_gate else 1
        self.H, self.F = layout.hidden_size, layout.width
        self.activation = recognise(layout)
        stored = slots.get_parameter("down_proj").dtype
        self.form, self._share = STORED.get(stored, (str(slots.dtype).removeprefix("torch."), 0))
        self._workspace = workspace_of(slots.device)
        self._capability, self._processors, self._shared = _device(slots.device)

    @property
    def workspace_bytes(self) -> int:
        """Memory held between calls, shared by all engines of the device."""
        return self._workspace.bytes

    def reserve(self, max_tokens: int, top_k: int) -> None:
        """Make the workspace large enough for batches of up to `max_tokens` tokens of `top_k` choices."""
        tokens = min(max_tokens, self._most_tokens(top_k))
        self._take(tokens, top_k, self._cut_for(tokens, top_k))

    def __call__(self, x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """As `ExpertSlots.forward`."""
        T, K = slots_TK.shape
        if K > MAX_CHOICES:
            raise JanusError(
                "experts.limit", f"a token has at most {MAX_CHOICES} choices on a GPU, got {K}; use compute='eager'"
            )
        y_TH = torch.empty_like(x_TH, memory_format=torch.contiguous_format)
        if T == 0 or K == 0:
            return y_TH.zero_()
        x_TH, slots_TK, weights_TK = x_TH.contiguous(), slots_TK.contiguous(), weights_TK.contiguous()
        most = self._most_tokens(K)
        with torch.cuda.device(x_TH.device) if x_TH.is_cuda else contextlib.nullcontext():
            for t in range(0, T, most):
                part = slice(t, t + most)
                self._run(x_TH[part], slots_TK[part], weights_TK[part], y_TH[part])
        return y_TH

    def _run(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, y: torch.Tensor) -> None:
        """One pass: the tiles, the two projections, the sum."""
        T, K = ids.shape
        n, S, cut = T * K, self.slots.num_slots, self._cut_for(T, K)
        cap = _most_tiles(n, S, cut.rows)
        plan, order, hidden, partial = self._take(T, K, cut)
        if n > FOUND_BY_ALL:
            _kernel().sort[(min(S, n),)](
                ids, plan, order, n, S, cap, SP=max(32, power(S)), BM=cut.rows, BLOCK=1024, num_warps=4
            )
        # entries of a slot are hardly ever more than tokens: programs walk on to what this grid leaves out
        tiles = min(cap, min(S, n) * -(-T // cut.rows))
        self._up(x, hidden, ids, plan, order, cut, tiles)
        if self.activation is None:
            hidden = self.slots.layout.activate(hidden).contiguous()
        self._down(hidden, weights, partial, y, ids, plan, order, cut, tiles)

    def _up(
        self, x: torch.Tensor, hidden: torch.Tensor, ids: torch.Tensor, plan: torch.Tensor, order: torch.Tensor,
        cut: Cut, tiles: int,
    ) -> None:  # fmt: skip
        w, scale, bias = self._parameters(self.up, x)
        n, S, fixed = ids.numel(), self.slots.num_slots, self.up_constants(*ids.shape, cut)
        _kernel().up[(tiles * -(-self.F // fixed["BN"]),)](
            x, w, scale, bias, hidden, ids, plan, order, n, S, _most_tiles(n, S, cut.rows), **fixed,
            num_warps=cut.up.warps, num_stages=cut.up.stages,
        )  # fmt: skip

    def _down(
        self, hidden: torch.Tensor, weights: torch.Tensor, partial: torch.Tensor, y: torch.Tensor, ids: torch.Tensor,
        plan: torch.Tensor, order: torch.Tensor, cut: Cut, tiles: int,
    ) -> None:  # fmt: skip
        w, scale, bias = self._parameters("down_proj", y)
        n, S, (T, K), fixed = ids.numel(), self.slots.num_slots, ids.shape, self.down_constants(*ids.shape, cut)
        _kernel().down[(tiles * -(-self.H // fixed["BN"]) * cut.split,)](
            hidden, w, scale, bias, weights, partial, y, self._workspace.arrived, ids, plan, order,
            n, S, _most_tiles(n, S, cut.rows), **fixed, num_warps=cut.down.warps, num_stages=cut.down.stages,
        )  # fmt: skip
        if not fixed["SUMS"]:
            BN = min(COLUMNS_SUMMED, power(self.H))
            _kernel().combine[(-(-T // TOKENS_SUMMED), -(-self.H // BN))](
                partial, ids, y, n, S, K=K, H=self.H, SPLIT=cut.split, BT=TOKENS_SUMMED, BN=BN, num_warps=4
            )

    def up_constants(self, T: int, K: int, cut: Cut) -> dict[str, Any]:
        """Compile-time constants of `kernel.up` for a batch."""
        act, how = self.activation, cut.up
        formula: dict[str, Any] = {"KIND": "", "ALPHA": 1.0, "CLAMP": "", "LIMIT": 0.0, "SHIFT": 0.0}
        if act is not None:
            formula = {"KIND": act.kind, "ALPHA": act.alpha, "CLAMP": act.clamp, "SHIFT": act.shift}
            formula["LIMIT"] = act.limit if act.clamp else 0.0
        formula |= {"GATED": self.pair == 2, "INTERLEAVED": act is not None and act.interleaved}
        return self._constants(T, K, cut) | formula | {
            "BN": how.columns // self.pair, "BK": how.depth, "STAGES": how.stages,
        }  # fmt: skip

    def down_constants(self, T: int, K: int, cut: Cut) -> dict[str, Any]:
        """Compile-time constants of `kernel.down` for a batch."""
        how = cut.down
        sums = {"SPLIT": cut.split, "SUMS": T <= SUMMED_BY_LAST, "BT": min(16, power(T))}
        return self._constants(T, K, cut) | sums | {"BN": how.columns, "BK": how.depth, "STAGES": how.stages}

    def _constants(self, T: int, K: int, cut: Cut) -> dict[str, Any]:
        layout, found = self.slots.layout, T * K <= FOUND_BY_ALL
        return {
            "K": K, "H": self.H, "F": self.F, "TRANSPOSED": layout.is_transposed, "BIAS": layout.has_bias,
            "BO": self._share, "NP": max(16, power(T * K)) if found else 0, "BM": cut.rows, "GROUP": cut.group,
        }  # fmt: skip

    def _parameters(self, name: str, absent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(weights, scales, bias) of a projection; `absent` stands for what it does not have."""
        slots: Any = self.slots
        scale = getattr(slots, f"{name}_scale") if self._share else absent
        return slots.get_parameter(name), scale, getattr(slots, f"{name}_bias") if slots.layout.has_bias else absent

    def _take(self, T: int, K: int, cut: Cut) -> list[torch.Tensor]:
        """Plan, order, what stands between the projections, and parts of sums."""
        n, S, dtype = T * K, self.slots.num_slots, self.slots.dtype
        width = self.F if self.activation is not None else self.F * self.pair
        plan = ((1 + 3 * _most_tiles(n, S, cut.rows),), torch.int32)
        return self._workspace.take(
            plan, ((n,), torch.int32), ((n, width), dtype), ((cut.split, n, self.H), torch.float32)
        )

    def _most_tokens(self, K: int) -> int:
        """Tokens of one pass."""
        return max(SUMMED_BY_LAST, PASS_BYTES // (K * (4 * self.H + 4 * self.F)))

    def _cut_for(self, T: int, K: int) -> Cut:
        if self._cut is not None:
            return self._cut
        item, stored = self.slots.dtype.itemsize, self.slots.get_parameter("down_proj").dtype.itemsize
        problem = Problem(
            T, K, self.slots.num_slots, self.H, self.F, item, stored, self.pair, self._processors, self._shared
        )
        return cut_of(problem, self._capability, self.form)


def _most_tiles(n: int, S: int, rows: int) -> int:
    """Tiles when as many slots as can be are active, and the rest of the entries fill whole ones."""
    active = min(n, S)
    return active + (n - active) // rows


def _device(device: torch.device) -> tuple[str, int, int]:
    """(compute capability, multiprocessors, bytes of shared memory a program may have)."""
    if device.type != "cuda":
        return "interpreter", 2, 227 << 10
    properties: Any = torch.cuda.get_device_properties(device)
    capability = f"{properties.major}.{properties.minor}"
    return capability, properties.multi_processor_count, properties.shared_memory_per_block_optin


def _kernel() -> Any:
    return importlib.import_module("janus.experts.kernel")  # imports triton
