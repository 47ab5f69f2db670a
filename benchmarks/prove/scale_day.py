"""Prove: a day of requests simulated with five policies in time; GPU-hours against baselines over their efficiency.

    python benchmarks/prove/scale_day.py [--sample] [--plot docs/assets/scale_day.png]

Step times: the roofline, for the day of DeepSeek-R1; for DeepSeek-V2 the roofline fitted to the paper's four printed
points. The ServeGen recording is found beside the checkout (JANUS_SHARED); without it a sine-shaped day is drawn, and
every figure says so. Progress goes to stderr; the last line of stdout is one JSON object of figures.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402  (the paths above come first)
from figures import figure, report, say  # noqa: E402
from recordings import SHARED  # noqa: E402

from janus.scale import ActivationTable, Cluster, LatencyModel, ModelSpec, StepPoint, Timeline, fitted_to, simulate  # noqa: E402
from janus.scale.days.playing import play  # noqa: E402
from janus.scale.days.policies import named  # noqa: E402
from janus.scale.days.policy import POLICIES  # noqa: E402
from janus.scale.days.sizing import Need  # noqa: E402
from janus.scale.days.stage import Stage  # noqa: E402
from janus.scale.days.staging import SimulateOptions, staged  # noqa: E402
from janus.types import RequestTrace, RoutingTrace, Slo, sample  # noqa: E402

CLUSTER = Cluster("h100-sxm")
SERVEGEN = [SHARED / "data" / "traces" / f"servegen_deepseek_r1_{what}.csv" for what in ("rate", "lengths")]
DAY_S = 86400.0
# DeepSeek-V2 on 80 GB H100: pools, batch, tokens/s/GPU as the paper prints them; a step sees 16 + (0 .. 255) tokens.
PRINTED = [("1A6E", 64, 99.0), ("5A10E", 256, 170.0), ("2A6E", 256, 240.0), ("4A6E", 512, 340.0)]
CONTEXT, INPUT, OUTPUT = 144, 16, 256
SLO_MS, SLOTS, LARGEST = 200.0, 27, 56
# Below a half the balanced pools break the SLO for a third of the requests and more; the curve ends there.
EFFICIENCIES = {"monolithic": (0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 1.0), "megascale": (0.5, 0.65, 0.8, 1.0)}
PAPER = {"monolithic": 0.39, "megascale": 0.16}
POOLS: SimulateOptions = {"max_attention": 48, "max_experts": 24, "slots": SLOTS, "headroom": 1.2, "forecast": "oracle"}


def routing(model: ModelSpec) -> RoutingTrace:
    recorded = RoutingTrace.load(sample("gptoss20b-routing"))
    return RoutingTrace.synthetic(like=recorded, num_experts=model.experts, top_k=model.top_k)


def recorded_day(hours: float) -> RequestTrace:
    if all(path.exists() for path in SERVEGEN):
        return RequestTrace.from_servegen(*SERVEGEN, hours=hours)
    say(f"  no recording at {SERVEGEN[0].parent}: a sine-shaped day is drawn instead")
    rng, end = np.random.default_rng(0), 3600 * hours
    times = np.sort(rng.uniform(0, end, int(16 * end)))
    times = times[rng.random(len(times)) < 0.55 - 0.45 * np.cos(2 * np.pi * times / DAY_S)]
    lengths = (np.maximum(1, rng.exponential(mean, len(times))).astype(int) for mean in (1270, 1525))
    return RequestTrace(times, *lengths, duration_s=end, source="a sine-shaped day, drawn", recorded=False)


def five_policies(hours: float, threads: int) -> tuple[list[dict[str, Any]], dict[str, Timeline]]:
    """The whole day of DeepSeek-R1, tables included."""
    requests, model = recorded_day(hours), ModelSpec.from_config("deepseek-r1")
    trace, used, began = routing(model), time.process_time(), time.perf_counter()
    days = simulate(
        requests, POLICIES, model=model, cluster=CLUSTER, slo=100, trace=trace, forecast="recent", threads=threads,
        progress=lambda done, total, what: say(f"  {done}/{total} {what}"),
    )  # fmt: skip
    took, used = time.perf_counter() - began, time.process_time() - used
    note = f"{requests.num_requests} requests, {threads} threads; {used:.0f} s of processor time; {requests.source}"
    name = f"{hours:g} h of DeepSeek-R1 with five policies, tables and compiling included"
    out = [figure(name, round(took, 1), "<= 60", took <= 60, "s", note)]
    lost = [
        d.policy for d in days.values() if d.requests != requests.num_requests or not np.isfinite(d.finished_s).all()
    ]
    tokens = int((requests.output_tokens - 1).sum())
    wrong = [d.policy for d in days.values() if d.tokens != tokens]
    out.append(
        figure(
            "policies that lost a request or a token",
            len({*lost, *wrong}),
            "== 0",
            not lost + wrong,
            "",
            f"{tokens} tokens",
        )
    )
    return out + [attained("DeepSeek-R1, SLO 100 ms", d) for d in days.values()], days


def attained(what: str, day: Timeline) -> dict[str, Any]:
    note = f"{day.attainment:.2%} of requests within the SLO, p99 {day.percentile_ms(99):.0f} ms; "
    note += (
        f"{day.gpus.min():.0f} to {day.gpus.max():.0f} GPUs; forecast: {day.basis['forecast']}; {day.basis['routing']}"
    )
    return figure(f"{what}: GPU-hours of {day.policy}", round(day.gpu_hours), "told", True, "GPU-h", note)


def chat_day(day: RequestTrace, factor: float) -> RequestTrace:
    """`factor` times the arrivals of a day, at its times give or take half a minute, with lengths like ShareGPT's."""
    rng = np.random.default_rng(0)
    copies = rng.poisson(factor, day.num_requests)
    times = np.repeat(day.times_s, copies) + rng.uniform(-30, 30, int(copies.sum()))
    times = np.sort(np.clip(times, 0, day.duration_s))
    inputs, outputs = (1 + rng.geometric(1 / (mean - 1), len(times)) for mean in (INPUT, OUTPUT))
    source = f"arrivals shaped like {day.source}, lengths drawn around {INPUT} in, {OUTPUT} out"
    return RequestTrace(times, inputs, outputs, duration_s=day.duration_s, source=source, recorded=False)


