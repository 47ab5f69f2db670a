"""Families of transformers, one of every kind of layout: right against float64, or refused with what differed."""

import importlib.util
import re
import sys

import families
import pytest
import torch

from janus import JanusError, JanusMoELayer, Placement, convert
from janus.experts.layout import ExpertLayout
from janus.experts.seam import find_blocks
from janus.experts.sites import find_experts

KINDS = {  # family -> what makes it special
    "qwen2_moe": "a shared expert with a gate of its own",
    "deepseek_v3": "groups, a correction bias, scaling, a dense first layer",
    "aria": "transposed",
    "gpt_oss": "transposed, biases, interleaved, clamped",
    "nemotron_h": "no gate, on a narrower latent width",
    "muse_spark": "a norm behind each expert",
    "gemma4": "experts called by the decoder layer; the router sees something else",
    "inkling2": "an activation of two arguments",
    "ernie4_5_vl_moe": "two banks of experts in a multimodal wrapper",
    "minimax_m2": "a correction bias that the block owns",
    "step3p7": "not decorated",
}
REFUSED = {
    "dbrx": ("model.experts", "DbrxExperts.*mlp.w1"),
    "longcat_flash": ("model.experts", r"LongcatFlashExperts.*gate_up_proj': \(12.*down_proj': \(8"),
    "llama4": ("model.no_experts", r"Llama4TextExperts, whose forward takes \(hidden_states\)"),
    "jetmoe": ("model.no_experts", r"JetMoeParallelExperts, whose forward takes \(inputs, expert_size\)"),
    "doge": ("model.no_experts", "DogeCDMoE"),
    "nllb_moe": ("model.no_experts", "NllbMoeExperts.*router_mask"),
    "switch_transformers": ("model.no_experts", "SwitchTransformersExperts.*selected_experts"),
    "vitpose_backbone": ("model.no_experts", r"VitPoseNaiveMoe, whose forward takes \(hidden_state, indices\)"),
}


@pytest.fixture(scope="module")
def prove(root):
    spec = importlib.util.spec_from_file_location("experts_families", root / "benchmarks/prove/experts_families.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    module.register()
    yield module
    del sys.modules[spec.name]


@pytest.mark.filterwarnings("ignore")  # remarks of transformers on configs this small
@pytest.mark.parametrize("family", KINDS)
def test_each_kind_of_family_is_computed_right(prove, family):
    outcome = prove.examine(family, True)
    assert outcome.passed, outcome
    assert (outcome.registered is None) == (family == "step3p7")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", REFUSED)
def test_what_is_not_supported_is_refused_with_what_differed(family):
    model = families.build(family)
    before = [type(m) for m in model.modules()]
    code, words = REFUSED[family]
    with pytest.raises(JanusError, match=words) as error:
        convert(model)
    assert error.value.code == code
    assert [type(m) for m in model.modules()] == before


def test_the_page_and_the_list_name_every_family_that_a_scan_finds(root, prove):
    found = families.scan()
    assert set(found) == set(families.listed())
    assert sum(found.values()) >= 64
    rows = dict(re.findall(r"^\| (\w+) \|.*\| (.+?) \|$", prove.PAGE.read_text(), re.M))
    rows.pop("family")
    assert set(rows) == set(found)
    assert {family for family, result in rows.items() if result.startswith("refused")} == set(REFUSED)
    assert not [family for family, result in rows.items() if "WRONG" in result]


def test_a_family_that_is_not_in_the_list_shows(prove):
    outcome = prove.examine("mixtral_of_tomorrow", True)
    assert not outcome.passed
    assert "unknown" in outcome.failure
    lost = {f["name"]: f for f in prove.figures_of([outcome])}["families neither right nor refused by name"]
    assert (lost["ok"], lost["note"]) == (False, "mixtral_of_tomorrow")


def test_the_seam_is_found_in_the_source():
    seam = "class A(nn.Module):\n    def forward(self, hidden_states, {0}, {1}): ...\n"
    assert families._has_seam(seam.format("router_indices=None", "routing_weights=None"))
    assert not families._has_seam(seam.format("selected_experts", "routing_weights"))


@pytest.mark.filterwarnings("ignore")
def test_the_norm_behind_each_expert_goes_where_the_slots_go():
    model = families.build("muse_spark")
    layer = JanusMoELayer(find_experts(model)[0].experts, Placement([[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 0, 1]], 8))
    assert "post_expert_norm.weight" in layer.state_dict()
    assert layer.slots.layout.norm is layer.slots.post_expert_norm
    assert layer.compute == "eager"
    with pytest.raises(JanusError, match="stands behind each expert"):
        JanusMoELayer(find_experts(model)[0].experts, compute="numba")
    x, ids, weights = torch.randn(5, layer.slots.layout.hidden_size), torch.arange(5)[:, None], torch.ones(5, 1)
    before = layer(x, ids, weights)
    with torch.no_grad():
        layer.slots.post_expert_norm.weight.mul_(-1)
    assert not torch.allclose(layer(x, ids, weights), before)
    assert layer.to(torch.bfloat16).slots.layout.norm.weight.dtype == torch.bfloat16
    with pytest.raises(JanusError, match=r"post_expert_norm.*expert pool") as error:
        find_blocks(model)
    assert error.value.code == "model.experts"


@pytest.mark.filterwarnings("ignore")
def test_the_norm_behind_quantized_experts_follows_a_cast():
    experts = find_experts(families.build("muse_spark"))[0].experts
    layer = JanusMoELayer(experts, quantize="int8").to(torch.bfloat16)
    assert layer.slots.layout.norm.weight.dtype == torch.bfloat16
    assert layer.slots.down_proj.dtype == torch.int8


@pytest.mark.filterwarnings("ignore")
def test_matrices_that_do_not_fit_together_are_refused():
    experts = find_experts(families.build("aria"))[0].experts
    experts.is_transposed = False
    with pytest.raises(JanusError, match=r"do not fit together \(gate and up, \[out, in\]\)") as error:
        ExpertLayout.of(experts)
    assert error.value.code == "model.experts"
