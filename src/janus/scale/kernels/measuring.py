"""Measure the machine at hand with torch: bandwidth, matrix rate, launch, decode attention, experts."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from janus.errors import JanusError
from janus.scale.hardware import Hardware
from janus.scale.kernels.fitted import KernelSet, attention_features, moe_features
from janus.scale.kernels.fitting import Kernel, fit
from janus.scale.kernels.forms import FORMS
from janus.scale.kernels.groups import Group
from janus.scale.model import ModelSpec

CODE = "latency.measure"
BATCHES, CONTEXTS = (1, 4, 16, 64, 256), (64, 512, 4096, 32768)
EXPERTS, ROWS = (1, 2, 4, 8, 16, 32), (1, 4, 32)  # activated experts, tokens of each
MEMORY_SHARE = 0.4  # of what is free; the other half of a product has to fit too
CPU_BYTES = 2**29  # a CPU's buffers: more takes long and says the same
WARM_UPS, LEAST, MOST = 1, 3, 50  # repetitions
KERNELS = {"attention_us": 12, "moe_us": 8, "dense_us": 3}  # launches in a fixed time, where the engine replays none


class Measured(NamedTuple):
    """What was measured.

    Attributes:
        shares: fields of `Efficiency`: shares of the named card's peaks, and fixed times in microseconds.
        kernels: fitted to the measured points; may be empty.
        device: in words, for the provenance.
    """

    shares: dict[str, float]
    kernels: KernelSet
    device: str


@dataclass
class Bench:
    """A device of torch and the time left on it."""

    torch: Any
    device: Any
    ends: float
    progress: Callable[[float], None]
    budget_s: float

    @classmethod
    def on(cls, device: str, budget_s: float, progress: Callable[[float], None] | None) -> Bench:
        """Open a device: ``"auto"`` takes CUDA where there is one.

        Raises:
            JanusError: ``latency.measure`` without torch or without that device.
        """
        try:
            torch = importlib.import_module("torch")
        except ModuleNotFoundError:
            raise JanusError(CODE, "measuring needs torch, which is not installed: pip install torch") from None
        has_cuda = torch.cuda.is_available()
        name = ("cuda" if has_cuda else "cpu") if device == "auto" else device
        try:
            found = torch.device(name)
        except (RuntimeError, TypeError):
            raise JanusError(CODE, f"device must be auto, cpu, cuda or cuda:N; got {device!r}") from None
        if found.type not in ("cpu", "cuda") or (found.type == "cuda" and not has_cuda):
            raise JanusError(CODE, f"device must be one that is here: cpu{', cuda' * has_cuda}; got {device!r}")
        if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
            raise JanusError(CODE, f"this machine has {torch.cuda.device_count()} CUDA devices; got {device!r}")
        return cls(torch, found, time.monotonic() + budget_s, progress or (lambda share: None), budget_s)

    @property
    def name(self) -> str:
        """The device and the version of torch, in words."""
        card = self.torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "the CPU"
        return f"{card}, torch {self.torch.__version__.split('+')[0]}"

    @property
    def left_s(self) -> float:
        """Seconds of the budget left."""
        return self.ends - time.monotonic()

    @property
    def bytes(self) -> float:
        """Memory a measurement may take."""
        if self.device.type == "cpu":
            return CPU_BYTES
        return MEMORY_SHARE * self.torch.cuda.mem_get_info(self.device)[0]

    def filled(self, *shape: int) -> Any:
        """A bf16 tensor; its values do not change what a product costs, drawing them would cost more."""
        return self.torch.full(shape, 0.01, device=self.device, dtype=self.torch.bfloat16)

    def median_us(self, call: Callable[[], Any], share: float = 0.02) -> float:
        """Median microseconds of one call, within `share` of the budget but for the least repetitions."""
        for _ in range(WARM_UPS):
            call()
        took, ends = [], time.monotonic() + share * self.budget_s
        while len(took) < LEAST or (len(took) < MOST and time.monotonic() < ends):
            took.append(self._once_us(call))
        self.progress(min(1.0, 1 - self.left_s / self.budget_s))
        return float(np.median(took))

    def _once_us(self, call: Callable[[], Any]) -> float:
        if self.device.type == "cpu":
            started = time.perf_counter()
            call()
            return 1e6 * (time.perf_counter() - started)
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end)


def measure(
    model: ModelSpec, gpu: Hardware, device: str, budget_s: float, progress: Callable[[float], None] | None
) -> Measured:
    """Measure `device`, taken for a `gpu`, at the shapes of `model`.

    Raises:
        JanusError: ``latency.measure``.
    """
    bench = Bench.on(device, budget_s, progress)
    with bench.torch.inference_mode():
        launch = _launch_us(bench)
        shares = {name: count * launch for name, count in KERNELS.items()}
        shares["memory"] = min(1.0, _bytes_per_s(bench) / gpu.memory_bytes_per_s)
        shares["compute"] = min(1.0, _flops(bench) / gpu.bf16_flops)
        kernels = [*_experts(bench, model, gpu), *_attention(bench, model, gpu)]
    return Measured(shares, KernelSet(tuple(kernels), gpu), bench.name)


def _launch_us(bench: Bench) -> float:
    x = bench.filled(16)

    def many() -> None:
        for _ in range(20):
            x.add_(1.0)

    return bench.median_us(many) / 20


def _bytes_per_s(bench: Bench) -> float:
    """A copy reads and writes every byte."""
    size = int(min(bench.bytes / 4, 2**30))
    source = bench.torch.zeros(size, device=bench.device, dtype=bench.torch.uint8)
    target = bench.torch.empty_like(source)
    return 2 * size / (1e-6 * bench.median_us(lambda: target.copy_(source)))


def _flops(bench: Bench) -> float:
    n = 8192 if bench.device.type == "cuda" else 512
    a, b = bench.filled(n, n), bench.filled(n, n)
    return 2 * n**3 / (1e-6 * bench.median_us(lambda: a @ b))


def _experts(bench: Bench, model: ModelSpec, gpu: Hardware) -> Iterator[Kernel]:
    """Batched products at an expert's shape, bf16; a model of another dtype keeps the roofline with the shares above."""
    if model.expert_dtype != "bf16":
        return
    H, F = model.hidden, model.expert_width
    most = int(bench.bytes / (2 * 3 * H * F))
    if not most:
        return
    sizes = [n for n in EXPERTS if n <= most]
    up, down = bench.filled(sizes[-1], H, 2 * F), bench.filled(sizes[-1], F, H)
    act = bench.torch.nn.functional.silu
    points, times = [], []
    for experts, rows in sorted(product(sizes, ROWS), key=prod):  # the cheap ones first, should time run out
        if bench.left_s < 0.4 * bench.budget_s:  # the rest is attention's
            break
        x = bench.filled(experts, rows, H)

        def layer(x: Any = x, experts: int = experts) -> Any:
            gate, value = bench.torch.bmm(x, up[:experts]).chunk(2, dim=-1)
            return bench.torch.bmm(act(gate) * value, down[:experts])

        points.append(moe_features(model, experts, experts * rows) | {"skew": 1.0})
        times.append(bench.median_us(layer))
    key: dict[str, float | str] = {"dtype": "bf16", "hidden": H, "width": F}
    yield from _fitted("moe_decode", f"bmm on {bench.name}", "moe", key, points, times, _peaks(gpu))


