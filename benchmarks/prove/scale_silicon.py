"""Prove: step times of colocated engines against measured serving points, whole families of points held out.

    python benchmarks/prove/scale_silicon.py [--sample]

Progress goes to stderr; the last line of stdout is one JSON object of figures. The points are not part of the project:
without them there is one figure that says so.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

from figures import figure, report, say  # noqa: E402  (the paths above come first)
from recordings import SHARED  # noqa: E402
from silicon_cases import (  # noqa: E402
    METHODS,
    PRIOR_WEIGHT,
    Cases,
    Floats,
    Mask,
    best_regression,
    cross,
    errors,
    fitted,
    one_split,
    score,
    table,
)  # fmt: skip

from janus.scale import EngineCoefficients, EngineModel  # noqa: E402
from janus.scale.engine.silicon import SiliconPoint, distinct, read_silicon  # noqa: E402

POINTS = SHARED / "data" / "e2e_silicon" / "silicon_h100_h200_moe.csv"
MEDIAN, MAPE = 15, 25
FAR = 50  # percent
# Two of its loads were measured twice: 19.4 and 32.2 ms, 39.8 and 47.8 ms. See docs/scale_silicon.md.
SPECULATIVE = "deepseek-v3 trtllm 1.1.0rc2.post2"
WAITED = 1.05  # to the first token, over the time of all others
FLAT, SLOW_MS_PER_LAYER = 1.25, 0.3  # a family whose TPOT hardly depends on the load, and which pays this for a layer
NEAR = 1.4
IDEAL = EngineCoefficients(memory=1, compute=1, link=1, layer_us=1e-9, message_us=1e-9, step_ms=1e-9)


def held_out(cases: Cases, of: str, bars: bool) -> list[dict[str, Any]]:
    """All methods beside each other, every `of` predicted by a fit that saw none of it."""
    labels = cases.labels(of)
    count = f"{len(labels)} points, {len(set(labels))} held out in turn; {EngineModel().routing}"
    base = best_regression(lambda method: score(errors(cross(cases, labels, method), cases.times)))
    out = []
    for name, method in METHODS.items():
        median, mape = score(errors(cross(cases, labels, method), cases.times))
        note = f"{count}; log-linear regression: median {base[0]} %, MAPE {base[1]} %"
        title = f"TPOT of held-out {of}, {name}"
        if bars and name != "hybrid":
            out.append(figure(f"{title}: median error", median, f"<= {MEDIAN}", median <= MEDIAN, "%", note))
            out.append(figure(f"{title}: MAPE", mape, f"<= {MAPE}", mape <= MAPE, "%", note))
        better = median < base[0] and mape < base[1]
        bar = f"below the regression's {base[0]} / {base[1]}"
        out.append(figure(f"{title}: median / MAPE", f"{median} / {mape}", bar, better, "%", count))
    return out


def extrapolations(cases: Cases) -> list[dict[str, Any]]:
    """Where the held-out points lie outside what the fit saw; bars are the regression's errors."""
    hopper = np.array([p.config.cluster.gpu.name == "h100-sxm" for p in cases.points])
    batch = np.array([p.config.batch for p in cases.points])
    plain_serving = np.array([not why(cases, p) for p in cases.points])
    splits: dict[str, tuple[Mask, Mask]] = {
        "H100 to H200": (hopper, ~hopper),
        "H200 to H100": (~hopper, hopper),
        "batches up to 16 to larger ones": (batch <= 16, batch > 16),
    }
    out = []
    for name, (fit, held) in splits.items():
        usual = held & plain_serving
        base = best_regression(lambda method, fit=fit, held=held: one_split(cases, fit, held, method))
        base_usual = best_regression(lambda method, fit=fit, held=usual: one_split(cases, fit, held, method))
        got, got_usual = (one_split(cases, fit, some, fitted) for some in (held, usual))
        bar = f"below the regression's {base[0]} / {base[1]}"
        note = f"{held.sum()} points; the {usual.sum()} of them that served plainly: {got_usual[0]} / {got_usual[1]}, "
        note += f"regression {base_usual[0]} / {base_usual[1]}"
        ok = got[0] < base[0] and got[1] < base[1]
        out.append(figure(f"{name}, fitted: median / MAPE", f"{got[0]} / {got[1]}", bar, ok, "%", note))
    return out


def why(cases: Cases, point: SiliconPoint) -> str:
    """What else than plain serving a row measured, "" for none; judged from measurements, so no prediction may use it."""
    family = [p for p in cases.points if p.family == point.family]
    if point.family.startswith(SPECULATIVE):
        return "speculative decoding"
    if point.ttft_ms > WAITED * point.tpot_ms * point.config.osl:
        return "requests waited longer than they ran"
    flat = max(p.tpot_ms for p in family) < FLAT * min(p.tpot_ms for p in family)
    if flat and point.tpot_ms > SLOW_MS_PER_LAYER * point.config.model.layers:
        return "slow at any load, bound outside the GPUs"
    return ""


