"""The numbers of a model that memory and time depend on: layers, widths, parameters, bytes per token of KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from janus.errors import JanusError, known
from janus.scale.hardware import whole

# Bytes per parameter. fp8 carries one float32 scale per 128 x 128 block (0.02 %, left out);
# mxfp4 packs 32 values of 4 bits with one 8-bit scale: 4.25 bits; nvfp4 16 values with one: 4.5 bits.
# int8 carries one scale per row (left out).
DTYPE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "mxfp4": 4.25 / 8, "nvfp4": 4.5 / 8}


def dtype_bytes(dtype: str) -> float:
    """Bytes per value of a dtype by name.

    Example:
        >>> dtype_bytes("bf16")
        2.0
    """
    return DTYPE_BYTES[known(dtype, DTYPE_BYTES, "dtype", "model.dtype")]


@dataclass(frozen=True)
class AttentionSpec:
    """One attention layer: its kind and sizes (all in elements).

    Args:
        kind: ``"mha"``, ``"gqa"`` (fewer key/value heads than query heads) or ``"mla"`` (latent key/value cache).
        heads: query heads.
        kv_heads: key/value heads; MLA caches one latent row for all heads.
        head_dim: width of a query/key head (MLA: the part without position).
        v_head_dim: width of a value head.
        rope_dim: MLA: width of the shared key part that carries the position; else 0.
        q_rank: MLA: rank of the query projection, 0 when it is a full matrix.
        kv_rank: MLA: rank of the latent; else 0.
        window: tokens a sliding-window layer keeps, 0 for none.
        window_layers: how many of the model's layers use the window.
        biased: which projections carry a bias: ``"none"``, ``"qkv"`` or ``"all"``.
        qk_norm: width of the query/key norm: ``"none"``, ``"head"`` (one head) or ``"full"`` (all heads).
        sinks: True when every head has a learned sink.
        index_heads, index_dim, index_topk: sparse attention's indexer (DeepSeek-V3.2): heads, width, tokens kept; 0 for none.
    """

    kind: Literal["mha", "gqa", "mla"]
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    rope_dim: int = 0
    q_rank: int = 0
    kv_rank: int = 0
    window: int = 0
    window_layers: int = 0
    biased: Literal["none", "qkv", "all"] = "none"
    qk_norm: Literal["none", "head", "full"] = "none"
    sinks: bool = False
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0

    def params(self, hidden: int) -> int:
        """Parameters of one attention layer, norms inside it included."""
        return self._mla_params(hidden) if self.kind == "mla" else self._grouped_params(hidden)

    def _grouped_params(self, hidden: int) -> int:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        total = hidden * q + 2 * hidden * kv + q * hidden
        total += {"none": 0, "qkv": q + 2 * kv, "all": q + 2 * kv + hidden}[self.biased]
        total += {"none": 0, "head": 2 * self.head_dim, "full": q + kv}[self.qk_norm]
        return total + (self.heads if self.sinks else 0)

    def _mla_params(self, hidden: int) -> int:
        q = self.heads * (self.head_dim + self.rope_dim)
        total = hidden * self.q_rank + self.q_rank + self.q_rank * q if self.q_rank else hidden * q
        total += hidden * (self.kv_rank + self.rope_dim) + self.kv_rank
        total += self.kv_rank * self.heads * (self.head_dim + self.v_head_dim) + self.heads * self.v_head_dim * hidden
        if self.index_heads:  # query up-projection, key down-projection, key norm, head weights
            total += self.q_rank * self.index_heads * self.index_dim + hidden * self.index_dim
            total += 2 * self.index_dim + hidden * self.index_heads
        return total

    @property
    def kv_elements(self) -> int:
        """Cached elements per token and layer, the indexer's key left out."""
        return self.kv_rank + self.rope_dim if self.kind == "mla" else 2 * self.kv_heads * self.head_dim

    @property
    def flops_per_cached_token(self) -> int:
        """FLOPs of scores and values of one new token per cached token (MLA: absorbed form, as decode kernels run it)."""
        if self.kind == "mla":
            return 2 * self.heads * (self.kv_rank + self.rope_dim) + 2 * self.heads * self.kv_rank
        return 4 * self.heads * self.head_dim

    def kept(self, context: float, layers: int) -> float:
        """Cached tokens summed over `layers` layers for a sequence of `context` tokens, windows applied."""
        windowed = min(self.window_layers, layers)
        return (layers - windowed) * context + windowed * min(context, self.window)

    def attended(self, context: float, layers: int) -> float:
        """As `kept`, for what one new token attends to: sparse attention looks at index_topk tokens at most."""
        return self.kept(min(context, self.index_topk) if self.index_heads else context, layers)


