"""Reading Hugging Face ``config.json`` files into `ModelSpec`, one row per model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from janus.errors import JanusError, known
from janus.scale.model import AttentionSpec, ModelSpec
from janus.types.checks import instance, shown
from janus.types.files import read_json

T = TypeVar("T")
MAX_NUMBER = 2**31 - 1
MAX_LAYERS = 10_000


@dataclass(frozen=True)
class Family:
    """How one model family names and fills its fields."""

    experts: str
    width: str
    shared: Literal["none", "count", "width"] = "none"
    dense_first: bool = False
    mla: bool = False
    biased: Literal["none", "qkv", "all"] = "none"
    qk_norm: Literal["none", "head", "full"] = "none"
    router_bias: bool = False
    gpt_oss: bool = False


_DEEPSEEK = Family("n_routed_experts", "moe_intermediate_size", "count", dense_first=True, mla=True)

FAMILIES: dict[str, Family] = {
    "mixtral": Family("num_local_experts", "intermediate_size"),
    "olmoe": Family("num_experts", "intermediate_size", qk_norm="full"),
    "qwen2_moe": Family("num_experts", "moe_intermediate_size", "width", biased="qkv"),
    "qwen3_moe": Family("num_experts", "moe_intermediate_size", qk_norm="head"),
    "glm4_moe": Family("n_routed_experts", "moe_intermediate_size", "count", dense_first=True, biased="qkv"),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": replace(_DEEPSEEK, router_bias=True),
    "deepseek_v32": replace(_DEEPSEEK, router_bias=True),
    "kimi_k2": replace(_DEEPSEEK, router_bias=True),
    "gpt_oss": Family("num_local_experts", "intermediate_size", biased="all", router_bias=True, gpt_oss=True),
}


class Fields:
    """A config and where it came from; a missing or nonsensical field is an error that names both."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def number(self, name: str, default: int | None = None) -> int:
        """The whole number `name`, >= 1 (>= 0 where there is a default)."""
        value = self.data.get(name)
        value = default if value is None else value
        least = 1 if default is None else 0
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_NUMBER:
            seen = "is missing" if value is None else f"is {shown(value)}"
            rule = f"it must be a whole number >= {least}" + (f" and <= {MAX_NUMBER}" * (value is not None))
            raise JanusError("model.config", f"{name} {seen} in {self.where}; {rule}")
        return value

    def layers(self) -> int:
        """num_hidden_layers, few enough to list them."""
        layers = self.number("num_hidden_layers")
        if layers > MAX_LAYERS:
            rule = f"num_hidden_layers must be <= {MAX_LAYERS}"
            raise JanusError("model.config", f"{rule}, got {layers} in {self.where}")
        return layers

    def nested(self, name: str, kind: type[T]) -> T:
        """The `kind` (a list or an object) in `name`; an empty one where it is missing."""
        value = self.data.get(name)
        return instance(
            kind() if value is None else value,
            kind,
            f"{name} in {self.where} must be a {kind.__name__}",
            "model.config",
            "correct it, or leave it out",
        )


def shipped_names() -> tuple[str, ...]:
    """Names of the configs that come with Janus."""
    folder = files("janus") / "data" / "configs"
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def read_config(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any]) -> ModelSpec:
    """Build a `ModelSpec` from a parsed config, a path or a shipped name; see `ModelSpec.from_config`."""
    data, where, name = _load(source)
    config = Fields(data, where)
    family = FAMILIES[known(str(data.get("model_type")), FAMILIES, f"model_type in {where}", "model.family")]
    spec = _spec(config, family, name)
    names = [field.name for field in fields(ModelSpec)]
    for key in overrides:
        known(key, names, "an override of ModelSpec.from_config", "model.config")
    return replace(spec, **overrides)


def _load(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str, str]:
    if isinstance(source, Mapping):
        return source, "the dict given", str(source.get("_name_or_path") or source.get("model_type") or "model")
    if not isinstance(source, (str, Path)):
        rule = "a model is a shipped name, a config.json, its folder, or a dict"
        raise JanusError("model.config", f"{rule}, got {type(source).__name__}; try 'deepseek-v2'")
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise JanusError("model.config", f"{path} holds no config.json; give a model's folder or a shipped name")
    path = path / "config.json" if path.is_dir() else path
    if path.is_file():
        name = path.parent.name if path.name == "config.json" else path.stem.removesuffix("_config")
        return _parse(path, str(path)), str(path), name
    name = known(str(source), shipped_names(), "a model (no such file or folder, so a shipped name)", "model.name")
    shipped = Path(str(files("janus") / "data" / "configs" / f"{name}.json"))
    return _parse(shipped, shipped.name), shipped.name, name


