"""The promise to the users of a service: a percentile of the time per output token."""

from __future__ import annotations

from dataclasses import dataclass

from janus.errors import JanusError
from janus.types.checks import number, shown


@dataclass(frozen=True)
class Slo:
    """A token-latency objective: the `percentile` of TPOT over requests is at most `tpot_ms`.

    TPOT is the mean time between the output tokens of one request, the first token excluded.

    Args:
        tpot_ms: milliseconds, > 0.
        percentile: of the requests, in (0, 100].

    Raises:
        JanusError: ``slo.range`` for a value outside these ranges.

    Example:
        >>> Slo(tpot_ms=150).percentile
        99.0
    """

    tpot_ms: float = 150.0
    percentile: float = 99.0

    def __post_init__(self) -> None:
        for field, rule, most in (
            ("tpot_ms", "tpot_ms must be a finite number > 0, in milliseconds", float("inf")),
            ("percentile", "percentile must lie in (0, 100], 99 for P99", 100.0),
        ):
            value = number(getattr(self, field), rule, "slo.range")
            if not 0 < value <= most:
                raise JanusError("slo.range", f"{rule}, got {shown(value)}")
            object.__setattr__(self, field, value)
