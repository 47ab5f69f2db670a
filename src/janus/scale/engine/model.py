"""How long one step of a colocated engine takes: tensor, data, expert and pipeline parallelism, prompts among decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.scale.engine.config import EngineConfig
from janus.scale.engine.fit import fit_log_positive
from janus.scale.engine.work import Work, borrowed_popularity, decode_work, prefill_work, touched
from janus.scale.hardware import positive
from janus.types.drawing import inclusion, resample_popularity


@dataclass(frozen=True)
class EngineCoefficients:
    """What turns work at datasheet peaks into time; the defaults come from kernel tables, not from any serving run.

    Args:
        memory: share of the peak memory bandwidth. 0.83: `Efficiency.memory`. A fit above 1 says that the engine did less than
            is counted, as with speculative decoding.
        compute: share of the peak FLOP/s. 0.4: `Efficiency.compute`.
        link: share of the peak link bandwidth. 0.5: measured NCCL all-reduces of 64 MB and more on H200.
        layer_us: fixed time of a layer, all its kernels, us. 76: `Efficiency.attention_us` + `Efficiency.moe_us`.
        message_us: fixed time of a collective, us. 6: measured NCCL all-reduces of up to 4 KB over two H200; engines' own
            kernels keep it about there over 4 and 8, where NCCL takes 10 and 16.
        step_ms: fixed time of a step outside the layers, ms. 1: `Efficiency.step_us`.

    Raises:
        JanusError: ``engine.range``.
    """

    memory: float = 0.83
    compute: float = 0.4
    link: float = 0.5
    layer_us: float = 76.0
    message_us: float = 6.0
    step_ms: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            positive(getattr(self, field.name), f"EngineCoefficients.{field.name}", "engine.range")

    @property
    def factors(self) -> npt.NDArray[np.float64]:
        """float64 [6]: what each column of `work_row` is multiplied by."""
        return np.array(astuple(self)) ** [-1, -1, -1, 1, 1, 1] * [1, 1, 1, 1e-3, 1e-3, 1]

    @classmethod
    def from_factors(cls, factors: npt.NDArray[np.float64]) -> EngineCoefficients:
        """The inverse of `factors`.

        Example:
            >>> EngineCoefficients.from_factors(EngineCoefficients().factors) == EngineCoefficients()
            True
        """
        values = (factors / [1, 1, 1, 1e-3, 1e-3, 1]) ** [-1, -1, -1, 1, 1, 1]
        return cls(*(round(float(value), 12) for value in values))


class EngineStep(NamedTuple):
    """One output token of every running request, in milliseconds."""

    attention: float
    """Weights outside the experts, output head and cache."""
    moe: float
    """Routed experts."""
    comm: float
    """Collectives, fixed times and bytes."""
    fixed: float
    """Launches of all layers, and the host's part."""
    prefill: float
    """Prompts that are worked on meanwhile, per step."""
    running: float
    """Requests that run at once (not a time)."""

    @property
    def tpot(self) -> float:
        """Mean time between the output tokens of a request, ms."""
        return self.attention + self.moe + self.comm + self.fixed + self.prefill


