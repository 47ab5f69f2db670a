"""ModelSpec: parameter totals against the published ones, memory by hand, errors that name the field."""

import json
from importlib.resources import files

import pytest
import tiny

from janus import JanusError
from janus.scale.configs import FAMILIES, shipped_names
from janus.scale.model import ModelSpec

# Published totals in billions. They are printed with two to four digits, so 0.5 % covers their rounding; Kimi-K2 is
# printed as "1T" or 1.03T (0.4 % off). What is left out (multi-token prediction, fp8 scales) is not in them either.
PUBLISHED = {
    "deepseek-v2": 236,
    "deepseek-v2-lite": 15.7,
    "deepseek-v3": 671,
    "deepseek-r1": 671,
    "mixtral-8x7b": 46.7,
    "mixtral-8x22b": 141,
    "qwen3-235b-a22b": 235,
    "qwen3-30b-a3b": 30.5,
    "olmoe-1b-7b": 6.9,
    "gpt-oss-120b": 117,
    "gpt-oss-20b": 20.9,
    "kimi-k2": 1030,
}
# Active parameters are printed with or without embeddings; 0.7 B either way for the smallest, 4 % for the large ones.
ACTIVE = {"deepseek-v2": 21, "deepseek-v3": 37, "mixtral-8x7b": 12.9, "qwen3-235b-a22b": 22, "gpt-oss-120b": 5.7}


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_is_the_published_one(name):
    assert ModelSpec.from_config(name).total_params / 1e9 == pytest.approx(PUBLISHED[name], rel=5e-3)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_is_the_published_one(name):
    assert ModelSpec.from_config(name).active_params / 1e9 == pytest.approx(ACTIVE[name], rel=4e-2)


def test_every_shipped_config_reads():
    assert len(shipped_names()) == 15
    for name in shipped_names():
        spec = ModelSpec.from_config(name)
        assert spec.name == name
        assert spec.routed_params < spec.total_params


def test_deepseek_v2_by_hand():
    m = ModelSpec.from_config("deepseek-v2")
    assert m.expert_params == 3 * 5120 * 1536
    assert m.expert_bytes == 2 * m.expert_params
    assert (m.layers, m.dense_layers, m.moe_layers, m.shared_width) == (60, 1, 59, 3072)
    assert m.kv_bytes_per_token() == 2 * (512 + 64)
    assert m.kv_bytes_per_token("fp8") == 512 + 64
    assert m.kv_bytes(100) == 60 * 100 * 1152
    assert m.attention.kind == "mla"
    # absorbed form: scores over latent + position, values over the latent
    assert m.attention.flops_per_cached_token == 2 * 128 * (576 + 512)


def test_kinds_of_attention():
    kinds = {name: ModelSpec.from_config(name).attention.kind for name in ("olmoe-1b-7b", "mixtral-8x7b", "kimi-k2")}
    assert kinds == {"olmoe-1b-7b": "mha", "mixtral-8x7b": "gqa", "kimi-k2": "mla"}


def test_sliding_window_caps_half_of_the_layers():
    m = ModelSpec.from_config("gpt-oss-120b")
    assert (m.attention.window, m.attention.window_layers) == (128, 18)
    assert m.kv_bytes(1128) == (18 * 1128 + 18 * 128) * 2 * 8 * 64 * 2
    assert m.kv_bytes(100) == 36 * 100 * 2 * 8 * 64 * 2


def test_sparse_attention_looks_at_its_top_tokens_but_keeps_all():
    m = ModelSpec.from_config("deepseek-v3.2")
    assert m.attention.attended(10_000, m.layers) == 61 * 2048
    assert m.attention.kept(10_000, m.layers) == 61 * 10_000
    assert m.kv_bytes_per_token() == 2 * 576 + 128 * (1 + 4 / 128)


def test_quantization_is_read_and_overridden():
    v3, oss = ModelSpec.from_config("deepseek-v3"), ModelSpec.from_config("gpt-oss-120b")
    assert (v3.expert_dtype, v3.dense_dtype, oss.expert_dtype, oss.dense_dtype) == ("fp8", "fp8", "mxfp4", "bf16")
    assert ModelSpec.from_config("deepseek-v2", expert_dtype="fp8").expert_bytes == 3 * 5120 * 1536


def test_dense_layers_of_qwen_fields():
    config = {
        "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "intermediate_size": 128, "vocab_size": 100, "mlp_only_layers": [1], "decoder_sparse_step": 2,
    }  # fmt: skip
    spec = ModelSpec.from_config(config)  # layers 1, 3, 5 are sparse by step, 1 is dense by name
    assert (spec.moe_layers, spec.dense_width, spec.attention.head_dim) == (2, 128, 16)


@pytest.mark.parametrize("field", ["hidden_size", "kv_lora_rank", "n_routed_experts", "vocab_size"])
def test_a_missing_field_is_named_with_its_file(field, tmp_path, root_config):
    del root_config[field]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(root_config))
    for source in (path, tmp_path):  # a file, or the folder that holds it
        with pytest.raises(JanusError) as error:
            ModelSpec.from_config(source)
        assert error.value.code == "model.config"
        assert field in str(error.value)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("value", [0, -3, 2.5, "many", True])
def test_a_nonsense_field_is_refused(value, root_config):
    with pytest.raises(JanusError, match="hidden_size"):
        ModelSpec.from_config({**root_config, "hidden_size": value})