def paper_latency(model: ModelSpec, trace: RoutingTrace) -> LatencyModel:
    points = [StepPoint.of_throughput(p, B=B, s_ctx=CONTEXT, tokens_per_gpu_s=rate) for p, B, rate in PRINTED]
    table = ActivationTable.build(trace, [(6, SLOTS), (10, SLOTS)], [64, 256, 512])
    return fitted_to(LatencyModel.roofline(model, CLUSTER), points, table)


def paper_stage(day: RequestTrace) -> Stage:
    """DeepSeek-V2 with the day scaled so that janus needs `LARGEST` GPUs at its peak."""
    model = ModelSpec.from_config("deepseek-v2")
    trace = routing(model)
    latency = paper_latency(model, trace)

    def of(factor: float) -> Stage:
        return staged(
            chat_day(day, factor), POLICIES, model, CLUSTER, Slo(SLO_MS), trace, {**POOLS, "latency": latency}
        )

    first = of(1.0)
    load = first.load

    def gpus(factor: float) -> int:
        demand = float(load.demand.max()) * factor * first.headroom
        at = first.sizer.smallest(Need(demand, CONTEXT, CONTEXT * load.reserve, SLO_MS))
        return at.n_a + at.n_e if at.feasible else 10**6

    low, high = 0.01, 64.0
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if gpus(middle) <= LARGEST else (low, middle)
    say(f"  the day times {low:.2f}: {gpus(low)} GPUs at the peak")
    return of(low)


