"""The two times behind method `"cost"`, and the integers that they become."""

from __future__ import annotations

from dataclasses import dataclass

from janus.errors import JanusError
from janus.types.checks import number, shown

PICOSECONDS = 1_000_000  # in one microsecond
# An instance then costs at most C * 1e12 + 2**31 * 1e9 < 2**62 picoseconds, however its slots are filled.
MOST_READ_US = 1e6
MOST_TOKEN_US = 1e3


@dataclass(frozen=True)
class RooflineCost:
    """What an activated slot costs: the larger of reading its expert and computing its tokens.

    An instance costs the sum over its activated slots of max(read_us, tokens x token_us). Both times are turned once
    into whole picoseconds, ``round(us * 1e6)`` (ties to even), and everything after is integers.

    Args:
        read_us: microseconds to read one expert's weights, 1e-6 to 1e6.
        token_us: microseconds to compute one token in one expert, 0 or 1e-6 to 1e3; 0 makes method ``"cost"`` the
            same as ``"exact"``.

    Raises:
        JanusError: ``sched.cost``.

    Example:
        >>> cost = RooflineCost(read_us=11.0, token_us=0.05)
        >>> cost.integers, cost.ridge
        ((11000000, 50000), 220.0)
        >>> [cost.of(tokens) for tokens in (0, 100, 300)]  # nothing; weights dominate; 300 x 0.05 us
        [0, 11000000, 15000000]
    """

    read_us: float
    token_us: float

    def __post_init__(self) -> None:
        read = number(self.read_us, "read_us must be a finite number of microseconds", "sched.cost")
        token = number(self.token_us, "token_us must be a finite number of microseconds", "sched.cost")
        if not 1 / PICOSECONDS <= read <= MOST_READ_US:
            rule = f"read_us is the time to read one expert's weights, 1e-6 to {MOST_READ_US:.0e} microseconds"
            raise JanusError("sched.cost", f"{rule}; got {read}; give microseconds, not seconds or picoseconds")
        if token != 0 and not 1 / PICOSECONDS <= token <= MOST_TOKEN_US:
            rule = f"token_us is the time of one token in one expert, 0 or 1e-6 to {MOST_TOKEN_US:.0e} microseconds"
            raise JanusError("sched.cost", f"{rule}; got {token}; give microseconds, not seconds or picoseconds")

    @property
    def integers(self) -> tuple[int, int]:
        """(read, token) in whole picoseconds."""
        return round(float(self.read_us) * PICOSECONDS), round(float(self.token_us) * PICOSECONDS)

    @property
    def ridge(self) -> float:
        """Tokens of one expert from which computing takes longer than reading; infinite for token_us = 0."""
        return self.read_us / self.token_us if self.token_us else float("inf")

    def of(self, tokens: int) -> int:
        """Picoseconds of one slot that serves `tokens` entries."""
        read, token = self.integers
        return max(read, token * tokens) if tokens else 0


def check_cost(method: str, cost: object) -> tuple[int, int] | None:
    """The times of method ``"cost"`` in picoseconds, None for another method; refuses one without the other."""
    if method != "cost":
        if cost is not None:
            rule = f"cost= belongs to method 'cost'; got method={method!r} with cost={shown(cost)}"
            raise JanusError("sched.cost", f"{rule}; leave cost= out, or choose method='cost'")
        return None
    if not isinstance(cost, RooflineCost):
        rule = "method 'cost' needs the times of one expert, cost=RooflineCost(read_us=..., token_us=...)"
        remedy = "give them, e.g. LatencyModel.expert_cost, or choose method 'exact', which needs none"
        raise JanusError("sched.cost", f"{rule}; got cost={shown(cost)}; {remedy}")
    return cost.integers
