"""The promise to the users of a service: a percentile of the time per output token."""

from __future__ import annotations

import math
from dataclasses import dataclass

from janus.errors import JanusError


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
        if not (_is_number(self.tpot_ms) and self.tpot_ms > 0):
            raise JanusError(
                "slo.range", f"tpot_ms must be a finite number > 0, got {self.tpot_ms!r}; it is in milliseconds"
            )
        if not (_is_number(self.percentile) and 0 < self.percentile <= 100):
            raise JanusError("slo.range", f"percentile must lie in (0, 100], got {self.percentile!r}; give 99 for P99")
        object.__setattr__(self, "tpot_ms", float(self.tpot_ms))
        object.__setattr__(self, "percentile", float(self.percentile))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
