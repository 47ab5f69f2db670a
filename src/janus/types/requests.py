"""When requests arrived and how long they were."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError


class RequestTrace:
    """Arrivals and lengths of requests.

    Args:
        times_s: float64 [N], seconds since the first arrival, ascending.
        input_tokens: int64 [N], >= 1.
        output_tokens: int64 [N], >= 1.
        source: where it comes from, for people.

    Raises:
        JanusError: ``requests.shape``, ``requests.range``, ``requests.file``.
    """

    def __init__(
        self, times_s: npt.ArrayLike, input_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike, *, source: str = ""
    ) -> None:
        self.times_s = np.asarray(times_s, dtype=np.float64)
        self.input_tokens = np.asarray(input_tokens, dtype=np.int64)
        self.output_tokens = np.asarray(output_tokens, dtype=np.int64)
        self.source = source
        if not (self.times_s.ndim == 1 and self.times_s.shape == self.input_tokens.shape == self.output_tokens.shape):
            raise JanusError("requests.shape", "times_s, input_tokens and output_tokens must be 1-D of one length")
