"""Everything a simulation needs, resolved and measured once, and shared by all policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.scale.activation.table import ActivationTable
from janus.scale.days.sizing import Sizer
from janus.scale.days.stepping_state import Pools
from janus.scale.days.steptimes import Curve, StepTimes
from janus.scale.days.workload import Workload
from janus.scale.hardware import positive
from janus.scale.search.memory import gate_bytes, request_bytes, slot_bytes
from janus.types import RequestTrace, Slo
from janus.types.checks import integer

LONGEST_OUTPUT = 2**22  # tokens: the ring of finishing steps has as many places


@dataclass(frozen=True)
class Layout:
    """How pools are arranged.

    Args:
        colocated: attention and experts on the same GPUs.
        copies: deployments side by side, requests spread over all of them.
        efficiency: share of a GPU's work that gets done.
    """

    colocated: bool = False
    copies: int = 1
    efficiency: float = 1.0


@dataclass(frozen=True, eq=False)
class Stage:
    """Requests, model and machine of a simulation.

    Args:
        requests: arrivals and lengths.
        load: the requests by window.
        times: tables of step times.
        sizer: chooses pools from them.
        slo: the objective.
        headroom: factor on the demand that built-in policies plan for.
        start_s: seconds from a decision until a new instance can load weights.
        tiers: GPUs of whole-model deployments, ascending.
        forecast: ``"last"``, ``"recent"``, ``"oracle"`` or a function of past demands.
        routing: what the activation tables were measured on.
    """

    requests: RequestTrace
    load: Workload
    times: StepTimes
    sizer: Sizer
    slo: Slo
    headroom: float
    start_s: float
    tiers: tuple[int, ...]
    forecast: Any
    routing: str

    @property
    def slots(self) -> int:
        """C, expert slots of an expert instance."""
        return self.times.problem.slots

    def held_bytes(self) -> npt.NDArray[np.int64]:
        """int64 [N]: memory of every request at its full length, rounded up."""
        full = self.requests.input_tokens + self.requests.output_tokens
        lengths, back = np.unique(full, return_inverse=True)
        model = self.times.problem.latency.model
        return np.array([np.ceil(request_bytes(model, float(s))) for s in lengths], dtype=np.int64)[back]

    def curve(self, n_a: int, n_e: int, layout: Layout) -> Curve:
        """Step times of these pools."""
        if layout.colocated:
            width = n_a // layout.copies
            rest = self.times.colocated_rest(width, self.sizer.slots(width))
        else:
            rest = self.times.rest(n_a // layout.copies, n_e // layout.copies)
        return self.times.curve(rest, copies=layout.copies, efficiency=layout.efficiency)

    def layout(self, policy: Any, n_a: int, n_e: int) -> Layout:
        """How a policy arranges these pools; what it does not say is 1 deployment of two pools at full efficiency."""
        colocated = bool(getattr(policy, "colocated", False))
        copies = policy.copies(n_a, n_e) if hasattr(policy, "copies") else 1
        if colocated and not hasattr(policy, "copies"):
            copies = 1 if n_a in self.tiers else max(1, n_a // self.tiers[-1])
        what = f"copies({n_a}, {n_e}) of policy {policy.name}"
        integer(copies, what, "simulate.policy", low=1)
        efficiency = positive(
            getattr(policy, "efficiency", 1.0), f"efficiency of policy {policy.name}", "simulate.policy"
        )
        if n_a % copies or n_e % copies or (colocated and n_a // copies not in self.tiers):
            rule = "every copy must have as many instances, and as many GPUs as a tier where it is colocated"
            raise JanusError("simulate.policy", f"{rule}; got {n_a} and {n_e} in {copies} copies, tiers {self.tiers}")
        return Layout(colocated, copies, float(efficiency))

    def pools(self, serving: tuple[int, int], target: tuple[int, int], layout: Layout) -> Pools:
        """What serves and what is paid while a change to `target` is under way (or none is: the same pools)."""
        model, cluster = self.times.problem.latency.model, self.times.problem.latency.cluster
        held, most = 0.0, self.times.problem.max_batch
        if layout.colocated:
            held = self.sizer.slots(serving[0] // layout.copies) * slot_bytes(model) + gate_bytes(model, most)
        capacity = int(cluster.usable_bytes - model.attention_side_bytes - held)
        others = 0 if layout.colocated else max(serving[1], target[1])
        return Pools(serving[0], max(serving[0], target[0]), others, capacity, most * layout.copies)

    def check_memory(self, pools: Pools, held_bytes: npt.NDArray[np.int64]) -> None:
        """Refuse requests that no attention instance can ever hold."""
        largest = int(held_bytes.max())
        if largest > pools.capacity:
            at = int(held_bytes.argmax())
            tokens = int(self.requests.input_tokens[at] + self.requests.output_tokens[at])
            rule = "every request must fit on one attention instance at its full length"
            seen = (
                f"request {at} of {tokens} tokens needs {largest / 2**30:.2f} GiB, free: {pools.capacity / 2**30:.2f}"
            )
            raise JanusError("simulate.memory", f"{rule}; {seen}; use GPUs with more memory or drop such requests")


def check_requests(requests: Any) -> RequestTrace:
    """`requests` if something can be simulated with it, else a `JanusError`."""
    if not isinstance(requests, RequestTrace):
        remedy = "make one with RequestTrace.load(path) or RequestTrace(times_s, input_tokens, output_tokens)"
        raise JanusError("simulate.requests", f"requests must be a RequestTrace, got {requests!r}; {remedy}")
    if not requests.num_requests:
        raise JanusError("requests.empty", f"no requests in {requests.source or 'this trace'}: nothing to simulate")
    longest = int(requests.output_tokens.max())
    if longest > LONGEST_OUTPUT:
        rule = f"outputs of at most {LONGEST_OUTPUT} tokens can be simulated"
        raise JanusError("simulate.requests", f"{rule}; the longest has {longest}; drop such requests")
    return requests


def colocated_table(
    problem_table: ActivationTable, tiers: tuple[int, ...], experts: int, wanted: bool
) -> ActivationTable:
    """The table of colocated deployments: the disaggregated one's batches, placed over every tier."""
    pairs = [(width, -(-experts // width)) for width in tiers] if wanted else []
    fresh = ActivationTable(
        problem_table.batch_sizes, {}, problem_table.source, problem_table.method, problem_table.carlo
    )
    return fresh.extended(pairs)
