"""The online loop: observations in, decisions out."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Any, Unpack

import numpy.typing as npt

from janus.errors import JanusError, known
from janus.scale.activation.batches import Routing
from janus.scale.hardware import Cluster, whole
from janus.scale.model import ModelSpec
from janus.scale.online.cheapest import cheapest, least_bad
from janus.scale.online.decisions import Decision, Observation
from janus.scale.online.drift import SIZES, Drift, DriftMeter, Instead, halves, shares, stretched, tpot_regret
from janus.scale.online.migration import Migration, Pools
from janus.scale.online.persistence import Persistence
from janus.scale.online.tuning import Tuning
from janus.scale.search.problems import Headroom, Options, ask, problems, prompts
from janus.scale.search.solve import CONSTRAINTS, Candidate, Problem, evaluate
from janus.types import Placement, RoutingTrace, Slo
from janus.types.checks import instance


class Autoscaler:
    """Sizes both pools and re-places experts as demand, lengths and routing drift; a policy for `simulate`.

    Pools grow at once when they do not meet the objective for the demand observed, times `headroom`. They shrink when
    fewer GPUs would have served each of the last `patience` windows and the GPU-seconds saved over `horizon_s` exceed
    those that the move takes. Experts are re-placed when the time it saves over `horizon_s` exceeds that of loading
    them, less readily while routing swings back and forth (`Persistence`). Pools that `evaluate` rejects are never
    chosen; where all are rejected, the answer is the largest pools that the cluster has GPUs for, and the rule that
    binds. A window's `context_cv` takes the place of the option. The same observations give the same decisions.

    Args:
        model: a `ModelSpec`, or what `ModelSpec.from_config` takes.
        cluster: the GPUs.
        slo: an `Slo`, or its TPOT in ms.
        trace: routing of the model as far as it is known: a `RoutingTrace` or per-layer counts. The activation table is
            measured on it once; counts that are observed later stretch it.
        context: mean KV length expected, tokens.
        demand: most output tokens/s expected: the table's batches go up to what it needs (beyond them every slot counts
            as active). Default: up to `max_batch`.
        headroom: factor on the demand observed, >= 1: room for what comes before the next decision; or two, on the
            demand and on the KV lengths.
        max_attention: largest attention pool.
        max_experts: largest expert pool.
        prefill: as in `plan`.
        tuning: see `Tuning`.
        options: see `janus.scale.search.problems.Options`; all but `batch`.

    Raises:
        JanusError: as `plan`, and ``scale.memory`` or ``scale.cluster`` when the largest expert pool, or all GPUs of the
            cluster, cannot hold the experts.

    Example:
        >>> few = {"max_attention": 2, "max_experts": 2, "max_batch": 64}
        >>> scaler = Autoscaler("olmoe-1b-7b", Cluster("h100-sxm"), slo=50, trace=[range(1, 65)], context=400, **few)
        >>> [scaler.decide(Observation(t, demand=500, context=400)).action for t in (0, 900)]
        ['scale', 'keep']
    """

    name = "janus"

    def __init__(
        self,
        model: ModelSpec | str,
        cluster: Cluster,
        *,
        slo: Slo | float,
        trace: RoutingTrace | npt.ArrayLike,
        context: float,
        demand: float | None = None,
        headroom: float | tuple[float, float] = 1.1,
        max_attention: int = 64,
        max_experts: int = 64,
        prefill: str = "elsewhere",
        tuning: Tuning | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.tuning = instance(tuning or Tuning(), Tuning, "tuning must be a janus.scale.Tuning", "scale.tuning", "")
        for option in options:
            known(option, set(Options.__annotations__) - {"batch"}, "an option of Autoscaler", "scale.option")
        model = model if isinstance(model, ModelSpec) else ModelSpec.from_config(model)
        slo = slo if isinstance(slo, Slo) else Slo(slo)
        max_batch = whole(options.get("max_batch", 16384), "max_batch", "scale.range")
        peak = max_batch / slo.tpot_ms * 1e3 if demand is None else demand
        self._headroom = Headroom.of(headroom)
        asked = ask(
            model, cluster, trace, demand=peak, headroom=self._headroom, slo=slo, context=context,
            max_attention=max_attention, max_experts=max_experts, prefill="elsewhere", options=options,
        )  # fmt: skip
        routing = asked.routing
        self._base = _only(problems(asked))
        _check_holds(self._base)
        self._prompts = (prefill, options.get("input_tokens"), options.get("output_tokens"))
        prompts(prefill, peak, *self._prompts[1:])
        self._one_map = len(routing.counts) == 1
        popular, seed = shares(routing.counts, model.moe_layers), options.get("seed", 0)
        placing = options.get("placing", "janus")
        self._meter = DriftMeter(
            popular, model.top_k, self._base.slots, sizes=_sizes(self._base), placing=placing, seed=seed
        )
        # of half the tokens, smoothed over windows: to place for; of the other half of the last window: to judge on
        self._popular, self._latest = popular, popular
        self._recent: deque[Observation] = deque(maxlen=self.tuning.patience)
        self._pools: Pools | None = None
        self._persistence = Persistence()
        self._former: Placement | None = None  # what the last decision replaced
        self._forget()

    @property
    def pools(self) -> Pools | None:
        """What serves, as far as the autoscaler knows; None before the first decision."""
        return self._pools

    def adopt(self, n_attention: int, n_experts: int, placement: Placement) -> None:
        """Say what really serves: at the start, or where a decision was not followed.

        Raises:
            JanusError: ``scale.decision``, ``scale.pools`` for another model's placement or another C.
        """
        Decision(0.0, "keep", n_attention, n_experts, placement)  # the same rules
        have = (placement.num_experts, placement.slots_per_instance)
        want = (self._base.latency.model.experts, self._base.slots)
        if have != want or not (placement.uniform or placement.num_layers == self._base.latency.model.moe_layers):
            rule = f"placement must hold E={want[0]} experts in C={want[1]} slots, one map per MoE layer or one for all"
            raise JanusError("scale.pools", f"{rule}; got {placement!r}")
        self._pools, self._one_map = Pools(n_attention, n_experts, placement), placement.uniform
        self._forget()

    def decide(self, observation: Observation) -> Decision:
        """What to do after a window; the autoscaler takes it that its decision is followed (else see `adopt`).

        Args:
            observation: of the last window; times may not go back.

        Raises:
            JanusError: ``scale.observation``, ``routing.*`` for counts of another model.
        """
        remedy = "make one with Observation(time_s, demand, context)"
        seen = instance(observation, Observation, "observation must be an Observation", "scale.observation", remedy)
        self._learn(seen)
        if self._pools is None:
            return self._grow(seen, "nothing serves yet")
        drift = self._drifted(self._pools)
        held = self._held(seen, self._pools, drift.stretch)
        if held.rejected:
            return self._mend(seen, held, drift)
        counted = seen.counts is not None  # routing that nobody has looked at again asks for no other placement
        better = self._shrink(seen) or (self._place(seen, held, drift) if counted else None)
        return better or self._answer(seen, "keep", self._pools, f"{held.name} holds: {_tells(held)}")

    def _learn(self, seen: Observation) -> None:
        if self._recent and seen.time_s < self._recent[-1].time_s:
            rule = "observations must come in the order of time"
            raise JanusError("scale.observation", f"{rule}; got {seen.time_s} s after {self._recent[-1].time_s} s")
        if seen.counts is not None:
            model, keep = self._base.latency.model, self.tuning.memory
            routing = Routing.of(seen.counts, model.top_k)
            routing.check(model)
            place_for, self._latest = (shares(c, model.moe_layers) for c in halves(routing.counts, self._meter.seed))
            self._popular = keep * self._popular + (1 - keep) * place_for
            self._one_map = self._one_map and len(routing.counts) == 1
            self._forget()
        self._recent.append(seen)

    def _forget(self) -> None:
        """Popularity or placement changed: what was measured of them is out of date."""
        self._drift: Drift | None = None  # of the pools at hand
        self._factors: dict[int, float] = {}  # stretch of the table by pool size, once experts are placed anew

    def _problem(self, seen: Observation, stretch: float | None = None) -> Problem:
        """The planner's problem for one window; `stretch` on every pool size, or what is known of each."""
        # an idle service is planned for one request; beyond 1e15 products overflow, and nothing serves either
        wanted = min(max(seen.demand * self._headroom.rate, 1e-6), 1e15)
        load = {"demand": wanted, "context": seen.context * self._headroom.length}
        if seen.context_cv is not None:
            load["context_cv"] = float(seen.context_cv)
        likely = self._drift.followed if self._drift else 1.0
        factors, other = (self._factors, likely) if stretch is None else ({}, stretch)
        table = stretched(self._base.table, lambda n: factors.get(n, other))
        prefill = prompts(self._prompts[0], wanted, *self._prompts[1:])
        return replace(self._base, **load, table=table, prefill=prefill)

    def _held(self, seen: Observation, pools: Pools, stretch: float) -> Candidate:
        self._measure(pools.n_experts)
        return evaluate(self._problem(seen, stretch), pools.n_attention, pools.n_experts)

    def _measure(self, n_e: int) -> None:
        """A decision never rests on an interpolated a_max."""
        self._base = replace(self._base, table=self._base.table.extended([(n_e, self._base.slots)]))

    def _drifted(self, pools: Pools) -> Drift:
        """The placement at hand against others."""
        if self._drift is None:
            self._drift = self._meter.compare(pools.placement, self._popular, self._latest)
            self._factors[pools.n_experts] = self._drift.followed
        return self._drift

    def _cheapest(self, seen: Observation, below: int | None = None) -> tuple[Candidate | None, tuple[Candidate, ...]]:
        """The fewest GPUs (fewer than `below`) that serve a window, on measured values alone; and all that was tried."""
        base = self._base
        while True:
            problem = self._problem(seen)
            best, tried = cheapest(problem, below - 1 if below else base.max_attention + base.max_experts)
            if best is None or ((best.n_e, base.slots) in problem.table.rows and self._measured(best.n_e)):
                return best, tried
            self._measure(best.n_e)

    def _measured(self, n_e: int) -> bool:
        """Was the stretch of this pool size known to the search? It is afterwards."""
        if n_e in self._factors:
            return True
        old = self._pools.placement if self._pools else None
        self._factors[n_e] = self._meter.stretch(self._popular, self._latest, n_e, old)
        return False

    def _worst(self) -> Observation:
        """One window as hard as each of the last `patience` ones."""
        last = self._recent[-1]
        most = {name: max(getattr(o, name) for o in self._recent) for name in ("demand", "context")}
        spreads = [o.context_cv for o in self._recent if o.context_cv is not None]
        return Observation(last.time_s, **most, context_cv=max(spreads, default=None))

    def _grow(self, seen: Observation, why: str) -> Decision:
        """Pools for the hardest of the last windows, else for this one, else the largest."""
        for wanted in (self._worst(), seen):
            best, tried = self._cheapest(wanted)
            if best and not evaluate(self._problem(seen), best.n_a, best.n_e).rejected:
                return self._scale(seen, best, f"{why}; {_tells(best)}")
        binding = max((c.rejected for c in tried if c.rejected), key=CONSTRAINTS.index)
        detail = next(c.detail for c in reversed(tried) if c.rejected == binding)
        most = Candidate(*least_bad(self._base, tried))
        return self._scale(seen, most, f"no pools are feasible, {binding} binds: {detail}", "infeasible")

    def _mend(self, seen: Observation, held: Candidate, drift: Drift) -> Decision:
        """The pools fail: re-place if that is enough, else other pools."""
        assert self._pools is not None
        why = f"{held.name} fails by {held.rejected}: {held.detail}"
        best = min(drift.candidates, key=drift.after)
        if drift.after(best) < drift.stretch:
            after = self._held(seen, self._pools, drift.after(best))
            if not after.rejected:
                return self._move(seen, "place", self._new(held.n_a, held.n_e, best.previous), f"{why}; re-placed")
        return self._grow(seen, why)

    def _shrink(self, seen: Observation) -> Decision | None:
        """Fewer GPUs, if they would have served the last `patience` windows and the move pays."""
        pools, tuning = self._pools, self.tuning
        assert pools is not None
        if len(self._recent) < tuning.patience:
            return None
        best, _ = self._cheapest(self._worst(), below=pools.gpus)
        if best is None or evaluate(self._problem(seen), best.n_a, best.n_e).rejected:
            return None
        new = self._new(best.n_a, best.n_e)
        cost, saved = self._migration(new).gpu_s, (pools.gpus - new.gpus) * tuning.horizon_s
        if saved <= cost:
            return None
        why = f"{best.name} serves the last {tuning.patience} windows; saves {saved:.0f} GPU-s, costs {cost:.0f}"
        return self._move(seen, "scale", new, f"{why}; {_tells(best)}")

    def _place(self, seen: Observation, held: Candidate, drift: Drift) -> Decision | None:
        """Other replicas on the same pools, if the time saved over the horizon exceeds that of loading them."""
        regret = {c.previous: self._regret(seen, held, drift, c) for c in drift.candidates}
        best = max(drift.candidates, key=lambda c: regret[c.previous] * self.tuning.horizon_s - self._load_s(c))
        gain, horizon_s = regret[best.previous], self.tuning.horizon_s
        likely = gain >= self.tuning.replace_at and gain * horizon_s > self._load_s(best)
        if not self._persistence.due(likely, likely and self._swung(drift)):
            return None
        new = self._new(held.n_a, held.n_e, best.previous)
        cost, saved = self._migration(new).transfer_s, gain * horizon_s
        if saved <= cost:
            return None
        now, then = (a[self._meter.nearest(held.batch)] for a in (drift.now, best.a_max))
        why = f"a_max {now:.2f} to {then:.2f}, {gain:.2%} of a step: saves {saved:.1f} s, costs {cost:.2f} s"
        return self._move(seen, "place", new, why)

    def _regret(self, seen: Observation, held: Candidate, drift: Drift, other: Instead) -> float:
        size, at = self._meter.nearest(held.batch), self._base.table.at(held.n_e, held.batch, self._base.slots)
        now, then = (at._replace(a_max=at.a_max * float((a / drift.known)[size])) for a in (drift.now, other.a_max))
        return tpot_regret(self._base.latency, (held.n_a, held.n_e), held.batch, float(seen.context), now, then)

    def _swung(self, drift: Drift) -> bool:
        """Would the placement that was replaced last do better on the last window than the one at hand?"""
        old = self._former
        if old is None or self._pools is None or old.num_instances != self._pools.n_experts:
            return False
        return float((self._meter.a_max(self._meter.maps(old), self._latest) / drift.now).mean()) < 1

    def _load_s(self, other: Instead) -> float:
        latency = self._base.latency
        return other.moved * latency.model.expert_bytes / latency.cluster.inter_node_bytes_per_s

    def _new(self, n_a: int, n_e: int, previous: bool = True) -> Pools:
        """The pools with experts placed for the popularity seen lately, from the present placement on if `previous`."""
        old = self._pools.placement if self._pools and previous else None
        rows = self._popular[0] if self._one_map else self._popular
        return Pools(n_a, n_e, self._meter.place(rows, n_e, old))

    def _scale(self, seen: Observation, to: Candidate, why: str, action: str = "scale") -> Decision:
        old = self._pools
        if old and (old.n_attention, old.n_experts) == (to.n_a, to.n_e):
            return self._answer(seen, action, old, why)
        return self._move(seen, action, self._new(to.n_a, to.n_e), why)

    def _migration(self, new: Pools) -> Migration:
        latency = self._base.latency
        return Migration.between(latency.model, latency.cluster, self._pools, new, self.tuning.startup_s)

    def _move(self, seen: Observation, action: str, new: Pools, why: str) -> Decision:
        cost = self._migration(new)
        self._former = self._pools.placement if self._pools else None
        self._pools = new
        self._forget()
        return self._answer(seen, action, new, why, cost.moved_bytes, cost.seconds)

    def _answer(self, seen: Observation, action: str, pools: Pools, why: str, *cost: Any) -> Decision:
        return Decision(seen.time_s, action, pools.n_attention, pools.n_experts, pools.placement, why, *cost)


def _sizes(problem: Problem) -> tuple[int, ...]:
    """Batch sizes to judge placements at, within what the table was measured for."""
    return tuple(sorted({min(B, problem.table.batch_sizes[-1]) for B in SIZES}))


def _tells(c: Candidate) -> str:
    return f"{c.name}, TPOT {c.tpot_ms:.1f} ms at batch {c.batch}"


def _only(found: tuple[Problem, ...]) -> Problem:
    first, *others = found
    if others:
        kinds = [p.kinds for p in found]
        raise JanusError("scale.cluster", f"an Autoscaler runs one type of GPU per pool, got {kinds}")
    return first


def _check_holds(problem: Problem) -> None:
    experts, most = problem.latency.model.experts, problem.max_experts * problem.slots
    if most < experts:
        rule = f"the largest expert pool must hold all {experts} experts"
        seen = f"max_experts * C = {problem.max_experts} * {problem.slots} = {most}"
        raise JanusError("scale.memory", f"{rule}; {seen}; raise max_experts or slots, or use larger GPUs")
    if short := problem.lacking(1, math.ceil(experts / problem.slots)):
        rule = "one attention instance and the experts must find room"
        raise JanusError("scale.cluster", f"{rule}; {short}; raise slots or the cluster's gpus")
