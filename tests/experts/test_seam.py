"""What a probing forward finds in real families; on the meta device and live."""

import pytest
import tiny
import torch
from torch import nn

from janus import JanusError
from janus.experts.seam import find_blocks
from janus.experts.sites import count_experts, is_experts


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_block_of_a_family_is_found_with_its_router(family):
    model = tiny.build(family)
    blocks = find_blocks(model)
    dense = {"qwen3_moe": {1}, "deepseek_v2": {0}, "deepseek_v3": {0}}.get(family, set())
    assert [b.layer_id for b in blocks] == [i for i in range(3) if i not in dense]
    for block in blocks:
        assert (block.num_experts, block.hidden_size, block.top_k) == (16, 64, 3)
        router = block.need_router()
        assert (router.attr, router.ids_at, router.weights_at) == ("gate", 2, 1)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_probe_leaves_the_model_as_it_was(family):
    model = tiny.build(family)
    before = {name: type(module) for name, module in model.named_modules()}
    ids = torch.arange(3, 20)[None]
    logits = model(ids).logits
    find_blocks(model)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(ids).logits, logits)


def test_a_model_without_experts_is_refused_by_name():
    with pytest.raises(JanusError, match="Linear has no module whose forward takes") as error:
        find_blocks(nn.Linear(2, 2))
    assert error.value.code == "model.no_experts"


class Block(nn.Module):
    """A block whose router takes a second argument: it cannot be asked from another process."""

    def __init__(self, router: nn.Module):
        super().__init__()
        self.gate = router
        self.experts = tiny.build("mixtral", num_hidden_layers=1).model.layers[0].mlp.experts

    def forward(self, hidden):
        hidden = hidden.view(-1, 64)
        weights, ids = self.gate(hidden, 2) if isinstance(self.gate, TwoArguments) else self.gate(hidden)
        return self.experts(hidden, ids, weights)


class TwoArguments(nn.Module):
    def forward(self, hidden, k):
        return hidden.softmax(-1).topk(k)


class Shifted(nn.Module):
    def forward(self, hidden):
        return (hidden + 0).softmax(-1).topk(2)


def _model(block: nn.Module) -> nn.Module:
    model = nn.Module()
    model.mlp = block
    model.config = tiny.build("mixtral", num_hidden_layers=1).config
    return model


def test_a_router_with_more_arguments_is_named_as_the_reason():
    (block,) = find_blocks(_model(Block(TwoArguments())))
    with pytest.raises(JanusError, match="takes more than the hidden states; use gate='attention'") as error:
        block.need_router()
    assert error.value.code == "model.router"


def test_a_router_on_the_experts_input_is_accepted_and_one_on_something_else_is_not():
    (block,) = find_blocks(_model(Block(Shifted())))
    assert block.need_router().attr == "gate"

    class Elsewhere(Block):
        def forward(self, hidden):
            hidden = hidden.view(-1, 64)
            weights, ids = self.gate(hidden * 2)
            return self.experts(hidden, ids, weights)

    (block,) = find_blocks(_model(Elsewhere(Shifted())))
    assert block.router is None
    assert "something else than the experts' input" in block.why_no_router


def test_a_block_that_never_calls_its_experts_is_refused():
    class Silent(Block):
        def forward(self, hidden):
            return hidden

    with pytest.raises(JanusError, match="did not call its experts") as error:
        find_blocks(_model(Silent(Shifted())))
    assert error.value.code == "model.block"


def test_parameters_without_a_common_expert_dimension_are_refused():
    experts = tiny.build("mixtral", num_hidden_layers=1).model.layers[0].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj[:-1])
    assert is_experts(experts)
    with pytest.raises(JanusError, match="one leading expert dimension") as error:
        count_experts(experts)
    assert error.value.code == "model.experts"
