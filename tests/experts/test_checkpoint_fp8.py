"""Folders in block-scaled FP8: weights as their bytes and scales say, bytes and scales unchanged where slots hold FP8."""

import json

import pytest
import tiny
import tiny_fp8
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from janus import JanusError, JanusMoELayer
from janus.experts.checkpoint import Checkpoint
from janus.experts.layout import ExpertLayout
from janus.experts.slots import ExpertSlots, slice_expert

SMALL = dict(num_experts_per_tok=2, num_hidden_layers=2, hidden_size=192, mlp_only_layers=[])
# Hidden size 192: last blocks stick out everywhere. Of 256 rows each, gate and up join block by block; of 96 they do not.
FOLDERS = {
    "qwen3_moe": ("qwen3_moe", SMALL | dict(num_experts=4, moe_intermediate_size=256)),
    "deepseek_v3": (
        "deepseek_v3",
        SMALL | dict(n_routed_experts=8, n_group=2, topk_group=1, moe_intermediate_size=128),
    ),
    "torn": ("qwen3_moe", SMALL | dict(num_experts=4, moe_intermediate_size=96)),
    "torn, as many scales": ("qwen3_moe", SMALL | dict(num_experts=4, moe_intermediate_size=64)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = {}
    for name, (family, sizes) in FOLDERS.items():
        folder = tmp_path_factory.mktemp("fp8")
        dtype = torch.bfloat16 if name == "deepseek_v3" else torch.float32  # Qwen and DeepSeek differ in it
        out[name] = (
            folder,
            *tiny_fp8.write(folder, tiny.build(family, **sizes), dtype, shards=3 if name == "qwen3_moe" else 1),
        )
    return out


PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def disk(tensors, block, e, name, suffix="weight"):
    return torch.cat([tensors[f"{block.name}.experts.{e}.{part}.{suffix}"] for part in PARTS[name]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FOLDERS)
def test_an_expert_is_what_its_bytes_and_scales_say(made, name, dtype):
    folder, _, plain = made[name]
    with Checkpoint(folder, dtype=dtype) as checkpoint:
        checkpoint.check_experts()
        for block in checkpoint.blocks:
            for e in (0, block.num_experts - 1):
                got = checkpoint.expert(block, e)
                assert got.keys() == PARTS.keys()
                for part, weight in got.items():
                    assert torch.equal(weight, disk(plain, block, e, part).to(dtype))


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_fp8_slots_hold_the_bytes_and_scales_of_the_folder(made, name):
    folder, stored, _ = made[name]
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.dtype == torch.bfloat16
        block = checkpoint.blocks[0]
        slots = ExpertSlots(ExpertLayout.of(block.experts), [3, 1], dtype=checkpoint.dtype, quantize="fp8")
        plain = ExpertSlots(slots.layout, [3, 1], dtype=checkpoint.dtype)
        for slot, e in enumerate(slots.experts):
            slots.fill(slot, checkpoint.stored_expert(block, e))
            plain.fill(slot, checkpoint.expert(block, e))
            for part in PARTS:
                bytes_, scales = slots.get_parameter(part)[slot], slots.get_parameter(part + "_scale")[slot]
                assert torch.equal(bytes_.view(torch.uint8), disk(stored, block, e, part).view(torch.uint8))
                assert torch.equal(scales, disk(stored, block, e, part, "weight_scale_inv").float())
    slots.verify()
    x, ids = torch.randn(7, 192, dtype=torch.bfloat16), torch.randint(2, (7, 2))
    weights = torch.ones(7, 2)
    assert torch.equal(slots.engine("eager")(x, ids, weights), plain.engine("eager")(x, ids, weights))


@pytest.mark.parametrize("name", ["torn", "torn, as many scales"])
def test_blocks_that_do_not_line_up_are_refused_as_bytes_and_read_as_weights(made, name):
    folder, _, _ = made[name]
    with Checkpoint(folder) as checkpoint:
        block = checkpoint.blocks[0]
        with pytest.raises(JanusError, match="do not line up") as error:
            checkpoint.stored_expert(block, 0)
        assert error.value.code == "checkpoint.quantized"
        slots = ExpertSlots(ExpertLayout.of(block.experts), [0], dtype=checkpoint.dtype, quantize="fp8")
        slots.fill(0, checkpoint.expert(block, 0))  # quantized anew
        slots.verify()


@pytest.mark.parametrize("name", ["torn", "qwen3_moe"])
def test_a_layer_without_8_bits_takes_any_folder_of_them_dequantized(made, name):
    folder, _, _ = made[name]
    layer = JanusMoELayer.from_checkpoint(folder, dtype=torch.float32)
    with Checkpoint(folder, dtype=torch.float32) as checkpoint:
        for e in (0, 3):
            want = checkpoint.expert(checkpoint.blocks[0], e)
            assert all(torch.equal(part, want[name]) for name, part in layer.slots.weights(e).items())


def test_transformers_reads_the_same_weights_of_whole_blocks():
    stored, plain = tiny_fp8.to_fp8({"a": torch.randn(256, 384)})
    theirs = Fp8Dequantize(None)._dequantize_one(stored["a"], stored["a_scale_inv"])
    assert torch.equal(theirs, plain["a"])


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_the_attention_side_and_the_routers_are_dequantized_too(made, name):
    folder, _, plain = made[name]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    with Checkpoint(folder, dtype=torch.float32) as checkpoint:
        loaded = checkpoint.load_attention_side()
        routers = [checkpoint.router(block) for block in checkpoint.blocks]
    got = loaded.state_dict()
    want = {k: v.float() for k, v in plain.items() if ".experts." not in k}
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)
    assert loaded.generation_config.eos_token_id == [7, 9]
    assert not hasattr(loaded.config, "quantization_config")
    assert all(
        torch.equal(r.weight, want[f"model.layers.{b.layer_id}.mlp.gate.weight"])
        for r, b in zip(routers, checkpoint.blocks, strict=True)
    )


def test_fused_transposed_experts_with_biases(tmp_path):
    torch.manual_seed(0)
    sizes = tiny.BASE | dict(
        num_local_experts=4, head_dim=16, hidden_size=192, intermediate_size=130, num_hidden_layers=1
    )
    model = transformers.AutoModelForCausalLM.from_config(transformers.GptOssConfig(**sizes), dtype=torch.float32)
    stored, plain = tiny_fp8.write(tmp_path, model)
    with Checkpoint(tmp_path) as checkpoint:
        block = checkpoint.blocks[0]
        slots = ExpertSlots(ExpertLayout.of(block.experts), [2], dtype=checkpoint.dtype, quantize="fp8")
        slots.fill(0, checkpoint.stored_expert(block, 2))
        got = checkpoint.expert(block, 2)
        for name, weight in slots.weights(0).items():
            key = f"{block.name}.experts.{name}"
            assert torch.equal(weight, plain[key][2].to(checkpoint.dtype))
            assert torch.equal(weight, got[name])
            assert torch.equal(slots.get_parameter(name)[0].float(), stored[key][2].float())
        assert tuple(slots.down_proj_scale.shape) == (1, 2, 2)
        assert torch.equal(slots.down_proj_scale[0], stored[f"{block.name}.experts.down_proj_scale_inv"][2].mT)


def test_a_folder_without_fp8_hands_out_its_weights_either_way(tmp_path):
    model = tiny.build("mixtral", num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        got, want = (
            checkpoint.stored_expert(checkpoint.blocks[0], 3),
            slice_expert(model.model.layers[0].mlp.experts, 3),
        )
        assert got.keys() == want.keys()
        assert all(torch.equal(got[k], want[k]) for k in want)
        with pytest.raises(JanusError, match="none is 16"):
            checkpoint.stored_expert(checkpoint.blocks[0], 16)


EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
BROKEN = {
    "no scales": (lambda t: t.pop(EXPERT + "_scale_inv"), "checkpoint.missing", "its scales are missing"),
    "no matrix": (lambda t: t.pop(EXPERT), "checkpoint.missing", "one tensor per expert"),
    "other blocks": (lambda t: t.update({EXPERT + "_scale_inv": torch.ones(4, 3)}), "checkpoint.corrupt", "per block"),
    "bytes as scales": (
        lambda t: t.update({EXPERT + "_scale_inv": torch.ones(2, 2, dtype=torch.uint8)}),
        "checkpoint.corrupt",
        "torch.uint8",
    ),
    "a scale is no number": (
        lambda t: t.update({EXPERT + "_scale_inv": torch.full((2, 2), torch.nan)}),
        "checkpoint.corrupt",
        "not finite",
    ),
    "scales beside bfloat16": (
        lambda t: t.update({EXPERT: torch.ones(256, 192, dtype=torch.bfloat16)}),
        "checkpoint.corrupt",
        "torch.bfloat16",
    ),
    "e5m2": (
        lambda t: t.update({EXPERT: torch.ones(256, 192).to(torch.float8_e5m2)}),
        "checkpoint.corrupt",
        "torch.float8_e5m2",
    ),
    "e5m2 without scales": (
        lambda t: t.update({EXPERT: torch.ones(256, 192).to(torch.float8_e5m2), EXPERT + "_scale_inv": None}),
        "checkpoint.missing",
        "its scales are missing",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_damaged_folder_is_refused(tmp_path, how):
    stored, _ = tiny_fp8.write(tmp_path, tiny.build("qwen3_moe", **FOLDERS["qwen3_moe"][1]))
    change, code, words = BROKEN[how]
    change(stored)
    save_file({k: t for k, t in stored.items() if t is not None}, tmp_path / "model.safetensors")
    ways = [lambda c: c.check_experts()] if code == "checkpoint.missing" else []  # before any weight is read
    if how != "no matrix":  # its neighbours would take its place
        ways += [lambda c: c.expert(c.blocks[1], 2), lambda c: c.stored_expert(c.blocks[1], 2)]
    for way in ways:
        with pytest.raises(JanusError) as error, Checkpoint(tmp_path) as checkpoint:
            way(checkpoint)
        assert error.value.code == code
        assert words in error.value.message


def test_attention_weights_without_scales_are_refused(tmp_path):
    stored, _ = tiny_fp8.write(tmp_path, tiny.build("qwen3_moe", **FOLDERS["qwen3_moe"][1]))
    del stored["model.layers.0.self_attn.q_proj.weight_scale_inv"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(JanusError, match=r"q_proj\.weight is stored") as error, Checkpoint(tmp_path) as checkpoint:
        checkpoint.load_attention_side()
    assert error.value.code == "checkpoint.missing"


def test_scales_count_whatever_the_config_says(tmp_path):
    tiny_fp8.write(tmp_path, tiny.build("qwen3_moe", **FOLDERS["torn"][1]))
    with Checkpoint(tmp_path) as checkpoint:
        want = checkpoint.expert(checkpoint.blocks[0], 1)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with Checkpoint(tmp_path) as checkpoint:
        assert all(torch.equal(want[k], w) for k, w in checkpoint.expert(checkpoint.blocks[0], 1).items())


def test_the_way_out_of_mxfp4_that_the_refusal_names(tmp_path):
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    sizes = tiny.BASE | dict(num_local_experts=4, head_dim=16, intermediate_size=64, num_hidden_layers=1)
    transformers.AutoModelForCausalLM.from_config(transformers.GptOssConfig(**sizes)).save_pretrained(packed)
    tensors = load_file(packed / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj") and ".experts." in name]:
        experts, ins, outs = tensors.pop(name).shape
        tensors[name + "_blocks"] = torch.randint(256, (experts, outs, ins // 32, 16), dtype=torch.uint8)
        tensors[name + "_scales"] = torch.randint(118, 124, (experts, outs, ins // 32), dtype=torch.uint8)
    save_file(tensors, packed / "model.safetensors")
    config = json.loads((packed / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (packed / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    with pytest.raises(JanusError, match=r"Mxfp4Config\(dequantize=True\).*save_original_format=False"):
        Checkpoint(packed)
    opened = transformers.Mxfp4Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(packed, quantization_config=opened)
    model.save_pretrained(plain, save_original_format=False)
    with Checkpoint(plain) as checkpoint:
        checkpoint.check_experts()
        got = checkpoint.expert(checkpoint.blocks[0], 1)
    want = slice_expert(model.model.layers[0].mlp.experts, 1)
    assert all(torch.equal(got[name], want[name]) for name in want)
