"""What ranks compare at start-up: the digests see what matters and nothing else."""

import pytest
import tiny
import tiny_fp8
import torch

from janus import JanusError, Placement, Topology
from janus.experts.checkpoint import Checkpoint
from janus.experts.live import LiveModel
from janus.experts.quantized import quantize
from janus.runner.check import _compare_routes, _route_digest, check_source, checked_placement, contract
from janus.runner.clock import Clock
from janus.runner.expert import ExpertServer
from janus.sched import Balancer

PLACEMENT = Placement.contiguous(16, 2)


def server(model, placement=PLACEMENT, instance=0, **kind) -> ExpertServer:
    balancer = Balancer(placement, max_tokens=64, device="cpu")
    source = model if isinstance(model, Checkpoint) else LiveModel(model)
    return ExpertServer(source, placement, instance, balancer, True, Clock(), **kind)


def test_equal_models_have_equal_contracts_and_others_do_not():
    same = [contract(LiveModel(tiny.build("olmoe")), PLACEMENT, {"balance": "exact"}) for _ in range(2)]
    assert same[0] == same[1]
    wider = contract(LiveModel(tiny.build("olmoe", hidden_size=96)), PLACEMENT, {"balance": "exact"})
    assert {k for k in wider if wider[k] != same[0][k]} == {"model", "weights"}
    drawn_again = contract(LiveModel(tiny.build("olmoe", seed=1)), PLACEMENT, {"balance": "exact"})
    assert {k for k in drawn_again if drawn_again[k] != same[0][k]} == {"weights"}
    moved = contract(LiveModel(tiny.build("olmoe")), Placement.contiguous(16, 4), {"balance": "exact"})
    assert {k for k in moved if moved[k] != same[0][k]} == {"placement"}


def test_where_a_model_lies_and_who_wrote_it_do_not_count():
    model = tiny.build("olmoe")
    before = contract(LiveModel(model), PLACEMENT, {})
    model.config._name_or_path, model.config.transformers_version = "elsewhere", "0"
    assert contract(LiveModel(model), PLACEMENT, {}) == before


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_routers_digest_is_the_same_on_every_instance_and_sees_its_weights(family):
    one, other = server(tiny.build(family)), server(tiny.build(family), instance=1)
    assert _route_digest(one, 0) == _route_digest(other, 0)
    with torch.no_grad():
        other.routers[0].weight.neg_()
    assert _route_digest(one, 0) != _route_digest(other, 0)


def test_a_digest_sees_a_difference_too_small_to_move_any_of_its_tokens():
    one, other = server(tiny.build("mixtral")), server(tiny.build("mixtral"), instance=1)
    other.routers[0].weight.data.mul_(1 + 1e-6)
    x = torch.randn(64, 64)
    assert torch.equal(one.route(0, x)[0], other.route(0, x)[0])
    assert _route_digest(one, 0) != _route_digest(other, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_have_digests_too(dtype):
    source = LiveModel(tiny.build("mixtral").to(dtype))
    assert contract(source, PLACEMENT, {}) == contract(LiveModel(tiny.build("mixtral").to(dtype)), PLACEMENT, {})
    assert _route_digest(server(source.model), 0) == _route_digest(server(source.model), 0)


def test_the_first_differing_layer_and_the_ranks_are_named():
    _compare_routes({4: ["a", "b"], 5: ["a", "b"]})
    with pytest.raises(JanusError, match=r"ranks 4 and 6 route .* MoE layer 1 \(1 layers in all\)") as error:
        _compare_routes({4: ["a", "b"], 5: ["a", "b"], 6: ["a", "c"]})
    assert error.value.code == "router.disagree"


def test_default_placement_gives_every_instance_its_share():
    topology = Topology.parse("1A3E")
    placement = checked_placement(None, LiveModel(tiny.build("mixtral")), topology)
    assert (placement.num_instances, placement.num_experts) == (3, 16)
    assert placement.logcnt.tolist() == [[1] * 16]


def test_router_logits_are_refused_for_one_gate_only():
    source = LiveModel(tiny.build("mixtral", output_router_logits=True))
    check_source(source, "attention")
    with pytest.raises(JanusError, match="output_router_logits"):
        check_source(source, "experts")


def test_a_server_holds_its_slots_and_routes_like_the_model():
    model = tiny.build("deepseek_v2")
    part = server(model, instance=1)
    assert [slots.experts for slots in part.slots] == [tuple(range(8, 16))] * 2
    x = torch.randn(7, 64)
    ids, weights = part.route(0, x)
    _, want_weights, want_ids = model.model.layers[1].mlp.gate(x[None])
    assert torch.equal(ids, want_ids)
    assert torch.equal(weights, want_weights)
    ids, weights = part.route(0, torch.empty(0, 64))
    assert ids.shape == weights.shape == (0, 3)


def test_a_server_takes_the_bytes_of_an_fp8_folder_where_its_slots_keep_them(tmp_path):
    tiny_fp8.write(tmp_path, tiny.build("mixtral", num_hidden_layers=1, intermediate_size=128))
    with Checkpoint(tmp_path, dtype=torch.float32) as source:
        block = source.blocks[0]
        kept, anew, plain = (server(source, instance=1, quantize=q).slots[0] for q in ("fp8", "int8", None))
        for name, part in source.stored_expert(block, 8).items():  # expert 8 is in slot 0 of instance 1
            assert torch.equal(kept.get_parameter(name)[0].view(torch.uint8), part.view(torch.uint8))
        for name, part in source.expert(block, 8).items():
            assert torch.equal(plain.get_parameter(name)[0], part)
            assert torch.equal(anew.get_parameter(name)[0], quantize(part, "int8")[0])


def test_a_server_refuses_a_way_that_cannot_run_before_it_reads_a_weight(monkeypatch):
    assert server(tiny.build("mixtral"), compute="eager").slots[0].compute == "eager"
    monkeypatch.setattr(LiveModel, "expert", lambda *_: pytest.fail("read"))
    with pytest.raises(JanusError, match=r"the weights are torch\.float64") as error:
        server(tiny.build("mixtral").double(), compute="numba")
    assert error.value.code == "experts.compute"
