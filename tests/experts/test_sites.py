"""Where experts are found: by the signature of a forward, in any attribute; and what is said when there are none."""

import pytest
import tiny
import torch
from torch import nn

from janus import JanusError, JanusMoELayer, Placement, convert
from janus.experts.sites import find_experts, is_experts, layer_id, shared_parts


def _experts():
    model = tiny.build("mixtral", num_hidden_layers=1)
    model.set_experts_implementation("eager")
    return model.model.layers[0].mlp.experts


class Unlike(nn.Module):
    """A block that cannot be probed: it needs a second input, and its experts have an unusual name."""

    def __init__(self, bank: nn.Module):
        super().__init__()
        self.choir = nn.ModuleDict({"tenors": bank})

    def forward(self, hidden, task):
        ids = (hidden.sum(1).long()[:, None] + task) % 16
        return self.choir["tenors"](hidden, ids, torch.ones_like(ids, dtype=hidden.dtype))


def test_a_block_that_cannot_be_run_alone_is_converted_all_the_same():
    block = Unlike(_experts())
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), block])})
    (site,) = find_experts(model)
    assert (site.name, site.attr, site.layer_id) == ("layers.1.choir", "tenors", 1)
    x = torch.randn(9, 64)
    want = block(x, 3)
    torch.testing.assert_close(convert(model)["layers"][1](x, 3), want, rtol=1e-4, atol=1e-5)
    assert isinstance(site.experts, JanusMoELayer)


def test_experts_that_two_layers_share_stay_shared():
    bank = _experts()
    model = nn.ModuleList([Unlike(bank), Unlike(bank), Unlike(_experts())])
    first, second = find_experts(model)
    assert (first.layer_id, second.layer_id, len(first.places)) == (0, 2, 2)
    convert(model, Placement.contiguous(16, 2))
    assert model[0].choir["tenors"] is model[1].choir["tenors"]
    assert model[0].choir["tenors"] is not model[2].choir["tenors"]


def test_the_signature_counts_and_not_the_name():
    class Experts(nn.Module):
        def forward(self, hidden_states, top_k_weights, top_k_index): ...

    class Anything(nn.Module):
        def forward(self, hidden_states, router_indices=None, routing_weights=None): ...

    assert not is_experts(Experts())
    assert is_experts(Anything())


class Near(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_experts, self.stacked = 4, nn.Parameter(torch.zeros(4, 2, 2))

    def forward(self, routed_input, gains): ...


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(2, 2), "needs a Mixture-of-Experts model"),
        (nn.Sequential(nn.Linear(2, 2), Near()), r"closest is Near, whose forward takes \(routed_input, gains\)"),
    ],
)
def test_a_model_without_experts_is_told_what_comes_closest(model, words):
    with pytest.raises(JanusError, match=words) as error:
        find_experts(model)
    assert error.value.code == "model.no_experts"


def test_an_experts_module_alone_is_no_model():
    with pytest.raises(JanusError, match="use JanusMoELayer") as error:
        convert(_experts())
    assert error.value.code == "model.no_experts"


def test_parts_beside_the_matrices_are_those_with_state():
    experts = _experts()
    assert shared_parts(experts) == {}  # the activation has none
    experts.norm, experts.scale = nn.LayerNorm(64), nn.Identity()
    experts.scale.register_buffer("by", torch.ones(1))
    assert set(shared_parts(experts)) == {"norm", "scale"}


@pytest.mark.parametrize(
    ("path", "number"),
    [("model.layers.3.mlp", 3), ("model.vision.blocks.12", 12), ("mlp", 0), ("a.layer2.4.x.7", 4)],
)
def test_the_number_of_a_layer_is_the_first_in_its_path(path, number):
    assert layer_id(path) == number
