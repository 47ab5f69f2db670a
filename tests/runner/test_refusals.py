"""What a runner refuses in the process that made it, before it talks to anyone."""

import pytest
import tiny

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
        ({"placement": [[0, 1]]}, "placement.type", "janus.Placement, got list"),
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
