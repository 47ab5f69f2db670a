"""The built-in loop of the attention side: prefill in chunks, decode in lockstep, sample per prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from janus.errors import JanusError
from janus.runner.attention import ExpertLink


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked.

    Args:
        do_sample: False takes the most likely token.
        temperature: > 0.
        top_k: keep this many most likely tokens, or None.
        top_p: keep the most likely tokens that together reach this probability, or None.
        seed: a prompt's random numbers depend on this and on its index alone, not on the rank that serves it.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (_is(float, self.temperature) and 0 < self.temperature < math.inf):
            raise JanusError(
                "generate.sampling",
                f"temperature must be a finite number > 0, got {self.temperature!r}; do_sample=False is greedy",
            )
        if self.top_k is not None and not (_is(int, self.top_k) and self.top_k >= 1):
            raise JanusError("generate.sampling", f"top_k must be an integer >= 1 or None, got {self.top_k!r}")
        if self.top_p is not None and not (_is(float, self.top_p) and 0 < self.top_p <= 1):
            raise JanusError("generate.sampling", f"top_p must lie in (0, 1] or be None, got {self.top_p!r}")
        if not _is(int, self.seed):
            raise JanusError("generate.sampling", f"seed must be an integer, got {self.seed!r}")

    def pick(self, logits_nV: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """int64 [n]: the next token of each row of float [n, V] logits."""
        if not self.do_sample:
            return logits_nV.argmax(dim=-1)
        warped = self._warp(logits_nV.float()).softmax(dim=-1)
        rows = [torch.multinomial(p, 1, generator=g) for p, g in zip(warped, generators, strict=True)]
        return torch.cat(rows)

    def _warp(self, logits_nV: torch.Tensor) -> torch.Tensor:
        from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        no_ids: Any = torch.empty(len(logits_nV), 0, dtype=torch.long)
        if self.temperature != 1.0:
            logits_nV = TemperatureLogitsWarper(self.temperature)(no_ids, logits_nV)
        if self.top_k is not None:
            logits_nV = TopKLogitsWarper(self.top_k)(no_ids, logits_nV)
        if self.top_p is not None and self.top_p < 1.0:
            logits_nV = TopPLogitsWarper(self.top_p)(no_ids, logits_nV)
        return logits_nV


@dataclass
class Timing:
    """Wall-clock facts of one `generate` on this rank: seconds in all (idle steps too), of prefill, of each decode step."""

    total_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def tpot_ms(self) -> float | None:
        """Mean time between output tokens in milliseconds, the first excluded; None without a second token."""
        return 1e3 * sum(self.decode_s) / len(self.decode_s) if self.decode_s else None


class Batch:
    """The prompts of one rank, left-padded to one width, with the state of their generation.

    Args:
        prompts: token ids, each non-empty; may be no prompts at all.
        indices: position of each prompt in the user's list.
        limit: new tokens at most.
        stop: ids that end a completion (and belong to it).
        sampling: how tokens are picked.
        pad: any valid id; never attended to nor sent to an expert.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], indices: Sequence[int], limit: int, stop: frozenset[int], sampling: Sampling,
        pad: int,
    ) -> None:  # fmt: skip
        self.ids = _left_padded(prompts, pad)
        self.mask = _left_padded([[1] * len(p) for p in prompts], 0)
        self.indices, self.limit, self.stop, self.sampling = list(indices), limit, stop, sampling
        self.generators = [_generator(sampling.seed, i) for i in self.indices]
        self.completions: list[list[int]] = [[] for _ in prompts]
        self.done = [limit == 0 for _ in prompts]
        self.cache: Any = None

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def width(self) -> int:
        """Columns of the prompt."""
        return self.ids.shape[1]

    def chunks(self, max_tokens: int) -> list[slice]:
        """Column ranges of the prompt, each with at most `max_tokens` tokens over all rows."""
        if not len(self) or all(self.done):
            return []
        columns = max(1, max_tokens // len(self))
        return [slice(c, min(c + columns, self.width)) for c in range(0, self.width, columns)]

    def take(self, logits_nV: torch.Tensor) -> None:
        """Pick a token for every prompt that is not done, and see which of them end."""
        picked = self.sampling.pick(logits_nV, self.generators).tolist()
        for i, token in enumerate(picked):
            if self.done[i]:
                continue
            self.completions[i].append(token)
            self.done[i] = token in self.stop or len(self.completions[i]) >= self.limit


class Generation:
    """One `generate` on one attention rank.

    Args:
        model: whose experts are stand-ins on `link`.
        link: to the experts.
        batch: this rank's prompts.
        max_tokens: most tokens this rank may send in one step.
    """

    def __init__(self, model: nn.Module, link: ExpertLink, batch: Batch, max_tokens: int) -> None:
        self.model: Any = model
        self.link, self.batch, self.max_tokens, self.timing = link, batch, max_tokens, Timing()

    @torch.inference_mode()
    def run(self) -> list[list[int]]:
        """Prefill, then decode until every rank is done; returns the completions of this rank's prompts."""
        start = time.perf_counter()
        for columns in self.batch.chunks(self.max_tokens):
            self._prefill(columns)
        self.timing.prefill_s = time.perf_counter() - start
        while not all(self.batch.done):
            self._decode()
        while self.link.idle_step():  # the others may still have tokens
            pass
        self.timing.total_s = time.perf_counter() - start
        self.timing.tokens = sum(map(len, self.batch.completions))
        return self.batch.completions

    def _prefill(self, columns: slice) -> None:
        mask = self.batch.mask[:, : columns.stop]
        rows = self.batch.mask[:, columns].reshape(-1).nonzero().squeeze(1)
        logits = self._forward(self.batch.ids[:, columns], mask, rows)
        if columns.stop == self.batch.width:
            self.batch.take(logits)

    def _decode(self) -> None:
        start = time.perf_counter()
        batch = self.batch
        active = torch.tensor([not d for d in batch.done])
        last = torch.tensor([[c[-1]] for c in batch.completions])
        batch.mask = torch.cat([batch.mask, torch.ones(len(batch), 1, dtype=torch.long)], dim=1)
        batch.take(self._forward(last, batch.mask, active.nonzero().squeeze(1)))
        self.timing.decode_s.append(time.perf_counter() - start)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """One forward over `ids` [n, w]; only `rows` of its n * w tokens go to the experts. Returns [n, V]."""
        width = ids.shape[1]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -width:]
        self.link.rows = None if len(rows) == ids.numel() else rows
        try:
            out = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.batch.cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
        finally:
            self.link.rows = None
        self.batch.cache = out.past_key_values
        return out.logits[:, -1]


