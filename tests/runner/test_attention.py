"""The stand-ins on the attention side: same contract as what they replace, no weights, no invented numbers."""

from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers

from janus import JanusError
from janus.experts.seam import find_blocks
from janus.runner.attention import ExpertLink, RemoteExperts, RemoteRouter, disaggregate
from janus.runner.clock import Clock


@pytest.mark.parametrize("gate", ["experts", "attention"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_stand_ins_take_the_weights_away_and_leave_the_rest(family, gate):
    model = tiny.build(family)
    blocks = find_blocks(model)
    others = {k for k in model.state_dict() if ".experts." not in k and not (gate == "experts" and ".mlp.gate." in k)}
    assert disaggregate(model, blocks, None, gate) is model
    assert set(model.state_dict()) == others
    assert sum(isinstance(m, RemoteExperts) for m in model.modules()) == len(blocks)
    assert sum(isinstance(m, RemoteRouter) for m in model.modules()) == (len(blocks) if gate == "experts" else 0)
    with torch.inference_mode():
        logits = model(torch.arange(3, 12)[None]).logits  # without a link the experts add nothing
    assert logits.shape == (1, 9, 256)
    assert logits.isfinite().all()


def test_placeholders_have_the_routers_shapes_and_nothing_else_is_invented():
    block = find_blocks(tiny.build("deepseek_v3"))[0]
    router = block.need_router()
    real = block.block.gate(torch.randn(1, 5, 64))
    stand_in = RemoteRouter(router, block.top_k, block.weights_dtype)(torch.randn(1, 5, 64))
    assert len(stand_in) == len(real)
    for i in (router.ids_at, router.weights_at):
        assert (stand_in[i].shape, stand_in[i].dtype) == (real[i].shape, real[i].dtype)
    assert [x is None for x in stand_in] == [i not in (router.ids_at, router.weights_at) for i in range(3)]


def test_a_block_that_needs_the_routers_logits_is_refused_with_the_remedy():
    model = tiny.build("mixtral")
    blocks = find_blocks(model)
    mlp = type(blocks[0].block)

    class Curious(mlp):
        def forward(self, hidden):
            logits, weights, ids = self.gate(hidden.view(-1, 64))
            return self.experts(hidden.view(-1, 64), ids, weights).view_as(hidden) * logits.sum()

    for block in blocks:
        block.block.__class__ = Curious
    with pytest.raises(JanusError, match="use gate='attention'") as error:
        disaggregate(model, find_blocks(model), None, "experts")
    assert error.value.code == "model.router"
    disaggregate(tiny.build("mixtral"), blocks, None, "attention")


class Wire:
    """An exchange that notes what was asked of it; the experts add nothing."""

    def __init__(self, others: int):
        self.others, self.log = others, []

    def begin(self, b):
        self.log.append(f"begin {b}")
        return SimpleNamespace(closed=False, total=b + self.others)

    def dispatch(self, x, *, layer):
        self.log.append(f"layer {layer}: {len(x)}")
        return x

    def combine(self, handle):
        return handle


@pytest.fixture
def linked():
    def make(others=0):
        blocks, wire = find_blocks(tiny.build("olmoe")), Wire(others)
        return ExpertLink(wire, blocks, None, "batch", Clock(), torch.float32), wire

    return make


def carry(link, layer, tokens):
    return link.carry(layer, torch.ones(tokens, 64), torch.zeros(tokens, 3).long(), torch.ones(tokens, 3))


def test_a_forward_opens_one_step_with_or_without_tokens_of_its_own(linked):
    link, wire = linked(others=5)
    for tokens in (2, 0):
        for layer in range(3):
            assert len(carry(link, layer, tokens)) == tokens
    assert wire.log == [x for n in (2, 0) for x in (f"begin {n}", *(f"layer {i}: {n}" for i in range(3)))]


def test_a_forward_in_which_nobody_has_tokens_is_one_begin_like_an_idle_step(linked):
    link, wire = linked()
    for layer in range(3):
        carry(link, layer, 0)
    assert not link.idle_step()
    assert wire.log == ["begin 0"] * 2


def test_after_a_forward_that_ended_halfway_the_next_is_refused(linked):
    link, wire = linked()
    carry(link, 0, 2)
    before = list(wire.log)
    for next_one in (lambda: carry(link, 0, 2), link.idle_step, lambda: carry(link, 2, 2)):
        with pytest.raises(JanusError, match="expected layer 1") as error:
            next_one()
        assert error.value.code == "runner.step"
    assert wire.log == before  # nothing was sent that other ranks would wait for


LATENT = dict(
    layers_block_type=["full_attention", "moe"], n_routed_experts=8, moe_intermediate_size=32, moe_latent_size=32, n_group=2,
    topk_group=1, mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, n_groups=1, num_nextn_predict_layers=0, head_dim=16,
    num_experts_per_tok=2, moe_shared_expert_intermediate_size=32,
)  # fmt: skip


def test_experts_that_work_on_a_projection_of_the_hidden_states_are_served_too():
    config = transformers.NemotronHConfig(**({k: v for k, v in tiny.BASE.items() if k != "num_hidden_layers"} | LATENT))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    blocks = find_blocks(model)
    assert {b.hidden_size for b in blocks} == {32}  # of 64
    disaggregate(model, blocks, None, "attention")
    assert model(torch.arange(3, 12)[None]).logits.isfinite().all()


def test_a_block_that_cannot_run_with_stand_ins_is_refused_with_a_remedy_that_helps(monkeypatch):
    def fail(*_):
        raise TypeError("more, please")

    for gate, remedy in (("experts", "use gate='attention'"), ("attention", "not supported")):
        model = tiny.build("mixtral")
        blocks = find_blocks(model)
        monkeypatch.setattr(RemoteExperts, "forward", fail)
        with pytest.raises(JanusError, match=f"more, please.*{remedy}"):
            disaggregate(model, blocks, None, gate)
