"""Layouts beyond the common one, in memory and on disk: transposed, biased, interleaved, without a gate, fused, sharded."""

import copy
import json
import warnings

import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from janus import JanusError
from janus.experts.checkpoint import Checkpoint
from janus.experts.layout import ExpertLayout
from janus.experts.slots import ExpertSlots, slice_expert

E, H, F = 6, 16, 12


def _config(cls, **fields):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = cls(hidden_size=H, intermediate_size=F, **fields)
    config._experts_implementation = "eager"
    return config


def _made(experts):
    torch.manual_seed(0)
    for p in experts.parameters():
        torch.nn.init.normal_(p, std=0.5)  # biases too: a bias of zero would hide that it is left out
    return experts.eval()


MODULES = {
    "gpt_oss": lambda: GptOssExperts(_config(transformers.GptOssConfig, num_local_experts=E)),
    "aria": lambda: AriaExperts(_config(transformers.AriaTextConfig, moe_num_experts=E, num_attention_heads=2)),
    "nemotron_h": lambda: NemotronHExperts(
        _config(transformers.NemotronHConfig, n_routed_experts=E, moe_intermediate_size=F, mlp_hidden_act="relu2")
    ),
}
EXPERTS = {name: _made(make()) for name, make in MODULES.items()}


def _batch(tokens, top_k, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.rand(tokens, E, generator=g).argsort(dim=1)[:, :top_k]
    return torch.randn(tokens, H, generator=g), ids, torch.rand(tokens, top_k, generator=g)


@pytest.mark.parametrize(
    ("name", "gate", "bias", "transposed"),
    [("gpt_oss", True, True, True), ("aria", True, False, True), ("nemotron_h", False, False, False)],
)
def test_the_layout_is_read(name, gate, bias, transposed):
    layout = ExpertLayout.of(EXPERTS[name])
    assert (layout.has_gate, layout.has_bias, layout.is_transposed) == (gate, bias, transposed)
    assert layout.hidden_size == H
    assert layout.up == ("gate_up_proj" if gate else "up_proj")


@pytest.mark.parametrize("name", MODULES)
@given(st.permutations(range(E)), st.integers(1, 9), st.integers(1, E), st.integers(0, 2))
@settings(max_examples=10, deadline=None)
def test_bit_equal_to_transformers_in_any_slot(name, order, tokens, top_k, empty):
    slots = ExpertSlots.from_module(EXPERTS[name], [*[-1] * empty, *order], compute="eager")
    x, ids, weights = _batch(tokens, top_k)
    where = torch.tensor(order).argsort() + empty
    assert torch.equal(slots(x, where[ids], weights), EXPERTS[name](x, ids, weights))


@pytest.mark.parametrize("name", MODULES)
def test_each_layout_verifies_and_a_changed_one_does_not(name):
    slots = ExpertSlots.from_module(EXPERTS[name], range(E))
    slots.verify()
    other = copy.copy(slots.layout)
    object.__setattr__(other, "shapes", slots.layout.shapes)
    slots.layout = copy.copy(slots.layout)
    if slots.layout.has_bias:
        object.__setattr__(
            slots.layout, "run", lambda w, x: other.run({k: v for k, v in w.items() if "bias" not in k}, x)
        )
    else:
        object.__setattr__(slots.layout, "run", lambda w, x: 1.01 * other.run(w, x))
    with pytest.raises(JanusError) as error:
        slots.verify()
    assert error.value.code == "model.mismatch"


def test_replicas_of_one_expert_share_its_tokens():
    """Two slots of the same expert: whichever serves a token, the sum is that of the expert."""
    slots = ExpertSlots.from_module(EXPERTS["gpt_oss"], [0, 1, 2, 3, 4, 5, 2, 2])
    x, ids, weights = _batch(30, 2)
    spread = torch.where((ids == 2) & (torch.arange(30)[:, None] % 3 > 0), 5 + torch.arange(30)[:, None] % 3, ids)
    assert {6, 7} <= set(spread.flatten().tolist())
    # another split of the tokens over matrix products: float32 rounding of sums of 16 terms
    torch.testing.assert_close(slots(x, spread, weights), EXPERTS["gpt_oss"](x, ids, weights), rtol=1e-5, atol=1e-5)


GPT_OSS = dict(num_local_experts=16, head_dim=16, sliding_window=8)


def _gpt_oss():
    torch.manual_seed(0)
    config = transformers.GptOssConfig(**(tiny.BASE | GPT_OSS))
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Experts fused on disk, in several files."""
    folder = tmp_path_factory.mktemp("sharded")
    model = _gpt_oss()
    for name, p in model.named_parameters():
        if name.endswith("_bias"):
            torch.nn.init.normal_(p)
    model.save_pretrained(folder, max_shard_size="600KB")
    return folder, model


def test_fused_tensors_in_shards_are_read_by_the_expert(sharded):
    folder, model = sharded
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(names.values())) > 2
    assert not any(".experts.0." in name for name in names)  # fused: no tensor per expert
    with Checkpoint(folder) as checkpoint:
        checkpoint.check_experts()
        for block in checkpoint.blocks:
            live = model.get_submodule(f"{block.name}.{block.experts_attr}")
            for e in (0, 5, 15):
                got, want = checkpoint.expert(block, e), slice_expert(live, e)
                assert got.keys() == want.keys()
                assert all(torch.equal(got[name], want[name]) for name in want)
        loaded = checkpoint.load_attention_side().state_dict()
    want = {k: v for k, v in model.state_dict().items() if ".experts." not in k}
    assert loaded.keys() == want.keys()
    assert all(torch.equal(loaded[k], want[k]) for k in want)


def test_shards_of_a_family_with_one_tensor_per_expert(tmp_path):
    model = tiny.build("mixtral")
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    names = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    first = {file for name, file in names.items() if ".layers.1." in name and ".experts." in name}
    assert len(first) > 1  # one layer's experts lie in more than one file
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.check_experts()
        block = checkpoint.blocks[1]
        live = model.get_submodule(f"{block.name}.{block.experts_attr}")
        for e in range(16):
            got, want = checkpoint.expert(block, e), slice_expert(live, e)
            assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("e", [16, -1])
def test_an_expert_that_is_not_there_is_refused(sharded, tmp_path, e):
    for folder in (sharded[0], tiny.save("mixtral", tmp_path)):
        with Checkpoint(folder) as checkpoint, pytest.raises(JanusError) as error:
            checkpoint.expert(checkpoint.blocks[0], e)
        assert error.value.code in ("checkpoint.missing", "checkpoint.corrupt")


def test_a_fused_tensor_of_fewer_experts_is_refused(sharded, tmp_path):
    """The config says 16, the file holds 8: expert 3 alone would look right."""
    folder, _ = sharded
    config = json.loads((folder / "config.json").read_text())
    for path in folder.glob("model*"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_local_experts": 32}))
    with pytest.raises(JanusError) as error, Checkpoint(tmp_path) as checkpoint:
        checkpoint.check_experts()
    assert error.value.code in ("checkpoint.missing", "checkpoint.corrupt")
