"""Which experts each token of a real model chose, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError, known
from janus.types.checks import Frozen, first_outside, integer, integers, shown
from janus.types.drawing import draw_tokens, inclusion, resample_popularity
from janus.types.files import reading, write_npz
from janus.types.routing_files import FORMAT, flattened, read_routing

MAX_EXPERTS = int(np.iinfo(np.int16).max)
COACTIVATION_CHUNK = 1 << 15  # tokens at once: bounds memory, and float32 sums below 2**24 stay exact


class _Synthetic:
    """One name, two uses: `RoutingTrace.synthetic(like=...)` makes a trace, `trace.synthetic` says whether it is one."""

    @overload
    def __get__(self, trace: None, owner: type[RoutingTrace]) -> Callable[..., RoutingTrace]: ...
    @overload
    def __get__(self, trace: RoutingTrace, owner: type[RoutingTrace]) -> bool: ...
    def __get__(self, trace: RoutingTrace | None, owner: type[RoutingTrace]) -> Callable[..., RoutingTrace] | bool:
        return owner._like if trace is None else trace._synthetic


class RoutingTrace(Frozen):
    """The chosen experts of a sequence of tokens, or of a model that was derived from one.

    Args:
        ids: integers [T, L, K]; kept as int16. -1 marks a choice that was not made.
        num_experts: E.
        source: where it comes from, for people (``"recorded: ..."``).
        synthetic: True when popularity was borrowed from another model; whatever is computed from it must say so.
        request: integers [T], the request of each token; given together with `step`.
        step: integers [T], the decode step of each token; a pair (request, step) occurs once.

    Raises:
        JanusError: ``routing.shape``, ``routing.range``, ``routing.step``, ``routing.counts``, ``routing.file``.

    Example:
        >>> t = RoutingTrace(np.array([[[0, 1]], [[1, 2]]]), num_experts=4)
        >>> t.counts().tolist(), t.coactivation(0)[0].tolist()
        ([[1, 2, 1, 0]], [0, 1, 0, 0])
    """

    synthetic = _Synthetic()

    def __init__(
        self,
        ids: npt.ArrayLike,
        num_experts: int,
        *,
        source: str = "",
        synthetic: bool = False,
        request: npt.ArrayLike | None = None,
        step: npt.ArrayLike | None = None,
    ) -> None:
        raw = integers(ids, "ids must be integers [T, L, K]", "routing.shape", ndim=(3,))
        if 0 in raw.shape[1:]:
            raise JanusError("routing.shape", f"ids [T, L, K] need at least one layer and one choice, got {raw.shape}")
        self.num_experts = integer(num_experts, "num_experts", "routing.range", low=1, high=MAX_EXPERTS)
        _check_ids(raw, self.num_experts)
        self.ids: npt.NDArray[np.int16] = raw.astype(np.int16)
        self.source, self._synthetic = str(source), bool(synthetic)
        self.request, self.step = _checked_steps(request, step, len(raw))
        self._freeze()

    @classmethod
    def from_requests(cls, topk: npt.ArrayLike, num_experts: int, *, source: str = "") -> RoutingTrace:
        """Take a recording [requests, steps, L, K]; token t = request * steps + step.

        Example:
            >>> RoutingTrace.from_requests(np.zeros((2, 3, 1, 1), dtype=int), 4).step.tolist()
            [0, 1, 2, 0, 1, 2]
        """
        rule = "topk must be integers [requests, steps, L, K]"
        return cls(
            **flattened(integers(topk, rule, "routing.shape", ndim=(4,))), num_experts=num_experts, source=source
        )

    @classmethod
    def from_counts(
        cls,
        counts: npt.ArrayLike,
        top_k: int,
        *,
        tokens: int = 4096,
        seed: int = 0,
        source: str = "",
        synthetic: bool = False,
    ) -> RoutingTrace:
        """Draw tokens whose experts have the popularity of `counts` [L, E].

        Layers and tokens are independent of each other and co-activation is that of chance: only the marginals are
        those of the recording.

        Args:
            counts: integers >= 0 [L, E]; each layer with at least `top_k` experts above 0.
            top_k: K.
            tokens: T to draw.
            seed: of the draw; the same seed gives the same trace.
            source: what the counts are; "tokens drawn independently from counts: " is put before it.
            synthetic: True when the counts are another model's.

        Example:
            >>> RoutingTrace.from_counts([[8, 1, 1, 0]], top_k=2, tokens=1000).counts()[0, 0]
            np.int64(1000)
        """
        rule = "counts must be integers >= 0 [L, E]"
        raw = integers(counts, rule, "routing.counts", ndim=(2,))
        at = first_outside(raw, 0, 2**53)
        if at is not None or raw.size == 0:
            raise JanusError("routing.counts", f"{rule}; got " + (f"{raw[at]} at {list(at)}" if at else f"{raw.shape}"))
        source = f"tokens drawn independently from counts: {source}"
        return cls._drawn(raw.astype(np.float64), top_k, tokens, seed, source, synthetic)

    @classmethod
    def _like(
        cls,
        *,
        like: RoutingTrace,
        num_experts: int,
        top_k: int,
        num_layers: int | None = None,
        tokens: int = 4096,
        seed: int = 0,
    ) -> RoutingTrace:
        """Routing for a model without a recording: the popularity quantiles of `like`, resampled.

        Layer l takes the popularity of the layer of `like` at the same relative depth; its sorted popularity, read as
        a quantile function, is taken at `num_experts` points and given to experts at random. Tokens are then drawn as
        in `from_counts`. Co-activation and correlation between tokens are *not* carried over.

        Args:
            like: a recorded trace (of one that is synthetic itself, the name says so twice).
            num_experts: E of the new model.
            top_k: K of the new model.
            num_layers: L of the new model; that of `like` when None.
            tokens: T to draw.
            seed: of the assignment of experts and of the draw.

        Raises:
            JanusError: ``routing.shape`` for sizes, ``routing.counts`` when `like` holds no choice in a layer.
        """
        if not isinstance(like, RoutingTrace):
            raise JanusError("routing.shape", f"like must be a RoutingTrace, got {shown(like)}")
        experts = integer(num_experts, "num_experts", "routing.range", low=1, high=MAX_EXPERTS)
        layers = integer(like.num_layers if num_layers is None else num_layers, "num_layers", "routing.shape", low=1)
        rng = np.random.default_rng(integer(seed, "seed", "routing.range"))
        counts = like.counts()
        depth = np.arange(layers) * like.num_layers // layers
        popularity = np.stack([rng.permutation(resample_popularity(counts[row], experts)) for row in depth])
        name = like.source or "an unnamed trace"
        source = f"synthetic routing like [{name}], E={experts}, K={shown(top_k)}, L={layers}"
        return cls._drawn(popularity, top_k, tokens, int(rng.integers(2**32)), source, True)

    @classmethod
    def _drawn(
        cls, popularity_LE: npt.NDArray[np.float64], top_k: int, tokens: int, seed: int, source: str, synthetic: bool
    ) -> RoutingTrace:
        experts = popularity_LE.shape[1]
        k = integer(top_k, "top_k", "routing.shape", low=1, high=experts)
        count = integer(tokens, "tokens", "routing.shape", low=1)
        rng = np.random.default_rng(integer(seed, "seed", "routing.range"))
        pi_LE = np.stack([inclusion(row, k) for row in popularity_LE])
        return cls(draw_tokens(pi_LE, k, count, rng), experts, source=source, synthetic=synthetic)

    @classmethod
    def load(cls, path: str | Path, *, num_experts: int | None = None) -> RoutingTrace:
        """Read what `save` wrote, or a recording ``topk`` [requests, steps, L, K] in an npz (see `from_requests`).

        Args:
            path: an npz; nothing in it is unpickled.
            num_experts: E, for a recording that does not state it; its largest id + 1 when None.

        Raises:
            JanusError: ``routing.file`` for whatever is wrong with the file.
        """
        fields = read_routing(path, num_experts)
        with reading(path, "routing.file"):
            return cls(**fields)

    def save(self, path: str | Path) -> None:
        """Write a compressed npz without pickles."""
        narrow = self.num_experts <= 256 and (self.ids.size == 0 or int(self.ids.min()) >= 0)
        fields: dict[str, Any] = {
            "format": FORMAT,
            "num_experts": self.num_experts,
            "source": self.source,
            "synthetic": self.synthetic,
            "ids": self.ids.astype(np.uint8) if narrow else self.ids,
        }
        if self.request is not None:
            fields |= {"request": self.request, "step": self.step}
        write_npz(path, "routing.file", **fields)

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

    @cached_property
    def _steps(self) -> list[npt.NDArray[np.int64]]:
        """The tokens of each step."""
        if self.step is None:
            rule = 'how="step" needs a trace that knows the request and step of its tokens'
            raise JanusError("routing.step", f'{rule}; this one does not: use how="tokens"')
        order = np.argsort(self.step, kind="stable")
        _, first = np.unique(self.step[order], return_index=True)
        return np.split(order, first[1:])

    def steps(self, first: int, stop: int) -> RoutingTrace:
        """The tokens of the decode steps first..stop-1, e.g. to leave out a chat template that every answer opens with.

        Raises:
            JanusError: ``routing.step`` when the trace knows no steps or none of these.
        """
        low = integer(first, "first", "routing.step")
        high = integer(stop, "stop", "routing.step", low=low + 1)
        if self.request is None or self.step is None:
            raise JanusError("routing.step", "this trace does not know the request and step of its tokens")
        keep = (self.step >= low) & (self.step < high)
        if not keep.any():
            raise JanusError(
                "routing.step", f"no token between steps {low} and {high}; steps run to {self.step.max(initial=-1)}"
            )
        kept = {"request": self.request[keep], "step": self.step[keep]}
        source = f"{self.source}, steps {low}..{high - 1}"
        return RoutingTrace(self.ids[keep], self.num_experts, source=source, synthetic=self.synthetic, **kept)

    def sample(
        self, B: int, rng: np.random.Generator, *, how: Literal["tokens", "step"] = "tokens"
    ) -> npt.NDArray[np.int16]:
        """Draw a batch of B tokens: int16 [B, L, K].

        ``how="tokens"``: any tokens, as if all requests were independent and at any point of their answers; without
        replacement while B <= T (so that the number of distinct experts is estimated without bias), with it beyond.
        ``how="step"``: a batch that was really in flight: one step at random among those with at least B requests,
        then B of its requests. It keeps what requests at one step have in common, and cannot exceed what was recorded.

        Raises:
            JanusError: ``routing.shape`` for a bad B or an empty trace, ``routing.step`` when no step has B requests or
                the trace knows no steps.
        """
        known(how, ("tokens", "step"), "how", "routing.sample")
        size = integer(B, "B", "routing.shape")
        if not isinstance(rng, np.random.Generator):
            raise JanusError("routing.sample", f"rng must be a numpy.random.Generator, got {shown(rng)}")
        if not self.num_tokens:
            raise JanusError("routing.shape", "cannot sample from a trace of 0 tokens")
        if how == "tokens":
            return self.ids[rng.choice(self.num_tokens, size, replace=size > self.num_tokens, shuffle=False)]
        wide = [tokens for tokens in self._steps if len(tokens) >= size]
        if not wide:
            most = max(len(tokens) for tokens in self._steps)
            raise JanusError("routing.step", f'no step has {size} requests, at most {most}; use how="tokens"')
        return self.ids[rng.choice(wide[rng.integers(len(wide))], size, replace=False, shuffle=False)]

    def counts(self) -> npt.NDArray[np.int64]:
        """int64 [L, E]: how many times each expert was chosen."""
        out = np.zeros((self.num_layers, self.num_experts), dtype=np.int64)
        for layer, row in enumerate(out):
            flat = self.ids[:, layer].ravel()
            row += np.bincount(flat[flat >= 0], minlength=self.num_experts)
        return out

    def coactivation(self, layer: int) -> npt.NDArray[np.int64]:
        """int64 [E, E], symmetric, zero diagonal: how many tokens chose both experts (the paper's a(e, e'))."""
        row = integer(layer, "layer", "routing.range", high=self.num_layers - 1)
        pairs = np.zeros((self.num_experts, self.num_experts), dtype=np.int64)
        for first in range(0, self.num_tokens, COACTIVATION_CHUNK):
            ids = self.ids[first : first + COACTIVATION_CHUNK, row].astype(np.int64)
            chosen = np.zeros((len(ids), self.num_experts + 1), dtype=np.float32)  # column E collects the -1
            np.put_along_axis(chosen, ids % (self.num_experts + 1), 1.0, axis=1)
            pairs += np.rint(chosen[:, :-1].T @ chosen[:, :-1]).astype(np.int64)
        np.fill_diagonal(pairs, 0)
        return pairs

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RoutingTrace):
            return False
        names = ("num_experts", "source", "synthetic")
        arrays = ("ids", "request", "step")
        return all(getattr(self, n) == getattr(other, n) for n in names) and all(
            np.array_equal(getattr(self, n), getattr(other, n)) for n in arrays
        )

    def __hash__(self) -> int:
        return hash((self.ids.shape, self.num_experts, self.source))

    def __repr__(self) -> str:
        kind = "synthetic" if self.synthetic else "recorded or drawn"
        sizes = f"T={self.num_tokens}, L={self.num_layers}, K={self.top_k}, E={self.num_experts}"
        return f"RoutingTrace({sizes}, {kind}, source={self.source!r})"


def _check_ids(ids: npt.NDArray[Any], num_experts: int) -> None:
    at = first_outside(ids, -1, num_experts - 1)
    if at is not None:
        rule = f"ids hold -1 or an expert in 0..{num_experts - 1}"
        raise JanusError("routing.range", f"{rule}; token {at[0]}, layer {at[1]} holds {ids[at]}")


Steps = tuple[npt.NDArray[np.int32] | None, npt.NDArray[np.int32] | None]


def _checked_steps(request: npt.ArrayLike | None, step: npt.ArrayLike | None, tokens: int) -> Steps:
    if request is None and step is None:
        return None, None
    rule = f"request and step must both be integers >= 0 [T], T = {tokens}"
    both = [integers(value, rule, "routing.step", ndim=(1,)) for value in (request, step)]
    for raw in both:
        if len(raw) != tokens or first_outside(raw, 0, np.iinfo(np.int32).max) is not None:
            raise JanusError("routing.step", f"{rule}; got {shown(raw)}")
    pairs = both[0].astype(np.int64) << 32 | both[1].astype(np.int64)
    if len(np.unique(pairs)) < tokens:
        raise JanusError("routing.step", "a request has one token per step, but a pair (request, step) occurs twice")
    return both[0].astype(np.int32), both[1].astype(np.int32)
