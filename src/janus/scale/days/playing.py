"""One policy, one trace: windows one after the other, the policy asked at the end of each, changes carried out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from janus.errors import JanusError
from janus.scale.days.stage import Layout, Stage
from janus.scale.days.stepping_state import ARRIVED, FLIGHT, GPU_S, HEAD, NOW, TOKEN_MS, TOKENS, Run, fresh, widened
from janus.scale.days.steptimes import Curve
from janus.scale.days.timeline import Timeline, Window
from janus.scale.online.decisions import Decision, Observation
from janus.types.checks import number

RECENT = 4  # windows: an hour of the usual 15 minutes


@dataclass
class Service:
    """The pools as they change: what serves, and the decision that is under way."""

    stage: Stage
    policy: Any
    run: Run
    sizes: tuple[int, int]
    curve: Curve
    layout: Layout = field(default_factory=Layout)
    pending: Decision | None = None
    ready_s: float = 0.0
    decisions: list[Decision] = field(default_factory=list)

    def advance(self, until_s: float) -> None:
        """Let time pass with the pools as they are."""
        from janus.scale.days.stepping import advance

        target = (self.pending.n_attention, self.pending.n_experts) if self.pending else self.sizes
        pools = self.stage.pools(self.sizes, target, self.layout)
        advance(self.run, pools, self.curve, until_s, self.stage.requests.duration_s)

    def take(self, decision: Decision, now_s: float) -> None:
        """Begin a change: it is paid from now, and serves after its migration."""
        self.decisions.append(decision)
        if (decision.n_attention, decision.n_experts) != self.sizes:
            self.pending, self.ready_s = decision, now_s + decision.migration_s

    def switch(self) -> None:
        """The pools of the decision under way serve from the next step on; instances beyond them drain."""
        assert self.pending is not None
        self.settle(self.pending)
        self.pending = None

    def settle(self, decision: Decision) -> None:
        """Serve with these pools."""
        self.sizes = decision.n_attention, decision.n_experts
        self.run = widened(self.run, decision.n_attention)
        self.layout = self.stage.layout(self.policy, *self.sizes)
        self.curve = self.stage.curve(*self.sizes, self.layout)
        self.stage.check_memory(self.stage.pools(self.sizes, self.sizes, self.layout), self.run.held_bytes)


def play(stage: Stage, policy: Any) -> Timeline:
    """Simulate one policy to the last token of the last request."""
    service = _opened(stage, policy)
    windows: list[Window] = []
    while not _done(service.run, stage):
        start_s = len(windows) * stage.load.window_s
        before = service.run.clock.copy(), int(service.run.count[TOKENS])
        stop_s = start_s + stage.load.window_s
        if service.pending and service.ready_s < stop_s:
            service.advance(max(service.ready_s, start_s))
            service.switch()
        service.advance(stop_s)
        windows.append(_window(service, start_s, *before))
        if service.pending is None and not _done(service.run, stage):
            service.take(_asked(policy, _observed(stage, service.run, len(windows))), stop_s)
    return Timeline.of(stage, policy, service.run, windows, service.decisions)


def _opened(stage: Stage, policy: Any) -> Service:
    """The pools that stand at time zero: the policy's answer to the first window's load, ready at once."""
    first = Observation(
        0.0, float(stage.load.demand[0]), float(stage.load.context[0]), None, float(stage.load.context_cv[0])
    )
    decision = _asked(policy, first)
    run = fresh(stage.requests, stage.held_bytes(), decision.n_attention)
    service = Service(stage, policy, run, (0, 0), stage.times.curve(stage.times.attention[0]))
    service.decisions.append(decision)
    service.settle(decision)
    return service


def _asked(policy: Any, observation: Observation) -> Decision:
    decision = policy.decide(observation)
    if not isinstance(decision, Decision):
        raise JanusError("simulate.policy", f"{policy.name}.decide must return a Decision, got {decision!r}")
    return decision


def _done(run: Run, stage: Stage) -> bool:
    served = run.count[HEAD] == len(run.times_s) and not run.count[FLIGHT]
    return bool(served and run.clock[NOW] >= stage.requests.duration_s)


def _observed(stage: Stage, run: Run, windows: int) -> Observation:
    """What a policy may know at the end of window `windows` - 1, and what `forecast` adds to it."""
    load = stage.load
    at = min(windows, len(load.tokens)) - 1
    past = np.append(load.demand[:windows], np.zeros(max(0, windows - len(load.demand))))
    demand = float(past[-1])
    if stage.forecast == "recent":
        demand = float(past[-RECENT:].max())
    elif stage.forecast == "oracle":
        at = min(windows, len(load.tokens) - 1)
        demand = float(load.demand[windows]) if windows < len(load.demand) else 0.0
    elif callable(stage.forecast):
        demand = _told(stage.forecast(past))
    waiting = float((run.outputs[run.count[HEAD] : run.count[ARRIVED]] - 1).sum())
    return Observation(
        time_s=windows * load.window_s,
        demand=demand + waiting / load.window_s,
        context=float(load.context[at]),
        context_cv=float(load.context_cv[at]),
    )


def _told(demand: Any) -> float:
    rule = "forecast(past demands) must return the coming window's demand, a finite number >= 0, in tokens/s"
    value = number(demand, rule, "simulate.forecast")
    if value < 0:
        raise JanusError("simulate.forecast", f"{rule}; got {value}")
    return value


def _window(service: Service, start_s: float, clock: np.ndarray, tokens: int) -> Window:
    run = service.run
    spent, made = run.clock - clock, int(run.count[TOKENS]) - tokens
    return Window(
        time_s=start_s,
        n_attention=service.sizes[0],
        n_experts=service.sizes[1],
        gpus=float(spent[GPU_S] / spent[NOW]) if spent[NOW] else 0.0,
        tokens=made,
        tpot_ms=float(spent[TOKEN_MS] / made) if made else float("nan"),
        queued=int(run.count[ARRIVED] - run.count[HEAD]),
    )