class EngineModel:
    """Step times of colocated engines.

    Args:
        coefficients: the defaults are a roofline; `fit` makes better ones from measurements of your engine.
        popularity: counts or shares per expert of one layer, any number of experts; default: gpt-oss-20b's recording.

    Raises:
        JanusError: ``routing.counts``.

    Example:
        >>> from janus.scale import Cluster, ModelSpec
        >>> spec = ModelSpec.from_config("gpt-oss-120b")
        >>> config = EngineConfig(spec, Cluster("h200-sxm"), batch=16, isl=1024, osl=1024, tp=4)
        >>> 5 < EngineModel().predict(config) < 10
        True
    """

    def __init__(
        self, coefficients: EngineCoefficients | None = None, popularity: Sequence[float] | None = None
    ) -> None:
        self.coefficients = coefficients or EngineCoefficients()
        self._popularity = None if popularity is None else _counts(popularity)

    @property
    def routing(self) -> str:
        """What the numbers of activated experts rest on; say it beside every result."""
        borrowed = "synthetic routing, popularity quantiles of gpt-oss-20b"
        return borrowed if self._popularity is None else "routing by the popularity given"

    def predict(self, config: EngineConfig) -> float:
        """TPOT of `config`, ms; see `step` for its parts.

        Raises:
            JanusError: ``engine.memory``.
        """
        return self.step(config).tpot

    def step(self, config: EngineConfig) -> EngineStep:
        """One step of `config` in parts.

        Raises:
            JanusError: ``engine.memory``.
        """
        running, decode, prefill = self.work(config)
        c = self.coefficients
        return EngineStep(
            attention=decode.attention_read / c.memory + decode.attention_compute / c.compute,
            moe=decode.moe_read / c.memory + decode.moe_compute / c.compute,
            comm=decode.link / c.link + decode.messages * c.message_us / 1e3,
            fixed=decode.layers * c.layer_us / 1e3 + c.step_ms,
            prefill=float(_columns(prefill) @ c.factors[:5]),
            running=running,
        )

    def work(self, config: EngineConfig) -> tuple[float, Work, Work]:
        """Requests that run, the work of their decode step, and the prompts' share of a step.

        Every output token of a request stands for isl / osl prompt tokens of its successor: with n requests running, n / osl
        prompts arrive per step.
        """
        running = config.running()
        popularity = self._inclusion(config)
        tokens = running / config.pp
        before = touched(popularity, tokens, config.ep)
        after = touched(popularity, tokens + config.isl, config.ep)
        prompts = tokens / config.osl
        return running, decode_work(config, running, before), prefill_work(config, before, after).times(prompts)

    def work_row(self, config: EngineConfig) -> npt.NDArray[np.float64]:
        """float64 [6]: the sums that `EngineCoefficients.factors` multiply; their product is TPOT in ms."""
        _, decode, prefill = self.work(config)
        return np.append(_columns(decode) + _columns(prefill), 1.0)

    @classmethod
    def fit(
        cls,
        points: Sequence[tuple[EngineConfig, float]],
        prior: EngineCoefficients | None = None,
        weight: float = 0.1,
        popularity: Sequence[float] | None = None,
    ) -> EngineModel:
        """Coefficients that explain measured TPOTs, drawn towards `prior`: three points of your engine are a good start.

        Least squares of log TPOT where errors are small, absolute errors where they are large (Huber, from 15 %), so that
        rows that measured something else do not bend the rest. A prior counts like `weight` points that respond to its
        coefficient alone: 0.1 suits a few points of one engine, 3 many points of many engines.

        Args:
            points: configuration and measured TPOT in ms.
            prior: defaults to `EngineCoefficients()`.
            weight: > 0.
            popularity: as for `EngineModel`.

        Raises:
            JanusError: ``engine.range``, ``engine.memory``.
        """
        if not points:
            raise JanusError("engine.range", "a fit needs at least one point (config, tpot_ms), got none")
        positive(weight, "weight", "engine.range")
        times = np.array([positive(tpot, "tpot_ms", "engine.range") for _, tpot in points])
        start = cls(prior, popularity)
        rows = np.stack([start.work_row(config) for config, _ in points])
        found = fit_log_positive(rows, times, start.coefficients.factors, weight)
        return cls(EngineCoefficients.from_factors(found), popularity)

    def _inclusion(self, config: EngineConfig) -> tuple[float, ...]:
        experts, top_k = config.model.experts, config.model.top_k
        if self._popularity is None:
            return borrowed_popularity(experts, top_k)
        return tuple(inclusion(resample_popularity(self._popularity, experts), top_k).tolist())


def _counts(popularity: Sequence[float]) -> tuple[float, ...]:
    try:
        counts = np.asarray(popularity, dtype=np.float64)
    except (TypeError, ValueError):
        counts = np.empty(0)
    if counts.ndim != 1 or not len(counts) or not np.isfinite(counts).all() or counts.min() < 0 or not counts.any():
        rule = "popularity must be one layer's counts per expert, finite, >= 0 and not all 0"
        raise JanusError("routing.counts", f"{rule}; got {popularity!r}")
    return tuple(counts.tolist())


def _columns(work: Work) -> npt.NDArray[np.float64]:
    read, compute = work.attention_read + work.moe_read, work.attention_compute + work.moe_compute
    return np.array([read, compute, work.link, work.layers, work.messages])