def savings(stage: Stage, sample: bool) -> tuple[list[dict[str, Any]], list[Timeline]]:
    """Janus against both baselines, for every efficiency of theirs."""
    ours = play(stage, named("janus", stage, {}))
    out = [attained(f"DeepSeek-V2 fitted to the paper's points, SLO {SLO_MS:g} ms", ours)]
    shown = [ours]
    for name, paper in PAPER.items():
        efficiencies, days = (0.5, 1.0) if sample else EFFICIENCIES[name], []
        for e in efficiencies:
            days.append(play(stage, named(name, stage, {name: e})))
            say(f"  {name} at {e:.2f}: {days[-1].gpu_hours:.0f} GPU-h, {days[-1].attainment:.4f} within SLO")
        saved = [1 - ours.gpu_hours / d.gpu_hours for d in days]
        curve = ", ".join(
            f"{e:g}: {s:.0%} ({d.attainment:.3f})" for e, s, d in zip(efficiencies, saved, days, strict=True)
        )
        at = crossing(efficiencies, saved, paper)
        where = f"{paper:.0%} at efficiency {at:.2f}" if at else f"{paper:.0%} at none of these"
        note = f"efficiency of its GPUs: saved (its attainment): {curve}; the paper's {where}"
        name_of = f"GPU-hours janus saves against {name} of equal efficiency, synthetic routing"
        out.append(figure(name_of, round(saved[-1], 3), f"told beside the paper's {paper:.0%}", True, "", note))
        shown.append(days[-1])
    return out, shown


def drivers(what: str, stage: Stage) -> list[dict[str, Any]]:
    """Janus by forecast and headroom, and without start-up: what its late requests are due to."""
    cases = [(f, h, stage.start_s) for f in ("last", "recent", "oracle") for h in (1.2, 1.5, 2.0)]
    out = []
    for forecast, headroom, start_s in [*cases, ("recent", 1.2, 0.0), ("oracle", 1.2, 0.0)]:
        at = replace(stage, forecast=forecast, headroom=headroom, start_s=start_s)
        day = play(at, named("janus", at, {}))
        late = int((day.attained < 0.99).sum())
        name = f"{what}: within the SLO, forecast {forecast}, headroom {headroom:g}, start-up {start_s:g} s"
        note = f"{day.gpu_hours:.0f} GPU-h; {late} of {len(day.attained)} windows keep less than 99 %, the least "
        note += (
            f"{np.nanmin(day.attained):.0%}; {waited(stage, day):.0%} of the late only by waiting; synthetic routing"
        )
        out.append(figure(name, round(100 * day.attainment, 1), "told", True, "%", note))
    return out


def waited(stage: Stage, day: Timeline) -> float:
    """Share of the late requests that would have kept the SLO had they joined on arrival."""
    late = day.request_tpot_ms > stage.slo.tpot_ms
    own_ms = 1e3 * (day.finished_s - day.joined_s) / np.maximum(1, stage.requests.output_tokens - 1)
    return float((late & (own_ms <= stage.slo.tpot_ms)).sum() / max(1, late.sum()))


def crossing(x: tuple[float, ...], y: list[float], level: float) -> float | None:
    """Where a falling curve first passes `level`, linear between points."""
    for i in range(len(x) - 1):
        if y[i] >= level >= y[i + 1] and y[i] > y[i + 1]:
            return x[i] + (y[i] - level) / (y[i] - y[i + 1]) * (x[i + 1] - x[i])
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--plot", default="")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    figures, _ = five_policies(1 if args.sample else 24, args.threads)
    stage = paper_stage(recorded_day(1 if args.sample else 24))
    more, shown = savings(stage, args.sample)
    low, high = shown[0].gpus.min(), shown[0].gpus.max()
    if not args.sample:
        model = ModelSpec.from_config("deepseek-r1")
        options: SimulateOptions = {"headroom": 2.0}
        first = staged(recorded_day(24), ["janus"], model, CLUSTER, Slo(100), routing(model), options)
        figures += drivers("DeepSeek-R1", first) + drivers("DeepSeek-V2 fitted to the paper's points", stage)
    figures.append(figure("GPUs of janus over the day", f"{low:.0f} to {high:.0f}", "told beside 7 to 56", True))
    if args.plot:
        from janus.scale.pictures import draw_days

        draw_days(shown, args.plot)
    report(figures + more)


if __name__ == "__main__":
    main()
