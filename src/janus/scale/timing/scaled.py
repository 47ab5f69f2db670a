"""A latency model with what whole steps taught on top: a factor on everything, and work per request and per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.scale.hardware import Hardware
from janus.scale.timing.exchange import ExchangeCost, Link
from janus.scale.timing.latency import Activated, LatencyModel


@dataclass(frozen=True)
class StepTerms:
    """The three fitted numbers; as they stand, they change nothing.

    Args:
        scale: factor on every part of the step.
        request_us: microseconds per request and layer on an attention instance.
        row_us: microseconds per row of the whole batch and MoE layer on an expert instance.
    """

    scale: float = 1.0
    request_us: float = 0.0
    row_us: float = 0.0


class ScaledLatencyModel(LatencyModel):
    """A latency model with `StepTerms` on top; what `fitted_to` returns, and what ``plan(latency=...)`` takes.

    `scale` and `request_us` hold for a colocated deployment too, which runs the same kernels for the same requests;
    `row_us` does not, since its rows travel only where they are needed.

    Args:
        base: the model that is scaled.
        terms: see `StepTerms`.
        points: names of what they were fitted to, for people; empty when they were set by hand.
    """

    def __init__(self, base: LatencyModel, terms: StepTerms, points: Sequence[str] = ()) -> None:
        cost, floor = ScaledExchange(base.cost, terms.scale), terms.scale * base.comm_floor_us
        super().__init__(base.model, base.cluster, base.efficiency, cost, base.expert_cluster, comm_floor_us=floor)
        self.base, self.terms, self.points = base, terms, tuple(points)

    def pool_moe_us(self, active: Activated, B: float) -> float:
        """As `LatencyModel.pool_moe_us`, scaled, with `row_us`."""
        return self.moe_layer_us(active, B) + self.terms.row_us * B

    def op_us(self, bytes_: float, flops: float, dtype: str, gpu: Hardware | None = None) -> float:
        """As `LatencyModel.op_us`, scaled."""
        return self.terms.scale * self.base.op_us(bytes_, flops, dtype, gpu)

    @property
    def provenance(self) -> dict[str, str]:
        """As `LatencyModel.provenance`, each part with what whole steps made of it."""
        return {part: f"{said}; {self.explain()}" for part, said in self.base.provenance.items()}

    def attention_layer_us(self, b: float, s_ctx: float) -> float:
        """As `LatencyModel.attention_layer_us`, scaled, with `request_us`."""
        return self.terms.scale * self.base.attention_layer_us(b, s_ctx) + self.terms.request_us * b

    def moe_layer_us(self, active: Activated, B: float) -> float:
        """As `LatencyModel.moe_layer_us`, scaled; without `row_us`, which belongs to the split."""
        return self.terms.scale * self.base.moe_layer_us(active, B)

    def attention_side_us(self, b: int, s_ctx: float) -> tuple[float, float, float]:
        """As `LatencyModel.attention_side_us`, scaled, with `request_us`."""
        attention, shared, other = (self.terms.scale * us for us in self.base.attention_side_us(b, s_ctx))
        return attention + self.terms.request_us * b, shared, other

    def explain(self) -> str:
        """The terms and what they were fitted to, in one line.

        Example:
            >>> from janus.scale import Cluster, ModelSpec
            >>> base = LatencyModel.roofline(ModelSpec.from_config("deepseek-v2"), Cluster("h100-sxm"))
            >>> ScaledLatencyModel(base, StepTerms(1.8, 4.3)).explain()
            '1.80 x the latency model, 4.30 us per request and layer, 0.00 us per row and MoE layer; set by hand'
        """
        t = self.terms
        whence = f"fitted to {', '.join(self.points)}" if self.points else "set by hand"
        each = f"{t.request_us:.2f} us per request and layer, {t.row_us:.2f} us per row and MoE layer"
        return f"{t.scale:.2f} x the latency model, {each}; {whence}"


class ScaledExchange(ExchangeCost):
    """An exchange whose every message takes `scale` times as long."""

    def __init__(self, base: ExchangeCost, scale: float) -> None:
        super().__init__(base.model, base.gpus_per_node, base.expert_gpus_per_node)
        self.base, self.scale = base, scale

    @property
    def phase_s(self) -> float:
        """As `ExchangeCost.phase_s`, scaled."""
        return self.scale * self.base.phase_s

    def link(self, name: str, row_bytes: int) -> Link:
        """As `ExchangeCost.link`, scaled."""
        link = self.base.link(name, row_bytes)
        return Link(self.scale * link.alpha, self.scale * link.beta)

    def layer_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> float:
        """As `ExchangeCost.layer_s`, scaled."""
        return self.scale * self.base.layer_s(n_a, n_e, B, row_bytes)

    def layers_s(
        self, n_a: npt.ArrayLike, n_e: npt.ArrayLike, B: npt.ArrayLike, row_bytes: int
    ) -> npt.NDArray[np.float64]:
        """As `ExchangeCost.layers_s`, scaled."""
        return self.scale * self.base.layers_s(n_a, n_e, B, row_bytes)

    def listed_s(self, n_a: int, n_e: int, B: int, row_bytes: int) -> float:
        """As `ExchangeCost.listed_s`, scaled."""
        return self.scale * self.base.listed_s(n_a, n_e, B, row_bytes)