def _parse(path: str | Path, where: str) -> Mapping[str, Any]:
    data = read_json(path, "model.config")
    if not isinstance(data, dict):
        raise JanusError("model.config", f"{where} must hold a JSON object, got {type(data).__name__}")
    return data


def _spec(config: Fields, family: Family, name: str) -> ModelSpec:
    layers, hidden, width = (
        config.layers(),
        config.number("hidden_size"),
        config.number(family.width),
    )
    moe_layers = _moe_layers(config, family, layers)
    experts_dtype, dense_dtype = _dtypes(config)
    return ModelSpec(
        name=name,
        layers=layers,
        moe_layers=moe_layers,
        hidden=hidden,
        experts=config.number(_experts_field(config, family)),
        top_k=config.number("num_experts_per_tok"),
        expert_width=width,
        shared_width=_shared_width(config, family, width),
        dense_width=config.number("intermediate_size") if moe_layers < layers else 0,
        vocab=config.number("vocab_size"),
        attention=_mla(config) if family.mla else _grouped(config, family, layers, hidden),
        tied=bool(config.data.get("tie_word_embeddings", False)),
        expert_dtype=experts_dtype,
        dense_dtype=dense_dtype,
        expert_bias=2 * width + hidden if family.gpt_oss else 0,
        router_bias=family.router_bias,
    )


def _experts_field(config: Fields, family: Family) -> str:
    # transformers >= 5.20 saves every family's E under one name, whatever the model card calls it.
    resaved = "num_local_experts"
    return resaved if family.experts not in config.data and resaved in config.data else family.experts


def _moe_layers(config: Fields, family: Family, layers: int) -> int:
    if family.dense_first:
        first, every = config.number("first_k_dense_replace", 0), config.number("moe_layer_freq", 1) or 1
        moe = [i for i in range(layers) if i >= first and i % every == 0]
    else:
        every = config.number("decoder_sparse_step", 1) or 1
        dense = config.nested("mlp_only_layers", list)
        moe = [i for i in range(layers) if i not in dense and (i + 1) % every == 0]
    if not moe:
        raise JanusError("model.config", f"{config.where} names no layer with routed experts; Janus serves MoE models")
    return len(moe)


def _shared_width(config: Fields, family: Family, width: int) -> int:
    if family.shared == "count":
        return config.number("n_shared_experts", 0) * width
    return config.number("shared_expert_intermediate_size") if family.shared == "width" else 0


def _dtypes(config: Fields) -> tuple[str, str]:
    """Routed experts' dtype and the rest's, from quantization_config; mxfp4 leaves attention in bf16."""
    method = config.nested("quantization_config", dict).get("quant_method")
    table = {None: ("bf16", "bf16"), "fp8": ("fp8", "fp8"), "mxfp4": ("mxfp4", "bf16")}
    if not isinstance(method, (str, type(None))) or method not in table:
        rule = f"quantization_config.quant_method in {config.where} must be fp8 or mxfp4, or absent"
        raise JanusError(
            "model.config", f"{rule}; got {shown(method)}. Remove it and pass expert_dtype= and dense_dtype="
        )
    return table[method]


def _grouped(config: Fields, family: Family, layers: int, hidden: int) -> AttentionSpec:
    heads = config.number("num_attention_heads")
    kv_heads = config.number("num_key_value_heads", heads) or heads
    head_dim = config.number("head_dim", hidden // heads)
    window, window_layers = _window(config, layers)
    return AttentionSpec(
        kind="mha" if kv_heads == heads else "gqa",
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        window=window,
        window_layers=window_layers,
        biased=family.biased if family.biased == "none" or config.data.get("attention_bias", True) else "none",
        qk_norm="head" if config.data.get("use_qk_norm") else family.qk_norm,
        sinks=family.gpt_oss,
    )


def _window(config: Fields, layers: int) -> tuple[int, int]:
    kinds = config.data.get("layer_types")
    if not config.data.get("sliding_window") or config.data.get("use_sliding_window") is False:
        return 0, 0
    count = kinds.count("sliding_attention") if isinstance(kinds, list) else layers
    return config.number("sliding_window"), count


def _mla(config: Fields) -> AttentionSpec:
    heads = config.number("num_attention_heads")
    indexed = bool(config.data.get("index_n_heads"))
    return AttentionSpec(
        kind="mla",
        heads=heads,
        kv_heads=1,
        head_dim=config.number("qk_nope_head_dim"),
        v_head_dim=config.number("v_head_dim"),
        rope_dim=config.number("qk_rope_head_dim"),
        q_rank=config.number("q_lora_rank", 0),
        kv_rank=config.number("kv_lora_rank"),
        index_heads=config.number("index_n_heads") if indexed else 0,
        index_dim=config.number("index_head_dim") if indexed else 0,
        index_topk=config.number("index_topk") if indexed else 0,
    )
