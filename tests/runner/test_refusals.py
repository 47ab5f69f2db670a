"""What a runner refuses in the process that made it, before it talks to anyone."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from janus import DisaggregatedRunner, JanusError, Placement, Topology

TOPOLOGY = Topology.parse("1A2E")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save("mixtral", tmp_path_factory.mktemp("model"))


def refused(model, **options) -> JanusError:
    with pytest.raises(JanusError) as error:
        DisaggregatedRunner(model, **({"topology": TOPOLOGY} | options))
    return error.value


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"topology": "1A2E"}, "runner.topology", "Topology.parse"),
        ({"gate": "router"}, "runner.gate", "'experts', 'attention'"),
        ({"scope": "node"}, "runner.scope", "'batch', 'rank'"),
        ({"compute": "fast"}, "experts.compute", "'auto', 'eager', 'numba', 'mixed', 'triton'; got 'fast'"),
        ({"quantize": "int4"}, "experts.quantize", "'int8', 'fp8'; got 'int4'"),
        ({"record": True, "gate": "attention"}, "runner.record", "gate='experts'"),
        (
            {"placement": Placement.contiguous(8, 2)},
            "placement.experts",
            "16 experts per layer, the placement is for 8",
        ),
        (
            {"placement": Placement.contiguous(16, 4)},
            "placement.instances",
            "4 expert instances, the topology 1A2E has 2",
        ),
        ({"placement": [[0, 1]]}, "placement.type", "janus.Placement, got [[0, 1]]"),
        ({"placement": Placement([[[*range(8)], [*range(8, 16)]]] * 2, 16)}, "placement.layers", "3 MoE layers"),
    ],
)
def test_options(folder, options, code, words):
    error = refused(folder, **options)
    assert error.code == code
    assert words in error.message


def test_something_that_is_no_model():
    assert refused(42).code == "runner.model"
    assert refused("no/such/folder").code == "checkpoint.folder"


def test_names_of_options_are_refused_before_the_model_is_opened():
    assert refused("no/such/folder", compute="fast").code == "experts.compute"
    assert refused("no/such/folder", quantize=8).code == "experts.quantize"


def test_without_a_launcher_the_remedy_is_named(folder, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "JANUS_RENDEZVOUS"):
        monkeypatch.delenv(name, raising=False)
    error = refused(folder)
    assert error.code.startswith("comm.")
    assert "torchrun" in error.message


def test_layers_that_differ_are_refused():
    model = tiny.build("mixtral")
    model.model.layers[1].mlp = tiny.build("mixtral", num_experts_per_tok=2).model.layers[1].mlp
    error = refused(model)
    assert error.code == "model.layers"
    assert "model.layers.0.mlp and model.layers.1.mlp differ" in error.message


@pytest.mark.parametrize("dtype", ["bfloat16", 16])
def test_a_dtype_is_torchs_own(folder, dtype):
    assert refused(folder, dtype=dtype).code == "runner.dtype"


def test_a_live_model_is_not_cast_silently_nor_left_as_it_is_silently():
    error = refused(tiny.build("mixtral"), dtype=torch.bfloat16)
    assert error.code == "runner.dtype"
    assert "model.to(torch.bfloat16)" in error.message


def test_routing_of_a_batch_that_a_lost_peer_cut_short_is_left_out():
    runner = object.__new__(DisaggregatedRunner)  # an expert rank after a PeerLost in layer 1 of its second batch
    recorded = [[np.full((n, 2), layer, dtype=np.int16) for n in sizes] for layer, sizes in ((0, (3, 2)), (1, (3,)))]
    runner.role, runner.record, runner._server = "expert", True, SimpleNamespace(recorded=recorded)
    runner.placement = Placement.contiguous(4, 2)
    assert runner.batch_sizes() == [3]
    assert runner.routing().ids[:, :, 0].tolist() == [[0, 1]] * 3
    recorded[1].clear()
    with pytest.raises(JanusError, match="nothing was recorded"):
        runner.routing()


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        (None, [5, 6], {5, 6}),
        (7, [5, 6], {7}),
        ([7, 0], 5, {7, 0}),
        (None, None, set()),
        (0, 5, {0}),
        ("absent", 5, {5}),
    ],
)
def test_end_of_sequence_ids_in_all_their_forms(generation, config, ids):
    text = SimpleNamespace(eos_token_id=config) if config is not None else SimpleNamespace()
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    if generation != "absent":
        model.generation_config = SimpleNamespace(eos_token_id=generation)
    runner = object.__new__(DisaggregatedRunner)
    runner.role, runner._model = "attention", model
    assert runner._stop_ids() == ids