@dataclass(frozen=True)
class ModelSpec:
    """Architecture numbers of a mixture-of-experts decoder; sizes in elements, memory in bytes.

    Args:
        name: for people.
        layers: all decoder layers.
        moe_layers: L, those with routed experts; the others are dense.
        hidden: H.
        experts: E.
        top_k: K.
        expert_width: F.
        shared_width: total intermediate width of the shared experts, 0 for none.
        dense_width: intermediate width of a dense layer.
        vocab: vocabulary size.
        attention: see `AttentionSpec`.
        tied: True when the output head is the embedding matrix.
        expert_dtype: of the routed experts' weights, a key of `DTYPE_BYTES`.
        dense_dtype: of attention, dense layers and shared experts. Embeddings, head and router count as bf16.
        kv_dtype: of the KV cache.
        expert_bias: biases per expert (gpt-oss: 2F + H), 0 for none.
        router_bias: True when the router has one bias per expert.

    Example:
        >>> m = ModelSpec.from_config("deepseek-v2")
        >>> m.experts, m.top_k, m.expert_params, m.moe_layers
        (160, 6, 23592960, 59)
    """

    name: str
    layers: int
    moe_layers: int
    hidden: int
    experts: int
    top_k: int
    expert_width: int
    shared_width: int
    dense_width: int
    vocab: int
    attention: AttentionSpec
    tied: bool = False
    expert_dtype: str = "bf16"
    dense_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    expert_bias: int = 0
    router_bias: bool = False

    def __post_init__(self) -> None:
        for field in ("expert_dtype", "dense_dtype", "kv_dtype"):
            dtype_bytes(getattr(self, field))
        for field in ("layers", "moe_layers", "hidden", "experts", "top_k", "expert_width", "vocab"):
            whole(getattr(self, field), field, "model.config")
        for field in ("shared_width", "dense_width", "expert_bias"):
            whole(getattr(self, field), field, "model.config", least=0)
        if not isinstance(self.attention, AttentionSpec):
            raise JanusError("model.config", f"attention must be an AttentionSpec, got {self.attention!r}")
        if not 1 <= self.top_k <= self.experts:
            raise JanusError("model.config", f"top_k must lie in 1..experts; got {self.top_k} of {self.experts}")
        if not 1 <= self.moe_layers <= self.layers:
            raise JanusError("model.config", f"moe_layers must lie in 1..{self.layers} layers, got {self.moe_layers}")

    @classmethod
    def from_config(cls, path_or_dict: str | Path | dict[str, Any], **overrides: Any) -> ModelSpec:
        """Read a Hugging Face ``config.json``: a dict, a file, a folder that holds one, or the name of a shipped one.

        Args:
            path_or_dict: ``"deepseek-v2"``, ``"/models/x"``, ``"/models/x/config.json"``, or the parsed JSON.
            overrides: fields of `ModelSpec` to replace, e.g. ``expert_dtype="fp8"``.

        Raises:
            JanusError: ``model.config`` (a missing or wrong field, named with its file), ``model.family``,
                ``model.name`` (neither a file nor a shipped name; lists the shipped ones), ``model.dtype``.
        """
        from janus.scale.configs import read_config  # configs.py builds ModelSpec objects

        return read_config(path_or_dict, overrides)

    @property
    def dense_layers(self) -> int:
        """Layers without routed experts."""
        return self.layers - self.moe_layers

    @property
    def expert_params(self) -> int:
        """Parameters of one routed expert: gate, up and down projection."""
        return 3 * self.hidden * self.expert_width + self.expert_bias

    @property
    def expert_bytes(self) -> float:
        """Bytes of one routed expert."""
        return self.expert_params * dtype_bytes(self.expert_dtype)

    @property
    def router_params(self) -> int:
        """Parameters of one layer's router."""
        return self.experts * (self.hidden + int(self.router_bias))

    @property
    def shared_params(self) -> int:
        """Parameters of one layer's shared experts."""
        return 3 * self.hidden * self.shared_width

    @property
    def dense_params(self) -> int:
        """Parameters of one dense layer's feed-forward part."""
        return 3 * self.hidden * self.dense_width

    @cached_property
    def attention_params(self) -> int:
        """Parameters of one attention layer."""
        return self.attention.params(self.hidden)

    @property
    def embedding_params(self) -> int:
        """Parameters of the embedding and the output head (one matrix when tied)."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def routed_params(self) -> int:
        """Parameters of all routed experts."""
        return self.moe_layers * self.experts * self.expert_params

    @property
    def total_params(self) -> int:
        """All parameters; multi-token-prediction layers, which decode without speculation skips, are left out."""
        norms = (2 * self.layers + 1) * self.hidden
        per_moe = self.router_params + self.shared_params
        return (
            self.routed_params
            + self.moe_layers * per_moe
            + self.layers * self.attention_params
            + self.dense_layers * self.dense_params
            + self.embedding_params
            + norms
        )

    @property
    def active_params(self) -> int:
        """Parameters one token uses, embeddings included."""
        return self.total_params - self.moe_layers * (self.experts - self.top_k) * self.expert_params

    @property
    def attention_side_bytes(self) -> float:
        """Weights of one attention instance: attention, dense layers, shared experts, embedding, head; bytes."""
        inner = self.layers * self.attention_params + self.dense_layers * self.dense_params
        inner += self.moe_layers * self.shared_params
        return inner * dtype_bytes(self.dense_dtype) + self.embedding_params * dtype_bytes("bf16")

    @property
    def index_bytes_per_token(self) -> float:
        """The part of `kv_bytes_per_token` that is the sparse indexer's key, bytes; 0 without one."""
        return self.attention.index_dim * (1 + 4 / 128) if self.attention.index_heads else 0.0

    def kv_bytes_per_token(self, dtype: str | None = None) -> float:
        """KV cache of one token in one full-attention layer, bytes; `dtype` defaults to `kv_dtype`.

        The sparse indexer's key is kept in fp8 with one float32 scale per 128 values, whatever the dtype.
        """
        return self.attention.kv_elements * dtype_bytes(dtype or self.kv_dtype) + self.index_bytes_per_token

    def kv_bytes(self, context: float) -> float:
        """KV cache of one sequence of `context` tokens over all layers, bytes; sliding windows applied."""
        return self.attention.kept(context, self.layers) * self.kv_bytes_per_token()
