"""Which experts each token of a real model chose, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError

FORMAT = "janus.routing/1"


class RoutingTrace:
    """The chosen experts of a sequence of tokens, or of a model that was derived from one.

    Args:
        ids: integers [T, L, K]; kept as int16. -1 marks a choice that was not made.
        num_experts: E.
        source: where it comes from, for people (``"recorded: ..."``).
        synthetic: True when popularity was borrowed from another model; whatever is computed from it must say so.

    Raises:
        JanusError: ``routing.shape``, ``routing.range``, ``routing.file``.

    Example:
        >>> t = RoutingTrace(np.array([[[0, 1]], [[1, 2]]]), num_experts=4)
        >>> t.counts().tolist(), t.coactivation(0)[0].tolist()
        ([[1, 2, 1, 0]], [0, 1, 0, 0])
    """

    def __init__(self, ids: npt.ArrayLike, num_experts: int, *, source: str = "", synthetic: bool = False) -> None:
        raw = np.asarray(ids)
        if raw.ndim != 3 or not np.issubdtype(raw.dtype, np.integer) or 0 in raw.shape[1:]:
            raise JanusError("routing.shape", f"ids must be integers [T, L, K], got {raw.dtype} {raw.shape}")
        if not 1 <= num_experts <= np.iinfo(np.int16).max:
            raise JanusError("routing.range", f"num_experts must lie in 1..32767, got {num_experts}")
        bad = np.argwhere((raw < -1) | (raw >= num_experts))
        if len(bad):
            t, layer, k = bad[0]
            value = raw[t, layer, k]
            raise JanusError(
                "routing.range",
                f"ids hold -1 or an expert in 0..{num_experts - 1}; token {t}, layer {layer} holds {value}",
            )
        self.ids: npt.NDArray[np.int16] = np.ascontiguousarray(raw, dtype=np.int16)
        self.ids.flags.writeable = False
        self.num_experts, self.source, self.synthetic = int(num_experts), source, bool(synthetic)

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.ids.shape[0]

    @property
    def num_layers(self) -> int:
        """L."""
        return self.ids.shape[1]

    @property
    def top_k(self) -> int:
        """K."""
        return self.ids.shape[2]

    def sample(self, B: int, rng: np.random.Generator) -> npt.NDArray[np.int16]:
        """Draw B tokens with replacement: int16 [B, L, K]."""
        if not self.num_tokens:
            raise JanusError("routing.shape", "cannot sample from a trace of 0 tokens")
        return self.ids[rng.integers(0, self.num_tokens, size=B)]

    def counts(self) -> npt.NDArray[np.int64]:
        """int64 [L, E]: how many times each expert was chosen."""
        out = np.zeros((self.num_layers, self.num_experts), dtype=np.int64)
        for layer, row in enumerate(out):
            flat = self.ids[:, layer].ravel()
            row += np.bincount(flat[flat >= 0], minlength=self.num_experts)
        return out

    def coactivation(self, layer: int) -> npt.NDArray[np.int64]:
        """int64 [E, E], symmetric, zero diagonal: how many tokens chose both experts (the paper's a(e, e'))."""
        if not 0 <= layer < self.num_layers:
            raise JanusError("routing.shape", f"layer must lie in 0..{self.num_layers - 1}, got {layer}")
        chosen = np.zeros((self.num_tokens, self.num_experts + 1), dtype=np.float32)  # column E collects the -1
        np.put_along_axis(chosen, self.ids[:, layer].astype(np.int64) % (self.num_experts + 1), 1.0, axis=1)
        pairs = np.rint(chosen[:, :-1].T @ chosen[:, :-1]).astype(np.int64)
        np.fill_diagonal(pairs, 0)
        return pairs

    def save(self, path: str | Path) -> None:
        """Write a compressed npz without pickles."""
        dtype = np.uint8 if self.num_experts < 256 and (self.ids >= 0).all() else np.int16
        meta: dict[str, Any] = {
            "format": FORMAT,
            "num_experts": self.num_experts,
            "source": self.source,
            "synthetic": self.synthetic,
        }
        with Path(path).open("wb") as file:
            np.savez_compressed(file, ids=self.ids.astype(dtype), **meta)