def far_off(cases: Cases) -> list[dict[str, Any]]:
    """Rows that did not serve plainly, by cause; how many of the rest are far off; the errors of the rest."""
    predicted = cross(cases, cases.labels("family"), fitted)
    error = errors(predicted, cases.times)
    causes = [why(cases, p) for p in cases.points]
    for point, ms, seen, cause in zip(cases.points, predicted, error, causes, strict=True):
        if seen > FAR:
            say(f"  {point.row}: {point.tpot_ms:.1f} ms, predicted {ms:.1f}: {cause or 'unexplained'}")
    counts = {cause: causes.count(cause) for cause in sorted(set(causes)) if cause}
    parts = [f"{count} {cause} (median {score(of(error, causes, cause))[0]} %)" for cause, count in counts.items()]
    usual = of(error, causes, "")
    unexplained = int((usual > FAR).sum())
    name = f"rows off by more than {FAR} % without an explanation, fitted"
    median, mape = score(usual)
    return [
        figure(name, unexplained, "== 0", unexplained == 0, "", "; ".join(parts)),
        figure("rows that served plainly, fitted: median / MAPE", f"{median} / {mape}", "reported", True, "%", f"{len(usual)} points"),
    ]  # fmt: skip


def of(error: Floats, causes: list[str], cause: str) -> Floats:
    return error[[other == cause for other in causes]]


def fastest(cases: Cases) -> dict[str, Any]:
    """How near rows come to reading weights and cache at the datasheet's bandwidth and doing nothing else."""
    ideal = EngineModel(IDEAL)
    ran = [p for p in cases.points if p.ttft_ms < WAITED * p.tpot_ms * p.config.osl]
    ratios = np.array([p.tpot_ms / sum(ideal.step(p.config)[:2]) for p in ran])
    near = [p.family for p, ratio in zip(ran, ratios, strict=True) if ratio < NEAR]
    others = min(ratio for p, ratio in zip(ran, ratios, strict=True) if not p.family.startswith(SPECULATIVE))
    note = f"{len(near)} rows below {NEAR}, of {sorted(set(near))}; least of any other family {others:.2f}"
    return figure("least TPOT over the datasheet's time", round(float(ratios.min()), 2), "reported", True, "x", note)


def own_points(cases: Cases) -> dict[str, Any]:
    """Three points of a family, fastest, middle and slowest, correct the rest of it."""
    before, after = [], []
    for family in sorted({p.family for p in cases.points}):
        where = [i for i, p in enumerate(cases.points) if p.family == family]
        if len(where) < 6:
            continue
        order = sorted(where, key=lambda i: cases.times[i])
        three = [order[0], order[len(order) // 2], order[-1]]
        rest = [i for i in where if i not in three]
        ours = EngineModel.fit([(cases.points[i].config, cases.times[i]) for i in three])
        after.append(errors(cases.rows[rest] @ ours.coefficients.factors, cases.times[rest]))
        before.append(errors(cases.rows[rest] @ EngineCoefficients().factors, cases.times[rest]))
    was, now = score(np.concatenate(before)), score(np.concatenate(after))
    note = f"the default before: {was[0]} / {was[1]} %; {len(after)} families of six points or more"
    ok = now[0] <= was[0] and now[1] <= was[1]
    return figure(
        "three points of a family, rest of it: median / MAPE",
        f"{now[0]} / {now[1]}",
        "below the default's",
        ok,
        "%",
        note,
    )


def by_model(cases: Cases) -> dict[str, Any]:
    """Per model and engine, families held out."""
    error = errors(cross(cases, cases.labels("family"), fitted), cases.times)
    unfitted = table(cases, errors(cross(cases, cases.labels("family"), METHODS["roofline, unfitted"]), cases.times))
    rows = table(cases, error)
    for key, row in rows.items():
        plain = unfitted[key]
        say(
            f"  {key}: {row['points']} points, fitted {row['median']} / {row['mape']}, unfitted {plain['median']} / {plain['mape']}"
        )
    worst = max(rows, key=lambda key: rows[key]["median"])
    note = "; ".join(f"{key} ({row['points']}): {row['median']} / {row['mape']}" for key, row in rows.items())
    return figure("worst model and engine, fitted: median error", rows[worst]["median"], "reported", True, "%", note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="families and models held out, nothing else")
    sample = parser.parse_args().sample
    if not POINTS.exists():
        absent = f"recorded data absent: no {POINTS.name} beside the checkout and JANUS_SHARED unset"
        report([figure("TPOT of held-out families", "not run", "needs the measured points", True, "", absent)])
        return
    cases = Cases(distinct(read_silicon(POINTS)))
    figures = held_out(cases, "family", bars=True) + held_out(cases, "model", bars=False)
    if not sample:
        figures += held_out(cases, "engine", bars=False) + extrapolations(cases)
        figures += [by_model(cases), *far_off(cases), fastest(cases), own_points(cases)]
        found = EngineModel.fit([(p.config, p.tpot_ms) for p in cases.points], weight=PRIOR_WEIGHT).coefficients
        say(f"  fitted to all points: {found}")
    report(figures)


if __name__ == "__main__":
    main()
