"""What a simulation hands back: pools, demand, step times and promises kept, window by window."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from janus.scale.days.steptimes import FloatArray
from janus.scale.online.decisions import Decision
from janus.types import Slo
from janus.types.files import write_text

if TYPE_CHECKING:
    from janus.scale.days.stage import Stage
    from janus.scale.days.stepping_state import Run

DECODE_ONLY = (
    "decode only: prefill is elsewhere, a request can be decoded from its arrival, its first token is the prefill's"
)
COLUMNS = ("times_s", "n_attention", "n_experts", "gpus", "demand", "tpot_ms", "queued", "attained")


@dataclass(frozen=True)
class Window:
    """One decision window as the loops leave it.

    Args:
        time_s: its beginning.
        n_attention, n_experts: instances serving at its end.
        gpus: paid, mean over the window.
        tokens: made in it.
        tpot_ms: mean step time seen by those tokens, nan without any.
        queued: requests waiting at its end.
    """

    time_s: float
    n_attention: int
    n_experts: int
    gpus: float
    tokens: int
    tpot_ms: float
    queued: int


@dataclass(frozen=True, eq=False)
class Timeline:
    """A policy's day. W windows, N requests.

    Args:
        policy: its name.
        times_s: float64 [W], beginning of each decision window; the last ones come after the last arrival.
        n_attention: int64 [W], attention instances serving at the end of the window.
        n_experts: int64 [W], expert instances then (every GPU is both when `colocated`).
        gpus: float64 [W], GPUs paid, mean over the window: those that start up and those that drain included.
        demand: float64 [W], tokens/s that the requests arriving in the window ask of the decode pools.
        tpot_ms: float64 [W], mean step time over the tokens made in the window, nan without any.
        queued: int64 [W], requests waiting at its end.
        attained: float64 [W], share of the requests that arrived in it whose TPOT kept the SLO, nan without any.
        joined_s: float64 [N], when each request's first step began.
        finished_s: float64 [N], when its last token was out.
        request_tpot_ms: float64 [N], (finished - arrived) / (output tokens - 1): waiting counts; 0 for one token.
        gpu_hours: integral of `gpus`.
        usd_per_hour: price of a GPU-hour, None when the hardware has none.
        tokens: made in all.
        steps: model steps.
        window_s: seconds.
        slo: the objective.
        colocated: attention and experts on the same GPUs.
        efficiency: share of a GPU's work that this deployment gets done, an assumption about a baseline.
        decisions: the policy's answers, the first for time zero.
        basis: what the numbers rest on, by name.
    """

    policy: str
    times_s: FloatArray
    n_attention: npt.NDArray[np.int64]
    n_experts: npt.NDArray[np.int64]
    gpus: FloatArray
    demand: FloatArray
    tpot_ms: FloatArray
    queued: npt.NDArray[np.int64]
    attained: FloatArray
    joined_s: FloatArray
    finished_s: FloatArray
    request_tpot_ms: FloatArray
    gpu_hours: float
    usd_per_hour: float | None
    tokens: int
    steps: int
    window_s: float
    slo: Slo
    colocated: bool
    efficiency: float
    decisions: tuple[Decision, ...]
    basis: dict[str, str]

    @classmethod
    def of(
        cls, stage: Stage, policy: Any, run: Run, windows: Sequence[Window], decisions: Sequence[Decision]
    ) -> Timeline:
        """From what the loops left."""
        from janus.scale.days.stepping_state import GPU_S, STEP, TOKENS

        rows = {name: np.array([getattr(w, name) for w in windows]) for name in Window.__annotations__}
        tpot = request_tpot_ms(run.times_s, run.finished_s, run.outputs)
        W, at = len(windows), _window_of(run.times_s, stage.load.window_s, len(windows))
        arrived, kept = np.bincount(at, minlength=W), np.bincount(at, tpot <= stage.slo.tpot_ms, minlength=W)
        demand = np.zeros(W)
        demand[: len(stage.load.demand)] = stage.load.demand[:W]
        return cls(
            policy=policy.name,
            times_s=rows["time_s"],
            n_attention=rows["n_attention"],
            n_experts=rows["n_experts"],
            gpus=rows["gpus"],
            demand=demand,
            tpot_ms=rows["tpot_ms"],
            queued=rows["queued"],
            attained=np.divide(kept, arrived, out=np.full(W, np.nan), where=arrived > 0),
            joined_s=run.joined_s,
            finished_s=run.finished_s,
            request_tpot_ms=tpot,
            gpu_hours=float(run.clock[GPU_S]) / 3600,
            usd_per_hour=getattr(stage.times.problem.latency.cluster.gpu, "usd_per_hour", None),
            tokens=int(run.count[TOKENS]),
            steps=int(run.count[STEP]),
            window_s=stage.load.window_s,
            slo=stage.slo,
            colocated=bool(getattr(policy, "colocated", False)),
            efficiency=float(getattr(policy, "efficiency", 1.0)),
            decisions=tuple(decisions),
            basis=_basis(stage),
        )

    @property
    def requests(self) -> int:
        """N, all of them served."""
        return len(self.finished_s)

    @property
    def usd(self) -> float | None:
        """Price of the GPU-hours, None when the hardware has no `usd_per_hour`."""
        return None if self.usd_per_hour is None else self.gpu_hours * self.usd_per_hour

    @property
    def attainment(self) -> float:
        """Share of requests whose TPOT is at most the SLO's `tpot_ms`."""
        return float((self.request_tpot_ms <= self.slo.tpot_ms).mean())

    @property
    def kept(self) -> bool:
        """Whether the SLO's percentile of requests kept its TPOT."""
        return self.attainment * 100 >= self.slo.percentile

    def percentile_ms(self, q: float) -> float:
        """The q-th percentile (0..100) of `request_tpot_ms`."""
        return float(np.percentile(self.request_tpot_ms, q))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; per window and in all, not per request."""
        columns = {name: _plain(getattr(self, name)) for name in COLUMNS}
        names = ("policy", "requests", "tokens", "steps", "gpu_hours", "usd", "attainment", "kept", "window_s")
        tails = {f"tpot_p{q}_ms": self.percentile_ms(q) for q in (50, 95, 99)}
        return {
            "format": "janus.timeline/1",
            **{name: getattr(self, name) for name in (*names, "colocated", "efficiency")},
            **tails,
            "slo": asdict(self.slo),
            "basis": self.basis,
            **columns,
            "decisions": [_decision(d) for d in self.decisions],
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, whole or not at all.

        Raises:
            JanusError: ``scale.save`` for a path that cannot be written.
        """
        write_text(path, "scale.save", json.dumps(self.to_dict()))

    def plot(self, path: str | Path) -> None:
        """Draw pools, demand, TPOT and attainment over time to an image file. Needs matplotlib."""
        from janus.scale.pictures import draw_days

        draw_days([self], path)

    def __str__(self) -> str:
        price = "" if self.usd is None else f", {self.usd:.0f} $"
        times = f"TPOT p50 {self.percentile_ms(50):.1f} ms, p99 {self.percentile_ms(99):.1f} ms"
        kept = f"{self.attainment:.2%} within {self.slo.tpot_ms:g} ms"
        pools = f"{self.gpus.min():.0f} to {self.gpus.max():.0f} GPUs"
        lines = [f"{self.policy}: {self.gpu_hours:.1f} GPU-hours{price}; {pools}; {kept}; {times}"]
        return "\n".join(lines + [f"  {name}: {words}" for name, words in self.basis.items()])


