"""Chosen experts on a GPU: what the kernels can run, and the two to four launches of a call.

Under TRITON_INTERPRET=1 the same code runs on CPU tensors, slowly: that is how it is tested where there is no GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
from typing import TYPE_CHECKING, Any

import torch

from janus.errors import JanusError
from janus.experts.activation import recognise
from janus.experts.launches import SUMMED_BY_LAST, Launches, Weights, launches, needs
from janus.experts.tuning import Cut, Problem, cut_of
from janus.experts.workspace import workspace_of

if TYPE_CHECKING:
    from janus.experts.slots import ExpertSlots

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
STORED = {torch.int8: ("int8", 1), torch.float8_e4m3fn: ("fp8", 128)}  # name, outputs that share a scale
MAX_SLOTS, MAX_CHOICES = 4096, 16
PASS_BYTES = 512 << 20  # of workspace; more tokens than fit it are run in turns


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

    A call can be captured in a CUDA graph once a batch of its size has run outside, or `reserve` was called: the workspace
    grows to it then. All engines of a device share one workspace; calls in several streams wait for each other.

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
        self._settle()

    def _settle(self) -> None:
        """Look at where the slots are and what they hold: again when they have moved."""
        self._at = self.slots.device, self.slots.dtype
        stored = self.slots.get_parameter("down_proj").dtype
        self.form, share = STORED.get(stored, (str(self.slots.dtype).removeprefix("torch."), 0))
        self._weights = Weights(self.slots.layout.is_transposed, self.slots.layout.has_bias, share)
        self._workspace = workspace_of(self.slots.device)
        self._capability, self._processors, self._shared = _device(self.slots.device)
        self._launches: dict[tuple[int, int], Launches] = {}

    @property
    def held_bytes(self) -> int:
        """Memory held between calls, shared by all engines of the device."""
        return self._workspace.bytes

    def needed(self, T: int, K: int) -> int:
        """As `Engine.needed`; part of what is held once a batch of that size has run."""
        parts = needs(self.launches(min(T, self._most_tokens(K)), K), self.slots.dtype)
        return sum(math.prod(shape) * dtype.itemsize + 256 for shape, dtype in parts)

    def reserve(self, max_tokens: int, top_k: int) -> None:
        """Make the workspace large enough for batches of `max_tokens` tokens of `top_k` choices, and for smaller ones."""
        for tokens in {1 << i for i in range(max_tokens.bit_length())} | {max_tokens}:
            made = self.launches(min(tokens, self._most_tokens(top_k)), top_k)
            self._workspace.take(*needs(made, self.slots.dtype))

    def compile(self, T: int, K: int) -> None:
        """Compile what a batch of T tokens with K int64 choices and float32 weights launches, without running it."""
        made, kernel, x, count = self.launches(T, K), _kernel(), self.slots.dtype, torch.int32
        stored, scale = self.slots.get_parameter("down_proj").dtype, torch.float32 if self._weights.share else x
        tiles = (torch.int64, count, count, T * K, self.slots.num_slots, made.cap)
        arguments: dict[str, tuple[Any, ...]] = {
            "up": (x, stored, scale, x, x, *tiles),
            "down": (x, stored, scale, x, torch.float32, torch.float32, x, count, *tiles),
        }
        if made.sorts:
            arguments["sort"] = tiles
        if made.combines:
            arguments["combine"] = (torch.float32, torch.int64, x, T * K, self.slots.num_slots)
        for name, given in arguments.items():
            getattr(kernel, name).warmup(*given, grid=made.grids[name], **made.fixed[name])

    def __call__(self, x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """As `ExpertSlots.forward`."""
        T, K = slots_TK.shape
        if self._at != (self.slots.device, self.slots.dtype):
            self._settle()
        if K > MAX_CHOICES:
            raise JanusError(
                "experts.limit", f"a token has at most {MAX_CHOICES} choices on a GPU, got {K}; use compute='eager'"
            )
        y_TH = torch.empty_like(x_TH, memory_format=torch.contiguous_format)
        if T == 0 or K == 0:
            return y_TH.zero_()
        x_TH, slots_TK, weights_TK = x_TH.contiguous(), slots_TK.contiguous(), weights_TK.contiguous()
        most = self._most_tokens(K)
        # Triton launches on the current device, which need not be ours
        with torch.cuda.device(x_TH.device) if x_TH.is_cuda else contextlib.nullcontext():
            for t in range(0, T, most):
                part = slice(t, t + most)
                self._run(x_TH[part], slots_TK[part], weights_TK[part], y_TH[part])
        return y_TH

    def _run(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, y: torch.Tensor) -> None:
        """One pass: the tiles, the two projections, the sum."""
        made, n, S, kernel = self.launches(*ids.shape), ids.numel(), self.slots.num_slots, _kernel()
        plan, order, hidden, partial = self._workspace.take(*needs(made, self.slots.dtype))
        tiles = (ids, plan, order, n, S, made.cap)
        if made.sorts:
            kernel.sort[made.grids["sort"]](*tiles, **made.fixed["sort"])
        kernel.up[made.grids["up"]](x, *self._parameters(self.up, x), hidden, *tiles, **made.fixed["up"])
        if self.activation is None:
            hidden = self.slots.layout.activate(hidden).contiguous()
        kernel.down[made.grids["down"]](
            hidden, *self._parameters("down_proj", y), weights, partial, y, self._workspace.arrived, *tiles,
            **made.fixed["down"],
        )  # fmt: skip
        if made.combines:
            kernel.combine[made.grids["combine"]](partial, ids, y, n, S, **made.fixed["combine"])

    def _parameters(self, name: str, absent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(weights, scales, bias) of a projection; `absent` stands for what it does not have."""
        get = self.slots.get_parameter
        scale = get(f"{name}_scale") if self._weights.share else absent
        return get(name), scale, get(f"{name}_bias") if self._weights.biased else absent

    def _most_tokens(self, K: int) -> int:
        """Tokens of one pass."""
        return max(SUMMED_BY_LAST, PASS_BYTES // (4 * K * (self.H + self.F)))

    def launches(self, T: int, K: int) -> Launches:
        """How a batch of T tokens with K choices is run, made once."""
        if (T, K) not in self._launches:
            item, stored = self.slots.dtype.itemsize, self.slots.get_parameter("down_proj").dtype.itemsize
            problem = Problem(
                T, K, self.slots.num_slots, self.H, self.F, item, stored, self.pair, self._processors, self._shared
            )
            cut = self._cut or cut_of(problem, self._capability, self.form)
            self._launches[T, K] = launches(problem, self._weights, self.activation, cut)
        return self._launches[T, K]


def _device(device: torch.device) -> tuple[str, int, int]:
    """(compute capability, multiprocessors, bytes of shared memory a program may have)."""
    if device.type != "cuda":
        return "interpreter", 2, 227 << 10
    properties: Any = torch.cuda.get_device_properties(device)
    capability = f"{properties.major}.{properties.minor}"
    return capability, properties.multi_processor_count, properties.shared_memory_per_block_optin


def _kernel() -> Any:
    return importlib.import_module("janus.experts.kernel")  # imports triton
