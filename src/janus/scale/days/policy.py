"""What a scaling policy is: an object with a name that answers observations with decisions."""

from __future__ import annotations

from typing import Any, Protocol

from janus.errors import JanusError
from janus.scale.online.decisions import Decision, Observation

POLICIES = ("janus", "monolithic", "megascale", "xdeepserve", "static")


class Policy(Protocol):
    """What `simulate` takes beside names.

    It may also have `colocated` (True: both roles on every GPU, which is counted once), `efficiency` (share of a GPU's
    work that gets done) and `copies(n_attention, n_experts)` (deployments that its pools are split into).
    """

    name: str

    def decide(self, observation: Observation) -> Decision:
        """Pools for the next window."""
        ...


def check_policy(policy: Any) -> Any:
    """`policy` if it has what a policy needs."""
    if not isinstance(getattr(policy, "name", None), str) or not callable(getattr(policy, "decide", None)):
        rule = f"a policy is one of {', '.join(POLICIES)} or an object with a name and decide(observation)"
        raise JanusError("simulate.policy", f"{rule}; got {policy!r}")
    return policy
