"""The policies that a simulation knows by name. A policy is any object with a `name` and a `decide`.

Each looks at one observation, the window that has just ended, and answers with pools for the next one. None of them
knows the future, but for "static", whose pools are sized for the largest window of the whole trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from janus.errors import known
from janus.scale.days.policy import POLICIES
from janus.scale.days.sizing import Need, Sized
from janus.scale.days.stage import Stage
from janus.scale.online.decisions import Decision, Observation
from janus.scale.search.memory import slot_bytes

XDEEPSERVE_STEP = 4
LEAST_DEMAND = 1.0  # tokens/s: without any the pools still have to stand


class Sizing:
    """A policy that sizes the pools anew for every window.

    Args:
        name: for people.
        stage: what is simulated.
        choose: pools for a need.
        colocated: attention and experts on the same GPUs.
        efficiency: share of a GPU's work that this policy's deployment gets done.
    """

    def __init__(
        self,
        name: str,
        stage: Stage,
        choose: Callable[[Need], Sized],
        *,
        colocated: bool = False,
        efficiency: float = 1.0,
    ) -> None:
        self.name, self._stage, self._choose = name, stage, choose
        self.colocated, self.efficiency = colocated, efficiency
        self._now: tuple[int, int] | None = None
        self._copies: dict[tuple[int, int], int] = {}

    def decide(self, observation: Observation) -> Decision:
        """The pools that `choose` finds for the observed demand with headroom."""
        demand = max(LEAST_DEMAND, observation.demand * self._stage.headroom)
        reserved = observation.context * self._stage.load.reserve
        sized = self._choose(Need(demand, observation.context, reserved, self._stage.slo.tpot_ms))
        before, self._now = self._now, (sized.n_a, sized.n_e)
        self._copies.setdefault(self._now, sized.copies)
        moved, took = self._cost(before, self._now)
        return Decision(
            time_s=observation.time_s,
            action=_action(before, self._now, sized.feasible),
            n_attention=sized.n_a,
            n_experts=sized.n_e,
            reason=_reason(demand, sized),
            moved_bytes=moved,
            migration_s=took,
        )

    def copies(self, n_attention: int, n_experts: int) -> int:
        """Deployments that pools of this policy are split into."""
        return self._copies[n_attention, n_experts]

    def _cost(self, before: tuple[int, int] | None, now: tuple[int, int]) -> tuple[int, float]:
        """(bytes, seconds) of a change: start-up where a pool grows, then whole instances of weights over the network.

        On the safe side: an expert pool of another size is loaded anew on every instance, side by side.
        """
        if before in (None, now):
            return 0, 0.0
        latency = self._stage.times.problem.latency
        slots = self._stage.sizer.slots(now[0] // self.copies(*now)) if self.colocated else self._stage.slots
        experts = slots * slot_bytes(latency.model)
        added = max(0, now[0] - before[0])
        moved = [latency.model.attention_side_bytes * added, experts * now[1] * (before[1] != now[1])]
        each = max(latency.model.attention_side_bytes * (added > 0), experts * (before[1] != now[1]))
        start = self._stage.start_s if now[0] > before[0] or now[1] > before[1] else 0.0
        return int(sum(moved)), start + each / latency.cluster.inter_node_bytes_per_s


def named(name: str, stage: Stage, efficiency: Mapping[str, float]) -> Sizing:
    """A built-in policy.

    Args:
        name: one of `POLICIES`.
        stage: what is simulated.
        efficiency: per name, default 1.

    Raises:
        JanusError: ``simulate.policy``.
    """
    known(name, POLICIES, "policy", "simulate.policy")
    sizer, e = stage.sizer, efficiency.get(name, 1.0)
    if name == "monolithic":
        return Sizing(name, stage, lambda need: sizer.tier(need, stage.tiers, e), colocated=True, efficiency=e)
    choose: dict[str, Callable[[Need], Sized]] = {
        "janus": lambda need: sizer.smallest(need.shared(e)),
        "megascale": lambda need: sizer.balanced(need.shared(e)),
        "xdeepserve": lambda need: sizer.smallest(need.shared(e), XDEEPSERVE_STEP),
    }
    if name == "static":
        peak = _peak(stage, e)
        return Sizing(name, stage, lambda need: peak, efficiency=e)
    return Sizing(name, stage, choose[name], efficiency=e)


def _peak(stage: Stage, efficiency: float) -> Sized:
    """Pools for the largest window of the whole trace."""
    load = stage.load
    at = int(np.argmax(load.tokens * load.context))
    demand = max(LEAST_DEMAND, float(load.demand.max()) * stage.headroom)
    context = float(load.context[at])
    need = Need(demand, context, context * load.reserve, stage.slo.tpot_ms)
    return stage.sizer.smallest(need.shared(efficiency))


def _action(before: tuple[int, int] | None, now: tuple[int, int], feasible: bool) -> str:
    if not feasible:
        return "infeasible"
    return "keep" if before in (None, now) else "scale"


def _reason(demand: float, sized: Sized) -> str:
    if not sized.feasible:
        return f"no pools serve {demand:.0f} tokens/s within the objective; the largest are taken"
    return f"{demand:.0f} tokens/s with headroom: batch {sized.batch:.0f}, TPOT {sized.tpot_ms:.1f} ms"