def test_unknown_names_list_the_known_ones(tmp_path, root_config):
    with pytest.raises(JanusError, match="deepseek-v2-lite"):
        ModelSpec.from_config("deepseek-v9")
    with pytest.raises(JanusError, match="gpt_oss"):
        ModelSpec.from_config({**root_config, "model_type": "llama"})
    with pytest.raises(JanusError, match="expert_dtype"):
        ModelSpec.from_config("deepseek-v2", expert_type="fp8")
    with pytest.raises(JanusError, match="mxfp4"):
        ModelSpec.from_config("deepseek-v2", expert_dtype="int3")
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(JanusError, match="not JSON"):
        ModelSpec.from_config(tmp_path)


def test_shipped_configs_are_the_public_ones(shared):
    def key(spec):
        return {k: v for k, v in vars(spec).items() if k != "name"}

    files = sorted((shared / "data" / "model_configs").glob("*_config.json"))
    public = [key(ModelSpec.from_config(f)) for f in files]
    ours = [key(ModelSpec.from_config(name)) for name in shipped_names()]
    assert len(files) == len(ours)
    assert all(spec in public for spec in ours)


def test_families_cover_the_promised_ones():
    assert {"mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "kimi_k2", "gpt_oss", "olmoe"} < set(FAMILIES)


@pytest.fixture
def root_config():
    return {
        "model_type": "deepseek_v2", "hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 8, "q_lora_rank": None, "kv_lora_rank": 64,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 16,
        "n_shared_experts": 2, "num_experts_per_tok": 4, "first_k_dense_replace": 1, "vocab_size": 1000,
    }  # fmt: skip


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_folder_saved_again_by_transformers_reads_like_the_models_own(family, tmp_path):
    spec = ModelSpec.from_config(tiny.save(family, tmp_path))
    dense = {"qwen3_moe": 1, "deepseek_v2": 1, "deepseek_v3": 1}.get(family, 0)
    assert (spec.experts, spec.top_k, spec.hidden, spec.layers, spec.moe_layers) == (16, 3, 64, 3, 3 - dense)


OSS = {
    "model_type": "gpt_oss", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32, "vocab_size": 100,
    "sliding_window": 10,
}  # fmt: skip


def test_windows_by_hand():
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    assert ModelSpec.from_config({**OSS, "layer_types": kinds}).attention.window_layers == 3
    assert ModelSpec.from_config(OSS).attention.window_layers == 4  # no kinds given: every layer
    off = ModelSpec.from_config({**OSS, "use_sliding_window": False}).attention
    assert (off.window, off.window_layers, off.kept(100, 4)) == (0, 0, 400)


def test_gpt_oss_by_hand():
    """Every bias is counted: q, k, v, o, a sink per head, 2F + H per expert, one per expert in the router."""
    spec = ModelSpec.from_config(OSS)
    assert spec.attention_params == 64 * (64 + 2 * 32) + 64 * 64 + (64 + 2 * 32 + 64) + 4
    assert spec.expert_params == 3 * 64 * 32 + 2 * 32 + 64
    assert spec.router_params == 8 * 65
    assert ModelSpec.from_config({**OSS, "attention_bias": False}).attention_params == 64 * 128 + 64 * 64 + 4
    tied = ModelSpec.from_config({**OSS, "tie_word_embeddings": True})
    assert spec.total_params - tied.total_params == 100 * 64


def test_sparse_layers_by_frequency(root_config):
    """Of 8 layers the first 2 are dense, and of the others every third by its number: 3 and 6."""
    config = {**root_config, "num_hidden_layers": 8, "first_k_dense_replace": 2, "moe_layer_freq": 3}
    assert ModelSpec.from_config(config).moe_layers == 2
    with pytest.raises(JanusError, match="no layer with routed experts"):
        ModelSpec.from_config({**config, "first_k_dense_replace": 8})


def test_an_unknown_quantization_is_refused_with_the_remedy(root_config):
    with pytest.raises(JanusError, match=r"got 'gptq'.*expert_dtype=") as error:
        ModelSpec.from_config({**root_config, "quantization_config": {"quant_method": "gptq"}})
    assert error.value.code == "model.config"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be <= 10000"),  # would be listed one by one
        ({"hidden_size": 10**30}, "hidden_size is"),
        ({"quantization_config": "fp8"}, "quantization_config in the dict given must be a dict"),
        ({"quantization_config": {"quant_method": ["fp8"]}}, "quant_method"),
    ],
)
def test_a_config_of_nonsense_is_refused_soon(changed, says):
    shipped = json.loads((files("janus") / "data" / "configs" / "deepseek-v2-lite.json").read_text())
    with pytest.raises(JanusError, match=says) as error:
        ModelSpec.from_config({**shipped, **changed})
    assert error.value.code == "model.config"


def test_layers_without_experts_are_a_list_of_numbers():
    shipped = json.loads((files("janus") / "data" / "configs" / "qwen3-30b-a3b.json").read_text())
    for wrong in (5, "all", {"a": 1}):
        with pytest.raises(JanusError, match="mlp_only_layers"):
            ModelSpec.from_config({**shipped, "mlp_only_layers": wrong})
    assert ModelSpec.from_config({**shipped, "mlp_only_layers": [0, [1], None]}).dense_layers == 1


@pytest.mark.parametrize("content", [b"\xff{}", b"[" * 100_000, b'{"a": NaN}', b"[]"])
def test_a_config_file_of_bytes_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(JanusError) as error:
        ModelSpec.from_config(tmp_path)
    assert error.value.code == "model.config"
