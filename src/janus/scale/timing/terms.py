"""The terms of a step: what a batch activates, what is assumed of the hardware, and the parts a step adds up from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

from janus.errors import JanusError
from janus.scale.hardware import positive


class Activated(NamedTuple):
    """What a batch asks of the expert pool, expected values per layer."""

    a_max: float
    """Distinct experts on the busiest instance."""
    tokens: float
    """Routed tokens on the instance with the most (not always the same instance)."""


class Activation(Protocol):
    """Where the latency model asks how many experts a batch activates; `ActivationTable` is one."""

    def at(self, n_e: int, B: float) -> Activated:
        """Expected activation of a batch of `B` tokens on `n_e` expert instances."""
        ...


@dataclass(frozen=True)
class Efficiency:
    """Assumptions that turn datasheet peaks into times; every one is a plain number to replace by a measurement.

    Args:
        memory: share of the peak memory bandwidth a weight or cache read reaches. 0.83: slope of a measured fp8 MoE
            decode on H200 (11.04 us per 44.0 MB expert).
        compute: share of the peak FLOP/s of a large matrix product. 0.4: least mean error over the measured MLA module
            of DeepSeek-V3 on H200 with one kernel (fa3, 92 points); checked on another (flashinfer, 91 points).
        attention_us: fixed time of one attention layer (its dozen kernels), microseconds. 45: measured MLA module on
            H200 at b = 1 (92 us) minus its weight read.
        moe_us: fixed time of one expert layer (gate, balance, quantize, permute), microseconds. 31: intercept of the
            same MoE table.
        dense_us: fixed time of a dense or shared feed-forward part, microseconds.
        step_us: fixed time of one step outside the layers (launch, sampling, bookkeeping), microseconds.
        sampling_passes: how often a step reads or writes its float32 logits after the output head (temperature,
            softmax, top-k or top-p, draw).
    """

    memory: float = 0.83
    compute: float = 0.4
    attention_us: float = 45.0
    moe_us: float = 31.0
    dense_us: float = 10.0
    step_us: float = 1000.0
    sampling_passes: float = 4.0

    def __post_init__(self) -> None:
        for field in fields(self):
            positive(getattr(self, field.name), f"Efficiency.{field.name}", "latency.range")
        if max(self.memory, self.compute) > 1:
            raise JanusError("latency.range", f"memory and compute are shares of a peak, at most 1; got {self}")


@dataclass(frozen=True)
class Breakdown:
    """One step in milliseconds, summed over layers; `tpot` is their sum less what runs at the same time.

    Args:
        attention: attention of all layers, and the shared experts, which run on the attention side.
        moe: routed experts of all MoE layers.
        comm: dispatch and combine of all MoE layers.
        other: dense layers, output head, sampling, host.
        overlap: shared experts' time hidden behind the exchange and the routed experts.

    Example:
        >>> Breakdown(attention=4, moe=5, comm=2, other=1, overlap=1).tpot
        11
    """

    attention: float
    moe: float
    comm: float
    other: float
    overlap: float

    @property
    def tpot(self) -> float:
        """Milliseconds per step, and so per output token of every request in the batch."""
        return self.attention + self.moe + self.comm + self.other - self.overlap