def check_prompts(prompts: Any, max_new_tokens: int, vocab_size: int, max_positions: int | None) -> None:
    """Refuse prompts that cannot be served, before any rank starts."""
    if not _is(int, max_new_tokens) or max_new_tokens < 0:
        raise JanusError("generate.prompts", f"max_new_tokens must be an integer >= 0, got {max_new_tokens!r}")
    if not isinstance(prompts, (list, tuple)):
        raise JanusError("generate.prompts", f"prompts must be a list of token-id lists, got {type(prompts).__name__}")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, (list, tuple)) or not prompt:
            raise JanusError("generate.prompts", f"prompt {i} must be a non-empty list of token ids, got {prompt!r}")
        bad = next(
            (t for t in prompt if isinstance(t, bool) or not isinstance(t, int) or not 0 <= t < vocab_size), None
        )
        if bad is not None:
            raise JanusError("generate.prompts", f"prompt {i} holds {bad!r}; ids are integers in 0..{vocab_size - 1}")
        if max_positions and len(prompt) + max_new_tokens > max_positions:
            raise JanusError(
                "generate.length",
                f"prompt {i} has {len(prompt)} tokens, with {max_new_tokens} new ones more than the model's {max_positions} "
                "positions; shorten it or lower max_new_tokens",
            )


def check_room(prompts: Sequence[Sequence[int]], instances: int, max_tokens: int, *, one_step: bool) -> None:
    """Refuse prompts too many or too long for some rank; the verdict is the same on every rank.

    Args:
        prompts: of all ranks; prompt i goes to instance i mod `instances`.
        instances: of attention.
        max_tokens: of one rank in one step.
        one_step: the model cannot take a prompt in chunks.

    Raises:
        JanusError: ``generate.prompts`` or ``generate.length``.
    """
    for rows in (prompts[first::instances] for first in range(min(instances, len(prompts)))):
        if len(rows) > max_tokens:
            raise JanusError(
                "generate.prompts", f"{len(rows)} prompts on one rank exceed max_tokens={max_tokens}; raise it"
            )
        need = len(rows) * max(map(len, rows))
        if one_step and need > max_tokens:
            raise JanusError(
                "generate.length",
                "a model with recurrent layers must take its prompts in one step, padding included: "
                f"{len(rows)} x {need // len(rows)} tokens on one rank exceed max_tokens={max_tokens}; raise it to {need}",
            )


def _left_padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows), default=0)
    out = torch.full((len(rows), width), fill, dtype=torch.long)
    for padded, row in zip(out, rows, strict=True):
        padded[width - len(row) :] = torch.tensor(row)
    return out


def _is(kind: type[int] | type[float], value: Any) -> bool:
    return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)


def _generator(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