def _attention(bench: Bench, model: ModelSpec, gpu: Hardware) -> Iterator[Kernel]:
    """torch's scaled dot product of one new token per request; an MLA cache is one key/value head, absorbed form."""
    a = model.attention
    if a.index_heads or model.kv_dtype != "bf16":
        return
    mla = a.kind == "mla"
    heads, keys, values = (1, a.kv_rank + a.rope_dim, a.kv_rank) if mla else (a.kv_heads, a.head_dim, a.v_head_dim)
    attend = bench.torch.nn.functional.scaled_dot_product_attention
    points, times = [], []
    for b, s in sorted(product(BATCHES, CONTEXTS), key=prod):
        if bench.left_s < 0:
            break
        # without a fused kernel, keys and values are repeated for every head
        if 2 * b * s * a.heads * (keys + values) > bench.bytes:
            continue
        q, k, v = bench.filled(b, a.heads, 1, keys), bench.filled(b, heads, s, keys), bench.filled(b, heads, s, values)
        points.append(attention_features(model, b, s))
        times.append(bench.median_us(lambda q=q, k=k, v=v: attend(q, k, v, enable_gqa=heads != a.heads)))
    key: dict[str, float | str] = {
        "kv_bytes": model.kv_bytes_per_token(),
        "token_flops": float(a.flops_per_cached_token),
    }
    yield from _fitted("decode", f"scaled dot product on {bench.name}", "decode", key, points, times, _peaks(gpu))


def _peaks(gpu: Hardware) -> dict[str, float]:
    tb_per_s = gpu.memory_bytes_per_s / 1e12
    return {"memory_tb_per_s": tb_per_s, "rows_tb_per_s": tb_per_s, "compute_tflops": gpu.bf16_flops / 1e12}


def _fitted(
    kind: str,
    source: str,
    form: str,
    key: dict[str, float | str],
    points: list[dict[str, float]],
    times: list[float],
    most: dict[str, float],
) -> Iterable[Kernel]:
    """One kernel, or none when the budget left too few points."""
    if len(times) < 2 * len(FORMS[form].start):
        return ()
    names = {*FORMS[form].features, *FORMS[form].coordinates}
    x = {name: np.array([point[name] for point in points]) for name in names}
    return (fit(Group(kind, source, form, key, x, np.array(times), most)),)