def request_tpot_ms(times_s: FloatArray, finished_s: FloatArray, outputs: npt.NDArray[np.int64]) -> FloatArray:
    """float64 [N], ms: mean time between the output tokens of each request, the first, at its arrival, excluded.

    Example:
        >>> request_tpot_ms(np.array([1.0]), np.array([1.2]), np.array([5])).round(6).tolist()
        [50.0]
    """
    return 1e3 * (finished_s - times_s) / np.maximum(outputs - 1, 1)


def _window_of(times_s: FloatArray, window_s: float, windows: int) -> npt.NDArray[np.int64]:
    return np.minimum((times_s // window_s).astype(np.int64), windows - 1)


def _basis(stage: Stage) -> dict[str, str]:
    r, latency = stage.requests, stage.times.problem.latency
    arrivals = r.source or "a request trace without a source"
    provenance: dict[str, str] = getattr(latency, "provenance", None) or {}
    sources = sorted(set(provenance.values())) or [f"roofline of {latency.cluster.gpu.name}"]
    told = stage.forecast if isinstance(stage.forecast, str) else "a function of past demands"
    forecasts = {
        "last": "the last window's demand",
        "recent": "the largest demand of the last four windows",
        "oracle": "oracle: the coming window's true demand",
    }
    return {
        "scope": DECODE_ONLY,
        "model": f"{latency.model.name} on {latency.cluster.gpu.name}",
        "requests": arrivals if r.recorded else f"{arrivals} (drawn, not recorded)",
        "routing": stage.routing,
        "step times": "; ".join(sources),
        "forecast": forecasts.get(told, told),
    }


def _plain(values: np.ndarray) -> list[Any]:
    return [None if value != value else value for value in values.tolist()]  # nan is not JSON


def _decision(d: Decision) -> dict[str, Any]:
    names = ("time_s", "action", "n_attention", "n_experts", "reason", "moved_bytes", "migration_s")
    return {name: getattr(d, name) for name in names}
